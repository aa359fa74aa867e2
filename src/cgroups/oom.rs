//! Who was killed for want of memory.
//!
//! v1: an eventfd on memory.oom_control (admin-guide/cgroup-v1/memory.rst, 9-10). v2:
//! memory.events, polled for EPOLLPRI (admin-guide/cgroup-v2.rst); not inotify(7), of whose
//! instances root has 128 on many nodes for all its programs together. Either only wakes us: the
//! truth is the `oom_kill` counter, read then, and once more before the exit of the init is told,
//! whatever woke us. A notice without a kill is no event, and a kill without a notice is none lost.
//!
//! Three things make that harder:
//! - v1 counts a kill where the victim was, which may be below the container's own cgroup, and
//!   gives notice before the kill.
//! - systemd may remove a scope before its counter has been read. On v2 the parent counts what
//!   happened below it, too.
//! - A cgroup that is killed as a whole (memory.oom.group) counts each of its processes, in its own
//!   time. It is one kill.

use super::{Cgroup, path::MAX_DEPTH};
use crate::{
    bundle::{is_absent, read_bounded},
    sys,
};
use rustix::{
    event::EventfdFlags,
    fs::{Mode, OFlags},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::OsString,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    rc::{Rc, Weak},
    time::{Duration, Instant},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Looks after a notice of v1, which comes before the kill: pauses before each.
const LOOKS_V1: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(120),
    Duration::from_millis(850),
];
/// Time after a notice in which its kill may come: more than those looks take.
const AFTER_NOTICE: Duration = Duration::from_secs(3);
/// v2 counts first.
const LOOKS_V2: [Duration; 1] = [Duration::ZERO];
/// The kernel counts the first victim of a group before the group: what was told so shortly before
/// is the same kill.
const BEFORE_GROUP: Duration = Duration::from_millis(100);
/// Time in which the others of a group may be counted.
const GROUP: Duration = Duration::from_secs(1);
/// Cgroups below a container of v1 whose counters are read.
const MAX_BELOW: usize = 1024;
/// Largest memory.events or memory.oom_control that is read, bytes.
const LONGEST: usize = 1024;

/// A watch on one container's memory cgroup.
pub struct OomWatch {
    seen: Cell<Counters>,
    /// When a kill was told last, and when a group was killed.
    told: Cell<Option<Instant>>,
    group: Cell<Option<Instant>>,
    version: Version,
}

enum Version {
    V1(V1),
    V2(V2),
}

struct V1 {
    directory: PathBuf,
    /// Without it kills are told with the next look, at the exit at the latest.
    notice: Option<AsyncFd<Rc<OwnedFd>>>,
    /// memory.oom_control: the kernel wants it open as long as the eventfd is armed, and it can be
    /// read when there are no more descriptors.
    control: Option<OwnedFd>,
    /// Notices of which no kill has come yet. The removal of the cgroup is one, too.
    notices: Cell<u64>,
    noticed: Cell<Option<Instant>>,
    /// What was read last.
    tree: Cell<Tree>,
}

/// A cgroup of v1 with all below it.
#[derive(Clone, Copy, Debug)]
struct Tree {
    own_kills: u64,
    kills: u64,
    size: usize,
}

struct V2 {
    counters: PathBuf,
    /// Without it, as above.
    events: Option<AsyncFd<Rc<OwnedFd>>>,
    parent: Option<Parent>,
}

/// What a parent's counter said when that of the container was last read. It is believed as long as
/// nobody but containers of ours lives below the parent: so it is in a pod.
struct Parent {
    counters: PathBuf,
    own: Rc<OsString>,
    ledger: Rc<Ledger>,
    killed: Cell<u64>,
    accounted: Cell<u64>,
}

/// Kills below one parent that were told of one container or another of ours, and who these are.
#[derive(Default)]
struct Ledger {
    kills: Cell<u64>,
    containers: RefCell<Vec<Weak<OsString>>>,
}

thread_local! {
    static LEDGERS: RefCell<HashMap<PathBuf, Weak<Ledger>>> = RefCell::default();
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    kills: u64,
    /// The cgroup was killed as a whole (v2).
    group_kills: u64,
}

/// What a look at the counters has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// No kill that was not told.
    Nothing,
    /// A kill, or several in one.
    Killed,
    /// The cgroup has gone, and its counters with it. See [`OomWatch::was_killed_unseen`].
    Gone,
}

