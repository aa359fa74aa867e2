//! Sees that the event loop hangs. SIGALRM interrupts whatever it hangs in; two alarms in the same
//! turn of the loop are a hang. A hung loop cannot write its own dump, so the alarm's handler does:
//! what was done last, and where the program stands.
//!
//! What sleeps uninterruptibly (state D: a dead file system) takes no signal either. It is told
//! when it is over: the alarm came late.
//!
//! Costs two stores a turn, one signal in `PERIOD` seconds while there is work, one more when it
//! has ended, then nothing.

use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed,
};

/// Seconds between two looks: a turn that lasts twice as long has been seen for certain.
const PERIOD: libc::c_uint = 5;
/// Bytes of notes that are kept: the last thirty or so.
const NOTES: usize = 2048;

static TURN: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(u64::MAX);
/// The turn of which a dump was written.
static DUMPED: AtomicU64 = AtomicU64::new(u64::MAX);
static ASLEEP: AtomicBool = AtomicBool::new(false);
static ARMED: AtomicBool = AtomicBool::new(false);
/// When the alarm was set, seconds of CLOCK_MONOTONIC.
static ARMED_AT: AtomicI64 = AtomicI64::new(0);
/// The next turn is the alarm's own doing: it interrupts the wait of a loop that has nothing to do.
static OURS: AtomicBool = AtomicBool::new(false);
/// A ring, for a handler that may not look at the heap.
static NOTE: [AtomicU8; NOTES] = [const { AtomicU8::new(0) }; NOTES];
static NOTED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn look(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if ASLEEP.load(Relaxed) {
        ARMED.store(false, Relaxed);
        OURS.store(true, Relaxed);
        return;
    }
    let turn = TURN.load(Relaxed);
    let late = now() - ARMED_AT.load(Relaxed) - i64::from(PERIOD);
    let mut line = Line::new();
    if late >= i64::from(PERIOD) {
        line.begin();
        line.text(b"watchdog: the event loop was held for ");
        line.number(late.unsigned_abs() + u64::from(PERIOD), 10);
        line.text(b" s, by the kernel (state D: a file system or device that does not answer) or by SIGSTOP");
        line.end();
        dump(&mut line, context, turn);
    } else if SEEN.swap(turn, Relaxed) == turn {
        line.begin();
        line.text(b"watchdog: the event loop has not turned for 5 s");
        line.end();
        dump(&mut line, context, turn);
    }
    arm();
}

/// Once a turn.
fn dump(line: &mut Line, context: *mut libc::c_void, turn: u64) {
    if DUMPED.swap(turn, Relaxed) == turn {
        return;
    }
    line.begin();
    line.text(b"watchdog: === BEGIN dump of the hung loop === turn ");
    line.number(turn, 10);
    if let Some((counter, arguments)) = registers(context) {
        // Beside the program's beginning, for addr2line; the arguments are those of a system call
        // that was interrupted.
        line.text(b" at start+0x");
        line.number(counter.wrapping_sub(start()), 16);
        line.text(b" arguments");
        for argument in arguments {
            line.text(b" 0x");
            line.number(argument, 16);
        }
    }
    line.end();
    let noted = NOTED.load(Relaxed);
    let mut at = noted.saturating_sub(NOTES);
    // The oldest may have lost its beginning.
    while at > 0 && at < noted && NOTE[at % NOTES].load(Relaxed) != b'\n' {
        at += 1;
    }
    while at < noted {
        line.begin();
        line.text(b"watchdog: ");
        while at < noted {
            let byte = NOTE[at % NOTES].load(Relaxed);
            at += 1;
            if byte == b'\n' {
                break;
            }
            line.text(&[byte]);
        }
        line.end();
    }
    line.begin();
    line.text(b"watchdog: === END dump of the hung loop ===");
    line.end();
}

/// Keeps a line for the dump. From the loop only.
pub fn note(parts: &[&str]) {
    let mut at = NOTED.load(Relaxed);
    let mut put = |byte: u8| {
        NOTE[at % NOTES].store(byte, Relaxed);
        at += 1;
    };
    for part in parts {
        // Ids and names of ours; nothing that would end the line or a quotation.
        part.bytes().take(128).for_each(|byte| {
            put(if matches!(byte, b' '..=b'~') && byte != b'"' { byte } else { b'?' })
        });
    }
    put(b'\n');
    NOTED.store(at, Relaxed);
}

