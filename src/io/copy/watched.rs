//! A descriptor in the event loop, or not in it for a while.

use super::sink::is_fifo;
use crate::sys;
use std::{cell::RefCell, io, os::fd::OwnedFd, rc::Rc};
use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor, and its one place in the event loop, whoever reads and writes it: the kernel takes
/// a descriptor only once.
pub(in crate::io) struct Watched {
    fd: Rc<OwnedFd>,
    interest: Interest,
    is_remote: bool,
    registered: RefCell<Option<Rc<AsyncFd<Rc<OwnedFd>>>>>,
}

impl Watched {
    pub(in crate::io) fn source(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self::new(fd, Interest::READABLE))
    }

    /// It comes into the loop when it is full for the first time: most never are.
    pub(in crate::io) fn sink(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self::new(fd, Interest::WRITABLE))
    }

    /// A sink on a file system that may hang: nothing is asked of it once more.
    pub(in crate::io) fn remote_sink(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self { is_remote: true, ..Self::new(fd, Interest::WRITABLE) })
    }

    /// Source and sink in one.
    pub(in crate::io) fn both(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self::new(fd, Interest::READABLE | Interest::WRITABLE))
    }

    fn new(fd: OwnedFd, interest: Interest) -> Self {
        Self { fd: Rc::new(fd), interest, is_remote: false, registered: RefCell::default() }
    }

    pub(in crate::io) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(super) fn shared_fd(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.fd)
    }

    pub(super) fn is_remote(&self) -> bool {
        self.is_remote
    }

    /// Whether a process may write into it itself.
    pub(in crate::io) fn may_be_handed_over(&self) -> bool {
        !self.is_remote && is_fifo(&self.fd)
    }

    /// Its place in the loop, where it comes if it is not there.
    pub(super) fn registered(&self) -> io::Result<Rc<AsyncFd<Rc<OwnedFd>>>> {
        let mut registered = self.registered.borrow_mut();
        if let Some(registered) = &*registered {
            return Ok(Rc::clone(registered));
        }
        let watched = Rc::new(sys::fd::watch(Rc::clone(&self.fd), self.interest)?);
        *registered = Some(Rc::clone(&watched));
        Ok(watched)
    }

    /// Leaves the loop, unless somebody waits there for it.
    pub(super) fn rest(&self) {
        self.registered.borrow_mut().take_if(|registered| Rc::strong_count(registered) == 1);
    }
}