impl OomWatch {
    /// Arms the watch. Call before the container's program runs.
    pub fn arm(cgroup: &Cgroup) -> io::Result<Self> {
        let directory =
            cgroup.directory("memory").ok_or_else(|| io::Error::other("no memory controller"))?;
        let (version, seen) = match cgroup {
            Cgroup::V1(_) => {
                let (v1, seen) = V1::arm(directory)?;
                (Version::V1(v1), seen)
            }
            Cgroup::V2(_) => {
                let (v2, seen) = V2::arm(directory)?;
                (Version::V2(v2), seen)
            }
        };
        Ok(Self { seen: Cell::new(seen), told: Cell::default(), group: Cell::default(), version })
    }

    /// Waits until it is worth looking at the counters.
    pub async fn woken(&self) -> io::Result<()> {
        let (wake, interest) = match &self.version {
            Version::V1(v1) => (&v1.notice, Interest::READABLE),
            Version::V2(v2) => (&v2.events, Interest::PRIORITY),
        };
        let Some(wake) = wake else { return std::future::pending().await };
        let mut ready = wake.ready(interest).await?;
        ready.clear_ready();
        drop(ready);
        if let Version::V1(v1) = &self.version {
            v1.take_notices();
        }
        Ok(())
    }

    /// How often to look after a notice: pauses before each.
    pub fn looks(&self) -> &'static [Duration] {
        match &self.version {
            Version::V1(_) => &LOOKS_V1,
            Version::V2(_) => &LOOKS_V2,
        }
    }

    /// Reads the counters.
    pub fn look(&self) -> Look {
        let before = self.seen.get();
        let now = match &self.version {
            Version::V1(v1) => v1.read(before),
            Version::V2(v2) => v2.read(),
        };
        let now = match now {
            Ok(now) => now,
            Err(e) if is_absent(&e) || e.raw_os_error() == Some(libc::ENODEV) => return Look::Gone,
            // Nothing can be said now.
            Err(_) => return Look::Nothing,
        };
        self.seen.set(now);
        let kills = now.kills.saturating_sub(before.kills);
        if let Version::V2(V2 { parent: Some(parent), .. }) = &self.version {
            parent.account(kills);
        }
        if kills == 0 {
            return Look::Nothing;
        }
        let within =
            |since: &Cell<Option<Instant>>, time| since.get().is_some_and(|at| at.elapsed() < time);
        let belongs = if now.group_kills > before.group_kills {
            self.group.set(Some(Instant::now()));
            within(&self.told, BEFORE_GROUP)
        } else {
            within(&self.group, GROUP)
        };
        if belongs {
            return Look::Nothing;
        }
        self.told.set(Some(Instant::now()));
        Look::Killed
    }

    /// For a container whose cgroup has gone and whose init died of a SIGKILL that is not ours:
    /// whether it was killed for want of memory all the same. Call it once, after a look at all
    /// containers that live beside it.
    pub fn was_killed_unseen(&self) -> bool {
        match &self.version {
            // One notice is that of the removal.
            Version::V1(v1) => {
                v1.take_notices();
                v1.forget_notices();
                v1.notices.get() > 1
            }
            Version::V2(v2) => v2.parent.as_ref().is_some_and(Parent::has_lost_one),
        }
    }
}

impl V1 {
    fn arm(directory: &Path) -> io::Result<(Self, Counters)> {
        let kills = v1_kills(directory)?;
        let (notice, control) = match arm_v1(directory) {
            Ok((notice, control)) => (Some(notice), Some(control)),
            Err(e) => {
                log::warn!("out-of-memory kills are told at the exit only: {e}");
                (None, None)
            }
        };
        let v1 = Self {
            directory: directory.to_owned(),
            notice,
            control,
            notices: Cell::default(),
            noticed: Cell::default(),
            tree: Cell::new(Tree { own_kills: kills, kills, size: 1 }),
        };
        Ok((v1, Counters { kills, group_kills: 0 }))
    }

    fn take_notices(&self) {
        let mut count = [0; 8];
        if let Some(notice) = &self.notice
            && rustix::io::read(notice.get_ref(), &mut count) == Ok(8)
        {
            self.notices.set(self.notices.get().saturating_add(u64::from_ne_bytes(count)));
            self.noticed.set(Some(Instant::now()));
        }
    }

