//! Hears the runtime name the process that it has made. That is the last thing that runc does; then
//! it takes 2 to 3 ms to leave, for which nobody need wait.

use super::record;
use crate::{bundle::read_bounded, exits, sys};
use rustix::fs::{Mode, OFlags};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// One call's pid file, which is not there yet.
pub(super) struct Naming {
    /// Notifies us while it is open (fcntl(2), F_NOTIFY). Not inotify(7): of its instances root has
    /// 128 on many nodes, for all its programs together, and closing one waits for the kernel.
    _directory: OwnedFd,
    renamed: Signal,
    pid_file: PathBuf,
    record: PathBuf,
}

impl Naming {
    /// To be called before the runtime is. `record` is what runc keeps of the container. On an
    /// error the end of the call tells as much, later.
    pub(super) fn expect(pid_file: &Path, record: PathBuf) -> io::Result<Self> {
        // Of another call with the same name.
        match std::fs::remove_file(pid_file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let renamed = signal(SignalKind::io())?;
        let directory = pid_file.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        sys::fd::notify_of_renames(directory.as_fd())?;
        Ok(Self { _directory: directory, renamed, pid_file: pid_file.to_owned(), record })
    }

    /// Resolves when the process `called` has named its child, and is runc: not a program around it
    /// that has more to do, and not a runtime that names first and works then.
    pub(super) async fn done_by(&mut self, called: u32) {
        while self.renamed.recv().await.is_some() {
            if self.is_named_by(called) && record::is_runcs(&self.record) {
                return;
            }
        }
        std::future::pending().await
    }

    fn is_named_by(&self, called: u32) -> bool {
        let text = read_bounded(&self.pid_file, 64).unwrap_or_default();
        let named: Option<u32> =
            std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        named.is_some_and(|pid| exits::parent_of(pid) == Some(called))
    }
}
