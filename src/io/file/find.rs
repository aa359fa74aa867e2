//! What is behind a path; opened if that can block nobody.
//!
//! That is so if all of the path is in the kernel's cache (`RESOLVE_CACHED`) and its file system is
//! local. Else the helper looks.

use super::{DEADLINE, no_answer, program};
use crate::{exits::Reaper, io::StdioError, local, sys};
use rustix::{
    fs::{FileType, Mode, OFlags, Statx},
    net::{AddressFamily, SocketFlags, SocketType},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    rc::Rc,
};
use tokio::io::Interest;

/// Major number of /dev/null, /dev/zero, /dev/full (linux/major.h, MEM_MAJOR): they never wait.
const MEMORY_DEVICES: u32 = 1;
const NULL: u32 = 3;
/// What is to be done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::io) enum Purpose {
    Read,
    Write,
}

/// What is behind a path.
#[derive(Debug)]
pub(in crate::io) enum Found {
    /// A fifo: its end for reading and one for writing; or one for both, to be written. Then
    /// whether its file system may hang.
    Fifo(Vec<OwnedFd>, bool),
    /// A device that takes everything and never waits.
    Device(OwnedFd),
    /// /dev/null, to be read.
    Nothing,
    /// Something that needs the helper.
    File,
}

/// Looks what is behind a path, and opens it if that can block nobody.
pub(in crate::io) async fn find(
    path: &Path,
    purpose: Purpose,
    reaper: &Rc<Reaper>,
) -> Result<Found, StdioError> {
    let verb = if purpose == Purpose::Read { "open" } else { "find" };
    let fail = |source| StdioError::Io { verb, path: path.to_owned(), source };
    match find_at_once(path, purpose) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => find_by_helper(path, purpose, reaper).await.map_err(fail),
        Err(e) => Err(fail(e.into())),
    }
}

/// `None`: somebody must be asked who may not answer.
fn find_at_once(path: &Path, purpose: Purpose) -> rustix::io::Result<Option<Found>> {
    let Some((place, is_cached)) = local::locate(path)? else { return Ok(None) };
    let kind = local::kind(&place)?;
    if is_cached && !local::is_local(&place, &kind) {
        return Ok(None);
    }
    open_found(&place, &kind, purpose, false).map(Some)
}

fn file_type(kind: &Statx) -> FileType {
    FileType::from_raw_mode(kind.stx_mode.into())
}

/// Opens what was found, if it is of a kind that never waits.
pub(super) fn open_found(
    place: &OwnedFd,
    kind: &Statx,
    purpose: Purpose,
    is_remote: bool,
) -> rustix::io::Result<Found> {
    let open = |flags| {
        let again = format!("/proc/self/fd/{}", place.as_raw_fd());
        rustix::fs::open(again, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
    };
    Ok(match (file_type(kind), purpose) {
        // The second succeeds at once: we are the reader.
        (FileType::Fifo, Purpose::Read) => {
            Found::Fifo(vec![open(OFlags::RDONLY)?, open(OFlags::WRONLY)?], is_remote)
        }
        // For both directions: that neither waits for a reader nor fails without one, and a reader
        // that goes away neither breaks nor ends it.
        (FileType::Fifo, Purpose::Write) => Found::Fifo(vec![open(OFlags::RDWR)?], is_remote),
        (FileType::CharacterDevice, _) if kind.stx_rdev_major == MEMORY_DEVICES => match purpose {
            Purpose::Write => Found::Device(open(OFlags::WRONLY | OFlags::APPEND)?),
            Purpose::Read if kind.stx_rdev_minor == NULL => Found::Nothing,
            Purpose::Read => Found::File,
        },
        _ => Found::File,
    })
}

async fn find_by_helper(path: &Path, purpose: Purpose, reaper: &Rc<Reaper>) -> io::Result<Found> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let word = match purpose {
        Purpose::Read => "find-in",
        Purpose::Write => "find-out",
    };
    let turn = reaper.turn().await;
    let descriptors = std::slice::from_ref(&theirs);
    let (pid, _) = turn.start_lasting(&program(word, path), descriptors).await?;
    drop(theirs);
    let answer = tokio::time::timeout(DEADLINE, receive_found(ours)).await;
    answer.unwrap_or_else(|_| {
        reaper.signal_child(pid, libc::SIGKILL);
        Err(no_answer())
    })
}

async fn receive_found(socket: OwnedFd) -> io::Result<Found> {
    let socket = sys::fd::watch(Rc::new(socket), Interest::READABLE)?;
    loop {
        let mut ready = socket.readable().await?;
        match sys::pty::receive_descriptors(socket.get_ref().as_fd()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(e) => return Err(e),
            Ok((text, ends)) => return decode_found(&text, ends),
        }
    }
}

fn decode_found(text: &[u8], mut ends: Vec<OwnedFd>) -> io::Result<Found> {
    match (text.first(), ends.len()) {
        (Some(b'p'), 1 | 2) => Ok(Found::Fifo(ends, true)),
        (Some(b'd'), 1) => Ok(Found::Device(ends.remove(0))),
        (Some(b'n'), 0) => Ok(Found::Nothing),
        (Some(b'f'), 0) => Ok(Found::File),
        (Some(b'e'), 0) => {
            let number = std::str::from_utf8(&text[1..]).ok().and_then(|text| text.parse().ok());
            Err(io::Error::from_raw_os_error(number.unwrap_or(libc::EIO)))
        }
        _ => Err(io::Error::other("the helper ended without a word")),
    }
}