    /// A kill comes soon after its notice, or not at all.
    fn forget_notices(&self) {
        if self.noticed.get().is_none_or(|at| at.elapsed() > AFTER_NOTICE) {
            self.noticed.set(None);
            self.notices.set(0);
        }
    }

    /// After a notice, which says that the container itself, and not a cgroup of its own, was out
    /// of memory, a kill anywhere in the tree is the container's.
    fn read(&self, before: Counters) -> io::Result<Counters> {
        self.take_notices();
        let own_kills = match &self.control {
            Some(control) => v1_field(&pread(control)?)?,
            None => v1_kills(&self.directory)?,
        };
        let last = self.tree.get();
        let own = own_kills.saturating_sub(last.own_kills);
        self.forget_notices();
        let (mut kills, mut size) = (own_kills, 1);
        let is_whole = self.noticed.get().is_some()
            && v1_below(&self.directory, MAX_DEPTH, &mut kills, &mut size).is_ok();
        let (now, new) = if !is_whole {
            (Tree { own_kills, kills: last.kills + own, size: last.size }, own)
        } else {
            // A cgroup that has gone has taken its count along, which may have been the one.
            let is_missing = self.notices.get() > 0 && size < last.size && kills <= last.kills;
            let vanished = u64::from(is_missing);
            let new = kills.saturating_sub(last.kills).max(own).max(vanished);
            (Tree { own_kills, kills, size }, new)
        };
        self.tree.set(now);
        if new > 0 {
            self.notices.set(0);
        }
        Ok(Counters { kills: before.kills + new, group_kills: 0 })
    }
}

impl V2 {
    fn arm(directory: &Path) -> io::Result<(Self, Counters)> {
        let counters = directory.join("memory.events");
        let file = rustix::fs::open(&counters, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let watched = |file| sys::fd::watch(Rc::new(file), Interest::PRIORITY);
        // Read first: only then does the kernel tell of what comes.
        let (events, seen) = match file {
            Ok(file) => {
                let seen = v2_counters(&pread(&file)?);
                let events = watched(file);
                if let Err(e) = &events {
                    log::warn!("out-of-memory kills are told at the exit only: {e}");
                }
                (events.ok(), seen)
            }
            Err(e) if counters.exists() => {
                log::warn!("out-of-memory kills are told at the exit only: {e}");
                (None, v2_counters(&read_bounded(&counters, LONGEST as u64)?))
            }
            Err(e) => return Err(e.into()),
        };
        let parent = Parent::of(directory);
        Ok((Self { counters, events, parent }, seen))
    }

    fn read(&self) -> io::Result<Counters> {
        let text = match &self.events {
            Some(events) => pread(events.get_ref())?,
            None => read_bounded(&self.counters, LONGEST as u64)?,
        };
        Ok(v2_counters(&text))
    }
}

impl Parent {
    /// That of a container's cgroup.
    fn of(own: &Path) -> Option<Self> {
        let (directory, name) = (own.parent()?, own.file_name()?);
        let counters = directory.join("memory.events");
        let killed = Cell::new(v2_kills(&counters)?);
        let ledger = LEDGERS.with_borrow_mut(|ledgers| {
            ledgers.retain(|_, ledger| ledger.strong_count() > 0);
            if let Some(ledger) = ledgers.get(directory).and_then(Weak::upgrade) {
                return ledger;
            }
            let ledger = Rc::new(Ledger::default());
            ledgers.insert(directory.to_owned(), Rc::downgrade(&ledger));
            ledger
        });
        let accounted = Cell::new(ledger.kills.get());
        let own = Rc::new(name.to_owned());
        let mut containers = ledger.containers.borrow_mut();
        containers.retain(|container| container.strong_count() > 0);
        containers.push(Rc::downgrade(&own));
        drop(containers);
        Some(Self { counters, own, ledger, killed, accounted })
    }

    /// The container's own counter was read, and said so many more.
    fn account(&self, kills: u64) {
        self.ledger.kills.set(self.ledger.kills.get() + kills);
        if let Some(killed) = v2_kills(&self.counters) {
            self.killed.set(killed);
            self.accounted.set(self.ledger.kills.get());
        }
    }

