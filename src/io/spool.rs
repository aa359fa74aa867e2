//! What a reader has not taken yet: a little in memory, the rest in a memfd, whose pages count for the shim's cgroup.
//!
//! Without it a container that writes while its reader is away (containerd restarts, or is stuck) stops at the next write. The bound is the
//! container's: annotation `io.containerd.cleat.spool`, or `spool` in the runtime's options. Or the container is to write into the fifo itself.

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use std::{io, os::fd::OwnedFd, str::FromStr};

/// Bytes kept for each stream unless the container says otherwise.
const DEFAULT_BOUND: u64 = 8 << 20;
/// Largest bound, bytes: more is a mistake, or an attempt on the node's memory.
const MAX_BOUND: u64 = 1 << 30;
/// Bytes that were read again are given back to the kernel in steps of this.
const PUNCH: u64 = 1 << 20;
/// Read at a time when lines are dropped, and when they are replayed.
const CHUNK: usize = 64 << 10;

/// What to do when the bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Read no more: the container waits, nothing is lost.
    Wait,
    /// Drop the oldest lines and say in their place how many.
    DropOldest,
}

/// How much of a stream is kept for a reader that is away, and what then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Bytes; 0: nothing is spooled.
    pub bound: u64,
    /// Beyond it.
    pub when_full: WhenFull,
    /// The container gets the fifo itself where that is safe; then nothing is spooled, and the bound is for where it is not.
    pub direct: bool,
}

impl Policy {
    /// Nothing is spooled.
    pub const OFF: Self = Self { bound: 0, when_full: WhenFull::Wait, direct: false };

    /// The same through the shim.
    pub fn through_the_shim(self) -> Self {
        Self { direct: false, ..self }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self { bound: DEFAULT_BOUND, when_full: WhenFull::Wait, direct: false }
    }
}

/// A text that is no policy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("spool {0:?} is not SIZE[,wait|,drop-oldest], SIZE in bytes, Ki, Mi or Gi, at most 1Gi, nor direct")]
pub struct BadPolicy(String);

impl FromStr for Policy {
    type Err = BadPolicy;

    /// `8Mi`, `65536`, `0`, `64Mi,drop-oldest`, `direct`.
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        if text == "direct" {
            return Ok(Self { direct: true, ..Self::default() });
        }
        let bad = || BadPolicy(text.chars().take(40).collect());
        let (size, when_full) = match text.split_once(',') {
            None | Some((_, "wait")) => (text.split(',').next().unwrap_or_default(), WhenFull::Wait),
            Some((size, "drop-oldest")) => (size, WhenFull::DropOldest),
            Some(_) => return Err(bad()),
        };
        let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
        let unit = units.iter().find_map(|(unit, shift)| Some((size.strip_suffix(unit)?, *shift)));
        let (digits, shift) = unit.unwrap_or((size, 0));
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let bound = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(bad)?;
        if bound > MAX_BOUND {
            return Err(bad());
        }
        Ok(Self { bound, when_full, direct: false })
    }
}

/// Bytes on their way from a source to a sink that does not take them, in order: `front`, the file's, `tail`.
#[derive(Default)]
pub(super) struct Spool {
    policy: Policy,
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
}

