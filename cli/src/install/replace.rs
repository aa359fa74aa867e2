//! A file's new content in the place of the old: whatever happens in between, one of the two is
//! there.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long another `cleat install` may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The directory of a configuration: one `cleat install` at a time.
pub(crate) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
}

impl Directory {
    /// Locks it, and removes what a killed run has left.
    pub(crate) fn lock(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .with_context(|| format!("open {}", path.display()))?;
        let end = Instant::now() + PATIENCE;
        while rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() > end {
                bail!("{}: another cleat install is at work there", path.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let directory = Self { path: path.to_owned(), fd };
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(CANDIDATE)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(directory)
    }

    /// A new file beside `original`, which nobody may read who may not read that one; without one,
    /// for root alone to write.
    pub(crate) fn candidate(&self, original: &Path, content: &str) -> Result<Candidate> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = self.path.join(format!("{CANDIDATE}{}-{number}", std::process::id()));
        let attempt = || -> Result<Candidate> {
            let mut file = create(&path, 0o600)?;
            let candidate = Candidate { path: path.clone() };
            match fs::metadata(original) {
                Ok(about) => like(&file, &about)?,
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
                }
                Err(e) => return Err(e.into()),
            }
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            Ok(candidate)
        };
        attempt().with_context(|| format!("write {}", path.display()))
    }

    /// Puts a candidate in the place of `path`, for good.
    pub(crate) fn put(&self, candidate: Candidate, path: &Path) -> Result<()> {
        fs::rename(&candidate.path, path).with_context(|| format!("replace {}", path.display()))?;
        std::mem::forget(candidate);
        self.sync()
    }

    /// Keeps a copy of a file, unless there is one already: the first is the user's.
    pub(crate) fn keep(&self, path: &Path, copy: &Path) -> Result<()> {
        if copy.symlink_metadata().is_ok() {
            return Ok(());
        }
        let content = fs::read_to_string(path)?;
        let candidate = self.candidate(path, &content)?;
        // link(2), so that it is there whole or not at all, and never over another one.
        match fs::hard_link(&candidate.path, copy) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                return Err(e).with_context(|| format!("keep a copy in {}", copy.display()));
            }
            _ => {}
        }
        drop(candidate);
        self.sync()
    }

    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.fd).with_context(|| format!("sync {}", self.path.display()))
    }
}

/// Names of candidates. containerd's `imports` look for *.toml, which they are not.
const CANDIDATE: &str = ".cleat-install-";

/// A file that is not in its place yet; it goes unless it gets there.
pub(crate) struct Candidate {
    path: PathBuf,
}

impl Candidate {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn create(path: &Path, mode: u32) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Owner first: a change of owner takes set-id bits away, and a mode that others may read must not
/// come before it.
fn like(file: &File, about: &fs::Metadata) -> Result<()> {
    std::os::unix::fs::fchown(file, Some(about.uid()), Some(about.gid()))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(about.mode() & 0o7777))?;
    Ok(())
}
