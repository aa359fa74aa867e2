//! Processes: identity by pidfd, signals, reaping.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, WaitIdOptions, WaitOptions, WaitStatus, getrlimit, setrlimit,
};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// How a process ended, as a shell would say it: the exit code, or 128 + signal.
pub type ExitStatus = u32;

/// Opens a pidfd; works on a zombie too. `None` where the kernel has no pidfd_open(2) (before 5.3).
pub fn pidfd(pid: u32) -> io::Result<Option<OwnedFd>> {
    match rustix::process::pidfd_open(checked(pid)?, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::NOSYS) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn checked(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is no pid")))
}

/// Sends a signal through a pidfd (pidfd_send_signal(2)): it reaches this process or none.
pub fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed, hence open; a null siginfo is allowed; flags must be 0.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0u32)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal by number. Only for a child that has not been reaped: its pid cannot be anybody
/// else's.
pub fn signal_child(pid: u32, signal: i32) -> io::Result<()> {
    let pid = checked(pid)?;
    // SAFETY: kill takes two integers; the pid is positive, so it names one process.
    if unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the kernel knows this signal number: 0 (the test) to 64.
pub fn is_signal(number: u32) -> bool {
    number <= 64
}

/// Reaps the child `pid` through its pidfd if it has ended (waitid(2), P_PIDFD, since 5.4; 5.3 has
/// pidfds and cannot wait for them: then by number, which is its own until it is reaped).
/// `Ok(None)`: it lives, or it is not our child yet.
pub fn reap_pidfd(pid: u32, pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd), options) {
        Ok(Some(status)) => Ok(Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code.unsigned_abs() & 0xff,
            (None, Some(signal)) => 128 + signal.unsigned_abs(),
            (None, None) => 255,
        })),
        Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => reap_pid(pid),
        Err(e) => Err(e.into()),
    }
}

/// Whether it is a child of ours, living or not reaped.
pub fn is_child(pid: u32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    checked(pid).is_ok_and(|pid| {
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).is_ok()
    })
}

/// Whether it is a child of ours that has ended and is not reaped.
pub fn has_ended(pid: u32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let ask = |pid| rustix::process::waitid(rustix::process::WaitId::Pid(pid), options);
    checked(pid).is_ok_and(|pid| matches!(ask(pid), Ok(Some(_))))
}

/// Reaps one child by number if it has ended.
pub fn reap_pid(pid: u32) -> io::Result<Option<ExitStatus>> {
    match rustix::process::waitpid(Some(checked(pid)?), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => Ok(Some(shell_status(status))),
        Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Waits for the end of a child, and reaps it; `None` if it goes on after the deadline. For
/// processes without an event loop.
pub fn reap_until(pid: u32, deadline: Instant) -> Option<ExitStatus> {
    /// Between two looks where there are no pidfds.
    const PAUSE: Duration = Duration::from_millis(10);
    let pidfd = pidfd(pid).ok().flatten();
    loop {
        if let Some(status) = reap_pid(pid).ok()? {
            return Some(status);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let _ = match &pidfd {
            Some(pidfd) => poll(
                &mut [PollFd::new(pidfd, PollFlags::IN)],
                Timespec::try_from(left).ok().as_ref(),
            ),
            None => poll(&mut [], Timespec::try_from(left.min(PAUSE)).ok().as_ref()),
        };
    }
}

/// Reaps any one child that has ended: its pid and status.
pub fn reap_any() -> io::Result<Option<(u32, ExitStatus)>> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => {
            Ok(Some((pid.as_raw_nonzero().get().unsigned_abs(), shell_status(status))))
        }
        Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn shell_status(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code.unsigned_abs() & 0xff,
        (None, Some(signal)) => 128 + signal.unsigned_abs(),
        (None, None) => 255,
    }
}

/// Makes orphaned descendants our children (PR_SET_CHILD_SUBREAPER): containers outlive the runtime
/// that made them.
pub fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Gives up what the daemon does not need: supplementary groups, being dumped or traced by others
/// than root, and creating files that others may write. Children get the umask back (see
/// [`super::program`]).
pub fn give_up_privileges() {
    // SAFETY: no groups, so no pointer is read. Without CAP_SETGID (rootless) it fails, and nothing
    // is lost.
    unsafe { libc::setgroups(0, std::ptr::null()) };
    // SAFETY: prctl with integers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    let came_with = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let ours = came_with | rustix::fs::Mode::from_raw_mode(0o022);
    rustix::process::umask(ours);
    INHERITED_UMASK.store(came_with.as_raw_mode(), std::sync::atomic::Ordering::Relaxed);
}

static INHERITED_UMASK: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0o022);

/// Gives a child the umask that we were started with: containers inherit it. Async-signal-safe.
pub(super) fn restore_umask() {
    let mask = INHERITED_UMASK.load(std::sync::atomic::Ordering::Relaxed);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
}

/// Creates a core scheduling cookie for our process group (PR_SCHED_CORE); children inherit it.
pub fn create_core_scheduling_cookie() -> io::Result<()> {
    let group = rustix::thread::CoreSchedulingScope::ProcessGroup;
    Ok(rustix::thread::create_core_scheduling_cookie(rustix::process::getpgrp(), group)?)
}

/// Raises our soft limit of open files to the hard one: a pod may have more streams than the 1,024
/// files that systemd gives a service. Children get the limit back that we came with, as Go's
/// runtime does it.
pub fn raise_open_files() {
    let came_with = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: came_with.maximum, maximum: came_with.maximum };
    if came_with.current != came_with.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        SOFT_OPEN_FILES.store(came_with.current.unwrap_or(u64::MAX), Relaxed);
        IS_RAISED.store(true, Relaxed);
    }
}

static IS_RAISED: AtomicBool = AtomicBool::new(false);
static SOFT_OPEN_FILES: AtomicU64 = AtomicU64::new(0);

/// Gives a child the soft limit of open files that we came with. Async-signal-safe.
pub(super) fn restore_open_files() {
    if IS_RAISED.load(Relaxed) {
        let current = Some(SOFT_OPEN_FILES.load(Relaxed));
        let maximum = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
    }
}

/// Whether the soft limit of open files of our children is the hard one.
pub fn has_all_open_files() -> bool {
    let limit = getrlimit(Resource::Nofile);
    !IS_RAISED.load(Relaxed) && limit.current == limit.maximum
}

/// Largest file that we may write, bytes.
pub fn max_file_size() -> u64 {
    getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX)
}

/// Whether a process of ours has our own label of the security module (AppArmor, SELinux). `true`
/// where there is none.
pub fn is_labelled_as_we_are(pid: u32) -> bool {
    let label = |process: &str| std::fs::read(format!("/proc/{process}/attr/current")).ok();
    label(&pid.to_string()) == label("self")
}

/// Clock ticks a second, the unit of start times in /proc (sysconf(3)).
pub fn clock_ticks() -> u64 {
    rustix::param::clock_ticks_per_second()
}
