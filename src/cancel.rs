//! A condition that is set once and stays set: whoever asks late hears of it too.

use std::{cell::Cell, rc::Rc};
use tokio::sync::Notify;

/// Tells those who wait that what they wait for is not wanted any more.
#[derive(Clone, Default)]
pub struct CancelToken(Rc<(Cell<bool>, Notify)>);

impl CancelToken {
    /// Resolves when it is set, or at once if it is.
    pub async fn wait(&self) {
        loop {
            let notified = self.0.1.notified();
            if self.0.0.get() {
                return;
            }
            notified.await;
        }
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.0.get()
    }

    /// Sets it.
    pub fn set(&self) {
        self.0.0.set(true);
        self.0.1.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_late_hears_of_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let token = CancelToken::default();
        token.set();
        runtime.block_on(token.clone().wait());
        assert!(token.is_set());
    }
}
