//! One call of the runtime: spawned, awaited, killed at its deadline.

use super::{Failure, Runtime, ahead::Ahead};
use crate::{
    exits::{BirthGuard, Reaper},
    id::Id,
    io::ChildEnds,
    sys::{self, process::ExitStatus},
};
use rustix::fs::{MemfdFlags, SealFlags};
use std::{
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    rc::Rc,
    time::Duration,
};
use tokio::sync::{Mutex, Notify};

/// Time for calls that run a container's hooks or start its program: create, start, exec. Hooks may pull volumes; the
/// caller's own deadline is usually shorter.
const LONG: Duration = Duration::from_secs(600);
/// Time for everything else. `delete` waits for cgroups to empty.
const SHORT: Duration = Duration::from_secs(60);
/// Most bytes of output that a call may produce; what it writes beyond fails with EPERM. Sparse: only what is written costs.
const MAX_CAPTURED: u64 = 16 << 20;

/// Whether a call may leave a process behind that is to be a container's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Births {
    /// create, restore, exec.
    Possible,
    /// All others.
    None,
}

/// Standard streams of a call.
pub enum CallStdio {
    /// Both outputs are kept for the error message; stdin is /dev/null or, if given, this file.
    Captured {
        /// What the runtime reads.
        stdin: Option<OwnedFd>,
    },
    /// They become the container process's own.
    Process {
        /// Its stdin.
        stdin: Stdio,
        /// Its stdout.
        stdout: Stdio,
        /// Its stderr.
        stderr: Stdio,
    },
}

impl CallStdio {
    /// The ends of a process's pipes; without them, of a process with a console, the outputs are captured.
    pub fn of(ends: Option<ChildEnds>) -> Self {
        match ends.map(ChildEnds::into_stdio) {
            None => Self::Captured { stdin: None },
            Some([stdin, stdout, stderr]) => Self::Process { stdin, stdout, stderr },
        }
    }
}

/// Calls runtimes on behalf of the shim.
pub struct Caller {
    reaper: Rc<Reaper>,
    ahead: Ahead,
    /// Held while a process is spawned.
    turn: Mutex<()>,
}

impl Caller {
    /// Children of these calls are reaped by `reaper`.
    pub fn new(reaper: Rc<Reaper>) -> Self {
        Self { reaper, ahead: Ahead::default(), turn: Mutex::default() }
    }

    /// To be called as soon as it is known that a `create` or an `exec` is to come.
    pub fn expect_birth(&self) {
        if self.reaper.births() < 2
            && let Some(pid) = self.ahead.begin()
        {
            drop(self.reaper.watch_child(pid));
        }
    }

    /// The helper of [`Caller::expect_birth`] does not outlive the last of the calls that it serves.
    fn born(&self) {
        if self.reaper.births() == 1
            && let Some(pid) = self.ahead.end()
        {
            self.reaper.signal_child(pid, libc::SIGKILL);
        }
    }

    /// `create`. The guard of the birth is returned as well: hold it until the new process is watched.
    pub async fn create(
        &self,
        runtime: &Runtime,
        id: &Id,
        arguments: &[&str],
        stdio: CallStdio,
    ) -> (Result<(), Failure>, BirthGuard) {
        self.make(&["create"], runtime, id, arguments, stdio).await
    }

    /// `restore --detach`: create and start at once, from a checkpoint. Guard as with create.
    pub async fn restore(
        &self,
        runtime: &Runtime,
        id: &Id,
        arguments: &[&str],
        stdio: CallStdio,
    ) -> (Result<(), Failure>, BirthGuard) {
        self.make(&["restore", "--detach", "--no-subreaper"], runtime, id, arguments, stdio).await
    }

    async fn make(
        &self,
        words: &[&str],
        runtime: &Runtime,
        id: &Id,
        arguments: &[&str],
        stdio: CallStdio,
    ) -> (Result<(), Failure>, BirthGuard) {
        let mut command = runtime.command();
        command.args(words).arg("--bundle").arg(&runtime.bundle).args(arguments).arg(id.as_str());
        let birth = self.reaper.birth();
        let log = runtime.bundle.join("log.json");
        let result = self.run(command, log, stdio, LONG, None).await;
        self.born();
        (result, birth)
    }

    /// `checkpoint`: takes as long as writing the container's memory does.
    pub async fn checkpoint(&self, runtime: &Runtime, id: &Id, arguments: &[&str]) -> Result<(), Failure> {
        let mut command = runtime.command();
        command.arg("checkpoint").args(arguments).arg(id.as_str());
        let log = runtime.bundle.join("log.json");
        self.run(command, log, CallStdio::Captured { stdin: None }, LONG, None).await
    }

    /// `exec --detach`. Its errors go to a log of its own, so that concurrent execs do not read each other's.
    /// Killed when `cut_short` is notified.
    pub async fn exec(
        &self,
        runtime: &Runtime,
        id: &Id,
        exec: &Id,
        arguments: &[&str],
        stdio: CallStdio,
        cut_short: Rc<Notify>,
    ) -> (Result<(), Failure>, BirthGuard) {
        let log = runtime.bundle.join(format!("{exec}.log.json"));
        let mut command = runtime.command_logging_to(&log);
        command.arg("exec").args(arguments).arg("--detach").arg(id.as_str());
        let birth = self.reaper.birth();
        let result = self.run(command, log.clone(), stdio, LONG, Some(cut_short)).await;
        self.born();
        let _ = std::fs::remove_file(log);
        (result, birth)
    }

