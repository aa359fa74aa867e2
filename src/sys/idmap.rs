//! Id-mapped mounts (mount_setattr(2), Linux 5.12): files of one owner look as if they were
//! another's.

use rustix::pipe::{PipeFlags, pipe_with};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

/// A user namespace with these maps, in the format of /proc/PID/uid_map (user_namespaces(7)). Only
/// for use in a process with one thread. The namespace lives as long as the descriptor.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let (ready, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: fork in a process with one thread; the child makes three system calls and allocates
    // nothing.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        in_child(&tell);
    }
    drop(tell);
    let namespace = described(pid, &ready, uid_map, gid_map);
    // SAFETY: our own child, not reaped yet, so the number is its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    // SAFETY: waits for that child; no status is asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    namespace
}

/// Makes the namespace, says so, and waits to be killed.
fn in_child(tell: &OwnedFd) -> ! {
    // SAFETY: takes a flag; affects this process alone.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } == 0 {
        // SAFETY: writes one byte from a valid buffer to an open descriptor.
        unsafe { libc::write(tell.as_raw_fd(), c"x".as_ptr().cast(), 1) };
        loop {
            // SAFETY: waits for a signal; no handler of the parent's touches shared state.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: ends the child without running anything of the parent's.
    unsafe { libc::_exit(1) }
}

fn described(pid: i32, ready: &OwnedFd, uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    if rustix::io::read(ready, &mut [0u8; 1])? == 0 {
        return Err(io::Error::other("no user namespace can be made"));
    }
    std::fs::write(format!("/proc/{pid}/uid_map"), uid_map)?;
    std::fs::write(format!("/proc/{pid}/gid_map"), gid_map)?;
    let namespace = std::fs::OpenOptions::new().read(true).open(format!("/proc/{pid}/ns/user"))?;
    Ok(namespace.into())
}

/// Maps the ids of a detached mount (open_tree(2) with OPEN_TREE_CLONE) by a user namespace.
pub fn map(tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | read_only,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX),
    };
    // SAFETY: the path is an empty C string, the structure is valid and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
