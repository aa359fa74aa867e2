//! What the helper of a native exec does to itself, where no library has it.

use super::program::pointers;
use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// linux/sched.h; too large for the type of libc's other flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Creates a child whose parent is our own parent (CLONE_PARENT), in the pid namespace that we have entered. Its pid as our parent sees it; 0 in
/// the child. To be called with one thread only.
pub fn clone_for_parent() -> io::Result<u32> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with no new stack this is fork(2) with another parent: the child has a copy of everything.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    u32::try_from(pid).map_err(|_| io::Error::last_os_error())
}

/// The same, born into a v2 cgroup (clone3(2), CLONE_INTO_CGROUP): a process that moves there by itself waits for an RCU grace period, some 10 ms.
pub fn clone_into(cgroup: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: all zero is a valid value: nothing asked for.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // The signal at the child's end is our own, as CLONE_PARENT has it; none may be named.
    arguments.flags = libc::CLONE_PARENT as u64 | CLONE_INTO_CGROUP;
    arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    let size = size_of::<libc::clone_args>();
    // SAFETY: the arguments live until the call returns and are of the size given; the rest as above.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
    u32::try_from(pid).map_err(|_| io::Error::last_os_error())
}

/// A procfs of the pid namespace that we are in, mounted nowhere, that shows processes and nothing of the kernel (`subset=pid`, Linux 5.8).
pub fn processes() -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "subset", "pid")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Ends at once, without destructors or exit handlers.
pub fn end(status: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(status) }
}

/// Joins the session keyring of this name, or makes it (KEYCTL_JOIN_SESSION_KEYRING).
pub fn join_session_keyring(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the operation reads a string that lives until the call returns.
    let serial = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if serial < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// setrlimit(2), by the resource's number.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives until the call returns; an unknown resource is an error.
    if unsafe { libc::setrlimit(resource, &raw const limit) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// All signals back to what a program expects: not blocked, not ignored (the standard library ignores SIGPIPE).
pub fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL needs no handler; signals that cannot be changed are an error that means nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = super::signals::unblock();
}

/// Closes descriptors `from` to `to`, both included.
pub fn close_range(from: RawFd, to: RawFd) {
    for number in from..=to {
        // SAFETY: the helper owns these numbers by agreement with whoever started it, and uses them no more.
        unsafe { libc::close(number) };
    }
}

/// execve(2); returns only if it fails.
pub fn execute(path: &str, arguments: &[String], environment: &[String]) -> io::Error {
    let strings =
        |words: &[String]| words.iter().map(|w| CString::new(w.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(path), Ok(arguments), Ok(environment)) =
        (CString::new(path), strings(arguments), strings(environment))
    else {
        return io::ErrorKind::InvalidInput.into();
    };
    let (argv, envp) = (pointers(&arguments), pointers(&environment));
    // SAFETY: both lists end with a null pointer, and their strings live until the call returns.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}
