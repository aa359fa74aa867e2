//! Pipes between us and a process.

use super::StdioError;
use rustix::{
    fs::{Gid, OFlags, Uid},
    pipe::{PipeFlags, pipe_with},
};
use std::os::fd::OwnedFd;

/// Which end is ours.
pub(super) enum Ours {
    Read,
    Write,
}

/// A pipe, as its ends for reading and for writing; ours does not block. The process may open its
/// end again through /proc/self/fd, so it gets the owner that the options name.
pub(super) fn pipe(uid: u32, gid: u32, ours: Ours) -> Result<(OwnedFd, OwnedFd), StdioError> {
    let make = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let our_end = match ours {
            Ours::Read => &read,
            Ours::Write => &write,
        };
        let flags = rustix::fs::fcntl_getfl(our_end)?;
        rustix::fs::fcntl_setfl(our_end, flags | OFlags::NONBLOCK)?;
        own(&read, uid, gid)?;
        Ok((read, write))
    };
    make().map_err(|e| StdioError::Io { verb: "make", path: "pipe".into(), source: e.into() })
}

/// Gives a pipe or fifo to the owner that the options name, if they name one.
pub(super) fn own(pipe: &OwnedFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    if uid == 0 && gid == 0 {
        return Ok(());
    }
    rustix::fs::fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}
