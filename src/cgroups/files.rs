//! The kernel's text files of a cgroup, in the shapes that they come in. Read whole, bounded; what
//! is odd is left out.

use crate::protocol::stats_v2::{RdmaEntry, RdmaStat};
use rustix::fs::{Mode, OFlags};
use std::{collections::HashMap, os::fd::OwnedFd, path::Path};

#[cfg(fuzzing)]
thread_local! {
    /// What every file of a cgroup holds while the fuzzer runs: millions of inputs, and none
    /// through the file system.
    pub static FUZZED: std::cell::RefCell<Option<Vec<u8>>> =
        const { std::cell::RefCell::new(None) };
}

/// Bytes asked for at first; most files are shorter.
const FIRST_READ: usize = 4 << 10;
const LONGEST: usize = 1 << 20;

/// A directory of the kernel's, opened once, so that its path is walked once; one that is not there
/// has no files.
pub(super) struct Files(Option<OwnedFd>);

impl Files {
    pub(super) fn of(directory: &Path) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self(rustix::fs::open(directory, flags, Mode::empty()).ok())
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.open(file).is_some()
    }

    /// A file's text; `None` if there is no such file.
    pub(super) fn text(&self, file: &str) -> Option<String> {
        #[cfg(fuzzing)]
        if let Some(bytes) = FUZZED.with_borrow(Clone::clone) {
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        let file = self.open(file)?;
        let mut bytes = vec![0; FIRST_READ];
        let mut length = 0;
        // The kernel makes such a file in one piece (seq_file with one record), so a read that is
        // not filled was the last one.
        loop {
            length += rustix::io::read(&file, &mut bytes[length..]).ok()?;
            if length < bytes.len() || length >= LONGEST {
                break;
            }
            bytes.resize(2 * length, 0);
        }
        bytes.truncate(length);
        Some(
            String::from_utf8(bytes)
                .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
        )
    }

    /// A file with one number; `max` is the largest there is.
    pub(super) fn number(&self, file: &str) -> Option<u64> {
        #[cfg(fuzzing)]
        if let Some(bytes) = FUZZED.with_borrow(Clone::clone) {
            return parse_number(&bytes);
        }
        let mut bytes = [0; 32];
        let length = rustix::io::read(&self.open(file)?, &mut bytes[..]).ok()?;
        parse_number(&bytes[..length])
    }

    fn open(&self, file: &str) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(self.0.as_ref()?, file, flags, Mode::empty()).ok()
    }
}

fn parse_number(bytes: &[u8]) -> Option<u64> {
    match std::str::from_utf8(bytes).ok()?.trim() {
        "max" => Some(u64::MAX),
        // Some kernels write negative numbers for "none".
        word if word.starts_with('-') => Some(0),
        word => word.parse().ok(),
    }
}

/// The `key value` lines of a file's text; unknown keys cost nothing.
pub(super) fn pairs(text: &str) -> HashMap<&str, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key, value.trim().parse().ok()?)))
        .collect()
}

/// `DEVICE hca_handle=… hca_object=…`, a line a device; the same files in both versions.
pub(super) fn rdma(files: &Files) -> RdmaStat {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let mut entry = RdmaEntry { device: words.next()?.to_owned(), ..RdmaEntry::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = if value == "max" { u32::MAX } else { value.parse().unwrap_or(0) };
            match key {
                "hca_handle" => entry.hca_handles = value,
                "hca_object" => entry.hca_objects = value,
                _ => {}
            }
        }
        Some(entry)
    };
    let entries = |file: &str| {
        files.text(file).map_or_else(Vec::new, |text| text.lines().filter_map(entry).collect())
    };
    RdmaStat { current: entries("rdma.current"), limit: entries("rdma.max") }
}
