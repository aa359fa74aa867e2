//! Signals: those that mean nothing to us, and those that come before we listen.

use std::io;

/// Those whose default would end the process, besides the ones that the daemon handles (TERM, INT,
/// CHLD, USR1, ALRM), the ones that report a fault of ours (ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS)
/// and PIPE, which the standard library ignores.
const HARMLESS: [libc::c_int; 10] = [
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR2,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

extern "C" fn nothing(_signal: libc::c_int) {}

/// Survives them. By a handler that does nothing, not by SIG_IGN: execve(2) resets handlers, while
/// containers would inherit ignored signals.
pub fn survive_harmless() {
    let realtime = libc::SIGRTMIN()..=libc::SIGRTMAX();
    for signal in HARMLESS.into_iter().chain(realtime) {
        let handler = nothing as extern "C" fn(libc::c_int);
        // SAFETY: the handler is async-signal-safe (it does nothing) and lives for ever.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Makes sure that our children can be waited for: whoever ignores SIGCHLD, which a program
/// inherits, has none (sigaction(2), `SA_NOCLDWAIT`).
pub fn expect_children() {
    // SAFETY: integers; the default needs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Survives SIGTERM and SIGINT as well, in a helper that ends with its input.
pub fn survive_termination() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let handler = nothing as extern "C" fn(libc::c_int);
        // SAFETY: as above.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Keeps every signal waiting until [`unblock`], or until the mask that it returns is
/// [restored](restore): a daemon that is told to end before it listens would die and leave its
/// socket. A fault of ours still ends us: the kernel does not let those wait. Async-signal-safe.
pub(super) fn block() -> io::Result<libc::sigset_t> {
    mask(libc::SIG_BLOCK, &all())
}

/// Lets them come, also those that have waited.
pub fn unblock() -> io::Result<()> {
    mask(libc::SIG_UNBLOCK, &all()).map(drop)
}

/// Goes back to what [`block`] has found.
pub(super) fn restore(before: &libc::sigset_t) {
    // Its only errors are about its arguments.
    let _ = mask(libc::SIG_SETMASK, before);
}

/// Takes the daemon's handlers away, in a child that goes on with our code: they write into the
/// event loop's descriptors by number, and there those numbers may be something else. PIPE, which
/// the standard library ignores, is as programs expect it. Async-signal-safe.
pub(super) fn forget_handlers() {
    for signal in
        [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGIO, libc::SIGPIPE]
    {
        // SAFETY: integers; the default needs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn all() -> libc::sigset_t {
    let mut all = std::mem::MaybeUninit::uninit();
    // SAFETY: sigfillset writes the whole set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: it was written above.
    unsafe { all.assume_init() }
}

fn mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut before = all();
    // SAFETY: both sets live until the call returns.
    match unsafe { libc::pthread_sigmask(how, set, &raw mut before) } {
        0 => Ok(before),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}
