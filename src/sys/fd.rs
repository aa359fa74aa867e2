//! Descriptors that came to us by inheritance.

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};
use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    rc::Rc,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Takes over a descriptor that `start` left open for us. Call once for each number, before
/// anything else opens descriptors.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer and fails with EBADF if the number is not open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFD takes an integer; the number was just seen open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open (checked above) and, by this function's contract, owned by nobody
    // else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from `first` on: what a careless parent left open is not ours to keep
/// (close_range(2); where it is missing, /proc/self/fd names them).
pub fn close_from(first: RawFd) {
    let Ok(from) = u32::try_from(first) else { return };
    // SAFETY: the caller runs this before it opens anything, so no owned descriptor lies in the
    // range.
    if unsafe { libc::syscall(libc::SYS_close_range, from, u32::MAX, 0) } == 0 {
        return;
    }
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|n| *n >= first)
        .collect();
    for number in open {
        // SAFETY: as above; a number that is closed already (the directory's own) answers EBADF.
        unsafe { libc::close(number) };
    }
}

/// Registers a descriptor with the event loop for one direction.
pub fn watch(fd: Rc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Rc<OwnedFd>>> {
    // SAFETY: the Rc keeps the descriptor open at least as long as the AsyncFd lives, and an
    // OwnedFd never changes its number.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Asks for a SIGIO to us whenever a file is renamed in this directory, until it is closed
/// (fcntl(2), F_NOTIFY). The signal must have a handler.
pub fn notify_of_renames(directory: BorrowedFd<'_>) -> io::Result<()> {
    // linux/fcntl.h
    const DN_RENAME: libc::c_ulong = 0x10;
    const DN_MULTISHOT: libc::c_ulong = 0x8000_0000;
    // SAFETY: F_NOTIFY takes an integer; the descriptor is borrowed, hence open.
    if unsafe { libc::fcntl(directory.as_raw_fd(), libc::F_NOTIFY, DN_RENAME | DN_MULTISHOT) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An empty file in memory that can be sealed, and that nobody can execute: where `vm.memfd_noexec`
/// is 2 there is no other (Linux 6.3, admin-guide/sysctl/vm.rst).
pub fn memory_file(name: &CStr) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before 6.3.
        Err(Errno::INVAL) => Ok(memfd_create(name, flags)?),
        result => Ok(result?),
    }
}

/// A file in memory with this content, to be read from the beginning.
pub fn input(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = memory_file(c"input")?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rustix::io::write(&file, rest)?;
        rest = &rest[n..];
    }
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file)
}

/// A descriptor from which this is read once: a pipe, if it takes all at once, since a service may
/// have a limit of file sizes.
pub fn once(bytes: &[u8]) -> io::Result<OwnedFd> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    match rustix::io::write(&write, bytes) {
        Ok(written) if written == bytes.len() => Ok(read),
        _ => input(bytes),
    }
}

/// Descriptors that are kept free for what ends processes, and for clients.
const KEPT_FREE: u64 = 32;

/// Whether a process may be started, which takes a dozen descriptors. Not where only the last ones
/// are left, `KEPT_FREE` or a quarter of a low limit: with those processes are killed and deleted,
/// and a containerd that comes back is answered.
pub fn has_room_for_a_process() -> bool {
    // The lowest free number.
    let free = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 0);
    limit().is_none_or(|limit| free.is_ok_and(|free| number(&free) < limit - kept_free(limit)))
}

/// Whether it is in the second half of those that are kept free.
pub fn is_one_of_the_last(descriptor: &impl AsRawFd) -> bool {
    limit().is_some_and(|limit| number(descriptor) >= limit - kept_free(limit) / 2)
}

/// A quarter of the descriptors that we may have.
pub fn quarter() -> usize {
    limit().map_or(usize::MAX, |limit| usize::try_from(limit / 4).unwrap_or(usize::MAX))
}

fn limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

fn kept_free(limit: u64) -> u64 {
    KEPT_FREE.min(limit / 4)
}

fn number(descriptor: &impl AsRawFd) -> u64 {
    u64::try_from(descriptor.as_raw_fd()).unwrap_or_default()
}

/// One descriptor that can be given up when there is no other.
pub fn spare() -> Option<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 0).ok()
}