    /// Whether there was a kill below it that nobody has accounted for; accounts for it.
    fn has_lost_one(&self) -> bool {
        let Some(killed) = v2_kills(&self.counters).filter(|_| self.is_exclusive()) else {
            return false;
        };
        let accounted = self.ledger.kills.get() - self.accounted.get();
        let has = killed.saturating_sub(self.killed.get()) > accounted;
        if has {
            self.ledger.kills.set(self.ledger.kills.get() + 1);
        }
        has
    }

    fn is_exclusive(&self) -> bool {
        let Some(entries) =
            self.counters.parent().and_then(|parent| std::fs::read_dir(parent).ok())
        else {
            return false;
        };
        let containers = self.ledger.containers.borrow();
        let is_ours = |name: &OsString| {
            *name == *self.own
                || containers.iter().filter_map(Weak::upgrade).any(|ours| *ours == *name)
        };
        let mut directories =
            entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.all(|entry| is_ours(&entry.file_name()))
    }
}

fn arm_v1(directory: &Path) -> io::Result<(AsyncFd<Rc<OwnedFd>>, OwnedFd)> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = directory.join("memory.oom_control");
    let control = rustix::fs::open(control, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    std::fs::OpenOptions::new()
        .write(true)
        .open(directory.join("cgroup.event_control"))
        .and_then(|mut file| io::Write::write_all(&mut file, line.as_bytes()))?;
    Ok((sys::fd::watch(Rc::new(event), Interest::READABLE)?, control))
}

fn pread(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LONGEST];
    let length = rustix::io::pread(file, &mut bytes, 0)?;
    bytes.truncate(length);
    Ok(bytes)
}

fn v1_kills(directory: &Path) -> io::Result<u64> {
    v1_field(&read_bounded(&directory.join("memory.oom_control"), LONGEST as u64)?)
}

fn v1_field(text: &[u8]) -> io::Result<u64> {
    field(text, "oom_kill")
        .ok_or_else(|| io::Error::other("memory.oom_control does not count kills"))
}

/// Adds the kills of all cgroups below one, and how many there are. What goes meanwhile is no
/// error; that nothing can be read is.
fn v1_below(directory: &Path, depth: usize, kills: &mut u64, found: &mut usize) -> io::Result<()> {
    if depth == 0 {
        return Ok(());
    }
    let entries = match std::fs::read_dir(directory) {
        Err(e) if is_absent(&e) => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        if *found >= MAX_BELOW {
            break;
        }
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match v1_kills(&entry.path()) {
            Ok(own) => *kills += own,
            Err(e) if is_absent(&e) || e.raw_os_error() == Some(libc::ENODEV) => continue,
            Err(e) => return Err(e),
        }
        *found += 1;
        v1_below(&entry.path(), depth - 1, kills, found)?;
    }
    Ok(())
}

fn v2_counters(text: &[u8]) -> Counters {
    let get = |key| field(text, key).unwrap_or(0);
    Counters { kills: get("oom_kill"), group_kills: get("oom_group_kill") }
}

fn v2_kills(counters: &Path) -> Option<u64> {
    field(&read_bounded(counters, LONGEST as u64).ok()?, "oom_kill")
}

