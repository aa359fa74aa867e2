//! A logging program: gets both outputs as descriptors 3 and 4, says on 5 that it is ready (containerd v2.3.4
//! `cmd/containerd-shim-runc-v2/process/io.go`, `core/runtime/v2/logging`).
//!
//! Its pipes stay ours: a logger that dies is started again on the same ones and finds what its predecessor had not read.

use super::{StdioError, stdio::LoggerPlan};
use crate::{
    exits::Reaper,
    protocol::inspect,
    sys::{self, program::Program},
};
use rustix::pipe::{PipeFlags, pipe_with};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{io::Interest, sync::Notify};

/// How long a logger may take to be ready.
const READY: Duration = Duration::from_secs(10);
/// Starts in a row that may fail, or live shorter than [`SHORT_LIFE`], before its input is dropped and counted.
const MAX_RESTARTS: u32 = 6;
/// A logger that lives longer than this has done something, and is started again at once when it dies.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// Pause before a new start, doubled with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How long a logger may go on by itself after the end of its input.
const AFTER_INPUT: Duration = Duration::from_secs(2);
/// How long it may take to end after SIGTERM: upstream's figure.
const AFTER_TERM: Duration = Duration::from_secs(12);

/// A logger that runs, or is about to run again.
pub(super) struct Logger {
    plan: LoggerPlan,
    reaper: Rc<Reaper>,
    /// What it reads; gone when it was given up.
    inputs: RefCell<Option<[OwnedFd; 2]>>,
    /// What we write; the copies take them.
    outputs: RefCell<Option<[OwnedFd; 2]>>,
    pid: Cell<u32>,
    closing: Cell<bool>,
    deaths: Cell<u32>,
    ended: Cell<bool>,
    changed: Notify,
}

