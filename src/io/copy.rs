//! The copy engine: one source, one sink, and what the sink has not taken yet.
//!
//! Little is read and written, so that small writes merge in the sink; much is spliced from pipe to pipe and never touched. All copies share
//! one scratch buffer, since only one moves bytes at a time. A sink that is full stops the reading, so the container waits and nothing is lost;
//! if it stays full for [`PATIENCE`], the source goes into the [`Spool`] as far as that reaches, and the container does not wait.

use super::{
    beat::{self, BEAT},
    spool::{Policy, Spool},
};
use crate::{protocol::inspect, sys};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    io::Errno,
    pipe::{SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, splice},
};
use std::{
    cell::{Cell, RefCell},
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    sync::Notify,
};

/// Size of the scratch buffer, bytes: what a pipe holds.
const SCRATCH: usize = 64 << 10;
/// Bytes moved before the loop gets its turn.
const BUDGET: usize = 1 << 20;
/// A read of this many bytes is the beginning of a flood: it is spliced from then on. Below it a splice costs more than it saves, and would
/// fill the slots of the sink with crumbs.
const FLOOD: usize = 16 << 10;
/// What the pipe and the fifo of a flood are made to hold, if the kernel agrees. Pages count for the user's pipe-user-pages-soft (pipe(7)),
/// so only floods get them, and direct outputs, which nobody can tell from floods; at most [`MAX_WIDE`] copies of a shim.
const WIDE: usize = 256 << 10;
const MAX_WIDE: usize = 32;
/// Small amounts that follow each other more quickly than two beats, so many times, are the beginning of a chatter: it is moved beat by beat.
const CHATTER: u8 = 16;
/// Beats in which nothing came, after which a chatter is over.
const SILENCE: u8 = 2;
/// For so long after it one small amount is the beginning of the next: where more chatter than there are processors, each falls silent while others run.
const MEMORY: Duration = Duration::from_millis(100);
/// How long a sink may be full before the source is spooled. Less than what a writer in the container should wait.
const PATIENCE: Duration = Duration::from_millis(20);
/// How often a stream that was refused for the shim's total looks whether others keep less now.
const OTHERS_LOOK: Duration = Duration::from_millis(500);
/// Pause when a source says that it is ready and has nothing, over and over (a fifo between two writers).
const SPURIOUS_PAUSE: Duration = Duration::from_millis(10);
/// Pauses between looks at a console that nobody has open, where we cannot keep it open ourselves. They grow.
const FIRST_AWAY_LOOK: Duration = Duration::from_millis(10);
const LONGEST_AWAY_LOOK: Duration = Duration::from_secs(1);

/// Longest pause between two looks whether what an ended process has written was read. Pauses grow with the time that has passed, so the
/// reader sees the end a third later than it might, and a reader that never comes costs nothing.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

thread_local! {
    static SCRATCH_BUFFER: RefCell<Option<Box<[u8]>>> = const { RefCell::new(None) };
    static WIDENED: Cell<usize> = const { Cell::new(0) };
}

/// Gives the scratch buffer back; the next copy makes a new one.
pub fn release_scratch() {
    SCRATCH_BUFFER.with(|buffer| buffer.borrow_mut().take());
}

fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let kept = SCRATCH_BUFFER.with(|buffer| buffer.borrow_mut().take());
    let mut buffer = kept.unwrap_or_else(|| vec![0; SCRATCH].into_boxed_slice());
    let result = work(&mut buffer);
    SCRATCH_BUFFER.with(|kept| kept.borrow_mut().replace(buffer));
    result
}

