//! The outputs of a process, as copies that run.

use super::copy::Copy;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// How long Delete waits for a reader that takes nothing. containerd's client closes its fifos when
/// Delete returns (v2.3.4 `client/process.go`), so what it has not read by then is lost to it.
const READER_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two looks whether the reader has got all: the kernel tells nobody that a pipe has
/// become empty.
const READER_LOOK: Duration = Duration::from_millis(1);
/// Pumps of one stream when its process has exited: with a budget of 1 MiB each, more than any pipe
/// holds.
const FINAL_PUMPS: usize = 2;

#[derive(Default)]
pub(super) struct Outputs {
    copies: RefCell<Vec<Rc<Copy>>>,
    running: Cell<usize>,
    /// A copy has ended.
    ended: Notify,
}

impl Outputs {
    pub(super) fn add(&self, copy: Rc<Copy>) {
        self.copies.borrow_mut().push(copy);
        self.running.set(self.running.get() + 1);
    }

    pub(super) fn one_has_ended(&self) {
        self.running.set(self.running.get().saturating_sub(1));
        self.ended.notify_waiters();
    }

    pub(super) fn are_running(&self) -> bool {
        self.running.get() > 0
    }

    /// Calls `work` for each copy.
    pub(super) fn map<T>(&self, work: impl FnMut(&Copy) -> T) -> Vec<T> {
        self.copies.borrow().iter().map(|copy| copy.as_ref()).map(work).collect()
    }

    /// The process has exited: moves what it wrote, as far as there is room.
    pub(super) fn process_exited(&self) {
        for copy in self.copies.borrow().iter() {
            if copy.is_direct() {
                copy.let_source_go();
                continue;
            }
            for _ in 0..FINAL_PUMPS {
                if !copy.pump() {
                    break;
                }
            }
        }
    }

    /// From here on a console is at its end when nobody has it open.
    pub(super) fn expect_end(&self) {
        self.copies.borrow().iter().for_each(|copy| copy.expect_end());
    }

    pub(super) fn let_sources_go(&self) {
        self.copies.borrow().iter().for_each(|copy| copy.let_source_go());
    }

    /// The end of what lies in the sources, which nobody will copy.
    pub(super) fn take_words(&self) -> Vec<u8> {
        let copies = self.copies.borrow();
        let mut words = copies.iter().rev().map(|copy| copy.take_words());
        words.find(|words| !words.is_empty()).unwrap_or_default()
    }

    /// Returns when all have ended.
    pub(super) async fn wait_drained(&self) {
        loop {
            let ended = self.ended.notified();
            if !self.are_running() {
                return;
            }
            ended.await;
        }
    }

    /// Returns when all have ended, or nothing has moved for so long, and nothing waits for a slow
    /// reader: what moves or waits are the process's own last words. Returns whether they have
    /// ended.
    pub(super) async fn wait_drained_or_silent(&self, silence: Duration) -> bool {
        loop {
            let before = self.map(Copy::position);
            if tokio::time::timeout(silence, self.wait_drained()).await.is_ok() {
                return true;
            }
            let now = self.map(Copy::position);
            if now == before && now.iter().all(|(_, waits)| !waits) {
                return false;
            }
        }
    }

    /// Returns when the readers have got all, have gone, or take nothing any more.
    pub(super) async fn wait_read(&self) {
        let (mut left, mut since) = (self.unread_bytes(), Instant::now());
        while left > 0 && since.elapsed() < READER_PATIENCE {
            tokio::time::sleep(READER_LOOK).await;
            let now = self.unread_bytes();
            if now < left {
                since = Instant::now();
            }
            left = now;
        }
    }

    /// Bytes for which there is a reader.
    fn unread_bytes(&self) -> usize {
        let copies = self.copies.borrow();
        copies.iter().filter(|copy| copy.has_reader()).map(|copy| copy.unread_bytes()).sum()
    }

    pub(super) fn close(&self) {
        // Whoever waits for them waits for nobody.
        self.running.set(0);
        self.ended.notify_waiters();
        for copy in self.copies.borrow_mut().drain(..) {
            copy.close();
        }
    }
}
