//! Who was killed for want of memory. One event for each kill that the kernel counted.
//!
//! v1: an eventfd on memory.oom_control (admin-guide/cgroup-v1/memory.rst, 9-10); v2: inotify on memory.events
//! (admin-guide/cgroup-v2.rst). Either only wakes us: the truth is the `oom_kill` counter, read then, a few times soon after
//! (on v1 the notice comes before the kill), and once more when the init has exited, before its exit is published. So a
//! notice without a kill is no event, and a kill without a notice is none lost.

use super::Cgroup;
use crate::{bundle::read_bounded, sys};
use rustix::{
    event::EventfdFlags,
    fs::{Mode, OFlags, inotify},
};
use std::{
    cell::Cell,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
};
use tokio::io::{Interest, unix::AsyncFd};

/// A watch on one container's memory cgroup.
pub struct OomWatch {
    counter: PathBuf,
    seen: Cell<u64>,
    wake: AsyncFd<Rc<OwnedFd>>,
    /// v1: the kernel wants this descriptor open as long as the eventfd is armed.
    _control: Option<OwnedFd>,
}

impl OomWatch {
    /// Arms the watch. Call before the container's program runs.
    pub fn arm(cgroup: &Cgroup) -> io::Result<Self> {
        let directory = cgroup.directory("memory").ok_or_else(|| io::Error::other("no memory controller"))?;
        let (counter, wake, control) = match cgroup {
            Cgroup::V1(_) => {
                let counter = directory.join("memory.oom_control");
                let (wake, control) = arm_v1(directory, &counter)?;
                (counter, wake, Some(control))
            }
            Cgroup::V2(_) => {
                let counter = directory.join("memory.events");
                let wake = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
                inotify::add_watch(&wake, &counter, inotify::WatchFlags::MODIFY)?;
                (counter, wake, None)
            }
        };
        let seen = Cell::new(kills(&counter).unwrap_or(0));
        let wake = sys::fd::watch(Rc::new(wake), Interest::READABLE)?;
        Ok(Self { counter, seen, wake, _control: control })
    }

    /// Waits until it is worth looking at the counter.
    pub async fn woken(&self) -> io::Result<()> {
        let mut ready = self.wake.readable().await?;
        let mut buffer = [0u8; 512];
        while matches!(rustix::io::read(self.wake.get_ref(), &mut buffer), Ok(n) if n > 0) {}
        ready.clear_ready();
        Ok(())
    }

    /// Kills since the last look. 0 if the cgroup has gone: its going is no kill.
    pub fn new_kills(&self) -> u64 {
        let Some(now) = kills(&self.counter) else { return 0 };
        now.saturating_sub(self.seen.replace(now))
    }

    /// Whether the cgroup is still there.
    pub fn is_alive(&self) -> bool {
        self.counter.exists()
    }
}

fn arm_v1(directory: &Path, counter: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = rustix::fs::open(counter, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    std::fs::OpenOptions::new()
        .write(true)
        .open(directory.join("cgroup.event_control"))
        .and_then(|mut file| io::Write::write_all(&mut file, line.as_bytes()))?;
    Ok((event, control))
}

fn kills(counter: &Path) -> Option<u64> {
    let text = read_bounded(counter, 4096).ok()?;
    String::from_utf8_lossy(&text)
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|value| value.trim().parse().ok())
}
