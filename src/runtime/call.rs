//! One call of the runtime: spawned, awaited, killed at its deadline.

use super::{
    Failure, Runtime,
    identity::{self, FileId, Known},
    naming::Naming,
};
use crate::{
    bundle::{INIT_PID, exec_pid},
    cancel::CancelToken,
    exits::{BirthGuard, Reaper},
    id::Id,
    io::ChildEnds,
    local,
    sys::{
        self,
        process::ExitStatus,
        program::{Program, Streams},
    },
    tasks,
};
use rustix::fs::SealFlags;
use std::{
    cell::RefCell,
    collections::HashMap,
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

/// Time for calls that run a container's hooks or start its program: create, start, exec, delete.
/// Hooks may pull volumes; the caller's own deadline, which ends the waiting only, is usually
/// shorter.
pub(super) const LONG: Duration = Duration::from_secs(600);
/// Time for everything else.
const SHORT: Duration = Duration::from_secs(60);
/// Most runtimes that are remembered: more than any configuration has.
const MAX_RUNTIMES: usize = 16;
/// As much of its output goes into an error.
const TAIL: u64 = 8 << 10;
/// Longest list of pids.
const MAX_PIDS: u64 = 1 << 20;
/// Most bytes of output that a call may produce; what it writes beyond fails with EPERM. Sparse:
/// only what is written costs.
const MAX_CAPTURED: u64 = 16 << 20;

/// Standard streams of a call.
pub enum CallStdio {
    /// Both outputs are kept for the error message; stdin is /dev/null or, if given, this file.
    Captured {
        /// What the runtime reads.
        stdin: Option<OwnedFd>,
    },
    /// They become the container process's own.
    Process(Streams),
}

impl CallStdio {
    /// The ends of a process's pipes; without them, of a process with a console, the outputs are
    /// captured.
    pub fn of(ends: Option<ChildEnds>) -> Self {
        match ends {
            None => Self::Captured { stdin: None },
            Some(ends) => Self::Process(ends.into_streams()),
        }
    }
}

/// Calls runtimes on behalf of the shim.
pub struct Caller {
    reaper: Rc<Reaper>,
    /// Files of runtimes, and which programs they are.
    known: RefCell<HashMap<PathBuf, (FileId, Option<Known>)>>,
}

impl Caller {
    /// Children of these calls are reaped by `reaper`.
    pub fn new(reaper: Rc<Reaper>) -> Self {
        Self { reaper, known: RefCell::default() }
    }

    /// For a call that is alone. A crowd is limited by the processors: who is answered early only
    /// makes it larger (8 at a time: 7 % fewer execs).
    fn naming(&self, runtime: &Runtime, id: &Id, pid_file: &Path) -> Option<Naming> {
        (self.reaper.births() == 0)
            .then(|| Naming::expect(pid_file, runtime.record(id)).ok())
            .flatten()
    }

    /// `create`, until the runtime has named the init in its pid file: which program that was, if
    /// it is known. The guard of the birth is returned as well: hold it until the new process is
    /// watched.
    pub async fn create(
        &self,
        runtime: &Runtime,
        id: &Id,
        arguments: &[&str],
        stdio: CallStdio,
    ) -> (Result<Option<Known>, Failure>, BirthGuard) {
        let naming = self.naming(runtime, id, &runtime.bundle.join(INIT_PID));
        let (result, birth) = self.make(&["create"], runtime, id, arguments, stdio, naming).await;
        (result.map(|()| self.known(runtime)), birth)
    }

    /// Which program this runtime is.
    fn known(&self, runtime: &Runtime) -> Option<Known> {
        if local::may_hang(&Program::new(&runtime.binary)) {
            return None;
        }
        let (path, file) = identity::find(&runtime.binary)?;
        if let Some((_, known)) = self.known.borrow().get(&path).filter(|(of, _)| *of == file) {
            return *known;
        }
        let known = identity::known(&path);
        let mut all = self.known.borrow_mut();
        if all.len() >= MAX_RUNTIMES {
            all.clear();
        }
        all.insert(path, (file, known));
        known
    }

    /// `restore --detach`: create and start at once, from a checkpoint. Guard as with create.
    pub async fn restore(
        &self,
        runtime: &Runtime,
        id: &Id,
        arguments: &[&str],
        stdio: CallStdio,
    ) -> (Result<(), Failure>, BirthGuard) {
        self.make(&["restore", "--detach", "--no-subreaper"], runtime, id, arguments, stdio, None)
            .await
    }

    async fn make(
        &self,
        words: &[&str],
        runtime: &Runtime,
        id: &Id,
        arguments: &[&str],
        stdio: CallStdio,
        naming: Option<Naming>,
    ) -> (Result<(), Failure>, BirthGuard) {
        let mut command = runtime.command();
        command.args(words).arg("--bundle").arg(&runtime.bundle);
        command
            .arg("--pid-file")
            .arg(runtime.bundle.join(INIT_PID))
            .args(arguments)
            .arg(id.as_str());
        let birth = self.reaper.birth();
        let log = runtime.bundle.join("log.json");
        let result = self.run(command, log, stdio, LONG, None, naming).await.map(drop);
        (result, birth)
    }

    /// `checkpoint`: takes as long as writing the container's memory does.
    pub async fn checkpoint(
        &self,
        runtime: &Runtime,
        id: &Id,
        arguments: &[&str],
    ) -> Result<(), Failure> {
        let mut command = runtime.command();
        command.arg("checkpoint").args(arguments).arg(id.as_str());
        let log = runtime.bundle.join("log.json");
        self.run(command, log, CallStdio::Captured { stdin: None }, LONG, None, None)
            .await
            .map(drop)
    }

    /// `exec --detach`, until the runtime has named the process in its pid file. Its errors go to a
    /// log of its own, so that concurrent execs do not read each other's. Killed when `cut_short`
    /// is set.
    pub async fn exec(
        &self,
        runtime: &Runtime,
        id: &Id,
        exec: &Id,
        arguments: &[&str],
        stdio: CallStdio,
        cut_short: CancelToken,
    ) -> (Result<(), Failure>, BirthGuard) {
        let pid_file = runtime.bundle.join(exec_pid(exec));
        let naming = self.naming(runtime, id, &pid_file);
        let log = runtime.bundle.join(format!("{exec}.log.json"));
        let mut command = runtime.command_logging_to(&log);
        command
            .arg("exec")
            .arg("--pid-file")
            .arg(&pid_file)
            .args(arguments)
            .arg("--detach")
            .arg(id.as_str());
        let birth = self.reaper.birth();
        let result =
            self.run(command, log.clone(), stdio, LONG, Some(cut_short), naming).await.map(drop);
        let _ = std::fs::remove_file(log);
        (result, birth)
    }

    /// `start`, which also runs hooks. Killed when `cut_short` is set.
    pub async fn start(
        &self,
        runtime: &Runtime,
        id: &Id,
        cut_short: CancelToken,
    ) -> Result<(), Failure> {
        let mut command = runtime.command();
        command.args(["start", id.as_str()]);
        let log = runtime.bundle.join("log.json");
        self.run(command, log, CallStdio::Captured { stdin: None }, LONG, Some(cut_short), None)
            .await
            .map(drop)
    }

    /// `delete`, which also runs hooks.
    pub async fn delete(&self, runtime: &Runtime, id: &Id, force: bool) -> Result<(), Failure> {
        let mut command = runtime.command();
        command.arg("delete");
        if force {
            command.arg("--force");
        }
        command.arg(id.as_str());
        let log = runtime.bundle.join("log.json");
        self.run(command, log, CallStdio::Captured { stdin: None }, LONG, None, None)
            .await
            .map(drop)
    }

    /// Any other command: kill, pause, resume.
    pub async fn command(&self, runtime: &Runtime, arguments: &[&str]) -> Result<(), Failure> {
        let mut command = runtime.command();
        command.args(arguments);
        let log = runtime.bundle.join("log.json");
        self.run(command, log, CallStdio::Captured { stdin: None }, SHORT, None, None)
            .await
            .map(drop)
    }

    /// `update --resources -`, with the resources on stdin.
    pub async fn update(
        &self,
        runtime: &Runtime,
        id: &Id,
        resources: &[u8],
    ) -> Result<(), Failure> {
        let stdin = sys::fd::once(resources)
            .map_err(|e| Failure::NotStarted { reason: format!("keep the resources: {e}") })?;
        let mut command = runtime.command();
        command.args(["update", "--resources", "-", id.as_str()]);
        let log = runtime.bundle.join("log.json");
        self.run(command, log, CallStdio::Captured { stdin: Some(stdin) }, SHORT, None, None)
            .await
            .map(drop)
    }

    /// Pids of all processes of the container, as the runtime knows them (`ps --format json`).
    pub async fn ps(&self, runtime: &Runtime, id: &Id) -> Result<Vec<u32>, Failure> {
        let mut command = runtime.command();
        command.args(["ps", "--format", "json", id.as_str()]);
        let log = runtime.bundle.join("log.json");
        let stdio = CallStdio::Captured { stdin: None };
        let output = self.run(command, log, stdio, SHORT, None, None).await?;
        let text = output.map(|file| written(&file, MAX_PIDS)).unwrap_or_default();
        // Warnings may come first.
        let list = text.iter().position(|byte| *byte == b'[').map_or(&[][..], |at| &text[at..]);
        let first = serde_json::Deserializer::from_slice(list).into_iter::<Vec<u32>>().next();
        first.and_then(Result::ok).ok_or_else(|| Failure::Silent {
            how: "it names no processes".to_owned(),
            output: String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned(),
        })
    }

    /// Returns the file that has captured the output, if one has.
    async fn run(
        &self,
        command: Program,
        log: PathBuf,
        stdio: CallStdio,
        deadline: Duration,
        cut_short: Option<CancelToken>,
        naming: Option<Naming>,
    ) -> Result<Option<OwnedFd>, Failure> {
        if cut_short.as_ref().is_some_and(CancelToken::is_set) {
            return Err(Failure::CutShort);
        }
        tasks::fail_point("runtime call");
        let name = command.path().to_string_lossy().into_owned();
        let (streams, captured) = attach(stdio).map_err(|e| Failure::NotStarted {
            reason: format!("capture the output of {name}: {e}"),
        })?;
        let turn = self.reaper.turn().await;
        // What other calls of this container have written by now is theirs.
        let offset = std::fs::metadata(&log).map_or(0, |m| m.len());
        let (pid, ended) =
            turn.start(&command, streams, &[]).await.map_err(|e| Failure::NotStarted {
                reason: match e.kind() {
                    // Go's words; users and tests search for them.
                    io::ErrorKind::NotFound => {
                        format!("exec: {name:?}: executable file not found in $PATH")
                    }
                    _ => format!("fork/exec {name}: {e}"),
                },
            })?;
        let cut_short = async {
            match cut_short {
                Some(token) => token.wait().await,
                None => std::future::pending().await,
            }
        };
        let mut ended = Box::pin(ended);
        let named = async {
            match naming {
                Some(mut naming) => naming.done_by(pid).await,
                None => std::future::pending().await,
            }
        };
        let failure = tokio::select! {
            biased;
            status = &mut ended => match status {
                0 => return Ok(captured),
                status => {
                    let output = captured.map(|file| written(&file, TAIL)).unwrap_or_default();
                    let how = match status {
                        // Above 128 it may be either; no runtime exits with a status in the range
                        // of signals.
                        129..=192 => format!("{name} did not terminate successfully: signal {}", status - 128),
                        _ => format!("{name} did not terminate successfully: exit status {status}"),
                    };
                    return Err(Failure::of_call(how, &log, offset, &output));
                }
            },
            () = named => {
                self.see_off(pid, ended);
                return Ok(captured);
            }
            () = cut_short => Failure::CutShort,
            () = tokio::time::sleep(deadline) => {
                Failure::DeadlineExceeded { seconds: deadline.as_secs() }
            }
        };
        log::error!("runtime call killed pid={pid}: {failure}");
        self.reaper.signal_child(pid, libc::SIGKILL);
        Err(failure)
    }

    /// A call that has done its work, but has not ended.
    fn see_off(&self, pid: u32, ended: impl Future<Output = ExitStatus> + 'static) {
        let reaper = Rc::clone(&self.reaper);
        tasks::spawn("runtime that leaves", async move {
            match tokio::time::timeout(SHORT, ended).await {
                Ok(0) => {}
                Ok(status) => {
                    log::warn!(
                        "a runtime call failed after its work was done pid={pid} status={status}"
                    )
                }
                Err(_) => {
                    log::error!("runtime call killed after its work was done pid={pid}");
                    reaper.signal_child(pid, libc::SIGKILL);
                }
            }
        });
    }
}

/// The streams, and the file that captures the output, if one does.
///
/// A memfd needs no reader: however much the runtime prints, it never waits for us, and we never
/// wait for a grandchild that keeps a pipe open.
fn attach(stdio: CallStdio) -> io::Result<(Streams, Option<OwnedFd>)> {
    match stdio {
        CallStdio::Process(streams) => Ok((streams, None)),
        CallStdio::Captured { stdin } => {
            let file = sys::fd::memory_file(c"runtime-output")?;
            // A service may have a LimitFSIZE.
            rustix::fs::ftruncate(&file, MAX_CAPTURED.min(sys::process::max_file_size()))?;
            rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
            let streams = [stdin, Some(file.try_clone()?), Some(file.try_clone()?)];
            Ok((streams, Some(file)))
        }
    }
}

/// The end of what was written: the descriptors share one offset, which says how much.
fn written(file: &OwnedFd, most: u64) -> Vec<u8> {
    let end = rustix::fs::tell(file.as_fd()).unwrap_or(0);
    let from = end.saturating_sub(most);
    let mut bytes = vec![0; usize::try_from(end - from).unwrap_or(0)];
    let read = rustix::io::pread(file.as_fd(), &mut bytes, from).unwrap_or(0);
    bytes.truncate(read);
    bytes
}