/// Where a [`Copy::pump`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing left to read for now, and nothing kept.
    SourceEmpty,
    /// The sink takes no more for now. What the source had may have gone into the spool.
    SinkFull {
        /// The source has no more for now either.
        source_empty: bool,
    },
    /// There is more, but others want their turn.
    Busy,
    /// A console that nobody has open now.
    Away,
    /// The source has ended and all is written, or the sink is broken.
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
    source: RefCell<Option<Rc<Watched>>>,
    sink: RefCell<Option<Rc<Watched>>>,
    spool: RefCell<Spool>,
    /// The sink has been full for so long that the source is spooled.
    spooling: Cell<bool>,
    /// Bytes come in such masses that they are spliced.
    flood: Cell<bool>,
    /// Both ends are pipes.
    can_splice: Cell<bool>,
    /// The process writes into the sink itself: there is no source, and nothing to do until it has exited.
    direct: bool,
    chatter: Chatter,
    wide: Cell<bool>,
    /// A fifo whose content nobody has read yet.
    unread: RefCell<Option<Rc<OwnedFd>>>,
    /// The source was let go, or both sides were closed.
    let_go: Notify,
    on_write_error: OnWriteError,
    /// The source is a console: a read(2) may not return all that is there, and we would not be woken for the rest.
    is_console: bool,
    /// A console's EIO is its end. Before the end of its process it says only that nobody has it open: somebody may open it again.
    may_end: Cell<bool>,
    copied: Cell<u64>,
    dropped: Cell<u64>,
    dropping: Cell<bool>,
}

/// A descriptor, and its place in the event loop: one, whoever reads and writes it, for the kernel takes a descriptor only once.
pub(super) struct Watched {
    fd: Rc<OwnedFd>,
    interest: Interest,
    /// Its file system may hang: nothing is asked of it once more.
    is_remote: bool,
    registered: RefCell<Option<Rc<AsyncFd<Rc<OwnedFd>>>>>,
}

impl Copy {
    /// Prepares a copy; both descriptors are non-blocking.
    pub(super) fn new(
        name: &'static str,
        source: Rc<Watched>,
        sink: Rc<Watched>,
        on_write_error: OnWriteError,
        policy: Policy,
    ) -> std::io::Result<Rc<Self>> {
        let is_console = rustix::termios::isatty(source.fd());
        // Without a look at the source: splice itself says whether it is a pipe.
        let can_splice = !is_console && is_fifo(sink.fd());
        source.registered()?;
        let mut copy = Self::idle(name, sink, on_write_error, policy);
        copy.source = RefCell::new(Some(source));
        copy.can_splice = Cell::new(can_splice);
        copy.is_console = is_console;
        copy.may_end = Cell::new(!is_console);
        Ok(Rc::new(copy))
    }

    /// Keeps a fifo open that the process itself writes into, for both directions: so neither a reader that goes ends or harms the process,
    /// nor does the process's end take along what nobody has read.
    pub(super) fn direct(name: &'static str, fifo: Rc<Watched>) -> Rc<Self> {
        let mut copy = Self::idle(name, Rc::clone(&fifo), OnWriteError::Drop, Policy::OFF);
        copy.direct = true;
        if copy.may_widen() {
            let _ = fcntl_setpipe_size(fifo.fd(), WIDE);
        }
        Rc::new(copy)
    }

    fn idle(name: &'static str, sink: Rc<Watched>, on_write_error: OnWriteError, policy: Policy) -> Self {
        Self {
            name,
            source: RefCell::default(),
            sink: RefCell::new(Some(sink)),
            spool: RefCell::new(Spool::new(policy)),
            spooling: Cell::new(false),
            flood: Cell::new(false),
            can_splice: Cell::new(false),
            direct: false,
            chatter: Chatter::default(),
            wide: Cell::new(false),
            unread: RefCell::default(),
            let_go: Notify::new(),
            on_write_error,
            is_console: false,
            may_end: Cell::new(true),
            copied: Cell::new(0),
            dropped: Cell::new(0),
            dropping: Cell::new(false),
        }
    }