impl Logger {
    /// Starts a logger and waits until it is ready.
    pub(super) async fn start(plan: LoggerPlan, reaper: &Rc<Reaper>) -> Result<Rc<Self>, StdioError> {
        let path = plan.path.clone();
        let fail = |verb| move |source: io::Error| StdioError::Io { verb, path: path.clone(), source };
        let pipes = || -> io::Result<_> {
            let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC)?;
            let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC)?;
            for ours in [&out_write, &err_write] {
                let flags = rustix::fs::fcntl_getfl(ours)?;
                rustix::fs::fcntl_setfl(ours, flags | rustix::fs::OFlags::NONBLOCK)?;
            }
            Ok(([out_read, err_read], [out_write, err_write]))
        };
        let (inputs, outputs) = pipes().map_err(fail.clone()("make pipes for"))?;
        let needs_byte = plan.says_ready;
        let logger = Rc::new(Self {
            plan,
            reaper: Rc::clone(reaper),
            inputs: RefCell::new(Some(inputs)),
            outputs: RefCell::new(Some(outputs)),
            pid: Cell::default(),
            closing: Cell::default(),
            deaths: Cell::default(),
            ended: Cell::default(),
            changed: Notify::new(),
        });
        let (ready, exited) = logger.spawn().await.map_err(fail.clone()("start logger"))?;
        Rc::clone(&logger).supervise(exited);
        let said = tokio::time::timeout(READY, wait_ready(ready)).await;
        let refusal = match said {
            Ok(Ok(true)) => None,
            Ok(Ok(false)) if !needs_byte => {
                // Closed is ready, and so is an end. Which it is, its kernel flags say.
                let pid = logger.pid.get();
                (logger.deaths.get() > 0 || reaper.is_ending(pid)).then(|| "it ended at once".to_owned())
            }
            Ok(Ok(false)) => Some("it ended or closed its descriptor without a word".to_owned()),
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some(format!("no word in {} s", READY.as_secs())),
        };
        match refusal {
            None => Ok(logger),
            Some(reason) => {
                logger.closing.set(true);
                logger.reaper.signal_child(logger.pid.get(), libc::SIGKILL);
                Err(fail("wait until ready: logger")(io::Error::other(reason)))
            }
        }
    }

    /// The ends that the copies write to: stdout, stderr. Once.
    pub(super) fn take_outputs(&self) -> Option<[OwnedFd; 2]> {
        self.outputs.borrow_mut().take()
    }

    /// Starts the program. Returns our end of its readiness, and the future of its exit status.
    async fn spawn(&self) -> io::Result<(OwnedFd, impl Future<Output = u32> + use<>)> {
        let inputs = match &*self.inputs.borrow() {
            Some([out, err]) => [out.try_clone()?, err.try_clone()?],
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let [out, err] = inputs;
        let (ready, says_ready) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut program = Program::new(&self.plan.path);
        program
            .args(&self.plan.arguments)
            .env_clear()
            .env("CONTAINER_ID", &self.plan.id)
            .env("CONTAINER_NAMESPACE", &self.plan.namespace);
        let turn = self.reaper.turn().await;
        let (pid, exited) = turn.start_lasting(&program, &[out, err, says_ready]).await?;
        self.pid.set(pid);
        Ok((ready, exited))
    }

    /// Starts it again when it dies, as long as that makes sense.
    fn supervise(self: Rc<Self>, exited: impl Future<Output = u32> + 'static) {
        tokio::task::spawn_local(async move {
            let mut exited: std::pin::Pin<Box<dyn Future<Output = u32>>> = Box::pin(exited);
            let (mut failures, mut begun) = (0, Instant::now());
            loop {
                let status = exited.await;
                self.deaths.set(self.deaths.get() + 1);
                if self.closing.get() {
                    break;
                }
                failures = if begun.elapsed() > SHORT_LIFE { 0 } else { failures + 1 };
                let path = self.plan.path.display();
                if failures > MAX_RESTARTS {
                    log::error!("logger {path} ended {failures} times in a row; its input is dropped");
                    break;
                }
                log::warn!("logger {path} ended status={status}; it is started again");
                tokio::time::sleep(FIRST_PAUSE * 2u32.pow(failures)).await;
                if self.closing.get() {
                    break;
                }
                begun = Instant::now();
                match self.spawn().await {
                    // Nobody waits for its readiness any more: its input lies in the pipes.
                    Ok((_, next)) => exited = Box::pin(next),
                    Err(e) => {
                        log::error!("start logger {path} again: {e}; its input is dropped");
                        break;
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
            self.outputs.take();
            let logger = Rc::clone(self);
            tokio::task::spawn_local(async move {
                for (patience, signal) in [(AFTER_INPUT, libc::SIGTERM), (AFTER_TERM, libc::SIGKILL)] {
                    if tokio::time::timeout(patience, logger.wait_changed()).await.is_ok() {
                        return;
                    }
                    if signal == libc::SIGKILL {
                        log::warn!("logger {} did not end after SIGTERM, killed", logger.plan.path.display());
                    }
                    logger.reaper.signal_child(logger.pid.get(), signal);
                }
            });
        }
        self.wait_changed().await;
    }

    /// Figures for people.
    pub(super) fn figures(&self) -> inspect::Logger {
        let path = self.plan.path.to_string_lossy().into_owned();
        let pid = if self.ended.get() { 0 } else { self.pid.get() };
        inspect::Logger { path, pid, deaths: self.deaths.get() }
    }

    /// For the dump.
    pub(super) fn describe(&self) -> String {
        format!(
            "logger {} pid={} deaths={} ended={}",
            self.plan.path.display(),
            self.pid.get(),
            self.deaths.get(),
            self.ended.get()
        )
    }
}

/// `true`: it has said a byte; `false`: it has closed the descriptor, or ended.
async fn wait_ready(ready: OwnedFd) -> io::Result<bool> {
    let ready = sys::fd::watch(Rc::new(ready), Interest::READABLE)?;
    loop {
        let mut guard = ready.readable().await?;
        match rustix::io::read(ready.get_ref(), &mut [0; 1]) {
            Ok(read) => return Ok(read == 1),
            Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
            Err(e) => return Err(e.into()),
        }
    }
}
