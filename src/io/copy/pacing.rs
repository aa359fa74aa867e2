//! Decides how a copy goes on. Pure: no system call, no task, no clock of its own.
//!
//! The engine works in turns. A turn begins with what has caused it ([`Pacing::begin`]); then the
//! engine does what [`Pacing::next`] says and hands back what came of it ([`Pacing::saw`]), until
//! that is to wait ([`Pacing::end`]).
//!
//! | mode | how bytes are moved | begins | ends |
//! |---|---|---|---|
//! | lines | read and written at each wake-up | | |
//! | beat | the same, at beats | little, often ([`Batching`]) | silence, or too much for a beat |
//! | splice | spliced, never touched | a read of [`FLOOD`] | a splice of less, and less is left |
//! | spooling | into the spool, replayed first | sink full for [`PATIENCE`] | source empty |
//! | direct | by the process itself | it has the fifo | its exit |
//!
//! Beats and splices go together: what gathers in a beat may be much. What is kept for the sink
//! always goes before what is in the source.

use super::batching::Batching;
use std::time::{Duration, Instant};

/// A read of so many bytes is the beginning of a flood, which is spliced. Below it a splice costs
/// more than it saves, and would fill the slots of the sink with crumbs.
pub(super) const FLOOD: usize = 16 << 10;
/// Bytes moved in a turn.
pub(super) const BUDGET: usize = 1 << 20;
/// How long a sink may be full before the source is spooled. Less than what a writer in the
/// container should wait.
pub(super) const PATIENCE: Duration = Duration::from_millis(20);
/// How often a stream that was refused for the shim's total looks whether others keep less now.
const OTHERS_LOOK: Duration = Duration::from_millis(500);
/// So many turns in a row may move nothing. A source may say that it is ready and have nothing,
/// over and over (a fifo between two writers).
const IDLE_TURNS: u8 = 8;
/// Pause before each wait after that.
const IDLE_PAUSE: Duration = Duration::from_millis(10);
/// Pauses between looks at a console that nobody has open, where its slave cannot be kept open.
pub(super) const FIRST_CONSOLE_LOOK: Duration = Duration::from_millis(10);
const LONGEST_CONSOLE_LOOK: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Lines,
    Beat,
    Splice,
    Spooling,
    Direct,
}

/// What the engine does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read into memory and write.
    Copy,
    Splice,
    /// Write what is kept for the sink.
    Replay,
    /// Read into the spool.
    Spool,
    Stop,
}

/// What a step has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Read so many bytes, and got rid of all of them.
    Copied(usize),
    Spliced {
        bytes: usize,
        /// Bytes in the source after that.
        left: usize,
    },
    /// splice(2) cannot be used here.
    NoSplice,
    /// It was interrupted, or something changed while it looked.
    Again,
    /// The sink took so many of what was kept, and may take more.
    Replayed {
        bytes: usize,
        all: bool,
    },
    /// The sink took so many, and now takes no more.
    SinkFull {
        bytes: usize,
        /// Some bytes were read and not taken: they are kept.
        kept: bool,
        room: Room,
    },
    /// So many went into the spool.
    Spooled {
        bytes: usize,
        room: Room,
    },
    SourceEmpty,
    SourceEnded,
    /// One side cannot be used any more.
    Broken,
}

/// What the spool would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// This stream has no spool.
    Off,
    Some,
    None,
    /// Nothing, since others of the shim keep so much.
    UsedByOthers,
}

/// What the engine waits for before the next turn; besides, always, for [`Wake::Asked`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// For nothing: other tasks get their turn.
    Turn,
    /// Until the source has something.
    Source,
    Beat,
    /// Until the sink takes something.
    Sink {
        /// Or the source has something.
        or_source: bool,
        at_most: Option<Duration>,
    },
    /// So long; the source wants no attention meanwhile.
    Pause(Duration),
    /// Until the source is let go.
    LetGo,
    /// For nothing any more.
    End,
}

/// What has caused a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// The source had something, and that was what the copy waited for.
    Source,
    Beat,
    /// The time of [`Wait::Sink`] is over.
    Timeout,
    /// Any other reason to wait no longer.
    Other,
    /// Somebody wants to have moved what can be moved, while the copy goes on waiting.
    Asked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Pipe,
    /// Its end says only that nobody has it open now: somebody may open it again.
    Console,
    /// Its end is its end.
    ExitedConsole,
    /// The process writes into the sink itself.
    Direct,
    /// It has ended, or was let go.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transfer {
    Copy { may_splice: bool },
    Splice,
}

