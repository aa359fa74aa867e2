//! What is to be done after a transition, in this order.

use super::Exit;
use crate::id::Id;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell containerd.
    Publish(Notice),
    /// Answer everybody who waits for this process; `None` is the init.
    AnswerWaiters(Option<Id>, Exit),
    /// Kill what is left of a container without a pid namespace of its own, then report `Cleared`.
    KillAll,
    /// The init is dead: runtime calls that start it or its execs get a moment to end by
    /// themselves, then are killed.
    CutStartsShort,
    /// Write the init's exit into the bundle.
    RecordExit(Exit),
}

/// An event about the container, without its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The init's program runs.
    Start {
        /// Its pid.
        pid: u32,
    },
    /// A process has exited.
    Exit {
        /// `None` is the init.
        exec: Option<Id>,
        /// Its pid.
        pid: u32,
        /// How and when.
        exit: Exit,
    },
    /// The container is gone.
    Delete {
        /// The init's pid.
        pid: u32,
        /// The init's exit.
        exit: Option<Exit>,
    },
    /// The kernel killed one of its processes for want of memory.
    Oom,
    /// An exec is known.
    ExecAdded(Id),
    /// An exec runs.
    ExecStarted {
        /// Which.
        exec: Id,
        /// Its pid.
        pid: u32,
    },
    /// Its state has been written out.
    Checkpointed {
        /// The directory with the image.
        image: String,
    },
    /// Frozen.
    Paused,
    /// Thawed.
    Resumed,
}