    /// `start`, which also runs hooks. Killed when `cut_short` is notified.
    pub async fn start(&self, runtime: &Runtime, id: &Id, cut_short: Rc<Notify>) -> Result<(), Failure> {
        let mut command = runtime.command();
        command.args(["start", id.as_str()]);
        let log = runtime.bundle.join("log.json");
        self.run(command, log, CallStdio::Captured { stdin: None }, LONG, Some(cut_short)).await
    }

    /// Any other command: delete, kill, pause, resume.
    pub async fn command(&self, runtime: &Runtime, arguments: &[&str]) -> Result<(), Failure> {
        let mut command = runtime.command();
        command.args(arguments);
        let log = runtime.bundle.join("log.json");
        self.run(command, log, CallStdio::Captured { stdin: None }, SHORT, None).await
    }

    /// `update --resources -`, with the resources on stdin.
    pub async fn update(&self, runtime: &Runtime, id: &Id, resources: &[u8]) -> Result<(), Failure> {
        let stdin = sys::fd::input(resources)
            .map_err(|e| Failure::NotStarted { reason: format!("keep the resources: {e}") })?;
        let mut command = runtime.command();
        command.args(["update", "--resources", "-", id.as_str()]);
        let log = runtime.bundle.join("log.json");
        self.run(command, log, CallStdio::Captured { stdin: Some(stdin) }, SHORT, None).await
    }

    /// Spawns a program that dies with us, with these descriptors as 3, 4 …; its pid, and its exit status.
    ///
    /// A spawn blocks the loop until the child has become the program, 10 ms and more on a busy node. In a burst other work goes between any two.
    pub async fn spawn(
        &self,
        mut command: Command,
        descriptors: &[OwnedFd],
    ) -> io::Result<(u32, impl Future<Output = ExitStatus> + use<>)> {
        let _turn = self.turn.lock().await;
        let pid = sys::spawn::dependent_with(&mut command, descriptors)?;
        // Our ends of the container's pipes must not outlive the spawn.
        drop(command);
        let ended = self.reaper.watch_child(pid);
        tokio::task::yield_now().await;
        Ok((pid, ended))
    }

    async fn run(
        &self,
        mut command: Command,
        log: PathBuf,
        stdio: CallStdio,
        deadline: Duration,
        cut_short: Option<Rc<Notify>>,
    ) -> Result<(), Failure> {
        // From here on it is heard, in the queue for the turn too.
        let cut_short = cut_short.as_deref().map(Notify::notified);
        let name = command.get_program().to_string_lossy().into_owned();
        let captured = attach(&mut command, stdio)
            .map_err(|e| Failure::NotStarted { reason: format!("capture the output of {name}: {e}") })?;
        let offset = std::fs::metadata(&log).map_or(0, |m| m.len());
        let (pid, ended) = self.spawn(command, &[]).await.map_err(|e| Failure::NotStarted {
            reason: match e.kind() {
                // Go's words; users and tests search for them.
                io::ErrorKind::NotFound => format!("exec: {name:?}: executable file not found in $PATH"),
                _ => format!("fork/exec {name}: {e}"),
            },
        })?;
        let cut_short = async {
            match cut_short {
                Some(notified) => notified.await,
                None => std::future::pending().await,
            }
        };
        let failure = tokio::select! {
            biased;
            status = ended => match status {
                0 => return Ok(()),
                status => {
                    let output = captured.map(written).unwrap_or_default();
                    let how = match status {
                        // Above 128 it may be either; no runtime exits with a status in the range of signals.
                        129..=192 => format!("{name} did not terminate successfully: signal {}", status - 128),
                        _ => format!("{name} did not terminate successfully: exit status {status}"),
                    };
                    return Err(Failure::of_call(how, &log, offset, &output));
                }
            },
            () = cut_short => Failure::CutShort,
            () = tokio::time::sleep(deadline) => Failure::DeadlineExceeded { seconds: deadline.as_secs() },
        };
        log::error!("runtime call killed pid={pid}: {failure}");
        self.reaper.signal_child(pid, libc::SIGKILL);
        Err(failure)
    }
}

/// Connects the streams; returns the file that captures the output, if one does.
///
/// A memfd needs no reader: however much the runtime prints, it never waits for us, and we never wait for a grandchild
/// that keeps a pipe open.
fn attach(command: &mut Command, stdio: CallStdio) -> io::Result<Option<OwnedFd>> {
    match stdio {
        CallStdio::Process { stdin, stdout, stderr } => {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
            Ok(None)
        }
        CallStdio::Captured { stdin } => {
            let file =
                rustix::fs::memfd_create(c"runtime-output", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
            rustix::fs::ftruncate(&file, MAX_CAPTURED)?;
            rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
            command.stdin(stdin.map_or_else(Stdio::null, Stdio::from));
            command.stdout(file.try_clone()?).stderr(file.try_clone()?);
            Ok(Some(file))
        }
    }
}

/// What was written: the descriptors share one offset, which says how much.
fn written(file: OwnedFd) -> Vec<u8> {
    /// Only the end goes into an error.
    const TAIL: u64 = 8 << 10;
    let end = rustix::fs::tell(file.as_fd()).unwrap_or(0);
    let from = end.saturating_sub(TAIL);
    let mut bytes = vec![0; usize::try_from(end - from).unwrap_or(0)];
    let read = rustix::io::pread(file.as_fd(), &mut bytes, from).unwrap_or(0);
    bytes.truncate(read);
    bytes
}
