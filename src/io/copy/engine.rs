//! Does what [`Pacing`] says, and wakes it.

use super::{
    pacing::{BUDGET, Mode, Pacing, Room, Seen, Step, Wait, Wake},
    scratch::{SCRATCH, with_scratch},
    sink::{OnWriteError, Sink, fifo_bytes, is_fifo},
    source::read,
    splice::{WIDE, Wide, splice, widen},
    spool::Spool,
    ticker,
    watched::Watched,
};
use crate::{io::SpoolPolicy, protocol::inspect};
use rustix::io::Errno;
use std::{
    cell::{OnceCell, RefCell},
    io,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{io::unix::AsyncFdReadyGuard, sync::Notify};

type Ready<'a> = AsyncFdReadyGuard<'a, Rc<OwnedFd>>;

/// A source, a sink, and what the sink has not taken yet.
pub(in crate::io) struct Copy {
    source: RefCell<Option<Rc<Watched>>>,
    sink: Sink,
    spool: RefCell<Spool>,
    pacing: RefCell<Pacing>,
    /// The process writes into the sink itself, or did so.
    is_direct: bool,
    wide: OnceCell<Wide>,
    /// The source was let go, or both sides were closed.
    let_go: Notify,
}

impl Copy {
    /// Prepares a copy; both descriptors are non-blocking.
    pub(in crate::io) fn new(
        name: &'static str,
        source: Rc<Watched>,
        sink: Rc<Watched>,
        on_write_error: OnWriteError,
        policy: SpoolPolicy,
    ) -> io::Result<Rc<Self>> {
        let is_console = rustix::termios::isatty(source.fd());
        // Without a look at the source: splice itself says whether it is a pipe.
        let may_splice = !is_console && is_fifo(sink.fd());
        source.registered()?;
        let pacing = Pacing::new(is_console, may_splice, SCRATCH);
        let sink = Sink::new(name, sink, on_write_error);
        Ok(Rc::new(Self::with(Some(source), sink, pacing, policy)))
    }

    /// Keeps a fifo open that the process itself writes into, for both directions: so neither a
    /// reader that goes ends or harms the process, nor does the process's end take along what
    /// nobody has read.
    pub(in crate::io) fn direct(name: &'static str, fifo: Rc<Watched>) -> Rc<Self> {
        let sink = Sink::new(name, Rc::clone(&fifo), OnWriteError::Drop);
        let copy = Self::with(None, sink, Pacing::direct(), SpoolPolicy::OFF);
        if copy.may_widen() {
            widen(fifo.fd());
        }
        Rc::new(copy)
    }

    fn with(source: Option<Rc<Watched>>, sink: Sink, pacing: Pacing, policy: SpoolPolicy) -> Self {
        Self {
            source: RefCell::new(source),
            sink,
            spool: RefCell::new(Spool::new(policy)),
            is_direct: pacing.mode() == Mode::Direct,
            pacing: RefCell::new(pacing),
            wide: OnceCell::new(),
            let_go: Notify::new(),
        }
    }

    /// Copies until the source ends or the sink breaks; then both are closed.
    pub(in crate::io) async fn run(self: Rc<Self>) {
        let mut wait = self.pacing.borrow().wait();
        loop {
            wait = match wait {
                Wait::Turn => {
                    tokio::task::yield_now().await;
                    self.turn(Wake::Other)
                }
                Wait::Source => self.when_readable().await,
                Wait::Beat => self.at_beat().await,
                Wait::Sink { or_source, at_most } => self.when_writable(or_source, at_most).await,
                Wait::Pause(pause) => self.after(pause).await,
                Wait::LetGo => {
                    self.let_go.notified().await;
                    self.turn(Wake::Other)
                }
                Wait::End => break,
            };
            let pause = self.pacing.borrow().pause();
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
        self.finish();
    }

    /// Waits until the source has something, and moves it.
    async fn when_readable(&self) -> Wait {
        let Some(source) = self.source() else { return self.turn(Wake::Other) };
        let Ok(watched) = source.registered() else { return Wait::End };
        tokio::select! {
            ready = watched.readable() => self.turn_readable(ready, Wake::Source),
            () = self.let_go.notified() => self.turn(Wake::Other),
        }
    }

    fn turn_readable(&self, ready: io::Result<Ready<'_>>, wake: Wake) -> Wait {
        let Ok(mut ready) = ready else { return Wait::End };
        let wait = self.turn(wake);
        if self.pacing.borrow().is_source_empty() {
            ready.clear_ready();
        }
        wait
    }

    /// Moves what the source has got by the next beat.
    async fn at_beat(&self) -> Wait {
        // Else the kernel would wake us for each write all the same.
        self.source().inspect(|source| source.rest());
        let wake = tokio::select! {
            () = ticker::next_beat() => Wake::Beat,
            () = self.let_go.notified() => Wake::Other,
        };
        self.turn(wake)
    }

    /// Waits until the sink takes more, or the source has something that may be spooled.
    async fn when_writable(&self, or_source: bool, at_most: Option<Duration>) -> Wait {
        let Some(sink) = self.sink.open() else { return Wait::End };
        let Ok(writable) = sink.registered() else { return Wait::End };
        let source = self.source().filter(|_| or_source);
        let Ok(readable) = source.map(|source| source.registered()).transpose() else {
            return Wait::End;
        };
        tokio::select! {
            ready = writable.writable() => {
                let Ok(mut ready) = ready else { return Wait::End };
                let wait = self.turn(Wake::Other);
                if self.pacing.borrow().is_sink_full() {
                    ready.clear_ready();
                }
                wait
            }
            Some(ready) = async { Some(readable.as_ref()?.readable().await) } => {
                self.turn_readable(ready, Wake::Other)
            }
            () = tokio::time::sleep(at_most.unwrap_or_default()), if at_most.is_some() => {
                self.turn(Wake::Timeout)
            }
            () = self.let_go.notified() => self.turn(Wake::Other),
        }
    }

    /// Looks again after a pause.
    async fn after(&self, pause: Duration) -> Wait {
        // The loop would be woken for ever: EPOLLHUP stays.
        self.source().inspect(|source| source.rest());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.let_go.notified() => {}
        }
        self.turn(Wake::Other)
    }

    /// Moves what can be moved now, while the copy goes on waiting.
    /// Returns whether there is more, and only the turn was over.
    pub(in crate::io) fn pump(&self) -> bool {
        self.turn(Wake::Asked) == Wait::Turn
    }

    fn turn(&self, wake: Wake) -> Wait {
        let Some(sink) = self.sink.open() else { return Wait::End };
        let source = self.source();
        self.pacing.borrow_mut().begin(wake);
        with_scratch(|scratch| self.do_steps(source.as_deref(), sink.fd(), scratch));
        drop(source);
        let mut pacing = self.pacing.borrow_mut();
        if !pacing.has_source() {
            self.source.take();
        }
        pacing.end(Instant::now())
    }

    fn do_steps(&self, source: Option<&Watched>, sink: &OwnedFd, scratch: &mut [u8]) {
        loop {
            let step = self.pacing.borrow().next();
            let source = source.map(Watched::fd);
            let seen = match (step, source) {
                (Step::Stop, _) => return,
                (Step::Replay, _) => self.replay(sink, scratch),
                (Step::Copy, Some(source)) => self.copy(source, sink, scratch),
                (Step::Splice, Some(source)) => self.splice(source, sink),
                (Step::Spool, Some(source)) => self.spool_some(source, scratch),
                (Step::Copy | Step::Splice | Step::Spool, None) => Seen::SourceEnded,
            };
            self.pacing.borrow_mut().saw(seen);
        }
    }

    /// Moves once through memory.
    fn copy(&self, source: &OwnedFd, sink: &OwnedFd, scratch: &mut [u8]) -> Seen {
        let bytes = match read(source, scratch) {
            Ok(0) => return Seen::SourceEnded,
            Ok(read) => &scratch[..read],
            Err(Errno::AGAIN) => return Seen::SourceEmpty,
            Err(e) => {
                log::warn!("copy {}: read: {e}", self.sink.name());
                return Seen::Broken;
            }
        };
        let Some(written) = self.sink.write(sink, bytes) else { return Seen::Broken };
        if written < bytes.len() {
            self.spool.borrow_mut().keep(&bytes[written..]);
            return Seen::SinkFull { bytes: written, kept: true, room: self.room() };
        }
        Seen::Copied(written)
    }

    fn splice(&self, source: &OwnedFd, sink: &OwnedFd) -> Seen {
        if self.may_widen() {
            widen(source);
            widen(sink);
            self.pacing.borrow_mut().widened(WIDE);
        }
        let sink_full = || Seen::SinkFull { bytes: 0, kept: false, room: self.room() };
        let seen = splice(source, sink, sink_full);
        if let Seen::Spliced { bytes, .. } = seen {
            self.sink.count(bytes);
        }
        seen
    }

    /// Whether this is one of the copies with wide pipes, for the first time.
    fn may_widen(&self) -> bool {
        self.wide.get().is_none() && Wide::take().is_some_and(|wide| self.wide.set(wide).is_ok())
    }

    /// Writes what is kept, at most what belongs into a turn.
    fn replay(&self, sink: &OwnedFd, scratch: &mut [u8]) -> Seen {
        let mut spool = self.spool.borrow_mut();
        let (mut bytes, mut is_full) = (0, false);
        let replayed = spool.replay(scratch, |chunk| {
            if bytes >= BUDGET {
                return Some(0);
            }
            let written = self.sink.write(sink, chunk)?;
            bytes += written;
            is_full = written < chunk.len();
            Some(written)
        });
        let all = spool.is_empty();
        drop(spool);
        match replayed {
            None => Seen::Broken,
            Some(()) if is_full => Seen::SinkFull { bytes, kept: true, room: self.room() },
            Some(()) => Seen::Replayed { bytes, all },
        }
    }

    /// Reads once into the spool.
    fn spool_some(&self, source: &OwnedFd, scratch: &mut [u8]) -> Seen {
        let (bytes, scratch) = scratch.split_at_mut(SCRATCH / 2);
        let room = self.spool.borrow().room().min(bytes.len());
        match read(source, &mut bytes[..room]) {
            Ok(0) => Seen::SourceEnded,
            Ok(read) => {
                self.spool.borrow_mut().append(&bytes[..read], scratch);
                Seen::Spooled { bytes: read, room: self.room() }
            }
            Err(_) => Seen::SourceEmpty,
        }
    }

    fn room(&self) -> Room {
        let spool = self.spool.borrow();
        if !spool.is_on() {
            Room::Off
        } else if spool.room() > 0 {
            Room::Some
        } else if spool.waits_for_others() {
            Room::UsedByOthers
        } else {
            Room::None
        }
    }

    #[cfg(test)]
    pub(super) fn mode(&self) -> Mode {
        self.pacing.borrow().mode()
    }

    #[cfg(test)]
    pub(super) fn is_wide(&self) -> bool {
        self.wide.get().is_some()
    }

    fn source(&self) -> Option<Rc<Watched>> {
        self.source.borrow().clone()
    }

    /// Closes both sides, so that the reader sees the end: but a fifo only when it has been read.
    /// See [`Copy::wait_read`].
    pub(in crate::io) fn finish(&self) {
        if !self.sink.has_ended() {
            self.close_source();
            self.sink.finish();
        }
    }

    /// Returns when a reader has got all, or after [`Copy::close`].
    pub(in crate::io) async fn wait_read(&self) {
        self.sink.wait_read().await;
    }

    /// Takes what is there now, and nothing that comes later; what a full sink leaves over still
    /// goes out.
    pub(in crate::io) fn let_source_go(&self) {
        self.pump();
        self.pacing.borrow_mut().let_source_go();
        self.source.take();
        self.let_go.notify_one();
    }

    /// The process of a console has exited: when nobody has it open, it is at its end.
    pub(in crate::io) fn expect_end(&self) {
        if self.pacing.borrow_mut().expect_end() {
            self.let_go.notify_one();
        }
    }

    /// Closes both sides, as far as this copy owns them.
    pub(in crate::io) fn close(&self) {
        self.close_source();
        self.sink.close();
    }

    fn close_source(&self) {
        self.source.take();
        self.let_go.notify_one();
        self.spool.borrow_mut().clear();
    }

    /// What lies in the source, at most what a pipe holds; nobody will copy it.
    pub(in crate::io) fn take_words(&self) -> Vec<u8> {
        let Some(source) = self.source() else { return Vec::new() };
        let mut words = vec![0; SCRATCH];
        let length = rustix::io::read(source.fd(), &mut words).unwrap_or(0);
        words.truncate(length);
        words
    }

    /// Bytes that lie in the source.
    pub(in crate::io) fn source_bytes(&self) -> usize {
        self.source().map_or(0, |source| fifo_bytes(source.fd()))
    }

    /// Bytes that lie in the fifo after the source has ended.
    pub(in crate::io) fn unread_bytes(&self) -> usize {
        self.sink.unread_bytes()
    }

    /// Whether somebody has the fifo open who could read them.
    pub(in crate::io) fn has_reader(&self) -> bool {
        self.sink.has_reader()
    }

    /// Whether the process writes into the sink itself.
    pub(in crate::io) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Whether both sides are closed.
    pub(in crate::io) fn has_ended(&self) -> bool {
        self.sink.has_ended()
    }

    /// Bytes copied so far, and whether some wait for a slow reader.
    pub(in crate::io) fn position(&self) -> (u64, bool) {
        (self.sink.written(), !self.spool.borrow().is_empty())
    }

    pub(in crate::io) fn figures(&self) -> inspect::Stream {
        let spool = self.spool.borrow();
        inspect::Stream {
            name: self.sink.name().to_owned(),
            bytes: self.sink.written(),
            spooled_bytes: spool.len(),
            dropped_bytes: self.sink.dropped() + spool.dropped(),
            ended: self.has_ended(),
            direct: self.is_direct,
        }
    }

    /// A line for the dump of SIGUSR1.
    pub(in crate::io) fn describe(&self) -> String {
        let spool = self.spool.borrow();
        format!(
            "{}{} copied={} waiting={} dropped={} spooling={}{}",
            self.sink.name(),
            if self.is_direct { " direct" } else { "" },
            self.sink.written(),
            spool.len(),
            self.sink.dropped() + spool.dropped(),
            self.pacing.borrow().mode() == Mode::Spooling,
            if self.has_ended() { " ended" } else { "" }
        )
    }
}
