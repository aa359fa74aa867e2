//! What a shim holds and what the system holds for it, by kind: to be counted before and after.

use crate::{Driver, measure};
use std::{collections::BTreeMap, fs, path::Path};

/// Counts by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory(BTreeMap<String, u64>);

impl Inventory {
    /// Counts. `shim` is the daemon of this driver; what belongs to the driver's other shims counts
    /// as well.
    pub fn take(driver: &Driver, shim: u32) -> Self {
        let mut counts = Self::default();
        for kind in KINDS {
            counts.0.insert(format!("descriptors: {kind}"), 0);
        }
        for entry in fs::read_dir(format!("/proc/{shim}/fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            counts.add(format!("descriptors: {}", kind_of(&target)), 1);
        }
        counts.add("threads".to_owned(), count(measure::threads(shim)));
        let children: Vec<bool> = children_are_zombies(shim);
        counts.add("children".to_owned(), count(children.len()));
        counts.add(
            "zombies".to_owned(),
            count(children.iter().filter(|is_zombie| **is_zombie).count()),
        );
        counts.add("cgroups".to_owned(), count(driver.cgroups().len()));
        counts.add("mounts".to_owned(), count(driver.mounts().len()));
        let files: usize = [driver.directory().join("task"), driver.runtime_state()]
            .iter()
            .map(|d| files(d))
            .sum();
        counts.add("files".to_owned(), count(files));
        counts
    }

    /// Adds to one kind.
    pub fn add(&mut self, kind: String, count: u64) {
        *self.0.entry(kind).or_default() += count;
    }

    /// Kinds with their counts here and in a later one.
    pub fn beside<'a>(&'a self, later: &'a Self) -> impl Iterator<Item = (&'a str, u64, u64)> {
        let kinds = self.0.keys().chain(later.0.keys().filter(|kind| !self.0.contains_key(*kind)));
        let of = |counts: &Self, kind: &String| counts.0.get(kind).copied().unwrap_or(0);
        kinds.map(move |kind| (kind.as_str(), of(self, kind), of(later, kind)))
    }

    /// Kinds of which there are more in a later one.
    pub fn grown(&self, later: &Self) -> Vec<String> {
        let grown = self.beside(later).filter(|(_, before, after)| after > before);
        grown
            .map(|(kind, before, after)| format!("{kind}: {before} before, {after} after"))
            .collect()
    }
}

/// Of descriptors: those that are always told.
const KINDS: [&str; 9] = [
    "pipe",
    "socket",
    "pidfd",
    "inotify",
    "eventfd",
    "eventpoll",
    "memfd",
    "terminal",
    "other file",
];

fn kind_of(target: &Path) -> &'static str {
    let text = target.to_string_lossy();
    let kinds = [
        ("pipe:", "pipe"),
        ("socket:", "socket"),
        ("pidfd:", "pidfd"),
        ("anon_inode:[pidfd]", "pidfd"),
        ("anon_inode:inotify", "inotify"),
        ("anon_inode:[eventfd", "eventfd"),
        ("anon_inode:[eventpoll]", "eventpoll"),
        ("anon_inode:[signalfd]", "signalfd"),
        ("anon_inode:[timerfd]", "timerfd"),
        ("anon_inode:", "other of the kernel's"),
        ("/memfd:", "memfd"),
        ("/dev/pt", "terminal"),
        ("/sys/fs/cgroup", "cgroup file"),
        ("/proc/", "proc"),
    ];
    kinds.iter().find(|(start, _)| text.starts_with(start)).map_or("other file", |(_, kind)| kind)
}

/// Of each child of a process: whether it is a zombie.
fn children_are_zombies(pid: u32) -> Vec<bool> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let state = |child: u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        stat.get(stat.rfind(')')? + 2..)?.chars().next()
    };
    pids.filter(|child| measure::parent(*child) == Some(pid))
        .map(|child| state(child) == Some('Z'))
        .collect()
}

fn files(directory: &Path) -> usize {
    let entries: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().collect();
    let below = entries
        .iter()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()) && !is_layer(&entry.path()));
    entries.len() + below.map(|entry| files(&entry.path())).sum::<usize>()
}

/// What lies in a container's layers is its own business.
fn is_layer(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| ["rootfs", "upper", "work"].iter().any(|layer| name == *layer))
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
