//! What a reader has not taken yet: a little in memory, the rest in a memfd, whose pages count for
//! the shim's cgroup.
//!
//! Without it a container that writes while its reader is away (containerd restarts, or is stuck)
//! stops at the next write. How much is kept, [`SpoolPolicy`] says.

use crate::io::spool_policy::{SpoolPolicy, WhenFull};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use std::{cell::Cell, io, os::fd::OwnedFd};

/// What a stream that drops its oldest lines may keep although all of the shim's bytes are used: it
/// must never wait.
const FLOOR: u64 = 64 << 10;
/// Bytes that were read again are given back to the kernel in steps of this.
const PUNCH: u64 = 128 << 10;
/// The kernel gives back whole pages.
const PAGE: u64 = 4096;
/// Bytes of an unfinished line that are kept although the bound is reached.
const MAX_LINE: usize = 128 << 10;

thread_local! {
    /// Bytes that all spools of this shim keep.
    static USED: Cell<u64> = const { Cell::new(0) };
}

/// Bytes on their way from a source to a sink that does not take them, in order: `front`, the
/// file's, `tail`.
#[derive(Default)]
pub(super) struct Spool {
    policy: SpoolPolicy,
    /// What the sink left over of a write.
    front: Vec<u8>,
    /// How much of `front` is gone.
    front_gone: usize,
    file: Option<OwnedFd>,
    /// The file's content lies between these; before `punched` its pages have been given back.
    start: u64,
    end: u64,
    punched: u64,
    /// What the file would not take (no memory, no descriptor).
    tail: Vec<u8>,
    /// What of [`USED`] is ours.
    charged: u64,
    /// The byte before the file's first one ended a line.
    at_line_start: bool,
    gap: Gap,
    /// Bytes dropped in all.
    dropped: u64,
}

/// Lines dropped at the place where the file's content begins, not reported yet.
#[derive(Default)]
struct Gap {
    lines: u64,
    bytes: u64,
    /// It begins in the middle of a line.
    breaks_line: bool,
}

impl Spool {
    pub(super) fn new(policy: SpoolPolicy) -> Self {
        let mut spool = Self::default();
        spool.policy = policy;
        spool
    }

    /// Whether it takes anything but what a write has left over.
    pub(super) fn is_on(&self) -> bool {
        self.policy.bound > 0
    }

