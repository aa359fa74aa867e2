//! The kernel's files of a cgroup: each of them holds the input.
#![no_main]
use cleat::cgroups::{Cgroup, FUZZED, metrics};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    FUZZED.with_borrow_mut(|text| *text = Some(data.to_vec()));
    // hugetlb lists a directory; the others only read files.
    let controllers = ["memory", "pids", "cpu", "cpuacct", "blkio"];
    let paths = controllers.iter().map(|name| ((*name).into(), "/nonexistent".into())).collect();
    let _ = metrics(&Cgroup::V1(paths));
    let _ = metrics(&Cgroup::V2("/nonexistent".into()));
});
