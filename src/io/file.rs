//! Files of others' choosing. Their file system may hang (NFS, FUSE, a disk that is frozen), and whoever opens, reads or writes them hangs with it:
//! so a process of its own does, `cleat-file`, our own binary again. The bytes go through a pipe, which never hangs.
//!
//! ```text
//! append PATH   3, 4: what is to be written · 5: report     made if missing, followed when its name leads elsewhere (rotation)
//! write PATH    the same with a file that is there, and that stays
//! read PATH     3: where it goes · 5: report
//! find-in, find-out PATH   3: a socket, for what it is and its descriptors
//! ```
//! Reports: a byte 1 when the file is open, else why not; later lines of `Report`.
//!
//! Fifos are opened by ourselves if that cannot hang: the path is in the kernel's cache (`RESOLVE_CACHED`) and its file system local.

use super::StdioError;
use crate::{
    exits::Reaper,
    local,
    sys::{self, program::Program},
    tasks,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{AtFlags, FileType, Mode, OFlags, Statx},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
    pipe::{PipeFlags, pipe_with},
};
use std::{
    cell::Cell,
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::io::Interest;

/// The name under which our binary is this helper.
pub const NAME: &str = "cleat-file";
/// How long a file system may take to open a file.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes read at a time: what a pipe holds.
const CHUNK: usize = 64 << 10;
/// How often a log file is looked for under its name, to notice that it was rotated.
const ROTATION_LOOK: Duration = Duration::from_millis(100);
/// What comes more often than this is gathered for so long, so that lines merge.
const GATHER: Duration = Duration::from_millis(1);
/// Most bytes of a report.
const MAX_REPORT: usize = 1024;
/// Descriptors of the helper.
const FIRST: i32 = 3;
const SECOND: i32 = 4;
const REPORT: i32 = 5;
/// Said when the file is open.
const OPEN: u8 = 1;
/// Major number of /dev/null, /dev/zero, /dev/full (linux/major.h, MEM_MAJOR): they never wait.
const MEMORY_DEVICES: u32 = 1;
const NULL: u32 = 3;
/// What is to be done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
}

/// What is behind a path.
#[derive(Debug)]
pub(super) enum Found {
    /// A fifo: its end for reading and one for writing; or one for both, to be written. On a file system that may hang, or not.
    Fifo(Vec<OwnedFd>, bool),
    /// A device that takes everything and never waits.
    Device(OwnedFd),
    /// /dev/null, to be read.
    Nothing,
    /// Something that needs the helper.
    File,
}

/// Looks what is behind a path, and opens it if that can block nobody.
pub(super) async fn find(path: &Path, purpose: Purpose, reaper: &Rc<Reaper>) -> Result<Found, StdioError> {
    let verb = if purpose == Purpose::Read { "open" } else { "find" };
    let fail = |source| StdioError::Io { verb, path: path.to_owned(), source };
    match find_at_once(path, purpose) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => find_by_helper(path, purpose, reaper).await.map_err(fail),
        Err(e) => Err(fail(e.into())),
    }
}

/// `None`: somebody must be asked who may not answer.
fn find_at_once(path: &Path, purpose: Purpose) -> rustix::io::Result<Option<Found>> {
    let Some((place, is_cached)) = local::locate(path)? else { return Ok(None) };
    let kind = local::kind(&place)?;
    if is_cached && !local::is_local(&place, &kind) {
        return Ok(None);
    }
    open_found(&place, &kind, purpose, false).map(Some)
}

fn file_type(kind: &Statx) -> FileType {
    FileType::from_raw_mode(kind.stx_mode.into())
}

