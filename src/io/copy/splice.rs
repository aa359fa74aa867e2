//! splice(2) from pipe to pipe, and wide pipes for it.

use super::{
    pacing::{BUDGET, FLOOD, Seen},
    sink::is_writable,
    source::readable_bytes,
};
use rustix::{
    io::Errno,
    pipe::{SpliceFlags, fcntl_setpipe_size},
};
use std::{cell::Cell, os::fd::OwnedFd};

/// What the pipe and the fifo of a flood are made to hold, if the kernel agrees. Pages count for
/// the user's pipe-user-pages-soft (pipe(7)), so only floods get them, and direct outputs, which
/// nobody can tell from floods; at most [`MAX_WIDE`] copies of a shim.
pub(super) const WIDE: usize = 256 << 10;
const MAX_WIDE: usize = 32;

thread_local! {
    static WIDENED: Cell<usize> = const { Cell::new(0) };
}

/// A copy that may have wide pipes, as long as it lives.
pub(super) struct Wide(());

impl Wide {
    /// `None`: there are enough.
    pub(super) fn take() -> Option<Self> {
        (WIDENED.get() < MAX_WIDE).then(|| {
            WIDENED.set(WIDENED.get() + 1);
            Self(())
        })
    }
}

impl Drop for Wide {
    fn drop(&mut self) {
        WIDENED.set(WIDENED.get() - 1);
    }
}

/// Makes a pipe wide. If the kernel refuses, it stays as it is.
pub(super) fn widen(pipe: &OwnedFd) {
    let _ = fcntl_setpipe_size(pipe, WIDE);
}

/// Splices once, and never waits. `sink_full` says what is seen when the sink takes nothing.
pub(super) fn splice(source: &OwnedFd, sink: &OwnedFd, sink_full: impl FnOnce() -> Seen) -> Seen {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    match rustix::pipe::splice(source, None, sink, None, BUDGET, flags) {
        Ok(0) => Seen::SourceEnded,
        Ok(bytes) => {
            // Only after little is it worth a system call.
            let left = if bytes < FLOOD { readable_bytes(source) } else { bytes };
            Seen::Spliced { bytes, left }
        }
        Err(Errno::AGAIN) if readable_bytes(source) == 0 => Seen::SourceEmpty,
        Err(Errno::AGAIN) if !is_writable(sink) => sink_full(),
        // Something came in between.
        Err(Errno::AGAIN | Errno::INTR) => Seen::Again,
        // No pipe after all, or nobody reads: writing finds out what to do.
        Err(_) => Seen::NoSplice,
    }
}
