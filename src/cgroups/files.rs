//! The kernel's text files of a cgroup, in the shapes that they come in. Read whole, bounded; what is odd is left out.

use crate::{
    bundle::read_bounded,
    protocol::stats_v2::{RdmaEntry, RdmaStat},
};
use std::{collections::HashMap, path::Path};

#[cfg(fuzzing)]
thread_local! {
    /// What every file of a cgroup holds while the fuzzer runs: millions of inputs, and none through the file system.
    pub static FUZZED: std::cell::RefCell<Option<Vec<u8>>> = const { std::cell::RefCell::new(None) };
}

/// A file's text; `None` if there is no such file.
pub(super) fn text(directory: &Path, file: &str) -> Option<String> {
    #[cfg(fuzzing)]
    if let Some(bytes) = FUZZED.with_borrow(Clone::clone) {
        return Some(String::from_utf8_lossy(&bytes).into_owned());
    }
    let bytes = read_bounded(&directory.join(file), 1 << 20).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A file with one number; `max` is the largest there is.
pub(super) fn number(directory: &Path, file: &str) -> Option<u64> {
    let text = text(directory, file)?;
    match text.trim() {
        "max" => Some(u64::MAX),
        // Some kernels write negative numbers for "none".
        word if word.starts_with('-') => Some(0),
        word => word.parse().ok(),
    }
}

/// A file of `key value` lines; unknown keys cost nothing.
pub(super) fn pairs(directory: &Path, file: &str) -> Option<HashMap<String, u64>> {
    let text = text(directory, file)?;
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    Some(text.lines().filter_map(pair).collect())
}

/// `DEVICE hca_handle=… hca_object=…`, a line a device; the same files in both versions.
pub(super) fn rdma(directory: &Path) -> RdmaStat {
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
        text(directory, file).map_or_else(Vec::new, |text| text.lines().filter_map(entry).collect())
    };
    RdmaStat { current: entries("rdma.current"), limit: entries("rdma.max") }
}