/// What is known in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// There may be more to move.
    More,
    SourceEmpty,
    /// With what the spool would take of the source.
    SinkFull(Room),
    /// The sink is full, and the source has nothing for the spool.
    BothStuck(Room),
    /// A console that nobody has open now.
    NobodyThere,
    Ended,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Pacing {
    source: Source,
    transfer: Transfer,
    is_spooling: bool,
    /// Something is kept for the sink.
    keeps: bool,
    batching: Batching,
    /// Bytes that the source's pipe holds.
    pipe: usize,
    known: Known,
    wake: Wake,
    /// Bytes moved in this turn; of these, the sink has got `delivered`.
    moved: usize,
    delivered: usize,
    idle_turns: u8,
    console_look: Duration,
}

impl Pacing {
    /// `pipe`: bytes that the source holds, if it is a pipe.
    pub(super) fn new(is_console: bool, may_splice: bool, pipe: usize) -> Self {
        Self {
            source: if is_console { Source::Console } else { Source::Pipe },
            transfer: Transfer::Copy { may_splice },
            is_spooling: false,
            keeps: false,
            batching: Batching::default(),
            pipe,
            known: Known::SourceEmpty,
            wake: Wake::Other,
            moved: 0,
            delivered: 0,
            idle_turns: 0,
            console_look: FIRST_CONSOLE_LOOK,
        }
    }

    /// Of a process that writes into the sink itself.
    pub(super) fn direct() -> Self {
        Self { source: Source::Direct, ..Self::new(false, false, 0) }
    }

    pub(super) fn mode(&self) -> Mode {
        if self.source == Source::Direct {
            Mode::Direct
        } else if self.is_spooling {
            Mode::Spooling
        } else if self.batching.is_on() {
            Mode::Beat
        } else if self.transfer == Transfer::Splice {
            Mode::Splice
        } else {
            Mode::Lines
        }
    }

    /// Whether the source is still to be read.
    pub(super) fn has_source(&self) -> bool {
        matches!(self.source, Source::Pipe | Source::Console | Source::ExitedConsole)
    }

    /// Whether the last turn has left nothing in the source.
    pub(super) fn is_source_empty(&self) -> bool {
        matches!(self.known, Known::SourceEmpty | Known::BothStuck(_))
    }

    /// Whether the last turn has ended because the sink takes no more.
    pub(super) fn is_sink_full(&self) -> bool {
        matches!(self.known, Known::SinkFull(_) | Known::BothStuck(_))
    }

    /// The source's pipe holds so much now.
    pub(super) fn widened(&mut self, pipe: usize) {
        self.pipe = pipe;
    }

    /// Nothing more is to be read; what is kept still goes out.
    pub(super) fn let_source_go(&mut self) {
        self.source = Source::Gone;
    }

    /// The process of a console has exited. Returns whether that is new.
    pub(super) fn expect_end(&mut self) -> bool {
        let is_new = self.source == Source::Console;
        if is_new {
            self.source = Source::ExitedConsole;
        }
        is_new
    }

    pub(super) fn begin(&mut self, wake: Wake) {
        if wake == Wake::Timeout
            && let Known::SinkFull(room) | Known::BothStuck(room) = self.known
        {
            self.is_spooling |= room != Room::Off;
        }
        self.wake = wake;
        (self.moved, self.delivered) = (0, 0);
        self.known = Known::More;
    }

    pub(super) fn next(&self) -> Step {
        match self.known {
            Known::SinkFull(Room::Some) if self.spools() => Step::Spool,
            Known::More if self.moved >= BUDGET => Step::Stop,
            Known::More if self.keeps => Step::Replay,
            Known::More if !self.has_source() => Step::Stop,
            Known::More if self.transfer == Transfer::Splice => Step::Splice,
            Known::More => Step::Copy,
            _ => Step::Stop,
        }
    }

    fn spools(&self) -> bool {
        self.is_spooling && self.has_source()
    }

