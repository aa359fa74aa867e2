//! The copy engine: one source, one sink, and at most one buffer of what the sink would not take.
//!
//! All copies share one scratch buffer, since only one moves bytes at a time. What a full sink leaves over is kept by its copy,
//! at most [`SCRATCH`] bytes; nothing more is read until it is gone, so a reader that is away makes the container wait and
//! loses nothing.

use crate::sys;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    cell::{Cell, OnceCell, RefCell},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

/// Size of the scratch buffer, bytes: what a pipe holds.
const SCRATCH: usize = 64 << 10;
/// Bytes moved before the loop gets its turn.
const BUDGET: usize = 1 << 20;
/// Pause when a source says that it is ready and has nothing, over and over (a fifo between two writers).
const SPURIOUS_PAUSE: Duration = Duration::from_millis(10);

/// Longest pause between two looks whether what an ended process has written was read. Pauses grow with the time that has passed, so the
/// reader sees the end a third later than it might, and a reader that never comes costs nothing.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

thread_local! {
    static SCRATCH_BUFFER: RefCell<Option<Box<[u8]>>> = const { RefCell::new(None) };
}

/// Gives the scratch buffer back; the next copy makes a new one.
pub fn release_scratch() {
    SCRATCH_BUFFER.with(|buffer| buffer.borrow_mut().take());
}

/// Where a [`Copy::pump`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing left to read for now.
    SourceEmpty,
    /// The sink takes no more for now.
    SinkFull,
    /// There is more, but others want their turn.
    Busy,
    /// The source has ended, or the sink is broken.
    Ended,
}

/// What to do when writing fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnWriteError {
    /// The reader is gone: so is the copy (a container that closed its stdin).
    End,
    /// Say so once, drop the bytes, count them, go on (a log file on a full disk).
    Drop,
}

/// A copy in progress.
pub(super) struct Copy {
    name: &'static str,
    source: RefCell<Option<Rc<AsyncFd<Rc<OwnedFd>>>>>,
    sink: RefCell<Option<Rc<Sink>>>,
    left_over: RefCell<Vec<u8>>,
    /// A fifo whose content nobody has read yet.
    unread: RefCell<Option<Rc<OwnedFd>>>,
    /// The source was let go, or both sides were closed.
    let_go: Notify,
    on_write_error: OnWriteError,
    /// A read(2) of a pipe returns all that is there; one of a console may not, and would not be woken for the rest.
    short_read_is_all: bool,
    copied: Cell<u64>,
    dropped: Cell<u64>,
}

struct Sink {
    fd: Rc<OwnedFd>,
    /// Made when the sink is full for the first time: most never are.
    registered: OnceCell<AsyncFd<Rc<OwnedFd>>>,
}

impl Copy {
    /// Prepares a copy; both descriptors are non-blocking (a regular file need not be).
    pub(super) fn new(
        name: &'static str,
        source: Rc<OwnedFd>,
        sink: Rc<OwnedFd>,
        on_write_error: OnWriteError,
    ) -> std::io::Result<Rc<Self>> {
        let short_read_is_all = !rustix::termios::isatty(&*source);
        let source = sys::fd::watch(source, Interest::READABLE)?;
        Ok(Rc::new(Self {
            name,
            source: RefCell::new(Some(Rc::new(source))),
            sink: RefCell::new(Some(Rc::new(Sink { fd: sink, registered: OnceCell::new() }))),
            left_over: RefCell::default(),
            unread: RefCell::default(),
            let_go: Notify::new(),
            on_write_error,
            short_read_is_all,
            copied: Cell::new(0),
            dropped: Cell::new(0),
        }))
    }

    /// Copies until the source ends or the sink breaks; then both are closed.
    pub(super) async fn run(self: Rc<Self>) {
        let mut progress = Progress::SourceEmpty;
        let mut spurious = 0;
        loop {
            let Some(sink) = self.sink.borrow().clone() else { return };
            let source = self.source.borrow().clone();
            let before = self.copied.get();
            progress = match (progress, source) {
                (Progress::SourceEmpty, Some(source)) => tokio::select! {
                    ready = source.readable() => {
                        let Ok(mut ready) = ready else { break };
                        let progress = self.pump();
                        if progress == Progress::SourceEmpty {
                            ready.clear_ready();
                        }
                        progress
                    }
                    () = self.let_go.notified() => Progress::Busy,
                },
                (Progress::SourceEmpty, None) => self.pump(),
                (Progress::SinkFull, _) => {
                    let Some(writable) = sink.registered() else { break };
                    let Ok(mut ready) = writable.writable().await else { break };
                    let progress = self.pump();
                    if progress == Progress::SinkFull {
                        ready.clear_ready();
                    }
                    progress
                }
                (Progress::Busy, _) => {
                    tokio::task::yield_now().await;
                    self.pump()
                }
                (Progress::Ended, _) => break,
            };
            spurious = if self.copied.get() == before { spurious + 1 } else { 0 };
            if spurious > 8 {
                tokio::time::sleep(SPURIOUS_PAUSE).await;
            }
        }
        self.finish();
    }

