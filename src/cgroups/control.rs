//! What the kernel does to all processes of a cgroup at once. Each of these may wait in the kernel
//! for others' changes of cgroups: in a helper only.
#![allow(clippy::disallowed_methods, reason = "in a helper, which has no loop")]

use super::path::{Cgroup, MAX_DEPTH, is_named};
use crate::bundle::{is_absent, read_bounded};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
};
use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long processes may take to stand still: as long as runc waits for them.
const FREEZING: Duration = Duration::from_secs(10);
/// v1 says nothing when they do: it is asked.
const LOOK: Duration = Duration::from_millis(1);
/// Looks after which v1 is let go on, and for how long.
const AGAIN: u32 = 20;
const GOING_ON: Duration = Duration::from_millis(10);
/// The dead leave their cgroup a moment after their parent has heard of them.
const LEAVING: Duration = Duration::from_millis(100);

impl Cgroup {
    /// Freezes all that is in it, and waits until it stands still. If it does not, it is thawed.
    pub fn freeze(&self) -> io::Result<()> {
        let directory = self.directory("freezer").ok_or(io::ErrorKind::NotFound)?;
        let frozen = match self {
            Self::V1(_) => freeze_v1(directory),
            Self::V2(_) => freeze_v2(directory),
        };
        if frozen.is_err() {
            let _ = self.thaw();
        }
        frozen
    }

    /// Whether the kernel kills all that is in it at once (v2, Linux 5.14). Whoever lists and
    /// signals misses some.
    pub fn can_kill_all(&self) -> bool {
        self.kill_file().is_some_and(|file| file.exists())
    }

    /// Kills all that is in it and below it, and what is born there meanwhile.
    pub fn kill_all(&self) -> io::Result<()> {
        std::fs::write(self.kill_file().ok_or(io::ErrorKind::Unsupported)?, "1")
    }

    fn kill_file(&self) -> Option<PathBuf> {
        match self {
            Self::V1(_) => None,
            Self::V2(directory) => Some(directory.join("cgroup.kill")),
        }
    }

    /// Removes its directories that are named `name`, with those below them: a container may have
    /// made some. An error if one stays, or if none has that name.
    pub fn remove_tree(&self, name: &str) -> io::Result<()> {
        let mut named = self.directories();
        named.retain(|path| is_named(path, name));
        if named.is_empty() && self.any_directory().is_some_and(Path::exists) {
            return Err(io::Error::other("it has another name"));
        }
        let deadline = Instant::now() + LEAVING;
        named.iter().try_for_each(|directory| remove_below(directory, MAX_DEPTH, deadline))
    }
}

fn remove_below(directory: &Path, depth: usize, deadline: Instant) -> io::Result<()> {
    loop {
        let error = match std::fs::remove_dir(directory) {
            Err(e) if !is_absent(&e) => e,
            _ => return Ok(()),
        };
        let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("it is too deep"))?;
        let mut has_children = false;
        for entry in std::fs::read_dir(directory)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                has_children = true;
                remove_below(&entry.path(), depth, deadline)?;
            }
        }
        if !has_children && Instant::now() >= deadline {
            return Err(error);
        }
        if !has_children {
            std::thread::sleep(LOOK);
        }
    }
}

/// Admin-guide/cgroup-v1/freezer-subsystem.rst. What is born meanwhile, or waits for somebody who
/// stands already, as after vfork(2), keeps all at "almost": it is let go on for a moment, and
/// asked again, as runc does.
fn freeze_v1(directory: &Path) -> io::Result<()> {
    let file = directory.join("freezer.state");
    let deadline = Instant::now() + FREEZING;
    for look in 1_u32.. {
        std::fs::write(&file, "FROZEN")?;
        if String::from_utf8_lossy(&read_bounded(&file, 64)?).trim() == "FROZEN" {
            return Ok(());
        }
        if Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(LOOK);
        if look % AGAIN == 0 {
            std::fs::write(&file, "THAWED")?;
            std::thread::sleep(GOING_ON);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Admin-guide/cgroup-v2.rst: a change of `cgroup.events` is told to those who poll it.
fn freeze_v2(directory: &Path) -> io::Result<()> {
    let path = directory.join("cgroup.events");
    let events = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::fs::write(directory.join("cgroup.freeze"), "1")?;
    let deadline = Instant::now() + FREEZING;
    loop {
        let mut text = [0; 256];
        let length = rustix::io::pread(&events, &mut text, 0)?;
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut asked = [PollFd::new(&events, PollFlags::PRI)];
        let _ = poll(&mut asked, Some(&Timespec::try_from(left).unwrap_or_default()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_the_name_goes() {
        // Any tree of empty directories will do.
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("a/x");
        std::fs::create_dir_all(own.join("b/c")).unwrap();
        std::fs::create_dir_all(own.join("d")).unwrap();
        let cgroup =
            Cgroup::V1(vec![("cpu".into(), own.clone()), ("memory".into(), dir.path().join("a"))]);
        assert!(Cgroup::V2(own.clone()).remove_tree("y").is_err());
        cgroup.remove_tree("x").unwrap();
        assert!(!own.exists() && dir.path().join("a").exists());
        cgroup.remove_tree("x").unwrap_err();
        Cgroup::V2(own.clone()).remove_tree("y").unwrap();
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("file"), "").unwrap();
        assert!(Cgroup::V2(own).remove_tree("x").is_err());
    }
}
