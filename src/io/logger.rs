//! A logging program: gets both outputs as descriptors 3 and 4, says on 5 that it is ready
//! (containerd v2.3.4 `cmd/containerd-shim-runc-v2/process/io.go`, `core/runtime/v2/logging`). Or
//! our own helper, which writes them into a file.
//!
//! Its pipes stay ours: a logger that dies is started again on the same ones and finds what its
//! predecessor had not read.

use super::{
    StdioError,
    file::{self, Message, Report},
    stdio::LoggerPlan,
};
use crate::{exits::Reaper, protocol::inspect, sys::program::Program, tasks};
use rustix::pipe::{PipeFlags, pipe_with};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, oneshot};

/// How long a logger may take to be ready.
const READY: Duration = Duration::from_secs(10);
/// Starts in a row that may fail, or live shorter than [`SHORT_LIFE`], before its input is dropped
/// and counted.
const MAX_RESTARTS: u32 = 6;
/// A logger that lives longer than this has done something, and is started again at once when it
/// dies.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// Pause before a new start, doubled with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How long a logger may go on by itself after the end of its input.
const AFTER_INPUT: Duration = Duration::from_secs(2);
/// How long it may take to end after SIGTERM: upstream's figure.
const AFTER_TERM: Duration = Duration::from_secs(12);

/// Who takes the outputs.
#[derive(Clone, Debug)]
pub(super) enum Taker {
    Program(LoggerPlan),
    /// A file; it is made if it is missing, and followed when it is rotated, or it must be there,
    /// and stays.
    File {
        path: PathBuf,
        /// It is made if it is missing.
        create: bool,
    },
}

impl Taker {
    fn path(&self) -> &Path {
        match self {
            Self::Program(plan) => &plan.path,
            Self::File { path, .. } => path,
        }
    }

    fn program(&self) -> Program {
        match self {
            Self::Program(plan) => {
                let mut program = Program::new(&plan.path);
                program
                    .args(&plan.arguments)
                    .env_clear()
                    .env("CONTAINER_ID", &plan.id)
                    .env("CONTAINER_NAMESPACE", &plan.namespace);
                program
            }
            Self::File { path, create: true } => file::program("append", path),
            Self::File { path, create: false } => file::program("write", path),
        }
    }
}

type Exited = Pin<Box<dyn Future<Output = u32>>>;

/// A program that has been started.
struct Started {
    exited: Exited,
    ready: OwnedFd,
    /// Says why it could not be run.
    refused: Option<OwnedFd>,
}

/// Pipes for both outputs: the ends that it reads, and ours.
fn pipes() -> io::Result<([OwnedFd; 2], [OwnedFd; 2])> {
    let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC)?;
    for ours in [&out_write, &err_write] {
        rustix::io::ioctl_fionbio(ours, true)?;
    }
    Ok(([out_read, err_read], [out_write, err_write]))
}

/// Waits until the program has been executed, or says why it could not be.
async fn refusal(refused: Option<&Report>) -> io::Result<()> {
    let Some(refused) = refused else { return Ok(()) };
    match refused.next().await?.first_chunk::<4>() {
        Some(number) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(*number))),
        None => Ok(()),
    }
}

/// A logger that runs, or is about to run again.
pub(super) struct Logger {
    taker: Taker,
    reaper: Rc<Reaper>,
    /// What it reads; gone when it was given up.
    inputs: RefCell<Option<[OwnedFd; 2]>>,
    pid: Cell<u32>,
    closing: Cell<bool>,
    deaths: Cell<u32>,
    /// What a file's writer has dropped: by those before, and by this one.
    dropped: Cell<(u64, u64)>,
    ended: Cell<bool>,
    changed: Notify,
}

impl Logger {
    /// Starts a logger and waits until it is ready. Returns with it what the copies write to:
    /// stdout, stderr.
    pub(super) async fn start(
        taker: Taker,
        reaper: &Rc<Reaper>,
    ) -> Result<(Rc<Self>, [OwnedFd; 2]), StdioError> {
        let path = taker.path().to_owned();
        let fail = |(verb, source)| StdioError::Io { verb, path, source };
        let (inputs, outputs) = match pipes() {
            Ok(pipes) => pipes,
            Err(e) => return Err(fail(("make pipes for", e))),
        };
        let logger = Rc::new(Self {
            taker,
            reaper: Rc::clone(reaper),
            inputs: RefCell::new(Some(inputs)),
            pid: Cell::default(),
            closing: Cell::default(),
            deaths: Cell::default(),
            dropped: Cell::default(),
            ended: Cell::default(),
            changed: Notify::new(),
        });
        match logger.start_first().await {
            Ok(()) => Ok((logger, outputs)),
            Err(e) => {
                logger.give_up();
                Err(fail(e))
            }
        }
    }

