//! Helpers: children that go on with our code. Programs: `program.rs`. Whoever starts either tells
//! the reaper.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal},
};
use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

/// Descriptors from here on are out of the way of [`place`].
pub(super) const BEYOND: RawFd = 128;
/// What is kept of a program's output, bytes.
const MAX_OUTPUT: usize = 2048;

/// Starts the daemon: own process group, `descriptors` as 3, 4 …, signals blocked until it calls
/// `signals::unblock`. Does not wait until the program runs, which is a quarter of `start`: if it
/// cannot be run, the child calls `failed` and ends, and its descriptors close with it.
pub fn daemon(
    mut command: Command,
    descriptors: Vec<OwnedFd>,
    failed: impl FnOnce(),
) -> io::Result<u32> {
    command.process_group(0);
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the hook duplicates descriptors, on memory allocated before the fork, and sets the
    // signal mask.
    unsafe {
        command
            .pre_exec(move || place(&numbers, 3).and_then(|()| super::signals::block().map(drop)));
    }
    // Before the fork: a signal to the child must wait too.
    let before = super::signals::block()?;
    let child = forked(|| {
        let _ = command.exec();
        failed();
        1
    });
    super::signals::restore(&before);
    child
}

/// Most descriptors that [`place`] takes: the helper of native execs gets one a cgroup hierarchy.
const MAX_PLACED: usize = 48;

/// Puts `numbers[i]` at descriptor `first` + i, without close-on-exec. First out of the way, then
/// into place, so that none overwrites another. Async-signal-safe.
pub(super) fn place(numbers: &[RawFd], first: RawFd) -> io::Result<()> {
    let mut parked = [-1; MAX_PLACED];
    let too_many = || io::Error::from_raw_os_error(libc::E2BIG);
    let parked = parked.get_mut(..numbers.len()).ok_or_else(too_many)?;
    let count = RawFd::try_from(numbers.len()).map_err(|_| too_many())?;
    for (source, parked) in numbers.iter().zip(parked.iter_mut()) {
        // SAFETY: fcntl takes integers; the number that it finds is free.
        *parked = unsafe { libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, first + count) };
        if *parked < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (parked, target) in parked.iter().zip(first..) {
        // SAFETY: dup2 takes integers; in the child no owner of `target` is left.
        if unsafe { libc::dup2(*parked, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: made above, and nobody's.
        unsafe { libc::close(*parked) };
    }
    Ok(())
}

/// Forks a helper that runs `work` and ends: for system calls that may block in the kernel (mount,
/// unmount). On an error it writes the text into `report` and ends with status 1. Returns the
/// helper's pid.
///
/// The helper keeps none of our descriptors but `report`: it may live long, and must not hold pipes
/// or sockets open. The process has one thread, so the child may allocate; it must not touch the
/// event loop.
pub fn helper(report: OwnedFd, work: impl FnOnce() -> Result<(), String>) -> io::Result<u32> {
    forked(|| {
        super::signals::forget_handlers();
        if place(&[report.as_raw_fd()], 3).is_err() {
            return 1;
        }
        super::fd::close_from(4);
        // SAFETY: a descriptor of our own, placed above; whom the work starts does not get it.
        unsafe { libc::fcntl(3, libc::F_SETFD, libc::FD_CLOEXEC) };
        super::process::restore_open_files();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let text = match result {
            Ok(Ok(())) => return 0,
            Ok(Err(text)) => text,
            Err(_) => "the helper panicked".to_owned(),
        };
        // SAFETY: descriptor 3 was placed above; the buffer is valid for its length.
        unsafe { libc::write(3, text.as_ptr().cast(), text.len()) };
        1
    })
}

/// Runs a program to its end, in a [`helper`]: nobody else may wait. Returns how it ended and the
/// beginning of what it printed; it may leave a daemon behind that keeps its output open. At the
/// end of `limit` its process group is killed.
pub fn to_its_end(command: &mut Command, limit: Duration) -> io::Result<(ExitStatus, String)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
    super::process::restore_umask();
    command.stdin(Stdio::null()).stdout(write.try_clone()?).stderr(write).process_group(0);
    #[allow(clippy::disallowed_methods, reason = "in a helper, which has no reaper")]
    let mut child = command.spawn()?;
    let pid = child.id();
    let ended = match super::process::pidfd(pid)? {
        Some(pidfd) => {
            let mut asked = [PollFd::new(&pidfd, PollFlags::IN)];
            let limit = Timespec::try_from(limit).unwrap_or_default();
            poll(&mut asked, Some(&limit)).is_ok_and(|ready| ready > 0)
        }
        // An old kernel: whoever waits for the helper has a deadline too.
        None => true,
    };
    if let (false, Some(group)) = (ended, Pid::from_raw(pid.cast_signed())) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    let mut text = vec![0; MAX_OUTPUT];
    let length = rustix::io::read(&read, &mut text).unwrap_or(0);
    text.truncate(length);
    Ok((status, String::from_utf8_lossy(&text).trim_end().to_owned()))
}

/// A [`helper`] of whose work nobody hears: it keeps no descriptor, and dies with us.
pub fn errand(work: impl FnOnce()) -> io::Result<u32> {
    forked(|| {
        super::signals::forget_handlers();
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        super::fd::close_from(3);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
            Ok(()) => 0,
            Err(_) => 1,
        }
    })
}

/// A process of its own that outlives us, for work that we wait for no longer than we like. It
/// keeps one descriptor, as 0: whoever reads our outputs must see their end when we end.
pub fn apart(kept: &OwnedFd, work: impl FnOnce(BorrowedFd<'_>)) -> io::Result<u32> {
    forked(|| {
        super::signals::forget_handlers();
        if place(&[kept.as_raw_fd()], 0).is_err() {
            return 1;
        }
        super::fd::close_from(1);
        let _ = rustix::process::setsid();
        let work = || work(rustix::stdio::stdin());
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
            Ok(()) => 0,
            Err(_) => 1,
        }
    })
}

pub(super) fn forked(child: impl FnOnce() -> libc::c_int) -> io::Result<u32> {
    // SAFETY: fork in a process with one thread: no lock can be held by a thread that is missing in
    // the child.
    let pid = unsafe { libc::fork() };
    match pid {
        ..0 => Err(io::Error::last_os_error()),
        0 => {
            let status = child();
            // SAFETY: _exit ends the child without running destructors or exit handlers of the
            // parent's state.
            unsafe { libc::_exit(status) }
        }
        1.. => Ok(pid.unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn shell(script: &str, limit: Duration) -> (ExitStatus, String) {
        to_its_end(Command::new("sh").args(["-c", script]), limit).unwrap()
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let (status, said) = shell("echo before; sleep 1000 & wait", Duration::from_millis(200));
        assert_eq!((status.signal(), said.as_str()), (Some(libc::SIGKILL), "before"));
    }

    #[test]
    fn a_daemon_that_keeps_the_output_is_not_waited_for() {
        let (status, said) = shell("sleep 3 & echo no >&2; exit 3", Duration::from_secs(60));
        assert_eq!((status.code(), said.as_str()), (Some(3), "no"));
    }
}