    /// Copies until the source ends or the sink breaks; then both are closed.
    pub(super) async fn run(self: Rc<Self>) {
        if self.direct {
            self.let_go.notified().await;
        }
        let mut progress = Some(Progress::SourceEmpty);
        let (mut spurious, mut away) = (0, FIRST_AWAY_LOOK);
        while let Some(before) = progress {
            let copied = self.copied.get();
            let source = self.source.borrow().clone();
            progress = match (before, source) {
                (Progress::SourceEmpty, Some(source)) if self.chatter.goes_on() => {
                    Some(self.at_beat(&source).await)
                }
                (Progress::SourceEmpty, Some(source)) => self.when_readable(&source).await,
                (Progress::SourceEmpty, None) => Some(self.pump()),
                (Progress::SinkFull { source_empty }, source) => {
                    let has_room = self.spool.borrow().room() > 0;
                    let wanted = source_empty && has_room && self.spooling.get();
                    self.when_writable(source.filter(|_| wanted)).await
                }
                (Progress::Busy, _) => {
                    tokio::task::yield_now().await;
                    Some(self.pump())
                }
                (Progress::Away, Some(source)) => {
                    // The loop would be woken for ever: EPOLLHUP stays.
                    source.rest();
                    tokio::select! {
                        () = tokio::time::sleep(away) => {}
                        () = self.let_go.notified() => {}
                    }
                    away = (away * 3 / 2).min(LONGEST_AWAY_LOOK);
                    Some(self.pump())
                }
                (Progress::Away, None) => Some(self.pump()),
                (Progress::Ended, _) => None,
            };
            if self.copied.get() != copied {
                away = FIRST_AWAY_LOOK;
            }
            let is_idle = self.copied.get() == copied && !self.spooling.get() && !self.chatter.goes_on();
            spurious = if is_idle { spurious + 1 } else { 0 };
            if spurious > 8 {
                tokio::time::sleep(SPURIOUS_PAUSE).await;
            }
        }
        self.finish();
    }

    /// Waits until the source has something, and moves it. `None`: there is nothing to wait for any more.
    async fn when_readable(&self, source: &Watched) -> Option<Progress> {
        let copied = self.copied.get();
        let watched = source.registered().ok()?;
        tokio::select! {
            ready = watched.readable() => {
                let progress = self.pump_readable(ready.ok()?);
                self.chatter.after_wake(self.copied.get() - copied);
                Some(progress)
            }
            () = self.let_go.notified() => Some(Progress::Busy),
        }
    }

    fn pump_readable(&self, mut ready: AsyncFdReadyGuard<'_, Rc<OwnedFd>>) -> Progress {
        let progress = self.pump();
        if matches!(progress, Progress::SourceEmpty | Progress::SinkFull { source_empty: true }) {
            ready.clear_ready();
        }
        progress
    }

    /// Moves what the source has got by the next beat.
    async fn at_beat(&self, source: &Watched) -> Progress {
        let copied = self.copied.get();
        // Else the kernel would wake us for each write all the same.
        source.rest();
        tokio::select! {
            () = beat::next() => {}
            () = self.let_go.notified() => {}
        }
        let progress = self.pump();
        self.chatter.after_beat(self.copied.get() - copied, self.wide.get());
        progress
    }

    /// Waits until the sink takes more, or, while it does not, until the source has something that may be spooled.
    async fn when_writable(&self, source: Option<Rc<Watched>>) -> Option<Progress> {
        let sink = self.sink.borrow().clone()?;
        let writable = sink.registered().ok()?;
        let readable = source.map(|source| source.registered()).transpose().ok()?;
        let may_spool = !self.spooling.get() && self.spool.borrow().is_on();
        let waits_for_others = self.spooling.get() && self.spool.borrow().waits_for_others();
        tokio::select! {
            ready = writable.writable() => {
                let mut ready = ready.ok()?;
                let progress = self.pump();
                if matches!(progress, Progress::SinkFull { .. }) {
                    ready.clear_ready();
                }
                Some(progress)
            }
            Some(ready) = async { Some(readable.as_ref()?.readable().await) } => {
                Some(self.pump_readable(ready.ok()?))
            }
            () = tokio::time::sleep(PATIENCE), if may_spool => {
                self.spooling.set(true);
                Some(self.pump())
            }
            () = tokio::time::sleep(OTHERS_LOOK), if waits_for_others => Some(self.pump()),
            () = self.let_go.notified() => Some(Progress::Busy),
        }
    }

