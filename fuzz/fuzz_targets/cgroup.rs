//! The kernel's files of a cgroup: the first byte says which.
#![no_main]
use cleat::cgroups::{Cgroup, metrics};
use std::path::PathBuf;

const FILES: [&str; 8] = [
    "memory.stat",
    "memory.oom_control",
    "memory.usage_in_bytes",
    "cpuacct.usage_percpu",
    "cpuacct.stat",
    "pids.max",
    "blkio.throttle.io_serviced",
    "cpu.stat",
];

thread_local! {
    static PLACE: PathBuf = {
        let path = PathBuf::from(format!("/dev/shm/cleat-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    };
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, text)) = data.split_first() else { return };
    PLACE.with(|place| {
        let file = place.join(FILES[usize::from(*first) % FILES.len()]);
        std::fs::write(&file, text).unwrap();
        let controllers = ["memory", "pids", "cpu", "cpuacct", "blkio"];
        let paths = controllers.iter().map(|name| ((*name).into(), place.clone())).collect();
        let _ = metrics(&Cgroup::V1(paths));
        std::fs::remove_file(&file).unwrap();
    });
});
