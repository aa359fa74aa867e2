//! config.json's annotations.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = cleat::bundle::annotations_in(data);
});
