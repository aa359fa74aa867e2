//! Signals: those that mean nothing to us, and those that come before we listen.

use std::io;

/// Those whose default would end the process, besides the ones that the daemon handles (TERM, INT, CHLD, USR1, ALRM), the ones that report
/// a fault of ours (ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS) and PIPE, which the standard library ignores.
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

/// Survives them. By a handler that does nothing, not by SIG_IGN: execve(2) resets handlers, while containers would inherit
/// ignored signals.
pub fn survive_harmless() {
    let realtime = libc::SIGRTMIN()..=libc::SIGRTMAX();
    for signal in HARMLESS.into_iter().chain(realtime) {
        let handler = nothing as extern "C" fn(libc::c_int);
        // SAFETY: the handler is async-signal-safe (it does nothing) and lives for ever.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Keeps every signal waiting until [`unblock`]: a daemon that is told to end before it listens would die and leave its socket.
/// A fault of ours still ends us: the kernel does not let those wait. Async-signal-safe.
pub(super) fn block() -> io::Result<()> {
    mask(libc::SIG_BLOCK)
}

/// Lets them come, also those that have waited.
pub fn unblock() -> io::Result<()> {
    mask(libc::SIG_UNBLOCK)
}

/// Takes the daemon's handlers away, in a child that goes on with our code: they write into the event loop's descriptors by number, and
/// there those numbers may be something else.
pub(super) fn forget_handlers() {
    for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
        // SAFETY: integers; the default needs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn mask(how: libc::c_int) -> io::Result<()> {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset writes the whole set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set was initialised above; nobody asks for the old one.
    match unsafe { libc::pthread_sigmask(how, all.as_ptr(), std::ptr::null_mut()) } {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}
