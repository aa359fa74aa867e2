//! The three channels as a client names them.
#![no_main]
use cleat::{
    container::Stdio,
    io::{Plan, SpoolPolicy},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut words = text.splitn(3, '\n').map(str::to_owned);
    let mut next = || words.next().unwrap_or_default();
    let stdio =
        Stdio { stdout: next(), stdin: next(), stderr: next(), terminal: data.len() % 2 == 0 };
    if let Ok(plan) = Plan::new(&stdio, "ns", "id", SpoolPolicy::default()) {
        for path in [plan.stdin, plan.stdout, plan.stderr].into_iter().flatten() {
            assert!(path.is_absolute());
        }
        assert!(plan.logger.is_none_or(|logger| logger.path.is_absolute()));
    }
});
