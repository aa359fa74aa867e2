//! Sees that the event loop hangs. SIGALRM interrupts whatever it hangs in; two alarms in the same turn of the loop are a hang.
//!
//! Costs two stores a turn, one signal in `PERIOD` seconds while there is work, one more when it has ended, then nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Seconds between two looks: a turn that lasts twice as long has been seen for certain.
const PERIOD: libc::c_uint = 5;
const TEXT: &[u8] = b"level=error msg=\"watchdog: the event loop has not turned for 5 s\" shim=cleat\n";

static TURN: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(u64::MAX);
static ASLEEP: AtomicBool = AtomicBool::new(false);
static ARMED: AtomicBool = AtomicBool::new(false);
/// The next turn is the alarm's own doing: it interrupts the wait of a loop that has nothing to do.
static OURS: AtomicBool = AtomicBool::new(false);

extern "C" fn look(_signal: libc::c_int) {
    if ASLEEP.load(Relaxed) {
        ARMED.store(false, Relaxed);
        OURS.store(true, Relaxed);
        return;
    }
    let turn = TURN.load(Relaxed);
    if SEEN.swap(turn, Relaxed) == turn {
        // SAFETY: write and alarm are async-signal-safe; the text is static. The log fifo does not block.
        unsafe { libc::write(libc::STDERR_FILENO, TEXT.as_ptr().cast(), TEXT.len()) };
    }
    // SAFETY: as above.
    unsafe { libc::alarm(PERIOD) };
}

/// Watches from now on. The loop calls [`turns`] and [`sleeps`].
pub fn watch() {
    let handler = look as extern "C" fn(libc::c_int);
    // SAFETY: an all-zero sigaction is a valid value to fill in.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler touches atomics and makes two async-signal-safe calls; `action` is initialised.
    unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) };
}

/// The loop has woken.
pub fn turns() {
    ASLEEP.store(false, Relaxed);
    TURN.fetch_add(1, Relaxed);
    if OURS.swap(false, Relaxed) {
        return;
    }
    if !ARMED.swap(true, Relaxed) {
        // SAFETY: alarm takes an integer.
        unsafe { libc::alarm(PERIOD) };
    }
}

/// The loop is about to wait.
pub fn sleeps() {
    ASLEEP.store(true, Relaxed);
}
