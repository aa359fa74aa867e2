//! What the kernel says of a process.

/// Memory of a process, from smaps_rollup (proc_pid_smaps(5)).
pub fn memory_kib(pid: u32) -> Memory {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    Memory { private: sum(&text, "Anonymous:"), pss: sum(&text, "Pss:"), rss: sum(&text, "Rss:") }
}

/// Memory of a process, KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// What it costs: its anonymous memory. Not Private_Clean, which is the program's file as long
    /// as only one process has it mapped, and can be dropped.
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

/// A field of a process's stat file by its number in proc_pid_stat(5): 3, the state, or a later
/// one.
fn stat(pid: u32, number: usize) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything; fields are counted from its end.
    text.get(text.rfind(')')? + 2..)?.split(' ').nth(number.checked_sub(3)?).map(str::to_owned)
}

/// CPU time, user and system, in seconds; without the process's children.
pub fn cpu_seconds(pid: u32) -> f64 {
    let ticks =
        |number| stat(pid, number).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(14) + ticks(15)) / 100.0
}

/// CPU seconds of a process and context switches of its threads. To the nanosecond (schedstat) if
/// all its threads still live; of those that have ended only the seconds are known, in ticks.
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

/// CPU seconds that the whole machine has worked since boot (proc_stat(5): without idle, iowait,
/// steal and the guests' part, which is counted twice).
pub fn machine_work() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let words = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let work = |(at, word): (usize, &str)| match at {
        3 | 4 | 7.. => None,
        _ => word.parse::<f64>().ok(),
    };
    words.enumerate().filter_map(work).sum::<f64>() / 100.0
}

/// Its parent's pid.
pub fn parent(pid: u32) -> Option<u32> {
    stat(pid, 4)?.parse().ok()
}

/// Start time of a process that lives, in clock ticks since boot.
pub fn started(pid: u32) -> Option<u64> {
    let started = stat(pid, 22)?.parse().ok();
    started.filter(|_| !matches!(stat(pid, 3).as_deref(), None | Some("Z" | "X")))
}

/// What a process does at this moment, for people: `stopped`, or what it waits for in the kernel.
pub fn standing(pid: u32) -> String {
    let at = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let at = if at.is_empty() || at == "0" { String::new() } else { format!(" in {at}") };
    match stat(pid, 3).as_deref() {
        Some("T" | "t") => "stopped (SIGSTOP or a debugger)".to_owned(),
        Some("D") => {
            format!(
                "held by the kernel{at} (state D: a file system or device that does not answer)"
            )
        }
        Some("R") => "busy".to_owned(),
        Some("Z" | "X") | None => "ended".to_owned(),
        Some(state) => format!("state {state}{at}"),
    }
}

/// Seconds since a process was started.
pub fn age_seconds(pid: u32) -> u64 {
    let up = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let up = up.split('.').next().and_then(|seconds| seconds.parse::<u64>().ok()).unwrap_or(0);
    // Start times are in clock ticks: 100 a second, on every Linux for users' eyes.
    started(pid).map_or(0, |ticks| up.saturating_sub(ticks / 100))
}