    pub(super) fn clear(&mut self) {
        // The old one gives back what it is charged for.
        drop(std::mem::replace(self, Self::new(self.policy)));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0 && self.gap.bytes == 0
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> u64 {
        (self.front.len() - self.front_gone + self.tail.len()) as u64 + (self.end - self.start)
    }

    /// Bytes dropped since the beginning.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How much may be appended.
    pub(super) fn room(&self) -> usize {
        if !self.tail.is_empty() {
            return 0;
        }
        let room = match self.policy.when_full {
            WhenFull::Wait => self.may_keep().saturating_sub(self.len()),
            WhenFull::DropOldest => self.may_keep(),
        };
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Whether it would take more if others of the shim kept less.
    pub(super) fn waits_for_others(&self) -> bool {
        self.room() == 0 && self.tail.is_empty() && self.len() < self.policy.bound
    }

    /// How much this stream may keep now, in all.
    fn may_keep(&self) -> u64 {
        let SpoolPolicy { bound, when_full, total, .. } = self.policy;
        let free = total.saturating_sub(USED.get());
        let floor = if when_full == WhenFull::DropOldest { FLOOR } else { 0 };
        bound.min((self.len() + free).max(floor))
    }

    /// Counts what the file holds, and what it would not take.
    fn charge(&mut self) {
        let in_file = self.file.as_ref().map_or(0, |_| self.end - self.punched);
        let held = in_file + self.tail.len() as u64;
        USED.set((USED.get() + held).saturating_sub(self.charged));
        self.charged = held;
    }

    /// Keeps what the sink left over of a write. Only into an empty spool.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        debug_assert!(self.is_empty());
        self.front_gone = 0;
        self.front.clear();
        self.front.extend_from_slice(bytes);
    }

    /// Takes bytes behind all others. Never fails, though [`Spool::room`] may be 0 for a while
    /// afterwards.
    pub(super) fn append(&mut self, bytes: &[u8], scratch: &mut [u8]) {
        if self.policy.when_full == WhenFull::DropOldest {
            let over = (self.len() + bytes.len() as u64).saturating_sub(self.may_keep());
            self.drop_oldest(over, scratch);
        }
        if let Err(e) = self.write_to_file(bytes) {
            log::warn!("spool: {e}; its container waits");
        }
    }

    fn write_to_file(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        let result = (|| {
            if self.file.is_none() {
                self.at_line_start = self.front.last() == Some(&b'\n');
                self.file = Some(memfd_create("cleat-spool", MemfdFlags::CLOEXEC)?);
            }
            let Some(file) = &self.file else { return Ok(()) };
            while !rest.is_empty() {
                let written = rustix::io::pwrite(file, rest, self.end)?;
                self.end += written as u64;
                rest = &rest[written..];
            }
            Ok(())
        })();
        self.tail.extend_from_slice(rest);
        self.charge();
        result
    }

    /// Drops at least `over` bytes from the file's beginning, whole lines if there are any: but not
    /// the rest of one that has been begun.
    fn drop_oldest(&mut self, over: u64, scratch: &mut [u8]) {
        let mut left = over.min(self.end - self.start);
        while left > 0 {
            let Some(read) = self.peek(scratch).filter(|read| *read > 0) else { return };
            let bytes = &scratch[..read];
            let gone = match self.at_line_start || self.gap.bytes > 0 {
                true => self.drop_lines(bytes, left),
                false => self.keep_rest_of_line(bytes),
            };
            self.at_line_start = bytes[gone - 1] == b'\n';
            self.advance(gone as u64);
            left = left.saturating_sub(gone as u64);
        }
    }

    /// Drops the lines in which the first `wanted` bytes lie. Returns how many bytes these are.
    fn drop_lines(&mut self, bytes: &[u8], wanted: u64) -> usize {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(bytes.len());
        let line_end = bytes[wanted - 1..].iter().position(|b| *b == b'\n');
        let gone = line_end.map_or(bytes.len(), |at| wanted + at);
        self.gap.lines += bytes[..gone].iter().fold(0, |lines, b| lines + u64::from(*b == b'\n'));
        self.count_gap(gone);
        gone
    }

    /// The rest of a line whose beginning the reader has got goes to the front, unless it is long.
    fn keep_rest_of_line(&mut self, bytes: &[u8]) -> usize {
        let rest = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
        self.front.drain(..self.front_gone);
        self.front_gone = 0;
        if self.front.len() + rest <= MAX_LINE {
            self.front.extend_from_slice(&bytes[..rest]);
        } else {
            self.gap.breaks_line = true;
            self.count_gap(rest);
        }
        rest
    }

    fn count_gap(&mut self, bytes: usize) {
        self.gap.bytes += bytes as u64;
        self.dropped += bytes as u64;
    }

    /// Gives bytes to `write`, oldest first, until none is left or it takes less than it is given;
    /// `None` from it ends all.
    pub(super) fn replay(
        &mut self,
        scratch: &mut [u8],
        mut write: impl FnMut(&[u8]) -> Option<usize>,
    ) -> Option<()> {
        loop {
            if self.front_gone < self.front.len() {
                self.front_gone += write(&self.front[self.front_gone..])?;
                if self.front_gone < self.front.len() {
                    return Some(());
                }
            }
            self.front = Vec::new();
            self.front_gone = 0;
            if self.gap.bytes > 0 {
                let Gap { lines, bytes, breaks_line } = std::mem::take(&mut self.gap);
                let newline = if breaks_line { "\n" } else { "" };
                let text = format!("{newline}cleat: {lines} lines ({bytes} bytes) dropped\n");
                self.front = text.into_bytes();
                self.at_line_start = true;
                continue;
            }
            let read = self.peek(scratch)?;
            if read == 0 {
                self.clear_file();
                if self.tail.is_empty() {
                    return Some(());
                }
                self.front = std::mem::take(&mut self.tail);
                self.charge();
                continue;
            }
            let written = write(&scratch[..read])?;
            if let Some(last) = written.checked_sub(1) {
                self.at_line_start = scratch[last] == b'\n';
            }
            self.advance(written as u64);
            if written < read {
                return Some(());
            }
        }
    }

    /// The file's first bytes; 0 at its end.
    fn peek(&mut self, scratch: &mut [u8]) -> Option<usize> {
        let left = usize::try_from(self.end - self.start).unwrap_or(usize::MAX);
        let Some(file) = self.file.as_ref().filter(|_| left > 0) else { return Some(0) };
        let length = left.min(scratch.len());
        match rustix::io::pread(file, &mut scratch[..length], self.start) {
            Ok(0) | Err(_) => {
                log::error!("spool: {} bytes cannot be read again", self.end - self.start);
                self.clear_file();
                None
            }
            Ok(read) => Some(read),
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.start += bytes;
        if self.start >= self.punched + PUNCH
            && let Some(file) = &self.file
        {
            let whole = self.start - self.start % PAGE;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // If it fails the pages stay until the file goes.
            let _ = fallocate(file, flags, self.punched, whole - self.punched);
            self.punched = whole;
            self.charge();
        }
    }

    fn clear_file(&mut self) {
        self.file = None;
        (self.start, self.end, self.punched) = (0, 0, 0);
        self.charge();
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        USED.set(USED.get().saturating_sub(self.charged));
    }
}

#[cfg(test)]
mod tests;