/// Opens what was found, if it is of a kind that never waits.
fn open_found(place: &OwnedFd, kind: &Statx, purpose: Purpose, is_remote: bool) -> rustix::io::Result<Found> {
    let open = |flags| {
        let again = format!("/proc/self/fd/{}", place.as_raw_fd());
        rustix::fs::open(again, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
    };
    Ok(match (file_type(kind), purpose) {
        // The second succeeds at once: we are the reader.
        (FileType::Fifo, Purpose::Read) => {
            Found::Fifo(vec![open(OFlags::RDONLY)?, open(OFlags::WRONLY)?], is_remote)
        }
        // For both directions: that neither waits for a reader nor fails without one, and a reader that goes away neither breaks nor ends it.
        (FileType::Fifo, Purpose::Write) => Found::Fifo(vec![open(OFlags::RDWR)?], is_remote),
        (FileType::CharacterDevice, _) if kind.stx_rdev_major == MEMORY_DEVICES => match purpose {
            Purpose::Write => Found::Device(open(OFlags::WRONLY | OFlags::APPEND)?),
            Purpose::Read if kind.stx_rdev_minor == NULL => Found::Nothing,
            Purpose::Read => Found::File,
        },
        _ => Found::File,
    })
}

async fn find_by_helper(path: &Path, purpose: Purpose, reaper: &Rc<Reaper>) -> io::Result<Found> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let word = match purpose {
        Purpose::Read => "find-in",
        Purpose::Write => "find-out",
    };
    let turn = reaper.turn().await;
    let (pid, _) = turn.start_lasting(&program(word, path), std::slice::from_ref(&theirs)).await?;
    drop(theirs);
    let answer = tokio::time::timeout(DEADLINE, receive_found(ours)).await;
    answer.unwrap_or_else(|_| {
        reaper.signal_child(pid, libc::SIGKILL);
        Err(no_answer())
    })
}

fn no_answer() -> io::Error {
    let text = format!("no answer from its file system in {} s", DEADLINE.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

async fn receive_found(socket: OwnedFd) -> io::Result<Found> {
    let socket = sys::fd::watch(Rc::new(socket), Interest::READABLE)?;
    loop {
        let mut ready = socket.readable().await?;
        match sys::pty::receive_descriptors(socket.get_ref().as_fd()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(e) => return Err(e),
            Ok((text, ends)) => return decode_found(&text, ends),
        }
    }
}

fn decode_found(text: &[u8], mut ends: Vec<OwnedFd>) -> io::Result<Found> {
    match (text.first(), ends.len()) {
        (Some(b'p'), 1 | 2) => Ok(Found::Fifo(ends, true)),
        (Some(b'd'), 1) => Ok(Found::Device(ends.remove(0))),
        (Some(b'n'), 0) => Ok(Found::Nothing),
        (Some(b'f'), 0) => Ok(Found::File),
        (Some(b'e'), 0) => {
            let number = std::str::from_utf8(&text[1..]).ok().and_then(|text| text.parse().ok());
            Err(io::Error::from_raw_os_error(number.unwrap_or(libc::EIO)))
        }
        _ => Err(io::Error::other("the helper ended without a word")),
    }
}

/// The helper as a program.
pub(super) fn program(word: &str, path: &Path) -> Program {
    let mut program = Program::new("/proc/self/exe");
    program.name(NAME).arg(word).arg(path).env_clear();
    program
}

/// A file that is read by the helper: the pipe in which its content comes, and the helper's pid.
pub(super) async fn read(path: &Path, reaper: &Rc<Reaper>) -> Result<(OwnedFd, Helper), StdioError> {
    let fail = |source| StdioError::Io { verb: "open", path: path.to_owned(), source };
    let begin = async || -> io::Result<_> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let (report, reports) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&report, true)?;
        // Its fourth descriptor is nobody's.
        let nobody = reports.try_clone()?;
        let turn = reaper.turn().await;
        let more = [theirs, nobody, reports];
        let (pid, ended) = turn.start_lasting(&program("read", path), &more).await?;
        Ok((ours, report, Helper::new(pid, ended, reaper)))
    };
    let (content, report, helper) = begin().await.map_err(fail)?;
    let said = async { Report::new(report)?.opened().await };
    match tokio::time::timeout(DEADLINE, said).await {
        Ok(Ok(())) => Ok((content, helper)),
        Ok(Err(e)) => Err(fail(e)),
        Err(_) => Err(fail(no_answer())),
    }
}

/// A helper that reads a file. It is killed with this, if it has not ended by itself: then its number may be another's.
pub(super) struct Helper {
    pid: Rc<Cell<u32>>,
    reaper: Rc<Reaper>,
}

impl Helper {
    fn new(pid: u32, ended: impl Future<Output = u32> + 'static, reaper: &Rc<Reaper>) -> Self {
        let helper = Self { pid: Rc::new(Cell::new(pid)), reaper: Rc::clone(reaper) };
        let pid = Rc::clone(&helper.pid);
        tasks::spawn("helper that reads", async move {
            ended.await;
            pid.set(0);
        });
        helper
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.pid.get() != 0 {
            self.reaper.signal_child(self.pid.get(), libc::SIGKILL);
        }
    }
}

