//! Pipes, spool and clock that are numbers only, and a copy that [`Pacing`] drives through them.

use super::super::*;
use crate::io::copy::batching::BEAT;
use std::collections::VecDeque;

pub(super) const PIPE: usize = 64 << 10;
pub(super) const SCRATCH: usize = 64 << 10;

/// Bytes on their way: byte n of the stream is the number n, so a range says which ones.
#[derive(Default)]
pub(super) struct Bytes(VecDeque<(u64, u64)>);

impl Bytes {
    pub(super) fn len(&self) -> usize {
        let len: u64 = self.0.iter().map(|(start, end)| end - start).sum();
        usize::try_from(len).unwrap()
    }

    pub(super) fn push(&mut self, (start, end): (u64, u64)) {
        match self.0.back_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ if start < end => self.0.push_back((start, end)),
            _ => {}
        }
    }

    pub(super) fn take(&mut self, most: usize) -> Vec<(u64, u64)> {
        let (mut left, mut taken) = (most as u64, Vec::new());
        while left > 0
            && let Some((start, end)) = self.0.pop_front()
        {
            let cut = end.min(start.saturating_add(left));
            taken.push((start, cut));
            left -= cut - start;
            if cut < end {
                self.0.push_front((cut, end));
            }
        }
        taken
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    No,
    /// The writer has closed its end, or the console's process has exited.
    Closed,
    LetGo,
}

/// A copy with all that is around it.
pub(super) struct World {
    pub(super) pacing: Pacing,
    pub(super) wait: Wait,
    pub(super) now: Instant,
    /// When the copy began to wait.
    pub(super) waits_since: Instant,
    pub(super) source: Bytes,
    pub(super) written: u64,
    pub(super) ended: Ended,
    pub(super) sink: Bytes,
    pub(super) sink_holds: usize,
    pub(super) read: u64,
    pub(super) spool: Bytes,
    /// Bytes that the spool may hold; and whether others of the shim use them.
    pub(super) bound: usize,
    pub(super) others_use_it: bool,
    /// Bytes that are written and read before each of so many steps: others run beside us.
    pub(super) beside: (usize, usize, u32),
    /// The sink's last write failed for good.
    pub(super) is_broken: bool,
    /// The engine's `let_go` was notified.
    pub(super) is_notified: bool,
}

impl World {
    pub(super) fn new(pacing: Pacing, bound: usize) -> Self {
        let now = Instant::now();
        Self {
            wait: pacing.wait(),
            pacing,
            now,
            waits_since: now,
            source: Bytes::default(),
            written: 0,
            ended: Ended::No,
            sink: Bytes::default(),
            sink_holds: PIPE,
            read: 0,
            spool: Bytes::default(),
            bound,
            others_use_it: false,
            beside: (0, 0, 0),
            is_broken: false,
            is_notified: false,
        }
    }

    pub(super) fn pipe() -> Self {
        Self::new(Pacing::new(false, true, PIPE), 0)
    }

    pub(super) fn spooled(bound: usize) -> Self {
        Self::new(Pacing::new(false, true, PIPE), bound)
    }

    pub(super) fn room(&self) -> Room {
        match self.bound.saturating_sub(self.spool.len()) {
            _ if self.bound == 0 => Room::Off,
            0 => Room::None,
            _ if self.others_use_it => Room::UsedByOthers,
            _ => Room::Some,
        }
    }

    /// Writes into the sink what it takes, and says how much that was.
    pub(super) fn deliver(&mut self, ranges: Vec<(u64, u64)>) -> (usize, Bytes) {
        let mut rest = Bytes::default();
        ranges.into_iter().for_each(|range| rest.push(range));
        let taken = rest.take(self.sink_holds - self.sink.len());
        let bytes: u64 = taken.iter().map(|(start, end)| end - start).sum();
        taken.into_iter().for_each(|range| self.sink.push(range));
        (usize::try_from(bytes).unwrap(), rest)
    }

    pub(super) fn do_step(&mut self, step: Step) -> Seen {
        let nothing = match self.ended {
            Ended::No => Seen::SourceEmpty,
            Ended::Closed | Ended::LetGo => Seen::SourceEnded,
        };
        if self.is_broken && matches!(step, Step::Copy | Step::Replay) {
            return Seen::Broken;
        }
        match step {
            Step::Stop => unreachable!(),
            Step::Copy | Step::Splice => {
                assert_eq!(self.spool.len(), 0, "what is kept goes first");
                assert_ne!(self.ended, Ended::LetGo);
                if self.is_broken {
                    return Seen::NoSplice;
                }
                if self.source.len() == 0 {
                    return nothing;
                }
                if step == Step::Splice {
                    let room = self.sink_holds - self.sink.len();
                    let taken = self.source.take(room.min(BUDGET));
                    let (bytes, _) = self.deliver(taken);
                    let left = self.source.len();
                    return match bytes {
                        0 => Seen::SinkFull { bytes, kept: false, room: self.room() },
                        _ => Seen::Spliced { bytes, left },
                    };
                }
                let taken = self.source.take(SCRATCH);
                let (bytes, rest) = self.deliver(taken);
                if rest.len() == 0 {
                    return Seen::Copied(bytes);
                }
                rest.0.into_iter().for_each(|range| self.spool.push(range));
                Seen::SinkFull { bytes, kept: true, room: self.room() }
            }
            Step::Replay => {
                assert!(self.spool.len() > 0);
                let kept = self.spool.take(BUDGET);
                let (bytes, mut rest) = self.deliver(kept);
                let is_full = rest.len() > 0;
                std::mem::take(&mut self.spool).0.into_iter().for_each(|range| rest.push(range));
                self.spool = rest;
                match is_full {
                    true => Seen::SinkFull { bytes, kept: true, room: self.room() },
                    false => Seen::Replayed { bytes, all: self.spool.len() == 0 },
                }
            }
            Step::Spool => {
                assert_eq!(self.sink.len(), self.sink_holds, "only a full sink is a reason");
                assert_eq!(self.room(), Room::Some);
                let room = self.bound - self.spool.len();
                let taken = self.source.take(room.min(SCRATCH / 2));
                let bytes: u64 = taken.iter().map(|(start, end)| end - start).sum();
                if bytes == 0 {
                    return nothing;
                }
                taken.into_iter().for_each(|range| self.spool.push(range));
                Seen::Spooled { bytes: usize::try_from(bytes).unwrap(), room: self.room() }
            }
        }
    }