    /// Closes both sides, so that the reader sees the end: but a fifo only when it has been read, for its content goes with the
    /// last descriptor, and a reader may be away or go away (containerd restarts). See [`Copy::wait_read`].
    pub(super) fn finish(&self) {
        let Some(sink) = self.sink.borrow_mut().take() else { return };
        self.close();
        if self.on_write_error == OnWriteError::Drop && bytes_held(&sink.fd) > 0 {
            // For writing only: what is in the fifo stays, and its readers can be told from ourselves.
            let path = format!("/proc/self/fd/{}", sink.fd.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let kept =
                rustix::fs::open(path, flags, Mode::empty()).map_or_else(|_| Rc::clone(&sink.fd), Rc::new);
            self.unread.replace(Some(kept));
        }
    }

    /// Returns when a reader has got all, or [`Copy::close`] was called. The kernel tells nobody that a pipe has become empty, so this
    /// looks: after 1 ms, and ever more seldom.
    pub(super) async fn wait_read(&self) {
        let mut pause = Duration::from_millis(1);
        while self.unread_bytes() > 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_LOOK);
        }
        self.unread.take();
    }

    /// Bytes that lie in the fifo after the source has ended.
    pub(super) fn unread_bytes(&self) -> u64 {
        self.unread.borrow().as_deref().map_or(0, bytes_held)
    }

    /// Whether somebody has the fifo open who could read them.
    pub(super) fn has_reader(&self) -> bool {
        self.unread.borrow().as_deref().is_some_and(|fd| {
            let mut asked = [PollFd::new(fd, PollFlags::OUT)];
            // A writing end without a reader is in error.
            poll(&mut asked, Some(&Timespec::default()))
                .is_ok_and(|_| !asked[0].revents().contains(PollFlags::ERR))
        })
    }

    /// Moves what can be moved now.
    pub(super) fn pump(&self) -> Progress {
        let Some(sink) = self.sink.borrow().clone() else { return Progress::Ended };
        let source = self.source.borrow().clone();
        let mut buffer = SCRATCH_BUFFER
            .with(|buffer| buffer.borrow_mut().take())
            .unwrap_or_else(|| vec![0; SCRATCH].into_boxed_slice());
        let progress =
            self.move_bytes(source.as_deref().map(|source| &**source.get_ref()), &sink.fd, &mut buffer);
        SCRATCH_BUFFER.with(|kept| kept.borrow_mut().replace(buffer));
        progress
    }

    fn move_bytes(&self, source: Option<&OwnedFd>, sink: &OwnedFd, buffer: &mut [u8]) -> Progress {
        let mut left_over = std::mem::take(&mut *self.left_over.borrow_mut());
        if !left_over.is_empty() {
            let Some(written) = self.write(sink, &left_over) else { return Progress::Ended };
            left_over.drain(..written);
            if !left_over.is_empty() {
                self.left_over.replace(left_over);
                return Progress::SinkFull;
            }
        }
        let Some(source) = source else { return Progress::Ended };
        let mut moved = 0;
        while moved < BUDGET {
            let read = match rustix::io::read(source, &mut *buffer) {
                Ok(0) => return Progress::Ended,
                Ok(read) => read,
                Err(Errno::AGAIN) => return Progress::SourceEmpty,
                Err(Errno::INTR) => continue,
                // EIO: nobody has the slave of this pty open any more. That is its end.
                Err(Errno::IO) => return Progress::Ended,
                Err(e) => {
                    log::warn!("copy {}: read: {e}", self.name);
                    return Progress::Ended;
                }
            };
            moved += read;
            let Some(written) = self.write(sink, &buffer[..read]) else { return Progress::Ended };
            if written < read {
                self.left_over.replace(buffer[written..read].to_vec());
                return Progress::SinkFull;
            }
            if self.short_read_is_all && read < buffer.len() / 2 {
                // Drained: what is written from now on, and the end, wakes us.
                return Progress::SourceEmpty;
            }
        }
        Progress::Busy
    }

    /// Writes until all is written or the sink is full. `None`: the sink is broken.
    fn write(&self, sink: &OwnedFd, bytes: &[u8]) -> Option<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::write(sink, &bytes[written..]) {
                Ok(n) => {
                    written += n;
                    self.copied.set(self.copied.get() + n as u64);
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) if self.on_write_error == OnWriteError::End => return None,
                Err(e) => {
                    if self.dropped.get() == 0 {
                        log::error!("copy {}: write: {e}; output is dropped until writing works", self.name);
                    }
                    self.dropped.set(self.dropped.get() + (bytes.len() - written) as u64);
                    return Some(bytes.len());
                }
            }
        }
        Some(written)
    }

    /// Takes what is there now, and nothing that comes later; what a full sink leaves over still goes out.
    pub(super) fn let_source_go(&self) {
        self.pump();
        self.source.borrow_mut().take();
        self.let_go.notify_one();
    }

    /// Closes both sides, as far as this copy owns them.
    pub(super) fn close(&self) {
        self.source.borrow_mut().take();
        self.let_go.notify_one();
        self.sink.borrow_mut().take();
        self.left_over.take();
        self.unread.take();
    }

    /// Whether both sides are closed.
    pub(super) fn has_ended(&self) -> bool {
        self.source.borrow().is_none()
    }

    /// Bytes copied so far, and whether some wait for a slow reader.
    pub(super) fn position(&self) -> (u64, bool) {
        (self.copied.get(), !self.left_over.borrow().is_empty())
    }

    /// For the dump.
    pub(super) fn describe(&self) -> String {
        format!(
            "{} copied={} waiting={} dropped={}{}",
            self.name,
            self.copied.get(),
            self.left_over.borrow().len(),
            self.dropped.get(),
            if self.has_ended() { " ended" } else { "" }
        )
    }
}