/// What a helper, or a logging program, says.
pub(super) struct Report(tokio::io::unix::AsyncFd<Rc<OwnedFd>>);

impl Report {
    /// Listens at a pipe, which does not block.
    pub(super) fn new(pipe: OwnedFd) -> io::Result<Self> {
        sys::fd::watch(Rc::new(pipe), Interest::READABLE).map(Self)
    }

    /// The next that it says; empty at the end.
    pub(super) async fn next(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; MAX_REPORT];
        loop {
            let mut guard = self.0.readable().await?;
            match rustix::io::read(self.0.get_ref(), &mut bytes) {
                Ok(read) => {
                    bytes.truncate(read);
                    return Ok(bytes);
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Returns when the file is open.
    pub(super) async fn opened(&self) -> io::Result<()> {
        let said = self.next().await?;
        match said.first() {
            Some(&OPEN) => Ok(()),
            Some(_) => Err(io::Error::other(String::from_utf8_lossy(&said).into_owned())),
            None => Err(io::Error::other("the helper ended without a word")),
        }
    }
}

/// What a file's writer has to tell: a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Telling {
    /// So many bytes were dropped in all.
    Dropped(u64),
    /// A warning.
    Warning(String),
}

impl Telling {
    /// Reads what was said, as far as it has the form of a telling.
    pub(super) fn parse(said: &[u8]) -> Vec<Self> {
        let text = String::from_utf8_lossy(said);
        let line = |line: &str| match line.split_once(' ')? {
            ("dropped", number) => number.parse().ok().map(Self::Dropped),
            ("warning", text) => Some(Self::Warning(text.to_owned())),
            _ => None,
        };
        text.split(['\n', char::from(OPEN)]).filter_map(line).collect()
    }
}

// ---- The helper --------------------------------------------------------------------------------------------------------

/// The helper's whole life.
pub fn run() -> ExitCode {
    sys::signals::survive_harmless();
    // Its end is the end of its input: what is on its way is to be written.
    sys::signals::survive_termination();
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [word, path] = words.as_slice() else { return ExitCode::FAILURE };
    let path = Path::new(path);
    let result = match word.to_str() {
        Some("append") => write_file(path, true),
        Some("write") => write_file(path, false),
        Some("read") => read_file(path),
        Some("find-in") => answer(path, Purpose::Read),
        Some("find-out") => answer(path, Purpose::Write),
        _ => Err(Errno::INVAL.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Looks and opens, whoever may hang, and sends what was found.
fn answer(path: &Path, purpose: Purpose) -> io::Result<()> {
    let socket = sys::fd::inherited(FIRST)?;
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).and_then(|place| {
        let kind = local::kind(&place)?;
        open_found(&place, &kind, purpose, true)
    });
    match found {
        Ok(Found::Fifo(ends, _)) => sys::pty::send_descriptors(socket.as_fd(), b"p", &ends),
        Ok(Found::Device(end)) => sys::pty::send_descriptors(socket.as_fd(), b"d", &[end]),
        Ok(Found::Nothing) => sys::pty::send_descriptors(socket.as_fd(), b"n", &[]),
        Ok(Found::File) => sys::pty::send_descriptors(socket.as_fd(), b"f", &[]),
        Err(e) => {
            sys::pty::send_descriptors(socket.as_fd(), format!("e{}", e.raw_os_error()).as_bytes(), &[])
        }
    }
}

/// Our end of a report.
struct Reporter(OwnedFd);

impl Reporter {
    fn inherited() -> io::Result<Self> {
        let pipe = sys::fd::inherited(REPORT)?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self(pipe))
    }

    /// Whoever listens may be slow, or gone: then it is not said.
    fn say(&self, text: &[u8]) {
        let _ = rustix::io::write(&self.0, &text[..text.len().min(MAX_REPORT)]);
    }

    fn opened<T>(&self, result: io::Result<T>) -> io::Result<T> {
        match &result {
            Ok(_) => self.say(&[OPEN]),
            Err(e) => self.say(e.to_string().as_bytes()),
        }
        result
    }
}

fn read_file(path: &Path) -> io::Result<()> {
    // What a terminal has to say next is not for a process that nobody has.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let report = Reporter::inherited()?;
    let _nobody = sys::fd::inherited(SECOND)?;
    let sink = sys::fd::inherited(FIRST)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file =
        report.opened(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from).and_then(
            |file| match rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                Ok(FileType::Directory) => Err(io::ErrorKind::IsADirectory.into()),
                _ => Ok(file),
            },
        ))?;
    drop(report);
    let mut chunk = vec![0; CHUNK];
    loop {
        match rustix::io::read(&file, &mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => write_all(&sink, &chunk[..read])?,
            Err(Errno::AGAIN) => {
                let mut asked = [PollFd::new(&file, PollFlags::IN), PollFd::new(&sink, PollFlags::empty())];
                match poll(&mut asked, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
                // Nobody reads us any more.
                if asked[1].revents().contains(PollFlags::ERR) {
                    return Ok(());
                }
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn write_all(sink: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(sink, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::AGAIN) => wait(sink, PollFlags::OUT)?,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn wait(fd: &OwnedFd, what: PollFlags) -> rustix::io::Result<()> {
    match poll(&mut [PollFd::new(fd, what)], None) {
        Err(Errno::INTR) | Ok(_) => Ok(()),
        Err(e) => Err(e),
    }
}

fn write_file(path: &Path, create: bool) -> io::Result<()> {
    let report = Reporter::inherited()?;
    let mut inputs = vec![sys::fd::inherited(FIRST)?, sys::fd::inherited(SECOND)?];
    let file = report.opened(open(path, create))?;
    let place = if create { Place::of(&file) } else { None };
    let mut log =
        Log { place, file, looked: Instant::now(), is_refused: false, dropped: 0, dropping: false, report };
    let (mut chunk, mut last) = (vec![0; CHUNK], None::<Instant>);
    while !inputs.is_empty() {
        let mut asked: Vec<PollFd<'_>> =
            inputs.iter().map(|input| PollFd::new(input, PollFlags::IN)).collect();
        match poll(&mut asked, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = asked.iter().map(|asked| !asked.revents().is_empty()).collect();
        let mut ended = Vec::new();
        for (at, input) in inputs.iter().enumerate().filter(|(at, _)| ready[*at]) {
            match rustix::io::read(input, &mut chunk) {
                Ok(0) => ended.push(at),
                Ok(read) => log.write(&chunk[..read]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => ended.push(at),
            }
        }
        for at in ended.into_iter().rev() {
            inputs.remove(at);
        }
        let now = Instant::now();
        if last.replace(now).is_some_and(|last| now - last < 2 * GATHER) && !inputs.is_empty() {
            gather();
        }
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a process of its own, without an event loop")]
fn gather() {
    std::thread::sleep(GATHER);
}

/// An open log file.
struct Log {
    /// Where it is looked for when it was rotated.
    place: Option<Place>,
    is_refused: bool,
    file: OwnedFd,
    looked: Instant,
    dropped: u64,
    dropping: bool,
    report: Reporter,
}

impl Log {
    /// Writes all of it, or drops it: the container goes on when the disk is full.
    fn write(&mut self, bytes: &[u8]) {
        self.follow_name();
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::write(&self.file, rest) {
                Ok(written) => {
                    rest = &rest[written..];
                    if std::mem::take(&mut self.dropping) {
                        let text = format!("writing works again; dropped {} bytes in all", self.dropped);
                        self.warn(&text);
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
        let Some(place) = self.place.as_ref().filter(|_| self.looked.elapsed() >= ROTATION_LOOK) else {
            return;
        };
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
/// A container may be able to write to that directory (a volume), and we are root on the host: what it puts in the place of its log is
/// opened only if it is what it was, a regular file of the same file system. No link is followed, no directory made, no device touched.
struct Place {
    directory: OwnedFd,
    name: OsString,
    device: u64,
}

impl Place {
    fn of(file: &OwnedFd) -> Option<Self> {
        let stat = rustix::fs::fstat(file).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
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
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = flags | OFlags::NOFOLLOW;
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
        let is_ours = |stat: &rustix::fs::Stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_dev == self.device
        };
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
fn open(path: &Path, create: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mode = Mode::from_raw_mode(0o644);
    let (create, parent) =
        (if create { OFlags::CREATE } else { OFlags::empty() }, path.parent().filter(|_| create));
    if let Some(directory) = parent {
        std::fs::create_dir_all(directory)?;
    }
    // A fifo outlives its readers.
    let is_fifo =
        rustix::fs::stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    let access = if is_fifo { OFlags::RDWR } else { OFlags::WRONLY };
    Ok(rustix::fs::open(path, flags | create | access, mode)?)
}
