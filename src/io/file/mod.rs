//! Files of others' choosing. Their file system may hang (NFS, FUSE, a disk that is frozen), and
//! whoever opens, reads or writes them hangs with it: so a process of its own does, `cleat-file`,
//! our own binary again ([`run`]). The bytes go through a pipe, which never hangs.
//!
//! ```text
//! append PATH   3, 4: what is to be written · 5: report
//!               made if missing, followed when its name leads elsewhere (rotation)
//! write PATH    the same with a file that is there, and that stays
//! read PATH     3: where it goes · 5: report
//! find-in, find-out PATH   3: a socket, for what it is and its descriptors
//! ```
//! Reports: a byte 1 when the file is open, else why not; later lines of `Message`.
//!
//! Fifos are opened by ourselves if that cannot hang (`find`).

mod find;
mod helper;
mod log_file;

pub(super) use find::{Found, Purpose, find};
pub use helper::run;

use super::StdioError;
use crate::{
    exits::Reaper,
    sys::{self, program::Program},
    tasks,
};
use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};
use std::{cell::Cell, io, os::fd::OwnedFd, path::Path, rc::Rc, time::Duration};
use tokio::io::Interest;

/// The name under which our binary is this helper.
pub const NAME: &str = "cleat-file";
/// How long a file system may take to open a file.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes read at a time: what a pipe holds.
const CHUNK: usize = 64 << 10;
/// Most bytes of a report.
const MAX_REPORT: usize = 1024;
/// Descriptors of the helper.
const FIRST: i32 = 3;
const SECOND: i32 = 4;
const REPORT: i32 = 5;
/// Reported when the file is open.
const OPEN: u8 = 1;

fn no_answer() -> io::Error {
    let text = format!("no answer from its file system in {} s", DEADLINE.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// The helper as a program.
pub(super) fn program(word: &str, path: &Path) -> Program {
    let mut program = Program::new("/proc/self/exe");
    program.name(NAME).arg(word).arg(path).env_clear();
    program
}

/// The pipe in which a file's content comes, and who reads the file.
type Content = (OwnedFd, FileReader);

/// Has a file read by the helper.
pub(super) async fn read(path: &Path, reaper: &Rc<Reaper>) -> Result<Content, StdioError> {
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
        Ok((ours, report, FileReader::new(pid, ended, reaper)))
    };
    let (content, report, helper) = begin().await.map_err(fail)?;
    let said = async { Report::new(report)?.opened().await };
    match tokio::time::timeout(DEADLINE, said).await {
        Ok(Ok(())) => Ok((content, helper)),
        Ok(Err(e)) => Err(fail(e)),
        Err(_) => Err(fail(no_answer())),
    }
}

/// A helper that reads a file. It is killed with this, unless it has ended by itself: then its
/// pid may be another's.
pub(super) struct FileReader {
    pid: Rc<Cell<u32>>,
    reaper: Rc<Reaper>,
}

impl FileReader {
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

impl Drop for FileReader {
    fn drop(&mut self) {
        if self.pid.get() != 0 {
            self.reaper.signal_child(self.pid.get(), libc::SIGKILL);
        }
    }
}

/// What a helper, or a logging program, reports.
pub(super) struct Report(tokio::io::unix::AsyncFd<Rc<OwnedFd>>);

impl Report {
    /// Reads from a pipe that does not block.
    pub(super) fn new(pipe: OwnedFd) -> io::Result<Self> {
        sys::fd::watch(Rc::new(pipe), Interest::READABLE).map(Self)
    }

    /// The next piece; empty at the end.
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

/// What a file's writer reports: a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// So many bytes were dropped in all.
    Dropped(u64),
    Warning(String),
}

impl Message {
    /// Takes a report apart, as far as it has the form of messages.
    pub(super) fn parse(report: &[u8]) -> Vec<Self> {
        let text = String::from_utf8_lossy(report);
        let line = |line: &str| match line.split_once(' ')? {
            ("dropped", number) => number.parse().ok().map(Self::Dropped),
            ("warning", text) => Some(Self::Warning(text.to_owned())),
            _ => None,
        };
        text.split(['\n', char::from(OPEN)]).filter_map(line).collect()
    }
}