/// Bytes in a fifo that nobody has read.
fn bytes_held(fd: &OwnedFd) -> u64 {
    let is_fifo =
        rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    if is_fifo { rustix::io::ioctl_fionread(fd).unwrap_or(0) } else { 0 }
}

impl Sink {
    fn registered(&self) -> Option<&AsyncFd<Rc<OwnedFd>>> {
        if self.registered.get().is_none() {
            let registered = sys::fd::watch(Rc::clone(&self.fd), Interest::WRITABLE).ok()?;
            let _ = self.registered.set(registered);
        }
        self.registered.get()
    }
}

/// A second registration of one open file fails; a console's master is source of one copy and sink of another.
pub(super) fn duplicate(fd: &OwnedFd) -> std::io::Result<Rc<OwnedFd>> {
    fd.as_fd().try_clone_to_owned().map(Rc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    fn local(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    /// The byte at a place of the test's data.
    fn byte(place: usize) -> u8 {
        u8::try_from(place % 251).unwrap()
    }

    #[test]
    fn a_full_sink_loses_nothing() {
        local(async {
            let (source, feed) = pipe();
            let (reader, sink) = pipe();
            let copy = Copy::new("test", Rc::new(source), Rc::new(sink), OnWriteError::End).unwrap();
            let task = tokio::task::spawn_local(Rc::clone(&copy).run());
            let total = 1 << 20;
            let (mut sent, mut got) = (0usize, Vec::new());
            let mut feed = Some(feed);
            let mut buffer = vec![0u8; 4096];
            while got.len() < total {
                if let Some(open) = &feed {
                    let chunk: Vec<u8> = (sent..(sent + 1000).min(total)).map(byte).collect();
                    if let Ok(n) = rustix::io::write(open, &chunk) {
                        sent += n;
                    }
                    if sent == total {
                        feed = None;
                    }
                }
                tokio::task::yield_now().await;
                // A slow reader: half of what is written a round.
                if let Ok(n) = rustix::io::read(&reader, &mut buffer[..500]) {
                    got.extend_from_slice(&buffer[..n]);
                }
            }
            task.await.unwrap();
            assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)));
            assert!(copy.has_ended());
        });
    }

    #[test]
    fn a_reader_that_left_ends_a_stdin_copy() {
        local(async {
            let (source, feed) = pipe();
            let (reader, sink) = pipe();
            let copy = Copy::new("test", Rc::new(source), Rc::new(sink), OnWriteError::End).unwrap();
            drop(reader);
            rustix::io::write(&feed, b"x").unwrap();
            copy.run().await;
        });
    }

    #[test]
    fn write_errors_of_a_file_do_not_end_the_copy() {
        local(async {
            let (source, feed) = pipe();
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let copy = Copy::new("test", Rc::new(source), Rc::new(full.into()), OnWriteError::Drop).unwrap();
            rustix::io::write(&feed, b"lost").unwrap();
            assert_eq!(copy.pump(), Progress::SourceEmpty);
            assert_eq!(copy.dropped.get(), 4);
            assert!(!copy.has_ended());
        });
    }
}
