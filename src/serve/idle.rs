//! Gives memory back when nobody has called for a while. Sleeps without a timer when there is
//! nothing to give.

use std::{cell::Cell, rc::Rc, time::Duration};
use tokio::sync::Notify;

/// Quiet time after the last call.
const QUIET: Duration = Duration::from_secs(1);

/// Knows whether calls come in.
#[derive(Default)]
pub(super) struct Idle {
    calls: Cell<u64>,
    called: Notify,
}

impl Idle {
    /// A call has come.
    pub(super) fn disturb(&self) {
        self.calls.set(self.calls.get() + 1);
        self.called.notify_one();
    }

    /// After each burst of calls: trims heap and stack once.
    pub(super) async fn run(self: Rc<Self>) {
        loop {
            self.called.notified().await;
            loop {
                let before = self.calls.get();
                tokio::time::sleep(QUIET).await;
                if self.calls.get() == before {
                    break;
                }
            }
            crate::io::release_scratch();
            crate::sys::malloc::trim();
            crate::sys::stack::release();
        }
    }
}
