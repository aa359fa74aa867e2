//! The timer of the beats: one for all copies that are moved so. It runs only while one waits.

use super::batching::beat_length;
use crate::{sys, tasks};
use rustix::time::{self, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

/// Where no timer is to be had (no descriptor).
const WITHOUT_TIMER: Duration = Duration::from_millis(1);

struct Ticker {
    wanted: Notify,
    rang: Notify,
    /// Copies that wait now, and those that did at the last beat.
    waiting: Cell<u32>,
    waited: Cell<u32>,
}

thread_local! {
    static COMMON: RefCell<Option<Rc<Ticker>>> = const { RefCell::new(None) };
}

/// Resolves at the next beat.
pub(super) async fn next_beat() {
    let kept = COMMON.with(|common| common.borrow().clone());
    let ticker = match kept.map_or_else(start, Ok) {
        Ok(ticker) => ticker,
        Err(_) => return tokio::time::sleep(WITHOUT_TIMER).await,
    };
    let rang = ticker.rang.notified();
    tokio::pin!(rang);
    rang.as_mut().enable();
    ticker.wanted.notify_one();
    ticker.waiting.set(ticker.waiting.get() + 1);
    rang.await;
}

fn start() -> std::io::Result<Rc<Ticker>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let timer = sys::fd::watch(Rc::new(timer), Interest::READABLE)?;
    let ticker = Rc::new(Ticker {
        wanted: Notify::new(),
        rang: Notify::new(),
        waiting: Cell::new(0),
        waited: Cell::new(0),
    });
    COMMON.with(|common| common.replace(Some(Rc::clone(&ticker))));
    let ringing = Rc::clone(&ticker);
    tasks::spawn("beat", async move {
        while ring(&ringing, &timer).await.is_some() {}
        // Those who wait now are served; the next one starts a new timer.
        COMMON.with(|common| common.take());
        ringing.rang.notify_waiters();
    });
    Ok(ticker)
}

async fn ring(ticker: &Ticker, timer: &AsyncFd<Rc<OwnedFd>>) -> Option<()> {
    ticker.wanted.notified().await;
    let length = beat_length(ticker.waited.get());
    let once = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: 0, tv_nsec: length.subsec_nanos().into() },
    };
    time::timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once).ok()?;
    let mut ready = timer.readable().await.ok()?;
    let _ = rustix::io::read(timer.get_ref(), &mut [0; 8]);
    ready.clear_ready();
    ticker.waited.set(ticker.waiting.take());
    ticker.rang.notify_waiters();
    Some(())
}