    pub(super) fn saw(&mut self, seen: Seen) {
        match seen {
            Seen::Copied(bytes) => {
                self.deliver(bytes);
                if bytes >= FLOOD {
                    if self.transfer == (Transfer::Copy { may_splice: true }) {
                        self.transfer = Transfer::Splice;
                    }
                } else if self.source == Source::Pipe {
                    // Drained: what is written from now on, and the end, wakes us. A read of a
                    // console may not return all that is there.
                    self.source_is_empty();
                }
            }
            Seen::Spliced { bytes, left } => {
                self.deliver(bytes);
                if bytes < FLOOD && left < FLOOD {
                    self.transfer = Transfer::Copy { may_splice: true };
                }
            }
            Seen::NoSplice => self.transfer = Transfer::Copy { may_splice: false },
            // Counted, so that it ends.
            Seen::Again => self.moved += FLOOD,
            Seen::Replayed { bytes, all } => {
                self.deliver(bytes);
                self.keeps = !all;
            }
            Seen::SinkFull { bytes, kept, room } => {
                self.deliver(bytes);
                self.keeps |= kept;
                self.known = Known::SinkFull(room);
            }
            Seen::Spooled { bytes, room } => {
                self.moved += bytes;
                self.keeps = true;
                self.known = if room == Room::Some { Known::More } else { Known::SinkFull(room) };
            }
            Seen::SourceEmpty => self.source_is_empty(),
            Seen::SourceEnded => self.source_has_ended(),
            Seen::Broken => self.known = Known::Ended,
        }
    }

    fn deliver(&mut self, bytes: usize) {
        self.moved += bytes;
        self.delivered += bytes;
    }

    fn source_is_empty(&mut self) {
        self.known = match self.known {
            Known::SinkFull(room) => Known::BothStuck(room),
            _ => {
                self.is_spooling = false;
                Known::SourceEmpty
            }
        };
    }

    fn source_has_ended(&mut self) {
        self.known = match self.known {
            _ if self.source == Source::Console => Known::NobodyThere,
            Known::SinkFull(room) => {
                self.source = Source::Gone;
                Known::BothStuck(room)
            }
            _ => Known::Ended,
        };
    }

    /// Ends the turn: says what to wait for.
    pub(super) fn end(&mut self, now: Instant) -> Wait {
        match self.wake {
            Wake::Source => {
                let is_small = self.delivered < FLOOD;
                self.batching.after_wake(self.delivered, is_small, now);
            }
            Wake::Beat => self.batching.after_beat(self.delivered, self.pipe, now),
            Wake::Timeout | Wake::Other | Wake::Asked => {}
        }
        let wait = self.wait();
        if self.wake != Wake::Asked {
            let is_idle = self.delivered == 0 && matches!(self.mode(), Mode::Lines | Mode::Splice);
            self.idle_turns = if is_idle { self.idle_turns.saturating_add(1) } else { 0 };
        }
        if self.delivered > 0 {
            self.console_look = FIRST_CONSOLE_LOOK;
        } else if let Wait::Pause(pause) = wait
            && self.wake != Wake::Asked
        {
            self.console_look = (pause * 3 / 2).min(LONGEST_CONSOLE_LOOK);
        }
        wait
    }

    /// What the copy waits for, as things are.
    pub(super) fn wait(&self) -> Wait {
        match self.known {
            Known::More if self.source == Source::Direct => Wait::LetGo,
            Known::More if self.source == Source::Gone && !self.keeps => Wait::End,
            Known::More => Wait::Turn,
            Known::SourceEmpty if self.source == Source::Direct => Wait::LetGo,
            // Let go meanwhile.
            Known::SourceEmpty if self.source == Source::Gone => Wait::Turn,
            Known::SourceEmpty if self.batching.is_on() => Wait::Beat,
            Known::SourceEmpty => Wait::Source,
            Known::SinkFull(room) => self.wait_for_sink(room, false),
            Known::BothStuck(room) => self.wait_for_sink(room, self.spools() && room == Room::Some),
            Known::NobodyThere => Wait::Pause(self.console_look),
            Known::Ended => Wait::End,
        }
    }

    fn wait_for_sink(&self, room: Room, or_source: bool) -> Wait {
        let at_most = match room {
            Room::Off => None,
            _ if !self.is_spooling => Some(PATIENCE),
            Room::UsedByOthers => Some(OTHERS_LOOK),
            Room::Some | Room::None => None,
        };
        Wait::Sink { or_source, at_most }
    }

    /// A pause before the next wait: the last turns have moved nothing.
    pub(super) fn pause(&self) -> Option<Duration> {
        (self.idle_turns > IDLE_TURNS).then_some(IDLE_PAUSE)
    }
}

#[cfg(test)]
mod tests;
