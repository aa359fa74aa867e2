//! The console of a process, and the socket through which it comes: the runtime connects and sends
//! the master of the pty that it has made.

use super::{StdioError, copy::Watched};
use crate::{bundle::Bundle, sys};
use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    termios::Winsize,
};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    rc::Rc,
};

/// Longest path of a unix socket, bytes: sun_path less the NUL (unix(7)).
const MAX_PATH: usize = 107;

/// A listening socket in the bundle; its file goes when this does.
///
/// The bundle is ours and private, unlike /tmp; its path may be longer than a socket's may be, so
/// we bind through /proc/self/fd and the runtime, which runs in the bundle, connects to the bare
/// name.
pub(crate) struct ConsoleSocket {
    listener: OwnedFd,
    path: PathBuf,
    name: String,
}

impl ConsoleSocket {
    /// Listens at `NAME.pty` in the bundle.
    pub(crate) fn bind(bundle: &Bundle, process: &str) -> Result<Self, StdioError> {
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

    /// What the runtime connects to: an absolute path if that is short enough, else relative to the
    /// bundle.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Takes the master. Call when the runtime has returned: it has connected and sent by then, so
    /// nothing waits here.
    pub(crate) fn receive(&self) -> Result<OwnedFd, StdioError> {
        let take = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let peer = rustix::net::accept_with(&self.listener, flags)?;
            let master = sys::pty::receive_descriptor(peer.as_fd())?;
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

/// A console that a process has, or will have.
#[derive(Default)]
pub(super) struct Console {
    master: RefCell<Option<Rc<Watched>>>,
    /// As long as its process lives, that nobody has it open must not look like its end: systemd
    /// and getty close it and open it again, and what is typed meanwhile is for whoever comes.
    slave: RefCell<Option<OwnedFd>>,
    /// A size may come before the console.
    size: Cell<Option<(u16, u16)>>,
}

impl Console {
    /// Gives a master its size and opens the slave.
    pub(super) fn prepare(&self, master: OwnedFd) -> Result<Rc<Watched>, StdioError> {
        if let Some((width, height)) = self.size.get() {
            set_size(&master, width, height).map_err(|source| StdioError::Io {
                verb: "resize console of",
                path: "pty".into(),
                source,
            })?;
        }
        match sys::pty::open_slave(master.as_fd()) {
            Ok(slave) => drop(self.slave.replace(Some(slave))),
            // Then the copy looks now and then whether somebody has it open again.
            Err(e) => log::debug!("the other side of a console stays closed: {e}"),
        }
        Ok(Watched::both(master))
    }

    pub(super) fn set(&self, master: Rc<Watched>) {
        self.master.replace(Some(master));
    }

    pub(super) fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        self.size.set(Some((width, height)));
        match &*self.master.borrow() {
            Some(console) => set_size(console.fd(), width, height),
            None => Ok(()),
        }
    }

    pub(super) fn size(&self) -> Option<(u16, u16)> {
        self.size.get()
    }

    /// From here on it is at its end when nobody else has it open.
    pub(super) fn close_slave(&self) {
        self.slave.take();
    }

    pub(super) fn close(&self) {
        self.master.take();
        self.slave.take();
    }
}

fn set_size(console: &OwnedFd, width: u16, height: u16) -> io::Result<()> {
    let size = Winsize { ws_col: width, ws_row: height, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(console, size)?)
}
