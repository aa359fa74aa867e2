//! Where a copy writes to, what happened there, and what a fifo still holds after the copy's end.

use super::{source::readable_bytes, watched::Watched};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    io::Errno,
    pipe::fcntl_getpipe_size,
};
use std::{
    cell::{Cell, RefCell},
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

/// Pauses between looks whether a reader has got all: the kernel tells nobody that a pipe has
/// become empty. They grow with the time that has passed, so that the reader sees the end a third
/// later than it might, and a reader that never comes costs nothing.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// What to do when writing fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::io) enum OnWriteError {
    /// The reader is gone: so is the copy (a container that closed its stdin).
    End,
    /// Say so once, drop the bytes, count them, go on (a device that is full).
    Drop,
}

pub(super) struct Sink {
    name: &'static str,
    on_error: OnWriteError,
    open: RefCell<Option<Rc<Watched>>>,
    /// A fifo whose content nobody has read yet.
    unread: RefCell<Option<Rc<OwnedFd>>>,
    written: Cell<u64>,
    dropped: Cell<u64>,
    is_dropping: Cell<bool>,
}

impl Sink {
    pub(super) fn new(name: &'static str, sink: Rc<Watched>, on_error: OnWriteError) -> Self {
        Self {
            name,
            on_error,
            open: RefCell::new(Some(sink)),
            unread: RefCell::default(),
            written: Cell::new(0),
            dropped: Cell::new(0),
            is_dropping: Cell::new(false),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// `None` after its end.
    pub(super) fn open(&self) -> Option<Rc<Watched>> {
        self.open.borrow().clone()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.open.borrow().is_none()
    }

    /// Bytes that it has got.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    /// Bytes that it did not take.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Counts bytes that came into it by another way than [`Sink::write`].
    pub(super) fn count(&self, bytes: usize) {
        self.written.set(self.written.get() + bytes as u64);
    }

    /// Writes until all is written or dropped, or the sink is full. `None`: the sink is broken.
    pub(super) fn write(&self, sink: &OwnedFd, bytes: &[u8]) -> Option<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::write(sink, &bytes[written..]) {
                Ok(n) => {
                    written += n;
                    self.count(n);
                    if self.is_dropping.replace(false) {
                        self.writing_works_again();
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) if self.on_error == OnWriteError::End => return None,
                Err(e) => {
                    self.drop_bytes(bytes.len() - written, e);
                    return Some(bytes.len());
                }
            }
        }
        Some(written)
    }

    fn drop_bytes(&self, bytes: usize, reason: Errno) {
        let name = self.name;
        if !self.is_dropping.replace(true) {
            log::error!("copy {name}: write: {reason}; output is dropped until writing works");
        }
        self.dropped.set(self.dropped.get() + bytes as u64);
    }

    fn writing_works_again(&self) {
        let (name, dropped) = (self.name, self.dropped.get());
        log::warn!("copy {name}: writing works again; dropped {dropped} bytes in all");
    }

    /// Closes the sink, but a fifo only when it has been read: its content goes with the last
    /// descriptor, and a reader may be away, or go away (containerd restarts).
    pub(super) fn finish(&self) {
        let Some(sink) = self.open.borrow_mut().take() else { return };
        let fd = sink.shared_fd();
        if self.on_error == OnWriteError::Drop && fifo_bytes(&fd) > 0 {
            let kept = if sink.is_remote() { fd } else { for_writing(fd) };
            self.unread.replace(Some(kept));
        }
    }

    pub(super) fn close(&self) {
        self.open.borrow_mut().take();
        self.unread.take();
    }

    /// Bytes in the fifo after [`Sink::finish`].
    pub(super) fn unread_bytes(&self) -> usize {
        self.unread.borrow().as_deref().map_or(0, fifo_bytes)
    }

    /// Whether somebody has the fifo open who could read them.
    pub(super) fn has_reader(&self) -> bool {
        // A writing end without a reader is in error.
        let unread = self.unread.borrow();
        let state = unread.as_deref().and_then(poll_for_writing);
        state.is_some_and(|state| !state.contains(PollFlags::ERR))
    }

    /// Returns when a reader has got all, or after [`Sink::close`].
    pub(super) async fn wait_read(&self) {
        let mut pause = FIRST_LOOK;
        while self.unread_bytes() > 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_LOOK);
        }
        self.unread.take();
    }
}

/// The same fifo for writing only: what is in it stays, and its readers can be told from us.
fn for_writing(fifo: Rc<OwnedFd>) -> Rc<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_or(fifo, Rc::new)
}

/// Whether it is a pipe or fifo. fstat(2) would ask its file system.
pub(super) fn is_fifo(fd: &OwnedFd) -> bool {
    fcntl_getpipe_size(fd).is_ok()
}

/// Bytes that lie in it, if it is a pipe or fifo.
pub(super) fn fifo_bytes(fd: &OwnedFd) -> usize {
    if is_fifo(fd) { readable_bytes(fd) } else { 0 }
}

/// Whether a write would find room, or an error.
pub(super) fn is_writable(fd: &OwnedFd) -> bool {
    poll_for_writing(fd).is_some_and(|state| !state.is_empty())
}

/// What a write would find now: nothing (full), room, an error. `None`: the kernel does not say.
fn poll_for_writing(fd: &OwnedFd) -> Option<PollFlags> {
    let mut asked = [PollFd::new(fd, PollFlags::OUT)];
    poll(&mut asked, Some(&Timespec::default())).ok()?;
    Some(asked[0].revents())
}
