//! One buffer for all copies, since only one moves bytes at a time.

use std::cell::RefCell;

/// Its size, bytes: what a pipe holds.
pub(super) const SCRATCH: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Option<Box<[u8]>>> = const { RefCell::new(None) };
}

/// Gives the buffer back; the next copy makes a new one.
pub(crate) fn release_scratch() {
    BUFFER.with(|buffer| buffer.borrow_mut().take());
}

pub(super) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let kept = BUFFER.with(|buffer| buffer.borrow_mut().take());
    let mut buffer = kept.unwrap_or_else(|| vec![0; SCRATCH].into_boxed_slice());
    let result = work(&mut buffer);
    BUFFER.with(|kept| kept.borrow_mut().replace(buffer));
    result
}
