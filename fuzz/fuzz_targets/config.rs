//! config.json's annotations, a process spec, resources. What is written is JSON, and writing it
//! again changes nothing.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = cleat::bundle::annotations_in(data);
    if let Ok(Some(text)) = cleat::spec::resources(data) {
        assert_eq!(cleat::spec::resources(&text), Ok(Some(text)));
    }
    let _ = cleat::spec::process(data, true);
});