/// A line of the log, made without allocation: the handler may have interrupted malloc.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; 256], length: 0 }
    }

    fn begin(&mut self) {
        self.length = 0;
        self.text(b"level=error msg=\"");
    }

    fn text(&mut self, text: &[u8]) {
        /// Room for the end.
        const END: usize = 16;
        let room = self.bytes.len() - END - self.length.min(self.bytes.len() - END);
        let text = &text[..text.len().min(room)];
        self.bytes[self.length..self.length + text.len()].copy_from_slice(text);
        self.length += text.len();
    }

    fn number(&mut self, mut number: u64, base: u64) {
        let mut digits = [0; 20];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b"0123456789abcdef"[usize::try_from(number % base).unwrap_or(0)];
            number /= base;
            if number == 0 || first == 0 {
                break;
            }
        }
        self.text(&digits[first..]);
    }

    fn end(&mut self) {
        let end = b"\" shim=cleat\n";
        self.bytes[self.length..self.length + end.len()].copy_from_slice(end);
        self.length += end.len();
        // SAFETY: write is async-signal-safe; the bytes are initialised. The log fifo does not
        // block.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.length) };
    }
}

/// Where the program was interrupted, and its first three argument registers.
#[cfg(target_arch = "x86_64")]
fn registers(context: *mut libc::c_void) -> Option<(u64, [u64; 3])> {
    // SAFETY: with SA_SIGINFO the kernel passes a ucontext_t, or null; nothing else refers to it
    // while the handler runs.
    let registers = unsafe { context.cast::<libc::ucontext_t>().as_ref() }?.uc_mcontext.gregs;
    let get = |register: libc::c_int| {
        registers
            .get(usize::try_from(register).unwrap_or(usize::MAX))
            .map_or(0, |value| value.cast_unsigned())
    };
    Some((get(libc::REG_RIP), [get(libc::REG_RDI), get(libc::REG_RSI), get(libc::REG_RDX)]))
}

/// The same.
#[cfg(target_arch = "aarch64")]
fn registers(context: *mut libc::c_void) -> Option<(u64, [u64; 3])> {
    // SAFETY: as above.
    let machine = &unsafe { context.cast::<libc::ucontext_t>().as_ref() }?.uc_mcontext;
    Some((machine.pc, [machine.regs[0], machine.regs[1], machine.regs[2]]))
}

/// Not known here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn registers(_context: *mut libc::c_void) -> Option<(u64, [u64; 3])> {
    None
}

/// Where the program begins in memory.
fn start() -> u64 {
    unsafe extern "C" {
        static __ehdr_start: u8;
    }
    (&raw const __ehdr_start).addr() as u64
}

/// Seconds of a clock that never goes back.
fn now() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime is async-signal-safe and fills `time`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec
}

fn arm() {
    ARMED_AT.store(now(), Relaxed);
    // SAFETY: alarm takes an integer, and is async-signal-safe.
    unsafe { libc::alarm(PERIOD) };
}

/// Watches from now on. The loop calls [`turns`] and [`sleeps`].
pub fn watch() {
    let handler = look as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    // SAFETY: an all-zero sigaction is a valid value to fill in.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
    // SAFETY: the handler touches atomics and its own stack, and makes async-signal-safe calls
    // only; `action` is initialised.
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
        arm();
    }
}

/// The loop is about to wait.
pub fn sleeps() {
    ASLEEP.store(true, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_numbers_right() {
        let mut line = Line::new();
        line.number(0, 10);
        line.text(b" ");
        line.number(u64::MAX, 10);
        line.text(b" ");
        line.number(0xdead, 16);
        assert_eq!(&line.bytes[..line.length], b"0 18446744073709551615 dead");
        line.text(&[b'x'; 1000]);
        assert!(line.length <= 240);
    }

    #[test]
    fn notes_are_a_ring() {
        for number in 0..1000 {
            note(&["a \"b\"\n ", &number.to_string()]);
        }
        let noted = NOTED.load(Relaxed);
        let last: Vec<u8> = (noted - 12..noted).map(|at| NOTE[at % NOTES].load(Relaxed)).collect();
        assert_eq!(last, b"\na ?b?? 999\n");
    }
}
