//! glibc's allocator, tuned for a process that mostly sleeps.

use super::program::Program;
use std::process::Command;

/// glibc keeps what is freed in a cache of its thread, some 200 KiB after a burst of calls, which
/// malloc_trim(3) does not give back. It can be told to keep nothing only before main, by the
/// environment (glibc manual, "Memory Allocation Tunables").
const VARIABLE: &str = "GLIBC_TUNABLES";
const NO_CACHE: &str = "glibc.malloc.tcache_count=0";

/// For the command that becomes the daemon. Who has set tunables of his own keeps them.
pub fn keep_nothing(command: &mut Command) {
    if std::env::var_os(VARIABLE).is_none() {
        command.env(VARIABLE, NO_CACHE);
    }
}

/// For the programs that the daemon runs: they are not to have what was meant for us.
pub fn as_they_like(program: &mut Program) {
    if std::env::var_os(VARIABLE).is_some_and(|value| value == NO_CACHE) {
        program.env_remove(VARIABLE);
    }
}

/// One arena, and free memory at the top of the heap goes back to the kernel early (mallopt(3)).
pub fn tune() {
    #[cfg(target_env = "gnu")]
    {
        /// Bytes of free heap top that are kept.
        const TRIM_THRESHOLD: libc::c_int = 64 << 10;
        // SAFETY: mallopt takes two integers and is called before a second thread could exist.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
        // SAFETY: as above.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD) };
    }
}

/// Gives back what a burst of calls left behind (malloc_trim(3)); without it glibc keeps holes for
/// ever.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer and locks the allocator itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of the heap that are in use, and that are free but kept (mallinfo(3)); `None` with another
/// libc.
pub fn heap() -> Option<(usize, usize)> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallinfo2 takes nothing and locks the allocator itself.
        let info = unsafe { libc::mallinfo2() };
        Some((info.uordblks, info.fordblks))
    }
    #[cfg(not(target_env = "gnu"))]
    None
}
