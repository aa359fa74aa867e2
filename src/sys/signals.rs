//! Signals that mean nothing to us.

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
