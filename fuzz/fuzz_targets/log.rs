//! The OCI runtime's log.json.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = cleat::runtime::last_error_in(data);
});