    /// Closes both sides, so that the reader sees the end: but a fifo only when it has been read, for its content goes with the
    /// last descriptor, and a reader may be away or go away (containerd restarts). See [`Copy::wait_read`].
    pub(super) fn finish(&self) {
        let Some(sink) = self.sink.borrow_mut().take() else { return };
        self.close();
        let fd = Rc::clone(&sink.fd);
        if self.on_write_error == OnWriteError::Drop && bytes_held(&fd) > 0 {
            // For writing only: what is in the fifo stays, and its readers can be told from ourselves.
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let kept = match sink.is_remote {
                true => fd,
                false => rustix::fs::open(path, flags, Mode::empty()).map_or(fd, Rc::new),
            };
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

    /// What lies in the source, at most what a pipe holds; nobody will copy it.
    pub(super) fn take_words(&self) -> Vec<u8> {
        let Some(source) = self.source.borrow().clone() else { return Vec::new() };
        let mut words = vec![0; SCRATCH];
        let length = rustix::io::read(source.fd(), &mut words).unwrap_or(0);
        words.truncate(length);
        words
    }

    /// Bytes that lie in the source.
    pub(super) fn source_bytes(&self) -> u64 {
        self.source.borrow().as_ref().map_or(0, |source| bytes_held(source.fd()))
    }

    /// Bytes that lie in the fifo after the source has ended.
    pub(super) fn unread_bytes(&self) -> u64 {
        self.unread.borrow().as_deref().map_or(0, bytes_held)
    }

    /// Whether somebody has the fifo open who could read them.
    pub(super) fn has_reader(&self) -> bool {
        // A writing end without a reader is in error.
        let unread = self.unread.borrow();
        unread.as_deref().and_then(writing_state).is_some_and(|state| !state.contains(PollFlags::ERR))
    }

    /// Moves what can be moved now.
    pub(super) fn pump(&self) -> Progress {
        let Some(sink) = self.sink.borrow().clone() else { return Progress::Ended };
        let source = self.source.borrow().clone();
        with_scratch(|scratch| self.move_bytes(source.as_deref().map(Watched::fd), sink.fd(), scratch))
    }

    fn move_bytes(&self, source: Option<&OwnedFd>, sink: &OwnedFd, scratch: &mut [u8]) -> Progress {
        let mut moved = 0;
        while moved < BUDGET {
            let step = if self.spool.borrow().is_empty() {
                match source {
                    Some(source) => self.step(source, sink, scratch),
                    None => return Progress::Ended,
                }
            } else {
                let mut spool = self.spool.borrow_mut();
                match spool.replay(scratch, |bytes| self.write(sink, bytes)) {
                    None => return Progress::Ended,
                    Some(()) if spool.is_empty() => continue,
                    Some(()) => Step::SinkFull,
                }
            };
            match step {
                Step::Moved(bytes) => moved += bytes,
                Step::SourceEmpty => {
                    self.spooling.set(false);
                    return Progress::SourceEmpty;
                }
                Step::Away => return Progress::Away,
                Step::Ended => return Progress::Ended,
                Step::SinkFull => {
                    if !self.spooling.get() {
                        return Progress::SinkFull { source_empty: false };
                    }
                    match self.spool_some(source, scratch) {
                        Some(bytes) => moved += bytes,
                        None => return Progress::SinkFull { source_empty: true },
                    }
                    if self.spool.borrow().room() == 0 {
                        return Progress::SinkFull { source_empty: false };
                    }
                }
            }
        }
        Progress::Busy
    }

    /// Takes once from the source into the spool. `None`: it has nothing, or has ended.
    fn spool_some(&self, source: Option<&OwnedFd>, scratch: &mut [u8]) -> Option<usize> {
        let (bytes, scratch) = scratch.split_at_mut(scratch.len() / 2);
        let room = self.spool.borrow().room().min(bytes.len());
        match read(source?, &mut bytes[..room]) {
            Ok(0) if room > 0 => {
                self.source.borrow_mut().take();
                None
            }
            Ok(read) => {
                self.spool.borrow_mut().append(&bytes[..read], scratch);
                Some(read)
            }
            Err(_) => None,
        }
    }

    /// Moves once from the source to the sink.
    fn step(&self, source: &OwnedFd, sink: &OwnedFd, scratch: &mut [u8]) -> Step {
        if self.flood.get() && self.can_splice.get() {
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            match splice(source, None, sink, None, BUDGET, flags) {
                Ok(0) => return Step::Ended,
                Ok(bytes) => {
                    self.copied.set(self.copied.get() + bytes as u64);
                    if bytes < FLOOD && held(source) < FLOOD as u64 {
                        self.flood.set(false);
                    }
                    return Step::Moved(bytes);
                }
                Err(Errno::AGAIN) if held(source) == 0 => return Step::SourceEmpty,
                Err(Errno::AGAIN) if writing_state(sink).is_none_or(|state| state.is_empty()) => {
                    return Step::SinkFull;
                }
                // Something came in between.
                Err(Errno::AGAIN) => return Step::Moved(FLOOD),
                Err(Errno::INTR) => return Step::Moved(0),
                // No pipe after all, or nobody reads: writing finds out what to do.
                Err(_) => self.can_splice.set(false),
            }
        }
        let read = match read(source, scratch) {
            Ok(0) if !self.may_end.get() => return Step::Away,
            Ok(0) => return Step::Ended,
            Ok(read) => read,
            Err(Errno::AGAIN) => return Step::SourceEmpty,
            Err(e) => {
                log::warn!("copy {}: read: {e}", self.name);
                return Step::Ended;
            }
        };
        let Some(written) = self.write(sink, &scratch[..read]) else { return Step::Ended };
        if written < read {
            self.spool.borrow_mut().keep(&scratch[written..read]);
            return Step::SinkFull;
        }
        if read >= FLOOD {
            self.flood.set(true);
            self.widen(source, sink);
        } else if !self.is_console {
            // Drained: what is written from now on, and the end, wakes us.
            return Step::SourceEmpty;
        }
        Step::Moved(read)
    }

    /// Makes room for a flood in both pipes. What the kernel refuses stays as it is.
    fn widen(&self, source: &OwnedFd, sink: &OwnedFd) {
        if self.can_splice.get() && self.may_widen() {
            let _ = fcntl_setpipe_size(source, WIDE);
            let _ = fcntl_setpipe_size(sink, WIDE);
        }
    }

    /// Whether this is one of the [`MAX_WIDE`], for the first time.
    fn may_widen(&self) -> bool {
        let may = !self.wide.get() && WIDENED.get() < MAX_WIDE;
        if may {
            self.wide.set(true);
            WIDENED.set(WIDENED.get() + 1);
        }
        may
    }

    /// Writes until all is written or the sink is full. `None`: the sink is broken.
    fn write(&self, sink: &OwnedFd, bytes: &[u8]) -> Option<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::write(sink, &bytes[written..]) {
                Ok(n) => {
                    written += n;
                    self.copied.set(self.copied.get() + n as u64);
                    if self.dropping.replace(false) {
                        let dropped = self.dropped.get();
                        log::warn!("copy {}: writing works again; dropped {dropped} bytes in all", self.name);
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) if self.on_write_error == OnWriteError::End => return None,
                Err(e) => {
                    if !self.dropping.replace(true) {
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

    /// The process of a console has exited: when nobody has it open, it is at its end.
    pub(super) fn expect_end(&self) {
        if !self.may_end.replace(true) {
            self.let_go.notify_one();
        }
    }

    /// Closes both sides, as far as this copy owns them.
    pub(super) fn close(&self) {
        self.source.borrow_mut().take();
        self.let_go.notify_one();
        self.sink.borrow_mut().take();
        self.spool.borrow_mut().clear();
        self.unread.take();
    }

    /// Whether the process writes into the sink itself.
    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether both sides are closed.
    pub(super) fn has_ended(&self) -> bool {
        self.sink.borrow().is_none()
    }

    /// Bytes copied so far, and whether some wait for a slow reader.
    pub(super) fn position(&self) -> (u64, bool) {
        (self.copied.get(), !self.spool.borrow().is_empty())
    }

    /// Figures for people.
    pub(super) fn figures(&self) -> inspect::Stream {
        let spool = self.spool.borrow();
        inspect::Stream {
            name: self.name.to_owned(),
            bytes: self.copied.get(),
            spooled_bytes: spool.len(),
            dropped_bytes: self.dropped.get() + spool.dropped(),
            ended: self.has_ended(),
            direct: self.direct,
        }
    }

    /// For the dump.
    pub(super) fn describe(&self) -> String {
        let spool = self.spool.borrow();
        format!(
            "{}{} copied={} waiting={} dropped={} spooling={}{}",
            self.name,
            if self.direct { " direct" } else { "" },
            self.copied.get(),
            spool.len(),
            self.dropped.get() + spool.dropped(),
            self.spooling.get(),
            if self.has_ended() { " ended" } else { "" }
        )
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.wide.get() {
            WIDENED.set(WIDENED.get() - 1);
        }
    }
}

/// Whether a source wakes us for so little, so often, that it is better moved beat by beat.
#[derive(Default)]
struct Chatter {
    /// Small amounts in quick succession so far; `CHATTER` of them are one.
    score: Cell<u8>,
    silent: Cell<u8>,
    last: Cell<Option<Instant>>,
    /// Something came at a beat.
    lively: Cell<bool>,
    /// When a chatter ended at whose beats something came.
    ended: Cell<Option<Instant>>,
}

impl Chatter {
    fn goes_on(&self) -> bool {
        self.score.get() >= CHATTER
    }

    /// So many bytes were moved because the source had some.
    fn after_wake(&self, bytes: u64) {
        let now = Instant::now();
        let is_quick = self.last.replace(Some(now)).is_some_and(|last| now - last < 2 * BEAT);
        let is_small = bytes > 0 && bytes < FLOOD as u64;
        let was_chatter = self.ended.get().is_some_and(|ended| now - ended < MEMORY);
        self.score.set(match (is_small, is_quick) {
            (true, _) if was_chatter => CHATTER,
            (true, true) => self.score.get() + 1,
            _ => 0,
        });
        self.silent.set(0);
    }

    /// So many bytes had gathered in a beat. If they were half of what the pipe holds, the writer is faster than the beat.
    fn after_beat(&self, bytes: u64, wide: bool) {
        self.silent.set(if bytes == 0 { self.silent.get() + 1 } else { 0 });
        let pipe = if wide { WIDE } else { SCRATCH };
        self.lively.set(self.lively.get() || bytes > 0);
        if self.silent.get() >= SILENCE || bytes > pipe as u64 / 2 {
            self.score.set(0);
            self.ended.set(self.lively.take().then(Instant::now));
        }
    }
}

/// Where one step of a copy ended.
enum Step {
    Moved(usize),
    SourceEmpty,
    SinkFull,
    Away,
    Ended,
}

/// Reads what is there now; 0 at the end. A console's end is EIO twice in succession: the kernel looks for bytes first and for the close
/// of the slave then (v6.18 drivers/tty/n_tty.c, `n_tty_read`), so what was written in between lies behind the first EIO.
fn read(source: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    until_certain(|| rustix::io::read(source, &mut *buffer))
}

fn until_certain(mut read: impl FnMut() -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    let mut ended = false;
    loop {
        match read() {
            Err(Errno::INTR) => {}
            Err(Errno::IO) if ended => return Ok(0),
            Err(Errno::IO) => ended = true,
            other => return other,
        }
    }
}

/// Whether it is a pipe or fifo. fstat(2) would ask its file system.
fn is_fifo(fd: &OwnedFd) -> bool {
    fcntl_getpipe_size(fd).is_ok()
}

/// Bytes in a fifo that nobody has read.
fn bytes_held(fd: &OwnedFd) -> u64 {
    if is_fifo(fd) { held(fd) } else { 0 }
}

/// Bytes that can be read now.
fn held(fd: &OwnedFd) -> u64 {
    rustix::io::ioctl_fionread(fd).unwrap_or(0)
}

/// What a write would find now: nothing (full), room, an error. `None`: the kernel does not say.
fn writing_state(fd: &OwnedFd) -> Option<PollFlags> {
    let mut asked = [PollFd::new(fd, PollFlags::OUT)];
    poll(&mut asked, Some(&Timespec::default())).ok()?;
    Some(asked[0].revents())
}

impl Watched {
    /// To be read.
    pub(super) fn source(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self::new(fd, Interest::READABLE))
    }

    /// To be written. It comes into the loop when it is full for the first time: most never are.
    pub(super) fn sink(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self::new(fd, Interest::WRITABLE))
    }

    /// To be written, on a file system that may hang.
    pub(super) fn remote_sink(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self { is_remote: true, ..Self::new(fd, Interest::WRITABLE) })
    }

    /// To be read and written.
    pub(super) fn both(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self::new(fd, Interest::READABLE | Interest::WRITABLE))
    }

    fn new(fd: OwnedFd, interest: Interest) -> Self {
        Self { fd: Rc::new(fd), interest, is_remote: false, registered: RefCell::default() }
    }

    /// The descriptor.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Whether a process may write into it itself.
    pub(super) fn may_be_handed_over(&self) -> bool {
        !self.is_remote && is_fifo(&self.fd)
    }

    fn registered(&self) -> std::io::Result<Rc<AsyncFd<Rc<OwnedFd>>>> {
        let mut registered = self.registered.borrow_mut();
        if let Some(registered) = &*registered {
            return Ok(Rc::clone(registered));
        }
        let watched = Rc::new(sys::fd::watch(Rc::clone(&self.fd), self.interest)?);
        *registered = Some(Rc::clone(&watched));
        Ok(watched)
    }

    /// Leaves the loop, unless somebody waits there for it.
    fn rest(&self) {
        self.registered.borrow_mut().take_if(|registered| Rc::strong_count(registered) == 1);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests await their tasks")]
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

    fn copy(source: OwnedFd, sink: OwnedFd, on_write_error: OnWriteError, policy: Policy) -> Rc<Copy> {
        Copy::new("test", Watched::source(source), Watched::sink(sink), on_write_error, policy).unwrap()
    }

    /// The byte at a place of the test's data.
    fn byte(place: usize) -> u8 {
        u8::try_from(place % 251).unwrap()
    }

    /// Reads, while the copies go on, until so many bytes are there.
    async fn read_until(reader: &OwnedFd, got: &mut Vec<u8>, total: usize) {
        let mut buffer = vec![0u8; 10_000];
        while got.len() < total {
            match rustix::io::read(reader, &mut buffer) {
                Ok(n) => got.extend_from_slice(&buffer[..n]),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    #[test]
    fn a_consoles_first_eio_is_not_its_end() {
        let result = |answers: &[rustix::io::Result<usize>]| {
            let mut answers = answers.iter().copied();
            until_certain(|| answers.next().unwrap())
        };
        assert_eq!(result(&[Err(Errno::IO), Ok(7)]), Ok(7));
        assert_eq!(result(&[Err(Errno::IO), Err(Errno::INTR), Err(Errno::IO)]), Ok(0));
        assert_eq!(result(&[Err(Errno::INTR), Ok(0)]), Ok(0));
        assert_eq!(result(&[Err(Errno::IO), Err(Errno::AGAIN)]), Err(Errno::AGAIN));
    }

    #[test]
    fn a_console_whose_other_side_cannot_be_kept_goes_on_until_its_process_ends() {
        use rustix::pty::{OpenptFlags, openpt, unlockpt};
        local(async {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let master = openpt(flags).unwrap();
            unlockpt(&master).unwrap();
            rustix::io::ioctl_fionbio(&master, true).unwrap();
            let open = |master: &OwnedFd| sys::pty::open_slave(std::os::fd::AsFd::as_fd(master)).unwrap();
            let console = Watched::both(master);
            let (reader, sink) = pipe();
            let sink = Watched::sink(sink);
            let copy =
                Copy::new("console", Rc::clone(&console), sink, OnWriteError::Drop, Policy::OFF).unwrap();
            let task = tokio::task::spawn_local(Rc::clone(&copy).run());
            let mut got = Vec::new();
            for round in 0..3 {
                let slave = open(console.fd());
                rustix::io::write(&slave, format!("round {round}").as_bytes()).unwrap();
                drop(slave);
                tokio::time::sleep(FIRST_AWAY_LOOK * 3).await;
                read_until(&reader, &mut got, 7 * (round + 1)).await;
                assert!(!copy.has_ended());
            }
            assert_eq!(got, b"round 0round 1round 2");
            copy.expect_end();
            task.await.unwrap();
            assert!(copy.has_ended());
        });
    }

    #[test]
    fn a_full_sink_loses_nothing() {
        local(async {
            let (source, feed) = pipe();
            let (reader, sink) = pipe();
            let copy = copy(source, sink, OnWriteError::End, Policy::OFF);
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
            let copy = copy(source, sink, OnWriteError::End, Policy::OFF);
            drop(reader);
            rustix::io::write(&feed, b"x").unwrap();
            copy.run().await;
        });
    }

    #[test]
    fn a_flood_is_spliced_and_small_writes_merge_again() {
        local(async {
            let (source, feed) = pipe();
            let (reader, sink) = pipe();
            let copy = copy(source, sink, OnWriteError::Drop, Policy::OFF);
            let (mut sent, mut got) = (0usize, Vec::new());
            let mut buffer = vec![0u8; 256 << 10];
            for size in [64 << 10, 64 << 10, 100, 100, 30_000, 7] {
                let chunk: Vec<u8> = (sent..sent + size).map(byte).collect();
                assert_eq!(rustix::io::write(&feed, &chunk).unwrap(), size);
                sent += size;
                while copy.pump() != Progress::SourceEmpty {}
                let n = rustix::io::read(&reader, &mut buffer).unwrap();
                got.extend_from_slice(&buffer[..n]);
                assert_eq!(got.len(), sent, "{size}");
            }
            assert!(copy.can_splice.get() && copy.wide.get() && !copy.flood.get());
            assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)));
        });
    }

    #[test]
    fn a_reader_that_is_away_finds_all_in_order() {
        local(async {
            for chunk in [100, 64 << 10] {
                let (source, feed) = pipe();
                let (reader, sink) = pipe();
                let policy = Policy { bound: 1 << 20, ..Policy::default() };
                let copy = copy(source, sink, OnWriteError::Drop, policy);
                let task = tokio::task::spawn_local(Rc::clone(&copy).run());
                let mut sent = 0;
                // More than the two pipes hold, less than they and the spool do.
                while sent < 1 << 20 {
                    let bytes: Vec<u8> = (sent..sent + chunk).map(byte).collect();
                    match rustix::io::write(&feed, &bytes) {
                        Ok(n) => sent += n,
                        Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                }
                tokio::time::sleep(PATIENCE * 2).await;
                assert!(copy.position().1, "{}", copy.describe());
                drop(feed);
                let mut got = Vec::new();
                read_until(&reader, &mut got, sent).await;
                task.await.unwrap();
                assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)));
            }
        });
    }

    #[test]
    fn beyond_the_bound_the_writer_waits_and_loses_nothing() {
        local(async {
            let (source, feed) = pipe();
            let (reader, sink) = pipe();
            let policy = Policy { bound: 100_000, ..Policy::default() };
            let copy = copy(source, sink, OnWriteError::Drop, policy);
            let task = tokio::task::spawn_local(Rc::clone(&copy).run());
            let (mut sent, mut got, mut buffer) = (0usize, Vec::new(), vec![0u8; 5000]);
            let mut blocked = 0;
            while blocked < 100 {
                let bytes: Vec<u8> = (sent..sent + 1000).map(byte).collect();
                match rustix::io::write(&feed, &bytes) {
                    Ok(n) => (sent, blocked) = (sent + n, 0),
                    Err(_) => {
                        blocked += 1;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            assert!(copy.spool.borrow().len() <= 100_000);
            // Then on and on, with a reader that is as fast.
            while got.len() < 1 << 20 {
                let bytes: Vec<u8> = (sent..sent + 1000).map(byte).collect();
                if let Ok(n) = rustix::io::write(&feed, &bytes) {
                    sent += n;
                }
                tokio::task::yield_now().await;
                if let Ok(n) = rustix::io::read(&reader, &mut buffer) {
                    got.extend_from_slice(&buffer[..n]);
                }
            }
            drop(feed);
            read_until(&reader, &mut got, sent).await;
            task.await.unwrap();
            assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)));
        });
    }

    #[test]
    fn write_errors_of_a_file_do_not_end_the_copy() {
        local(async {
            let (source, feed) = pipe();
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let copy = copy(source, full.into(), OnWriteError::Drop, Policy::OFF);
            rustix::io::write(&feed, b"lost").unwrap();
            assert_eq!(copy.pump(), Progress::SourceEmpty);
            assert_eq!(copy.dropped.get(), 4);
            assert!(!copy.has_ended());
        });
    }
}
