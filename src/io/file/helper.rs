//! The helper: opens, reads and writes files, whoever may hang.

use super::{
    CHUNK, FIRST, Found, MAX_REPORT, OPEN, Purpose, REPORT, SECOND, find::open_found,
    log_file::LogFile,
};
use crate::{local, sys};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

/// What comes more often than this is gathered for so long, so that lines merge.
const GATHER: Duration = Duration::from_millis(1);

/// Runs the helper to its end.
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
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::open(path, flags, Mode::empty()).and_then(|place| {
        let kind = local::kind(&place)?;
        open_found(&place, &kind, purpose, true)
    });
    match found {
        Ok(Found::Fifo(ends, _)) => sys::pty::send_descriptors(socket.as_fd(), b"p", &ends),
        Ok(Found::Device(end)) => sys::pty::send_descriptors(socket.as_fd(), b"d", &[end]),
        Ok(Found::Nothing) => sys::pty::send_descriptors(socket.as_fd(), b"n", &[]),
        Ok(Found::File) => sys::pty::send_descriptors(socket.as_fd(), b"f", &[]),
        Err(e) => {
            let text = format!("e{}", e.raw_os_error());
            sys::pty::send_descriptors(socket.as_fd(), text.as_bytes(), &[])
        }
    }
}

/// Where the helper reports to.
pub(super) struct Reporter(OwnedFd);

impl Reporter {
    fn inherited() -> io::Result<Self> {
        let pipe = sys::fd::inherited(REPORT)?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self(pipe))
    }

    /// Whoever listens may be slow, or gone: then it is not said.
    pub(super) fn say(&self, text: &[u8]) {
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
    let open = || {
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        match rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            _ => Ok(file),
        }
    };
    let file = report.opened(open())?;
    drop(report);
    let mut chunk = vec![0; CHUNK];
    loop {
        match rustix::io::read(&file, &mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => write_all(&sink, &chunk[..read])?,
            Err(Errno::AGAIN) => {
                let (file, sink) = (&file, &sink);
                let unread = PollFd::new(file, PollFlags::IN);
                let mut asked = [unread, PollFd::new(sink, PollFlags::empty())];
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

pub(super) fn wait(fd: &OwnedFd, what: PollFlags) -> rustix::io::Result<()> {
    match poll(&mut [PollFd::new(fd, what)], None) {
        Err(Errno::INTR) | Ok(_) => Ok(()),
        Err(e) => Err(e),
    }
}

fn write_file(path: &Path, create: bool) -> io::Result<()> {
    let report = Reporter::inherited()?;
    let mut inputs = vec![sys::fd::inherited(FIRST)?, sys::fd::inherited(SECOND)?];
    let file = report.opened(super::log_file::open(path, create))?;
    let mut log = LogFile::new(file, create, report);
    let (mut chunk, mut last) = (vec![0; CHUNK], None::<Instant>);
    while !inputs.is_empty() {
        let is_ready = wait_readable(&inputs)?;
        let mut ready = is_ready.into_iter();
        inputs.retain(|input| {
            if ready.next() != Some(true) {
                return true;
            }
            match rustix::io::read(input, &mut chunk) {
                Ok(0) => false,
                Ok(read) => {
                    log.write(&chunk[..read]);
                    true
                }
                Err(Errno::AGAIN | Errno::INTR) => true,
                Err(_) => false,
            }
        });
        let now = Instant::now();
        let is_quick = last.replace(now).is_some_and(|last| now - last < 2 * GATHER);
        if is_quick && !inputs.is_empty() {
            gather();
        }
    }
    Ok(())
}

/// Waits until some can be read, or have ended. Returns which.
fn wait_readable(inputs: &[OwnedFd]) -> io::Result<Vec<bool>> {
    let ask = |input| PollFd::new(input, PollFlags::IN);
    let mut asked: Vec<PollFd<'_>> = inputs.iter().map(ask).collect();
    match poll(&mut asked, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(asked.iter().map(|asked| !asked.revents().is_empty()).collect())
}

#[allow(clippy::disallowed_methods, reason = "a process of its own, without an event loop")]
fn gather() {
    std::thread::sleep(GATHER);
}
