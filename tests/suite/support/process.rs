//! Processes as the kernel shows them.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Waits until something holds; panics with its name after 30 s.
pub fn until(what: &str, holds: impl FnMut() -> bool) {
    until_within(super::LONG, what, holds);
}

/// The same with another limit.
pub fn until_within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal.
pub fn kill(pid: u32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    // It may have ended.
    let _ = rustix::process::kill_process(
        pid,
        rustix::process::Signal::from_named_raw(signal).unwrap(),
    );
}

/// Stops a process, and waits until each of its threads stands.
pub fn stop(pid: u32) {
    kill(pid, libc::SIGSTOP);
    let stands =
        |stat: String| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'));
    until("it stands", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        threads.map(|thread| read_all(thread.path().join("stat"))).all(stands)
    });
}

/// All pids.
pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// argv of a process; empty if it has gone or is a zombie.
pub fn cmdline(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// State letter and parent of a process (proc_pid_stat(5)).
pub fn process_state(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether a process runs: neither gone nor a zombie.
pub fn alive(pid: u32) -> bool {
    process_state(pid).is_some_and(|(state, _)| state != 'Z')
}

/// Pids and states of a process's children.
pub fn children(parent: u32) -> Vec<(u32, char)> {
    all()
        .into_iter()
        .filter_map(|pid| {
            process_state(pid).filter(|(_, p)| *p == parent).map(|(state, _)| (pid, state))
        })
        .collect()
}

/// How many descriptors a process has open.
pub fn fd_count(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// A file's text; empty if it is not there.
pub fn read_all(path: impl AsRef<Path>) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
