//! The stack of a process that mostly sleeps.

/// As deep as the stack is expected to have been, bytes. No other mapping is that near below it:
/// the kernel keeps a mebibyte free (`stack_guard_gap`).
const DEPTH: usize = 256 << 10;

/// Gives back what deeper calls have left behind below us (madvise(2)): the kernel keeps each page
/// that was ever touched. For the main thread only.
pub fn release() {
    let here = 0_u8;
    let page = rustix::param::page_size();
    // Further down than what this function and its call need themselves.
    let top = (std::ptr::addr_of!(here).addr() & !(page - 1)).saturating_sub(page);
    let from = std::ptr::without_provenance_mut(top.saturating_sub(DEPTH));
    // SAFETY: nothing below the frame that runs is in use, and a page more is left alone. Where the
    // stack does not reach that far nothing is mapped, which is an error (ENOMEM) after the rest
    // has been done.
    unsafe { libc::madvise(from, DEPTH, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Touches a hundred KiB below its caller.
    #[inline(never)]
    fn deep(depth: u32) -> u32 {
        let frame = std::hint::black_box([1_u8; 4096]);
        match depth {
            0 => u32::from(frame[0]),
            _ => u32::from(frame[0]) + deep(depth - 1),
        }
    }

    #[test]
    fn what_was_left_behind_is_given_back_and_what_is_in_use_stays() {
        let mut used = [0_u8; 16 << 10];
        for (value, byte) in (0_u8..=255).cycle().zip(used.iter_mut()) {
            *byte = value;
        }
        assert_eq!(deep(25), 26);
        release();
        assert_eq!(deep(25), 26);
        assert!((0_u8..=255).cycle().zip(&used).all(|(value, byte)| value == *byte));
    }
}
