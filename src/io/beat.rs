//! A common beat for copies whose sources would wake us for each line: they move what has gathered in the meantime. One timer for all
//! of them; it runs only while somebody waits.

use crate::{sys, tasks};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
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

/// How long bytes gather. tokio's own timers know milliseconds only, in which a fast writer fills its pipe several times.
pub(super) const BEAT: Duration = Duration::from_micros(250);

/// So many who wait make the beat one BEAT longer, as far as [`LONGEST`]: the more there are, the more gathers while others run.
const CROWD: u32 = 8;
const LONGEST: u32 = 4;

struct Beat {
    wanted: Notify,
    rang: Notify,
    /// Who waits now, and who did at the last beat.
    waiting: Cell<u32>,
    waited: Cell<u32>,
}

thread_local! {
    static COMMON: RefCell<Option<Rc<Beat>>> = const { RefCell::new(None) };
}

/// Resolves at the next beat; without a timer (no descriptor) a millisecond later.
pub(super) async fn next() {
    let kept = COMMON.with(|common| common.borrow().clone());
    let beat = match kept.map_or_else(start, Ok) {
        Ok(beat) => beat,
        Err(_) => return tokio::time::sleep(Duration::from_millis(1)).await,
    };
    let rang = beat.rang.notified();
    tokio::pin!(rang);
    rang.as_mut().enable();
    beat.wanted.notify_one();
    beat.waiting.set(beat.waiting.get() + 1);
    rang.await;
}

fn start() -> std::io::Result<Rc<Beat>> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let timer = sys::fd::watch(Rc::new(timer), Interest::READABLE)?;
    let beat = Rc::new(Beat {
        wanted: Notify::new(),
        rang: Notify::new(),
        waiting: Cell::new(0),
        waited: Cell::new(0),
    });
    COMMON.with(|common| common.replace(Some(Rc::clone(&beat))));
    let ringing = Rc::clone(&beat);
    tasks::spawn("beat", async move {
        while ring(&ringing, &timer).await.is_some() {}
        // Those who wait now are served; the next one starts a new timer.
        COMMON.with(|common| common.take());
        ringing.rang.notify_waiters();
    });
    Ok(beat)
}

async fn ring(beat: &Beat, timer: &AsyncFd<Rc<OwnedFd>>) -> Option<()> {
    beat.wanted.notified().await;
    let length = BEAT * (1 + beat.waited.get() / CROWD).min(LONGEST);
    let once = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: 0, tv_nsec: length.subsec_nanos().into() },
    };
    timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once).ok()?;
    let mut ready = timer.readable().await.ok()?;
    let _ = rustix::io::read(timer.get_ref(), &mut [0; 8]);
    ready.clear_ready();
    beat.waited.set(beat.waiting.take());
    beat.rang.notify_waiters();
    Some(())
}
