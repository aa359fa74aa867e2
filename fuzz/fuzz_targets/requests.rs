//! Messages of the Task API, process specs and resources among them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, payload)) = data.split_first() else { return };
    let methods = ["Create", "Exec", "Update", "Kill", "State"];
    cleat::task::check_request(methods[usize::from(*first) % methods.len()], payload);
});
