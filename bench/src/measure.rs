//! What the kernel says of a process.

/// Private KiB of a process: what it alone keeps from others (smaps_rollup, Private_Clean + Private_Dirty).
pub fn private_kib(pid: u32) -> u64 {
    rollup(pid, "Private_")
}

/// Resident KiB.
pub fn rss_kib(pid: u32) -> u64 {
    rollup(pid, "Rss:")
}

/// Proportional set size, KiB.
pub fn pss_kib(pid: u32) -> u64 {
    rollup(pid, "Pss:")
}

fn rollup(pid: u32, prefix: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    text.lines().filter(|line| line.starts_with(prefix)).filter_map(kib).sum()
}

/// Open descriptors.
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Threads.
pub fn threads(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// CPU time, user and system, in seconds; without the process's children.
pub fn cpu_seconds(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some(end) = text.rfind(')') else { return 0.0 };
    let fields: Vec<&str> = text.get(end + 2..).unwrap_or_default().split(' ').collect();
    // utime and stime are fields 14 and 15; the state was field 3.
    let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// CPU seconds of a process and context switches of its threads. To the nanosecond (schedstat) if all its threads still live; of those
/// that have ended only the seconds are known, in ticks.
pub fn work(pid: u32) -> (f64, u64) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let (mut seconds, mut switches) = (0.0, 0);
    for task in tasks {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let nanoseconds = read("schedstat").split(' ').next().and_then(|n| n.parse::<f64>().ok());
        seconds += nanoseconds.unwrap_or(0.0) / 1e9;
        switches += read("status")
            .lines()
            .filter(|line| line.contains("ctxt_switches"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<u64>();
    }
    (cpu_seconds(pid).max(seconds), switches)
}
