//! Begins the kernel's wait for a move into a cgroup while the runtime is still starting.
//!
//! Whoever moves a process by `cgroup.procs` first waits for an RCU grace period, some 10 ms, a third of `runc create`; all moves that come meanwhile,
//! or until another such period has passed, wait no longer (kernel/cgroup/cgroup.c: cgroup_attach_lock, percpu_down_write; kernel/rcu/sync.c).
//! A helper that "moves" itself to where it is makes the period begin when Create does.

use crate::{
    cgroups::{self, Cgroup},
    sys,
};
use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// So long after a call that moves, the next one waits for nobody: well below the shortest grace period.
const STILL_OPEN: Duration = Duration::from_millis(4);

/// When the last wait was begun, or ended.
#[derive(Default)]
pub(super) struct Ahead {
    last: Cell<Option<Instant>>,
}

impl Ahead {
    /// A runtime call that moves a process has ended.
    pub(super) fn moved(&self) {
        self.last.set(Some(Instant::now()));
    }

    /// Starts the helper, if no move has just been made; its pid. Nothing depends on it.
    pub(super) fn begin(&self) -> Option<u32> {
        if self.last.get().is_some_and(|last| last.elapsed() < STILL_OPEN) {
            return None;
        }
        self.moved();
        sys::spawn::errand(|| {
            let own = Cgroup::of_process(std::process::id()).map(|cgroup| cgroup.directories());
            if let Some(directory) = own.unwrap_or_default().first() {
                let _ = cgroups::enter(&directory.join("cgroup.procs"), 0);
            }
        })
        .ok()
    }
}
