//! stdin of `start`: who calls, and what it is answered.
#![no_main]
use cleat::protocol::bootstrap::Caller;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (version, input) = data.split_first().map_or((0, data), |(first, rest)| (*first, rest));
    let version = ["", "2", "3", "x"].get(usize::from(version)).copied();
    if let Ok(caller) = Caller::parse(input, "id", version) {
        let _ = caller.options.as_ref().map(cleat::options::read);
        assert!(!caller.answer("unix:///run/s").is_empty());
    }
});