impl Spool {
    /// An empty one.
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Whether it takes anything but what a write has left over.
    pub(super) fn is_on(&self) -> bool {
        self.policy.bound > 0
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.policy);
    }

    /// Nothing waits.
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
        let Policy { bound, when_full, .. } = self.policy;
        let room = match when_full {
            WhenFull::Wait => bound.saturating_sub(self.len()),
            WhenFull::DropOldest => bound,
        };
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Keeps what the sink left over of a write. Only into an empty spool.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        debug_assert!(self.is_empty());
        self.front_gone = 0;
        self.front.clear();
        self.front.extend_from_slice(bytes);
    }

    /// Takes bytes behind all others; never fails, though it may say [`Spool::room`] 0 for a while afterwards.
    pub(super) fn append(&mut self, bytes: &[u8], scratch: &mut [u8]) {
        if self.policy.when_full == WhenFull::DropOldest {
            let over = (self.len() + bytes.len() as u64).saturating_sub(self.policy.bound);
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
        result
    }

    /// Drops at least `over` bytes from the file's beginning, whole lines if there are any: but not the rest of one that has been begun.
    fn drop_oldest(&mut self, over: u64, scratch: &mut [u8]) {
        let mut left = over.min(self.end - self.start);
        while left > 0 {
            let Some(read) = self.peek(scratch).filter(|read| *read > 0) else { return };
            let bytes = &scratch[..read];
            if !self.at_line_start && self.gap.bytes == 0 {
                // The rest of a line whose beginning the reader has got.
                let rest = bytes.iter().position(|b| *b == b'\n').map_or(read, |at| at + 1);
                self.front.drain(..self.front_gone);
                self.front_gone = 0;
                if self.front.len() + rest <= 2 * CHUNK {
                    self.front.extend_from_slice(&bytes[..rest]);
                } else {
                    self.gap.bytes += rest as u64;
                    self.dropped += rest as u64;
                }
                self.at_line_start = bytes[rest - 1] == b'\n';
                self.advance(rest as u64);
                left = left.saturating_sub(rest as u64);
                continue;
            }
            let wanted = usize::try_from(left).unwrap_or(read).min(read);
            let line_end = bytes[wanted - 1..].iter().position(|b| *b == b'\n').map(|at| wanted + at);
            let gone = line_end.unwrap_or(read);
            self.gap.lines += bytes[..gone].iter().fold(0, |lines, b| lines + u64::from(*b == b'\n'));
            self.gap.bytes += gone as u64;
            self.dropped += gone as u64;
            self.at_line_start = bytes[gone - 1] == b'\n';
            self.advance(gone as u64);
            left = left.saturating_sub(gone as u64);
        }
    }

    /// Gives bytes to `write`, oldest first, until none is left or it takes less than it is given; `None` from it ends all.
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
                let Gap { lines, bytes } = std::mem::take(&mut self.gap);
                let newline = if self.at_line_start { "" } else { "\n" };
                self.front = format!("{newline}cleat: {lines} lines ({bytes} bytes) dropped\n").into_bytes();
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
        let Some(file) = self.file.as_ref().filter(|_| self.start < self.end) else { return Some(0) };
        let length = usize::try_from(self.end - self.start).unwrap_or(CHUNK).min(scratch.len());
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
            let whole = self.start - self.start % 4096;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // If it fails the pages stay until the file goes.
            let _ = fallocate(file, flags, self.punched, whole - self.punched);
            self.punched = whole;
        }
    }

    fn clear_file(&mut self) {
        self.file = None;
        (self.start, self.end, self.punched) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn policies() {
        let policy = |text: &str| text.parse::<Policy>();
        assert_eq!(policy("0").unwrap(), Policy::OFF);
        assert_eq!(policy("8Mi").unwrap(), Policy::default());
        assert_eq!(
            policy("64Ki,drop-oldest").unwrap(),
            Policy { bound: 64 << 10, when_full: WhenFull::DropOldest, ..Policy::default() }
        );
        assert_eq!(policy("1Gi,wait").unwrap().bound, 1 << 30);
        assert_eq!(policy("direct").unwrap().through_the_shim(), Policy::default());
        for bad in [
            "direct,wait",
            "1Mi,direct",
            "",
            "8M",
            "-1",
            "+1",
            "2Gi",
            "1Mi,x",
            "99999999999999999999",
            "Mi",
            "1Mi,",
            " 1",
        ] {
            assert!(policy(bad).is_err(), "{bad}");
        }
    }

    fn drain(spool: &mut Spool, scratch: &mut [u8]) -> Vec<u8> {
        let mut out = Vec::new();
        spool
            .replay(scratch, |bytes| {
                out.extend_from_slice(bytes);
                Some(bytes.len())
            })
            .unwrap();
        assert!(spool.is_empty());
        out
    }

    #[test]
    fn the_oldest_lines_go_and_are_counted() {
        let mut scratch = vec![0; CHUNK];
        let policy = Policy { bound: 100, when_full: WhenFull::DropOldest, ..Policy::default() };
        let mut spool = Spool::new(policy);
        spool.keep(b"half ");
        for number in 0..100 {
            spool.append(format!("line {number}\n").as_bytes(), &mut scratch);
        }
        let text = String::from_utf8(drain(&mut spool, &mut scratch)).unwrap();
        assert!(text.starts_with("half line 0\ncleat: "), "{text}");
        assert!(text.ends_with("line 98\nline 99\n"), "{text}");
        let kept = text.lines().filter(|line| line.starts_with("line ")).count();
        assert!(text.contains(&format!("cleat: {} lines (", 99 - kept)), "{text}");
        assert!(spool.dropped() > 600);
    }

    #[test]
    fn a_line_without_end_is_dropped_in_pieces() {
        let mut scratch = vec![0; CHUNK];
        let policy = Policy { bound: 1000, when_full: WhenFull::DropOldest, ..Policy::default() };
        let mut spool = Spool::new(policy);
        for _ in 0..1000 {
            spool.append(&[b'x'; 500], &mut scratch);
        }
        assert!(spool.len() < 3 * CHUNK as u64);
        let out = drain(&mut spool, &mut scratch);
        assert!(out.ends_with(&[b'x'; 500]));
    }

    proptest! {
        #[test]
        fn what_is_not_dropped_comes_out_in_order(
            steps in prop::collection::vec((any::<bool>(), 1usize..5000), 1..200),
        ) {
            let mut scratch = vec![0; 1000];
            let mut spool = Spool::new(Policy { bound: 1 << 20, ..Policy::default() });
            let (mut put, mut got) = (0u64, Vec::new());
            for (write, size) in steps {
                if write {
                    let size = size.min(spool.room());
                    let bytes: Vec<u8> = (put..put + size as u64).map(|n| u8::try_from(n % 251).unwrap()).collect();
                    spool.append(&bytes, &mut scratch);
                    put += size as u64;
                } else {
                    let mut left = size;
                    spool.replay(&mut scratch, |bytes| {
                        let n = bytes.len().min(left);
                        left -= n;
                        got.extend_from_slice(&bytes[..n]);
                        Some(n)
                    }).unwrap();
                }
                prop_assert_eq!(spool.len(), put - got.len() as u64);
            }
            got.extend(drain(&mut spool, &mut scratch));
            prop_assert_eq!(got.len() as u64, put);
            prop_assert!(got.iter().enumerate().all(|(n, b)| *b == u8::try_from(n % 251).unwrap()));
        }
    }
}