    /// Starts the program for the first time. An error is what was tried and why it failed.
    async fn start_first(self: &Rc<Self>) -> Result<(), (&'static str, io::Error)> {
        let is_file = matches!(self.taker, Taker::File { .. });
        let (starting, waiting) = match is_file {
            true => ("start a helper that writes", "open"),
            false => ("start logger", "wait until ready: logger"),
        };
        let start = |e| (starting, e);
        let Started { exited, ready, refused } = self.spawn().await.map_err(start)?;
        let ready = Report::new(ready).map_err(start)?;
        let refused = refused.map(Report::new).transpose().map_err(start)?;
        let (heard, hear) = oneshot::channel();
        Rc::clone(self).supervise(exited, hear);
        let deadline = tokio::time::Instant::now() + READY;
        match tokio::time::timeout_at(deadline, refusal(refused.as_ref())).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err((starting, e)),
            Err(_) => {
                let text = format!("no answer from its file system in {} s", READY.as_secs());
                return Err((starting, io::Error::new(io::ErrorKind::TimedOut, text)));
            }
        }
        match tokio::time::timeout_at(deadline, self.ready(&ready)).await {
            Ok(Ok(())) => {
                // Whoever attends it hears what else it has to say; it may have ended already.
                let _ = heard.send(ready);
                Ok(())
            }
            Ok(Err(e)) => Err((waiting, e)),
            Err(_) => {
                let what = if is_file { "no answer from its file system" } else { "no word" };
                let text = format!("{what} in {} s", READY.as_secs());
                Err((waiting, io::Error::other(text)))
            }
        }
    }

    fn give_up(&self) {
        self.closing.set(true);
        self.signal(libc::SIGKILL);
    }

    fn signal(&self, signal: i32) {
        if self.pid.get() != 0 {
            self.reaper.signal_child(self.pid.get(), signal);
        }
    }

    /// Returns when it has said that it is ready.
    async fn ready(&self, report: &Report) -> io::Result<()> {
        let needs_byte = match &self.taker {
            Taker::File { .. } => return report.opened().await,
            Taker::Program(plan) => plan.says_ready,
        };
        if !report.next().await?.is_empty() {
            return Ok(());
        }
        if needs_byte {
            return Err(io::Error::other("it ended or closed its descriptor without a word"));
        }
        // Closed is ready, and so is an end. Which it is, its kernel flags say.
        match self.deaths.get() > 0 || self.reaper.is_ending(self.pid.get()) {
            true => Err(io::Error::other("it ended at once")),
            false => Ok(()),
        }
    }

    async fn spawn(&self) -> io::Result<Started> {
        let inputs = match &*self.inputs.borrow() {
            Some([out, err]) => [out.try_clone()?, err.try_clone()?],
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let [out, err] = inputs;
        let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            Ok((ours, theirs))
        };
        let (ready, says_ready) = pipe()?;
        let program = self.taker.program();
        let descriptors = [out, err, says_ready];
        let turn = self.reaper.turn().await;
        let (pid, exited, refused): (u32, Exited, _) = match self.taker {
            Taker::File { .. } => {
                let (pid, exited) = turn.start_lasting(&program, &descriptors).await?;
                (pid, Box::pin(exited), None)
            }
            Taker::Program(_) => {
                let (refused, refuses) = pipe()?;
                let (pid, exited) = turn.start_apart(&program, &descriptors, refuses).await?;
                (pid, Box::pin(exited), Some(refused))
            }
        };
        self.pid.set(pid);
        Ok(Started { exited, ready, refused })
    }

    /// Waits for the end of a life. What is said on its third descriptor is heard to the end, for
    /// nobody may write into a pipe that no one reads: a logger that was started again says that it
    /// is ready, too.
    async fn attend(&self, exited: Exited, report: oneshot::Receiver<Report>) -> u32 {
        let hearing = async {
            if let Ok(report) = report.await {
                while let Ok(said) = report.next().await {
                    if said.is_empty() {
                        break;
                    }
                    self.hear(&said);
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            status = exited => status,
            () = hearing => 0,
        }
    }

    fn hear(&self, said: &[u8]) {
        if !matches!(self.taker, Taker::File { .. }) {
            return;
        }
        for message in Message::parse(said) {
            match message {
                Message::Dropped(bytes) => self.dropped.set((self.dropped.get().0, bytes)),
                Message::Warning(text) => {
                    log::warn!("log file {}: {text}", self.taker.path().display());
                }
            }
        }
    }

    /// Starts it again when it dies, as long as that makes sense.
    fn supervise(self: Rc<Self>, exited: Exited, report: oneshot::Receiver<Report>) {
        tasks::spawn("attend a logger", async move {
            let (mut exited, mut report) = (exited, report);
            let (mut failures, mut begun) = (0, Instant::now());
            loop {
                let status = self.attend(exited, report).await;
                // Its number may be another's from now on.
                self.pid.set(0);
                self.deaths.set(self.deaths.get() + 1);
                let (before, last) = self.dropped.get();
                self.dropped.set((before + last, 0));
                if self.closing.get() {
                    break;
                }
                failures = if begun.elapsed() > SHORT_LIFE { 0 } else { failures + 1 };
                let path = self.taker.path().display();
                // Whoever writes a file comes back as long as there is a container: a full or hung
                // disk passes.
                let is_file = matches!(self.taker, Taker::File { .. });
                if failures > MAX_RESTARTS && !is_file {
                    let text = "times in a row; its input is dropped";
                    log::error!("logger {path} ended {failures} {text}");
                    break;
                }
                if failures <= MAX_RESTARTS {
                    log::warn!("logger {path} ended status={status}; it is started again");
                }
                tokio::time::sleep(FIRST_PAUSE * 2u32.pow(failures.min(MAX_RESTARTS))).await;
                if self.closing.get() {
                    break;
                }
                begun = Instant::now();
                match self.spawn().await {
                    // Nobody waits for its readiness any more: its input lies in the pipes.
                    Ok(started) => {
                        exited = started.exited;
                        let (heard, hear) = oneshot::channel();
                        if let Ok(ready) = Report::new(started.ready) {
                            let _ = heard.send(ready);
                        }
                        report = hear;
                    }
                    // No process or descriptor to be had: a failure as any other.
                    Err(e) => {
                        log::error!("start logger {path} again: {e}");
                        exited = Box::pin(async { 255 });
                        report = oneshot::channel().1;
                    }
                }
            }
            // Without a reader the copies drop and count.
            self.inputs.take();
            self.ended.set(true);
            self.changed.notify_waiters();
        });
    }

    async fn wait_changed(&self) {
        let changed = self.changed.notified();
        if !self.ended.get() {
            changed.await;
        }
    }

    /// Its input has ended: lets it finish, then ends it. Returns when it has ended.
    pub(super) async fn end(self: &Rc<Self>) {
        if !self.closing.replace(true) {
            let logger = Rc::clone(self);
            tasks::spawn("end a logger", async move {
                let steps = [(AFTER_INPUT, libc::SIGTERM), (AFTER_TERM, libc::SIGKILL)];
                for (patience, signal) in steps {
                    if tokio::time::timeout(patience, logger.wait_changed()).await.is_ok() {
                        return;
                    }
                    if signal == libc::SIGKILL {
                        log::warn!(
                            "logger {} did not end after SIGTERM, killed",
                            logger.taker.path().display()
                        );
                    }
                    logger.signal(signal);
                }
            });
        }
        self.wait_changed().await;
    }

    pub(super) fn figures(&self) -> Option<inspect::Logger> {
        let Taker::Program(plan) = &self.taker else { return None };
        let path = plan.path.to_string_lossy().into_owned();
        let pid = if self.ended.get() { 0 } else { self.pid.get() };
        Some(inspect::Logger { path, pid, deaths: self.deaths.get() })
    }

    /// Bytes that a file's writer could not write.
    pub(super) fn dropped(&self) -> u64 {
        let (before, last) = self.dropped.get();
        before + last
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "logger {} pid={} deaths={} ended={}",
            self.taker.path().display(),
            self.pid.get(),
            self.deaths.get(),
            self.ended.get()
        )
    }
}
