//! Keeps the kernel's wait for a move into a cgroup off the runtime's way.
//!
//! Whoever moves a process by `cgroup.procs` first waits for an RCU grace period, some 10 ms, a third of `runc create`; moves that come meanwhile,
//! or until another such period has passed, wait no longer (kernel/cgroup/cgroup.c: cgroup_attach_lock, percpu_down_write; kernel/rcu/sync.c).
//! A helper that "moves" itself to where it is, again and again, makes the period begin when the call comes in, and no other begin before the runtime
//! has come to its own moves.

use crate::{
    cgroups::{self, Cgroup},
    sys,
};
use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Between two moves of the helper: below the shortest grace period, a tick of the slowest clock.
const PAUSE: Duration = Duration::from_millis(3);
/// So long the helper goes on, if nobody ends it. A runtime that has not come to its moves by then has other things to wait for.
const LIFE: Duration = Duration::from_millis(40);
/// A helper as young as this one still serves a call that begins now.
const YOUNG: Duration = Duration::from_millis(15);

/// The last helper: its pid, and since when.
#[derive(Default)]
pub(super) struct Ahead {
    helper: Cell<Option<(u32, Instant)>>,
}

impl Ahead {
    /// Starts the helper, if there is no young one; its pid. Nothing depends on it.
    pub(super) fn begin(&self) -> Option<u32> {
        if self.helper.get().is_some_and(|(_, begun)| begun.elapsed() < YOUNG) {
            return None;
        }
        let begun = Instant::now();
        #[allow(clippy::disallowed_methods, reason = "in a helper, which has no loop")]
        let pid = sys::spawn::errand(move || {
            let Ok(own) = Cgroup::of_process(std::process::id()) else { return };
            let Some(directory) = own.any_directory() else { return };
            let list = directory.join("cgroup.procs");
            while begun.elapsed() < LIFE && cgroups::enter(&list, 0).is_ok() {
                std::thread::sleep(PAUSE);
            }
        })
        .ok()?;
        self.helper.set(Some((pid, begun)));
        Some(pid)
    }

    /// The helper that is needed no longer; `None` if it has ended by itself: its pid may be another's by now.
    pub(super) fn end(&self) -> Option<u32> {
        self.helper.take().filter(|(_, begun)| begun.elapsed() < LIFE).map(|(pid, _)| pid)
    }
}