/// The number in the line `key number`.
fn field(text: &[u8], key: &str) -> Option<u64> {
    String::from_utf8_lossy(text)
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A v2 container in a tree of plain files.
    fn v2() -> (tempfile::TempDir, PathBuf, OomWatch) {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        std::fs::create_dir(&own).unwrap();
        write(dir.path(), 5, 0);
        write(&own, 0, 0);
        // A plain file has no EPOLLPRI, and epoll refuses it.
        let seen = v2_counters(&read_bounded(&own.join("memory.events"), 1024).unwrap());
        let v2 = V2 { counters: own.join("memory.events"), events: None, parent: Parent::of(&own) };
        let watch = OomWatch {
            seen: Cell::new(seen),
            told: Cell::default(),
            group: Cell::default(),
            version: Version::V2(v2),
        };
        (dir, own, watch)
    }

    fn write(directory: &Path, kills: u64, groups: u64) {
        let text =
            format!("low 0\nhigh 0\nmax 3\noom 1\noom_kill {kills}\noom_group_kill {groups}\n");
        std::fs::write(directory.join("memory.events"), text).unwrap();
    }

    fn later(of: &Cell<Option<Instant>>, by: Duration) {
        of.set(of.get().map(|at| at - by));
    }

    #[test]
    fn kills_between_two_looks_are_one_event() {
        let (_dir, own, watch) = v2();
        assert_eq!(watch.look(), Look::Nothing);
        write(&own, 3, 0);
        assert_eq!((watch.look(), watch.look()), (Look::Killed, Look::Nothing));
        write(&own, 4, 0);
        assert_eq!(watch.look(), Look::Killed);
    }

    #[test]
    fn a_cgroup_that_is_killed_as_a_whole_is_one_kill() {
        let (_dir, own, watch) = v2();
        write(&own, 1, 0);
        assert_eq!(watch.look(), Look::Killed);
        write(&own, 4, 1);
        assert_eq!(watch.look(), Look::Nothing);
        later(&watch.group, Duration::from_millis(500));
        write(&own, 21, 1);
        assert_eq!(watch.look(), Look::Nothing);
        later(&watch.told, GROUP);
        write(&own, 42, 2);
        assert_eq!(watch.look(), Look::Killed);
        later(&watch.group, GROUP);
        write(&own, 43, 2);
        assert_eq!(watch.look(), Look::Killed);
    }

    #[test]
    fn of_a_cgroup_that_has_gone_its_parent_tells() {
        let (dir, own, watch) = v2();
        std::fs::remove_dir_all(&own).unwrap();
        assert_eq!(watch.look(), Look::Gone);
        assert!(!watch.was_killed_unseen());
        write(dir.path(), 6, 0);
        assert!(watch.was_killed_unseen());
        assert!(!watch.was_killed_unseen());
    }

    #[test]
    fn a_kill_beside_it_is_not_its_own() {
        let (dir, own, watch) = v2();
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let beside = Parent::of(&other).unwrap();
        write(dir.path(), 6, 0);
        beside.account(1);
        std::fs::remove_dir_all(&own).unwrap();
        assert_eq!((watch.look(), watch.was_killed_unseen()), (Look::Gone, false));
        write(dir.path(), 7, 0);
        assert!(watch.was_killed_unseen());
    }

    #[test]
    fn a_parent_with_strangers_is_not_believed() {
        let (dir, own, watch) = v2();
        std::fs::create_dir(dir.path().join("stranger")).unwrap();
        std::fs::remove_dir_all(&own).unwrap();
        write(dir.path(), 6, 0);
        assert_eq!((watch.look(), watch.was_killed_unseen()), (Look::Gone, false));
    }

    #[test]
    fn an_old_notice_of_v1_says_nothing() {
        let v1 = V1 {
            directory: "/nowhere".into(),
            notice: None,
            control: None,
            notices: Cell::new(2),
            noticed: Cell::new(Some(Instant::now())),
            tree: Cell::new(Tree { own_kills: 0, kills: 0, size: 1 }),
        };
        v1.forget_notices();
        assert_eq!(v1.notices.get(), 2);
        v1.noticed.set(Some(Instant::now() - 2 * AFTER_NOTICE));
        v1.forget_notices();
        assert_eq!(v1.notices.get(), 0);
    }

    #[test]
    fn v1_counts_where_the_victim_was() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path();
        let below = own.join("a/b");
        std::fs::create_dir_all(&below).unwrap();
        let write = |directory: &Path, kills: u64| {
            let text = format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
            std::fs::write(directory.join("memory.oom_control"), text).unwrap();
        };
        write(own, 0);
        write(&own.join("a"), 0);
        write(&below, 2);
        let v1 = V1 {
            directory: own.to_owned(),
            notice: None,
            control: None,
            notices: Cell::new(0),
            noticed: Cell::default(),
            tree: Cell::new(Tree { own_kills: 0, kills: 2, size: 3 }),
        };
        let watch = OomWatch {
            seen: Cell::default(),
            told: Cell::default(),
            group: Cell::default(),
            version: Version::V1(v1),
        };
        let notice = || {
            let Version::V1(v1) = &watch.version else { panic!("not v1") };
            v1.noticed.set(Some(Instant::now()));
            v1.notices.set(1);
        };
        // A cgroup's own limit, of which nobody gives notice.
        write(&below, 3);
        assert_eq!(watch.look(), Look::Nothing);
        notice();
        assert_eq!(watch.look(), Look::Killed);
        notice();
        assert_eq!(watch.look(), Look::Nothing);
        write(own, 1);
        assert_eq!(watch.look(), Look::Killed);
        notice();
        std::fs::remove_dir_all(own.join("a")).unwrap();
        assert_eq!(watch.look(), Look::Killed);
    }
}
