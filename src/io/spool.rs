//! What a reader has not taken yet: a little in memory, the rest in a memfd, whose pages count for the shim's cgroup.
//!
//! Without it a container that writes while its reader is away (containerd restarts, or is stuck) stops at the next write. The bounds are the
//! operator's, in the runtime's options: `Spool` for a stream, `SpoolTotal` for all of a shim, since the memory is not the pod's. A container's
//! annotation `io.containerd.cleat.spool` counts if he lists it in `Annotations`, and may lower what he allows. Or the container is to write into
//! the fifo itself.

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use std::{cell::Cell, io, os::fd::OwnedFd, str::FromStr};

/// Bytes kept for each stream unless the container says otherwise.
const DEFAULT_BOUND: u64 = 8 << 20;
/// Largest bound, bytes: more is a mistake, or an attempt on the node's memory.
const MAX_BOUND: u64 = 1 << 30;
/// Bytes kept for all streams of a shim unless the operator says otherwise.
const DEFAULT_TOTAL: u64 = 32 << 20;
/// What a stream that drops its oldest lines may keep although all of the shim's bytes are used: it must never wait.
const FLOOR: u64 = 64 << 10;
/// Bytes that were read again are given back to the kernel in steps of this.
const PUNCH: u64 = 128 << 10;
/// Read at a time when lines are dropped, and when they are replayed.
const CHUNK: usize = 64 << 10;

thread_local! {
    /// Bytes that all spools of this shim keep.
    static USED: Cell<u64> = const { Cell::new(0) };
}

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
    /// Bytes that all streams of the shim may keep together, as far as this one is concerned.
    pub total: u64,
}

impl Policy {
    /// Nothing is spooled.
    pub const OFF: Self = Self { bound: 0, when_full: WhenFull::Wait, direct: false, total: DEFAULT_TOTAL };

    /// The same through the shim.
    pub fn through_the_shim(self) -> Self {
        Self { direct: false, ..self }
    }

    /// What the operator's options say, lowered by a container's annotation if he lists it. Empty texts are the defaults.
    pub fn decide(
        spool: &str,
        total: &str,
        listed: &str,
        annotation: Option<&str>,
    ) -> Result<Self, BadPolicy> {
        let mut policy = match spool {
            "" => Self::default(),
            text => text.parse()?,
        };
        // What he allows a stream, he allows all of them, unless he says less.
        policy.total = match total {
            "" => policy.total.max(policy.bound),
            text => size(text).ok_or_else(|| BadPolicy(brief(text)))?,
        };
        let is_listed = |name| listed.split(',').any(|word| word.trim() == name);
        let Some(text) = annotation.filter(|_| is_listed("spool") || is_listed("direct")) else {
            return Ok(policy);
        };
        let wanted: Self = text.parse()?;
        Ok(match wanted.direct {
            true => Self { direct: policy.direct || is_listed("direct"), ..policy },
            false if !is_listed("spool") => policy,
            false => Self {
                bound: wanted.bound.min(policy.bound),
                direct: false,
                when_full: wanted.when_full,
                ..policy
            },
        })
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self { bound: DEFAULT_BOUND, ..Self::OFF }
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
        let bad = || BadPolicy(brief(text));
        let (bytes, when_full) = match text.split_once(',') {
            None => (text, WhenFull::Wait),
            Some((bytes, "wait")) => (bytes, WhenFull::Wait),
            Some((bytes, "drop-oldest")) => (bytes, WhenFull::DropOldest),
            Some(_) => return Err(bad()),
        };
        Ok(Self { bound: size(bytes).ok_or_else(bad)?, when_full, ..Self::OFF })
    }
}

