//! argv, words separated by NUL.
#![no_main]
use std::os::unix::ffi::OsStrExt;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let words = data.split(|b| *b == 0).map(|word| std::ffi::OsStr::from_bytes(word).to_owned());
    let _ = cleat::args::parse(words);
});
