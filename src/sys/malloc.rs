//! glibc's allocator, tuned for a process that mostly sleeps.

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

/// Gives back what a burst of calls left behind (malloc_trim(3)); without it glibc keeps holes for ever.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer and locks the allocator itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