fn brief(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Bytes, Ki, Mi or Gi, at most [`MAX_BOUND`].
fn size(text: &str) -> Option<u64> {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|bytes| *bytes <= MAX_BOUND)
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
    /// An empty one.
    pub(super) fn new(policy: Policy) -> Self {
        let mut spool = Self::default();
        spool.policy = policy;
        spool
    }

    /// Whether it takes anything but what a write has left over.
    pub(super) fn is_on(&self) -> bool {
        self.policy.bound > 0
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        // The old one gives back what it is charged for.
        drop(std::mem::replace(self, Self::new(self.policy)));
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
        let Policy { bound, when_full, total, .. } = self.policy;
        let free = total.saturating_sub(USED.get());
        let floor = if when_full == WhenFull::DropOldest { FLOOR } else { 0 };
        bound.min((self.len() + free).max(floor))
    }

    /// Counts what the file holds, and what it would not take.
    fn charge(&mut self) {
        let held = self.file.as_ref().map_or(0, |_| self.end - self.punched) + self.tail.len() as u64;
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

    /// Takes bytes behind all others; never fails, though it may say [`Spool::room`] 0 for a while afterwards.
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
                    self.gap.breaks_line = true;
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
                let Gap { lines, bytes, breaks_line } = std::mem::take(&mut self.gap);
                let newline = if breaks_line { "\n" } else { "" };
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

    #[test]
    fn a_container_may_only_lower_what_the_operator_allows() {
        let decide = |spool, total, listed, annotation| Policy::decide(spool, total, listed, annotation);
        assert_eq!(decide("", "", "", None).unwrap(), Policy::default());
        assert_eq!(decide("", "", "", Some("1Gi")).unwrap(), Policy::default());
        assert_eq!(decide("", "", "other", Some("much")).unwrap(), Policy::default());
        assert!(decide("", "", "spool", Some("much")).is_err());
        assert!(decide("", "much", "", None).is_err());
        assert_eq!(decide("64Ki", "", "spool", Some("1Gi")).unwrap().bound, 64 << 10);
        assert_eq!(decide("64Ki", "", "spool", Some("1Ki")).unwrap().bound, 1 << 10);
        assert_eq!(decide("64Ki", "", "spool", Some("0")).unwrap().bound, 0);
        assert_eq!(decide("64Mi", "", "spool", Some("1Ki")).unwrap().total, 64 << 20);
        assert_eq!(decide("64Ki", "2Mi", "a, spool", Some("1Ki,drop-oldest")).unwrap().total, 2 << 20);
        for (spool, listed, annotation, direct) in [
            ("", "spool", "direct", false),
            ("", "direct", "direct", true),
            ("direct", "spool", "direct", true),
            ("direct", "spool", "1Mi", false),
            ("direct", "direct", "1Mi", true),
            ("direct", "", "1Mi", true),
        ] {
            let policy = decide(spool, "", listed, Some(annotation)).unwrap();
            assert_eq!(policy.direct, direct, "{spool} {listed} {annotation}");
        }
    }

    #[test]
    fn all_streams_together_keep_no_more_than_the_total() {
        let mut scratch = vec![0; CHUNK];
        let waits = Policy { total: 1 << 20, ..Policy::default() };
        let drops = Policy { when_full: WhenFull::DropOldest, ..waits };
        let mut spools: Vec<Spool> = (0..4).map(|_| Spool::new(waits)).collect();
        let mut kept = [0; 4];
        for _ in 0..100 {
            for (spool, kept) in spools.iter_mut().zip(&mut kept) {
                let size = spool.room().min(10_000);
                spool.append(&vec![b'x'; size], &mut scratch);
                *kept += size;
            }
        }
        assert_eq!(kept.iter().sum::<usize>(), 1 << 20);
        assert_eq!(USED.get(), 1 << 20);
        // One that must not wait goes on all the same.
        let mut lively = Spool::new(drops);
        for number in 0..10_000 {
            assert!(lively.room() > 0);
            lively.append(format!("line {number}\n").as_bytes(), &mut scratch);
            assert!(lively.len() <= FLOOR + 64, "{}", lively.len());
            assert!(USED.get() <= (1 << 20) + FLOOR + PUNCH + 8192, "{}", USED.get());
        }
        assert!(drain(&mut lively, &mut scratch).ends_with(b"line 9999\n"));
        // What was read is free for others.
        assert_eq!(drain(&mut spools[0], &mut scratch).len(), kept[0]);
        assert_eq!(spools[1].room(), kept[0]);
        spools[2].clear();
        assert_eq!(spools[1].room(), kept[0] + kept[2]);
        drop(spools);
        assert_eq!(USED.get(), 0);
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
    fn a_gap_that_ends_within_a_line_adds_no_empty_one() {
        let mut scratch = vec![0; CHUNK];
        let policy = Policy { bound: 100, when_full: WhenFull::DropOldest, ..Policy::default() };
        let mut spool = Spool::new(policy);
        spool.keep(&[b"y".repeat(98), b"\n".to_vec()].concat());
        spool.append(b"half of ", &mut scratch);
        spool.append(b"a line\nanother\n", &mut scratch);
        let text = String::from_utf8(drain(&mut spool, &mut scratch)).unwrap();
        assert!(!text.contains("\n\n") && text.ends_with("\nanother\n"), "{text}");
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