    pub(super) fn turn(&mut self, wake: Wake) -> Wait {
        self.pacing.begin(wake);
        let mut steps = 0;
        loop {
            let step = self.pacing.next();
            if step == Step::Stop {
                break;
            }
            self.happen_beside(step);
            let seen = self.do_step(step);
            self.pacing.saw(seen);
            steps += 1;
            assert!(steps < 1000, "a turn ends");
        }
        assert!(self.pacing.moved < 2 * BUDGET, "others get their turn");
        // Readiness is cleared then: whoever says so without reason is never woken again.
        if self.pacing.is_source_empty() {
            assert_eq!(self.source.len(), 0);
        }
        if self.pacing.is_sink_full() {
            assert_eq!(self.sink.len(), self.sink_holds);
        }
        let wait = self.pacing.end(self.now);
        if let Wait::Sink { or_source: false, .. } = wait {
            let may_spool = self.room() == Room::Some && self.pacing.mode() == Mode::Spooling;
            assert!(!may_spool || self.ended != Ended::No, "what may be spooled is waited for");
        }
        wait
    }

    fn happen_beside(&mut self, step: Step) {
        let (write, read, steps) = self.beside;
        if steps > 0 {
            self.put(write);
            // That a full sink is the reason to spool can be seen then.
            if step != Step::Spool {
                self.get(read);
            }
            self.beside.2 -= 1;
        }
    }

    /// Moves what can be moved, whoever waits.
    pub(super) fn pump(&mut self) {
        if self.wait != Wait::End {
            self.turn(Wake::Asked);
        }
    }

    pub(super) fn let_source_go(&mut self) {
        self.pump();
        self.pacing.let_source_go();
        // What lies there is for nobody.
        self.written -= self.source.len() as u64;
        self.source = Bytes::default();
        (self.ended, self.is_notified) = (Ended::LetGo, true);
    }

    /// What wakes the copy now, if something does.
    pub(super) fn wake(&self) -> Option<Wake> {
        let waits = self.now - self.waits_since;
        let is_readable = self.source.len() > 0 || self.ended != Ended::No;
        let is_writable = self.sink.len() < self.sink_holds || self.is_broken;
        if self.pacing.pause().is_some_and(|pause| waits < pause) {
            return None;
        }
        match self.wait {
            Wait::End => None,
            Wait::Turn => Some(Wake::Other),
            _ if self.is_notified => Some(Wake::Other),
            Wait::Source => is_readable.then_some(Wake::Source),
            Wait::Beat => (waits >= BEAT).then_some(Wake::Beat),
            Wait::Sink { .. } if is_writable => Some(Wake::Other),
            Wait::Sink { or_source: true, .. } if is_readable => Some(Wake::Other),
            Wait::Sink { at_most, .. } => {
                let is_over = at_most.is_some_and(|most| waits >= most);
                is_over.then_some(Wake::Timeout)
            }
            Wait::Pause(pause) => (waits >= pause).then_some(Wake::Other),
            Wait::LetGo => None,
        }
    }

    /// Runs as long as there is something that wakes the copy.
    pub(super) fn settle(&mut self) {
        let mut turns = 0;
        while let Some(wake) = self.wake() {
            self.is_notified &= self.wait == Wait::Turn;
            self.wait = self.turn(wake);
            self.waits_since = self.now;
            turns += 1;
            assert!(turns < 10_000, "wakes for ever: {:?}", self.wait);
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + BEAT);
            self.settle();
        }
    }

    /// Writes at most so much, as far as the pipe takes it.
    pub(super) fn write(&mut self, bytes: usize) {
        self.put(bytes);
        self.settle();
    }

    fn put(&mut self, bytes: usize) {
        if self.ended == Ended::No {
            let bytes = bytes.min(PIPE - self.source.len()) as u64;
            self.source.push((self.written, self.written + bytes));
            self.written += bytes;
        }
    }

    /// Reads at most so much, and looks that it is what comes next.
    pub(super) fn read(&mut self, bytes: usize) {
        self.get(bytes);
        self.settle();
    }

    fn get(&mut self, bytes: usize) {
        for (start, end) in self.sink.take(bytes) {
            assert_eq!(start, self.read, "lost, twice or out of order");
            self.read = end;
        }
    }

    /// Reads all that comes for so long.
    pub(super) fn read_on(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.pass(BEAT);
            self.read(usize::MAX);
        }
    }

    pub(super) fn close(&mut self) {
        if self.ended == Ended::No {
            self.ended = Ended::Closed;
            if self.pacing.expect_end() {
                self.is_notified = true;
            }
            self.settle();
        }
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} written={} read={}", self.pacing, self.wait, self.written, self.read)
    }
}
