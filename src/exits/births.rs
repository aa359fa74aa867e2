//! Runtime calls in flight that may leave a process behind.

use std::{cell::RefCell, rc::Rc, time::Duration};
use tokio::sync::Notify;

/// The births that are going on.
#[derive(Default)]
pub(super) struct Births {
    /// When each began: time since boot. A handful at most, so a list.
    begun: RefCell<Vec<(u64, Duration)>>,
    next: std::cell::Cell<u64>,
    /// One of them is over: zombies that waited for it may be reaped now.
    ended: Notify,
}

impl Births {
    pub(super) fn begin(self: &Rc<Self>) -> BirthGuard {
        let (number, begun) = (self.next.get(), since_boot());
        self.next.set(number + 1);
        self.begun.borrow_mut().push((number, begun));
        BirthGuard { births: Rc::clone(self), number, begun }
    }

    /// When the oldest began; `None` if nothing is being born.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.begun.borrow().iter().map(|(_, at)| *at).min()
    }

    /// Resolves when one is over.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }

    pub(super) fn count(&self) -> usize {
        self.begun.borrow().len()
    }
}

/// A birth goes on as long as this lives: drop it when the new process is watched, or when it is
/// known that there is none.
pub struct BirthGuard {
    births: Rc<Births>,
    number: u64,
    begun: Duration,
}

impl BirthGuard {
    /// When it began: time since boot.
    pub(super) fn begun(&self) -> Duration {
        self.begun
    }
}

impl Drop for BirthGuard {
    fn drop(&mut self) {
        self.births.begun.borrow_mut().retain(|(number, _)| *number != self.number);
        self.births.ended.notify_one();
    }
}

/// Time since boot, the clock of start times in /proc/PID/stat.
fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
