//! A log file: appended to, and opened again when its name leads to another one.

use super::helper::{Reporter, wait};
use rustix::{
    event::PollFlags,
    fs::{AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};
use std::{
    ffi::OsString,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

/// How often it is looked for under its name, to notice that it was rotated.
const ROTATION_LOOK: Duration = Duration::from_millis(100);
/// No fifo waits, and no terminal becomes ours.
const CAUTIOUS: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY);
const APPEND: OFlags = OFlags::APPEND.union(OFlags::CLOEXEC).union(CAUTIOUS);

pub(super) struct LogFile {
    /// Where it is looked for when it was rotated.
    place: Option<Place>,
    is_refused: bool,
    file: OwnedFd,
    looked: Instant,
    dropped: u64,
    dropping: bool,
    report: Reporter,
}

impl LogFile {
    /// `follow`: it is opened again when it was rotated.
    pub(super) fn new(file: OwnedFd, follow: bool, report: Reporter) -> Self {
        let place = if follow { Place::of(&file) } else { None };
        let looked = Instant::now();
        Self { place, file, looked, is_refused: false, dropped: 0, dropping: false, report }
    }

    /// Writes all of it, or drops it: the container goes on when the disk is full.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.follow_name();
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::write(&self.file, rest) {
                Ok(written) => {
                    rest = &rest[written..];
                    if std::mem::take(&mut self.dropping) {
                        let dropped = self.dropped;
                        self.warn(&format!("writing works again; dropped {dropped} bytes in all"));
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if wait(&self.file, PollFlags::OUT).is_ok() => {}
                Err(e) => {
                    self.dropped += rest.len() as u64;
                    if !std::mem::replace(&mut self.dropping, true) {
                        self.warn(&format!("write: {e}; output is dropped until writing works"));
                    }
                    self.report.say(format!("dropped {}\n", self.dropped).as_bytes());
                    return;
                }
            }
        }
    }

    fn warn(&self, text: &str) {
        self.report.say(format!("warning {text}\n").as_bytes());
    }

    /// Opens the file again if its name leads to another one, or to none: it was rotated.
    fn follow_name(&mut self) {
        let is_due = self.looked.elapsed() >= ROTATION_LOOK;
        let Some(place) = self.place.as_ref().filter(|_| is_due) else { return };
        self.looked = Instant::now();
        match place.follow(&self.file) {
            Ok(None) => self.is_refused = false,
            Ok(Some(file)) => (self.file, self.is_refused) = (file, false),
            Err(e) => {
                if !std::mem::replace(&mut self.is_refused, true) {
                    self.warn(&format!("open again: {e}; the old file is written on"));
                }
            }
        }
    }
}

/// The directory of a log file as it was when the file was opened, and its name there.
///
/// A container may be able to write to that directory (a volume), and we are root on the host: what
/// it puts in the place of its log is opened only if it is what it was, a regular file of the same
/// file system. No link is followed, no directory made, no device touched.
struct Place {
    directory: OwnedFd,
    name: OsString,
    device: u64,
}

impl Place {
    fn of(file: &OwnedFd) -> Option<Self> {
        let stat = rustix::fs::fstat(file).ok()?;
        if !is_of_type(&stat, FileType::RegularFile) {
            return None;
        }
        // Where it is, whatever links led there.
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path.parent()?, flags, Mode::empty()).ok()?;
        Some(Self { directory, name: path.file_name()?.to_owned(), device: stat.st_dev })
    }

    /// The file that has the name now, if it is another one than `open`.
    fn follow(&self, open: &OwnedFd) -> io::Result<Option<OwnedFd>> {
        let flags = APPEND | OFlags::WRONLY | OFlags::NOFOLLOW;
        let name = self.name.as_os_str();
        let named = match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => named,
            Err(Errno::NOENT) => {
                let mode = Mode::from_raw_mode(0o644);
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                return Ok(Some(rustix::fs::openat(&self.directory, name, flags, mode)?));
            }
            Err(e) => return Err(e.into()),
        };
        let is_file = |stat: &Stat| is_of_type(stat, FileType::RegularFile);
        let is_ours = |stat: &Stat| stat.st_dev == self.device && is_file(stat);
        let now = rustix::fs::fstat(open)?;
        if (named.st_dev, named.st_ino) == (now.st_dev, now.st_ino) {
            return Ok(None);
        }
        let refused = || io::Error::other("something else has its name");
        if !is_ours(&named) {
            return Err(refused());
        }
        // Held by its path only, it cannot be exchanged between the look and the opening.
        let held = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = rustix::fs::openat(&self.directory, name, held, Mode::empty())?;
        if !is_ours(&rustix::fs::fstat(&held)?) {
            return Err(refused());
        }
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        let flags = flags & !OFlags::NOFOLLOW;
        Ok(Some(rustix::fs::open(path, flags, Mode::empty())?))
    }
}

/// Opens a file for appending; makes it, and its directory, if it is to be made.
pub(super) fn open(path: &Path, create: bool) -> io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o644);
    let (create, parent) =
        (if create { OFlags::CREATE } else { OFlags::empty() }, path.parent().filter(|_| create));
    if let Some(directory) = parent {
        std::fs::create_dir_all(directory)?;
    }
    // A fifo outlives its readers.
    let is_fifo = rustix::fs::stat(path).is_ok_and(|stat| is_of_type(&stat, FileType::Fifo));
    let access = if is_fifo { OFlags::RDWR } else { OFlags::WRONLY };
    Ok(rustix::fs::open(path, APPEND | create | access, mode)?)
}

fn is_of_type(stat: &Stat, wanted: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == wanted
}
