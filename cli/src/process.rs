//! What the kernel says of a process.

/// Memory of a process, from smaps_rollup (proc_pid_smaps(5)).
pub fn memory_kib(pid: u32) -> Memory {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    Memory { private: sum(&text, "Private_"), pss: sum(&text, "Pss:"), rss: sum(&text, "Rss:") }
}

/// Memory of a process, KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// What it alone keeps from others: Private_Clean + Private_Dirty.
    pub private: u64,
    /// Proportional set size.
    pub pss: u64,
    /// Resident set size.
    pub rss: u64,
}

fn sum(rollup: &str, prefix: &str) -> u64 {
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    rollup.lines().filter(|line| line.starts_with(prefix)).filter_map(kib).sum()
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

/// Its parent's pid.
pub fn parent(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.get(text.rfind(')')? + 2..)?.split(' ').nth(1)?.parse().ok()
}

/// Seconds since a process was started.
pub fn age_seconds(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let started = || {
        let fields = text.get(text.rfind(')')? + 2..)?.split(' ').nth(19)?;
        fields.parse::<u64>().ok()
    };
    let up = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let up = up.split('.').next().and_then(|seconds| seconds.parse::<u64>().ok()).unwrap_or(0);
    // Start times are in clock ticks: 100 a second, on every Linux for users' eyes.
    started().map_or(0, |ticks| up.saturating_sub(ticks / 100))
}
