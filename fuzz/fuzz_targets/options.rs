//! Runtime options: an Any's type by the first byte, and its value.
#![no_main]
use cleat::protocol::{
    Any,
    options::{GENERIC_OPTIONS_URL, GenericOptions, OPTIONS_URL},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, value)) = data.split_first() else { return };
    let any = match first % 3 {
        0 => Any { type_url: OPTIONS_URL.into(), value: value.to_vec() },
        1 => Any::pack(
            GENERIC_OPTIONS_URL,
            &GenericOptions { config_body: value.to_vec(), ..Default::default() },
        ),
        _ => Any { type_url: String::from_utf8_lossy(value).into_owned(), value: vec![1] },
    };
    let _ = cleat::options::read(&any);
});
