//! The console socket: the runtime connects and sends the master of the pty that it has made.

use super::StdioError;
use crate::{bundle::Bundle, sys};
use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

/// Longest path of a unix socket, bytes: sun_path less the NUL (unix(7)).
const MAX_PATH: usize = 107;

/// A listening socket in the bundle; its file goes when this does.
///
/// The bundle is ours and private, unlike /tmp; its path may be longer than a socket's may be, so we bind through
/// /proc/self/fd and the runtime, which runs in the bundle, connects to the bare name.
pub struct ConsoleSocket {
    listener: OwnedFd,
    path: PathBuf,
    name: String,
}

impl ConsoleSocket {
    /// Listens at `NAME.pty` in the bundle.
    pub fn bind(bundle: &Bundle, process: &str) -> Result<Self, StdioError> {
        let name = format!("{process}.pty");
        let path = bundle.join(&name);
        let listener = listen(bundle, &name).map_err(|e| StdioError::Io {
            verb: "listen on console socket",
            path: path.clone(),
            source: e.into(),
        })?;
        // youki wants an absolute path; where that is too long, runc and crun take the bare name.
        let name = match path.to_str() {
            Some(absolute) if absolute.len() <= MAX_PATH => absolute.to_owned(),
            _ => name,
        };
        Ok(Self { listener, path, name })
    }

    /// What the runtime connects to: an absolute path if that is short enough, else relative to the bundle.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the master. Call when the runtime has returned: it has connected and sent by then, so nothing waits here.
    pub fn receive(&self) -> Result<OwnedFd, StdioError> {
        let take = || -> io::Result<OwnedFd> {
            let peer =
                rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
            let master = sys::pty::receive_descriptor(std::os::fd::AsFd::as_fd(&peer))?;
            if !rustix::termios::isatty(&master) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the descriptor received is no terminal",
                ));
            }
            let flags = rustix::fs::fcntl_getfl(&master)?;
            rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
            Ok(master)
        };
        take().map_err(|source| StdioError::Io {
            verb: "receive the console from",
            path: self.path.clone(),
            source,
        })
    }
}

fn listen(bundle: &Bundle, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(bundle.path(), flags, Mode::empty())?;
    let _ = rustix::fs::unlinkat(&directory, name, rustix::fs::AtFlags::empty());
    let kind = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, kind, None)?;
    let short = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    rustix::net::bind(&socket, &SocketAddrUnix::new(short)?)?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
