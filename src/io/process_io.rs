//! The channels of one process, from Create or Exec to Delete.

use super::{
    StdioError,
    console::Console,
    copy::{Copy, OnWriteError, Watched},
    file::{self, Found, Purpose},
    logger::{Logger, Taker},
    outputs::Outputs,
    pipe::{Ours, own, pipe},
    spool_policy::SpoolPolicy,
    stdin::Stdin,
    stdio::Plan,
};
use crate::{
    cancel::CancelToken,
    exits::Reaper,
    protocol::{inspect, options::Options},
    sys::program::Streams,
    tasks,
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    rc::Rc,
    time::Duration,
};
use tokio::task::JoinHandle;

/// How long a console may be silent after its process has exited, when a grandchild keeps it open.
const CONSOLE_LINGER: Duration = Duration::from_millis(500);
/// How often it is looked whether a runtime fills the pipes that it hands on.
const BEGIN_LOOK: Duration = Duration::from_millis(50);
/// Bytes in such a pipe that are too many: half of what it holds.
const MAX_UNBEGUN: usize = 32 << 10;

/// The ends that the process gets: stdin, stdout, stderr; /dev/null where there is none.
pub struct ChildEnds(Streams);

impl ChildEnds {
    pub(crate) fn into_streams(self) -> Streams {
        self.0
    }

    /// The same pipes once more.
    pub(crate) fn duplicate(&self) -> io::Result<Self> {
        let [stdin, stdout, stderr] = &self.0;
        let again = |end: &Option<OwnedFd>| end.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Self([again(stdin)?, again(stdout)?, again(stderr)?]))
    }
}

type Sink = Rc<Watched>;
type Sinks = [Sink; 2];

/// All descriptors and copies of one process.
pub(crate) struct ProcessIo {
    plan: Plan,
    stdin: Stdin,
    console: Console,
    outputs: Outputs,
    /// Where stdout and stderr go, until the copies take them.
    sinks: RefCell<[Option<Rc<Watched>>; 2]>,
    /// Who writes the outputs for us: a logging program, or those that write files.
    loggers: RefCell<Vec<Rc<Logger>>>,
    tasks: RefCell<Vec<JoinHandle<()>>>,
    begun: CancelToken,
    has_exited: Cell<bool>,
}

impl ProcessIo {
    /// Channels that are planned; nothing is opened yet.
    pub(crate) fn new(plan: Plan) -> Rc<Self> {
        Rc::new(Self {
            plan,
            stdin: Stdin::default(),
            console: Console::default(),
            outputs: Outputs::default(),
            sinks: RefCell::default(),
            loggers: RefCell::default(),
            tasks: RefCell::default(),
            begun: CancelToken::default(),
            has_exited: Cell::default(),
        })
    }

    /// Starts the logger or opens the outputs, then stdin. Before
    /// [`ProcessIo::pipes_unless_terminal`] and [`ProcessIo::attach_console`].
    pub(crate) async fn open(self: &Rc<Self>, reaper: &Rc<Reaper>) -> Result<(), StdioError> {
        let Plan { stdin, stdout, stderr, create_file, logger, .. } = &self.plan;
        if let Some(plan) = logger {
            let both = self.start_logger(Taker::Program(plan.clone()), reaper).await?;
            self.sinks.replace(both.map(Some));
        } else if let Some(path) = stdout.as_ref().filter(|_| *create_file) {
            let taker = Taker::File { path: path.clone(), create: true };
            let both = self.start_logger(taker, reaper).await?;
            self.sinks.replace(both.map(Some));
        } else {
            for (at, path) in [stdout, stderr].into_iter().enumerate() {
                if let Some(path) = path {
                    let sink = self.open_output(path, reaper).await?;
                    self.sinks.borrow_mut()[at] = Some(sink);
                }
            }
        }
        if let Some(path) = stdin {
            self.stdin.open(path, reaper).await?;
            if self.stdin.is_closed() {
                self.let_stdin_end();
            }
        }
        Ok(())
    }

    /// Returns where stdout and stderr go.
    async fn start_logger(&self, taker: Taker, reaper: &Rc<Reaper>) -> Result<Sinks, StdioError> {
        let (logger, outputs) = Logger::start(taker, reaper).await?;
        self.loggers.borrow_mut().push(logger);
        Ok(outputs.map(Watched::sink))
    }

    async fn open_output(&self, path: &Path, reaper: &Rc<Reaper>) -> Result<Sink, StdioError> {
        match file::find(path, Purpose::Write, reaper).await? {
            Found::Fifo(ends, is_remote) => ends.into_iter().next().map(|end| match is_remote {
                true => Watched::remote_sink(end),
                false => Watched::sink(end),
            }),
            Found::Device(end) => Some(Watched::sink(end)),
            Found::Nothing => None,
            Found::File => {
                let taker = Taker::File { path: path.to_owned(), create: false };
                let [output, _] = self.start_logger(taker, reaper).await?;
                Some(output)
            }
        }
        .ok_or_else(|| StdioError::Io {
            verb: "open",
            path: path.to_owned(),
            source: io::ErrorKind::InvalidInput.into(),
        })
    }

    /// Whether the process has a console.
    pub(crate) fn is_terminal(&self) -> bool {
        self.plan.terminal
    }

    /// What is kept of outputs whose reader is away.
    pub(crate) fn spool(&self) -> SpoolPolicy {
        self.plan.spool
    }

    /// The ends for a process without a console; copying starts. `None` for one with a console.
    pub(crate) fn pipes_unless_terminal(
        self: &Rc<Self>,
        options: &Options,
    ) -> Result<Option<ChildEnds>, StdioError> {
        (!self.is_terminal()).then(|| self.pipes(options.io_uid, options.io_gid)).transpose()
    }

    /// Makes pipes, owned by `uid` and `gid`, and starts copying between them and the client's
    /// fifos or files. /dev/null stands in for channels that the client left out.
    fn pipes(self: &Rc<Self>, uid: u32, gid: u32) -> Result<ChildEnds, StdioError> {
        let stdin = match self.stdin.take_source() {
            Some(source) => {
                let (read, write) = pipe(uid, gid, Ours::Write)?;
                self.copy_stdin(source, Watched::sink(write))?;
                Some(read)
            }
            None => None,
        };
        let [stdout, stderr] = self.sinks.take();
        let stdout = self.output("stdout", stdout, uid, gid)?;
        let stderr = self.output("stderr", stderr, uid, gid)?;
        Ok(ChildEnds([stdin, stdout, stderr]))
    }

    fn output(
        self: &Rc<Self>,
        name: &'static str,
        sink: Option<Rc<Watched>>,
        uid: u32,
        gid: u32,
    ) -> Result<Option<OwnedFd>, StdioError> {
        let Some(sink) = sink else { return Ok(None) };
        if self.plan.spool.direct && sink.may_be_handed_over() {
            return self.hand_over(name, &sink, uid, gid).map(Some);
        }
        let (read, write) = pipe(uid, gid, Ours::Read)?;
        self.copy_output(name, Watched::source(read), sink)?;
        Ok(Some(write))
    }

    /// The fifo itself, for the process to write into; we keep it open.
    fn hand_over(
        self: &Rc<Self>,
        name: &'static str,
        sink: &Rc<Watched>,
        uid: u32,
        gid: u32,
    ) -> Result<OwnedFd, StdioError> {
        let fail = |verb| {
            let error = move |source| StdioError::Io { verb, path: name.into(), source };
            move |e: Errno| error(e.into())
        };
        let fifo = sink.fd();
        own(fifo, uid, gid).map_err(fail("change the owner of"))?;
        // Opened again: its own, blocking, for writing only. There is a reader, ourselves, so it
        // does not wait for one.
        let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
        let end = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(fail("open again"))?;
        self.keep_output(Copy::direct(name, Rc::clone(sink)));
        Ok(end)
    }

    /// Takes the master of the process's console and starts copying.
    pub(crate) fn attach_console(self: &Rc<Self>, master: OwnedFd) -> Result<(), StdioError> {
        let console = self.console.prepare(master)?;
        let [stdout, _] = self.sinks.take();
        let sink = match stdout {
            Some(sink) => sink,
            None => Watched::sink(open_null()?),
        };
        self.copy_output("console", Rc::clone(&console), sink)?;
        if let Some(source) = self.stdin.take_source() {
            self.copy_stdin(source, Rc::clone(&console))?;
        }
        self.console.set(console);
        Ok(())
    }

    fn copy_output(
        self: &Rc<Self>,
        name: &'static str,
        source: Rc<Watched>,
        sink: Rc<Watched>,
    ) -> Result<(), StdioError> {
        // Somebody sits before a console, who wants to see the end of a flood when he interrupts
        // it.
        let spool = if self.plan.terminal { SpoolPolicy::OFF } else { self.plan.spool };
        let copy = Copy::new(name, source, sink, OnWriteError::Drop, spool)
            .map_err(|source| StdioError::Io { verb: "watch", path: name.into(), source })?;
        self.keep_output(copy);
        Ok(())
    }

    fn keep_output(self: &Rc<Self>, copy: Rc<Copy>) {
        self.outputs.add(Rc::clone(&copy));
        let io = Rc::clone(self);
        self.keep(tasks::spawn("output", async move {
            io.until_begun(&copy).await;
            Rc::clone(&copy).run().await;
            io.outputs.one_has_ended();
            copy.wait_read().await;
        }));
    }

    /// The process runs: what is in its outputs is its own. Until then it is what the runtime has
    /// to say of a call that may fail, which goes into the error and not to the container's reader.
    pub(crate) fn begin(&self) {
        self.begun.set();
    }

    /// The end of what lies in the outputs before [`ProcessIo::begin`]: words of a runtime that has
    /// failed.
    pub(crate) fn words(&self) -> Vec<u8> {
        if self.begun.is_set() { Vec::new() } else { self.outputs.take_words() }
    }

    /// Waits for [`ProcessIo::begin`]. A runtime that says so much that it would have to wait for
    /// us is copied all the same.
    async fn until_begun(&self, copy: &Copy) {
        loop {
            tokio::select! {
                () = self.begun.wait() => return,
                () = tokio::time::sleep(BEGIN_LOOK) => {
                    if copy.source_bytes() > MAX_UNBEGUN {
                        return;
                    }
                }
            }
        }
    }

    fn copy_stdin(self: &Rc<Self>, source: OwnedFd, sink: Rc<Watched>) -> Result<(), StdioError> {
        let (source, policy) = (Watched::source(source), SpoolPolicy::OFF);
        let copy = Copy::new("stdin", source, sink, OnWriteError::End, policy)
            .map_err(|e| StdioError::Io { verb: "watch", path: "stdin".into(), source: e })?;
        self.stdin.set_copy(Rc::clone(&copy));
        let io = Rc::downgrade(self);
        self.keep(tasks::spawn("input", async move {
            copy.run().await;
            // The end of a console's input hangs it up: a shell whose client is gone must not stay.
            // Not so if the input ended because the process has: its last words are still on their
            // way.
            if let Some(io) = io.upgrade()
                && io.plan.terminal
                && !io.has_exited.get()
            {
                io.hang_up();
            }
        }));
        Ok(())
    }

    fn keep(&self, task: JoinHandle<()>) {
        self.tasks.borrow_mut().push(task);
    }

    /// Sets the console's size, or remembers it for a console to come. Without a console it means
    /// nothing.
    pub(crate) fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        self.console.resize(width, height)
    }

    /// Width and height that were asked for.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        self.console.size()
    }

    /// Closes stdin for good: the process reads what was written before, then sees the end.
    pub(crate) fn close_stdin(self: &Rc<Self>) {
        if self.stdin.close() {
            self.let_stdin_end();
        }
    }

    fn let_stdin_end(self: &Rc<Self>) {
        let Some(grace) = self.stdin.grace() else { return };
        if grace.is_zero() {
            return self.stdin.let_end();
        }
        let io = Rc::downgrade(self);
        self.keep(tasks::spawn("end of an input", async move {
            tokio::time::sleep(grace).await;
            if let Some(io) = io.upgrade() {
                io.stdin.let_end();
            }
        }));
    }

    fn hang_up(&self) {
        self.outputs.let_sources_go();
        self.console.close();
    }

    /// The process has exited: what it wrote goes to the client now, as far as there is room; its
    /// stdin is closed.
    pub(crate) fn process_exited(self: &Rc<Self>) {
        self.has_exited.set(true);
        self.stdin.shut();
        self.outputs.process_exited();
        self.console.close_slave();
        self.outputs.expect_end();
        if self.plan.terminal && self.outputs.are_running() {
            let io = Rc::clone(self);
            self.keep(tasks::spawn("end of a console", async move {
                match io.outputs.wait_drained_or_silent(CONSOLE_LINGER).await {
                    true => io.console.close(),
                    false => io.hang_up(),
                }
            }));
        }
    }

    /// Waits until the outputs have ended and their reader has got them, at most `limit`; then
    /// closes everything. Returns whether they ended by themselves.
    pub(crate) async fn drain(&self, limit: Duration) -> bool {
        let ended = tokio::time::timeout(limit, self.outputs.wait_drained()).await.is_ok();
        let _ = tokio::time::timeout(limit, self.outputs.wait_read()).await;
        self.close();
        let loggers = self.loggers.borrow().clone();
        let ends = async {
            for logger in &loggers {
                logger.end().await;
            }
        };
        let _ = tokio::time::timeout(limit, ends).await;
        ended
    }

    /// Closes everything at once.
    pub(crate) fn close(&self) {
        for task in self.tasks.borrow_mut().drain(..) {
            task.abort();
        }
        self.outputs.close();
        self.stdin.shut();
        self.stdin.take_source();
        self.console.close();
        self.sinks.take();
        for logger in self.loggers.borrow().iter().map(Rc::clone) {
            tasks::spawn("end of a logger", async move { logger.end().await });
        }
    }

    /// Figures of each channel, and of the logging program.
    pub(crate) fn figures(&self) -> (Vec<inspect::Stream>, Option<inspect::Logger>) {
        let loggers = self.loggers.borrow();
        let mut streams = self.outputs.map(Copy::figures);
        // Whose bytes a file's writer dropped is not told.
        if let Some(first) = streams.first_mut() {
            first.dropped_bytes += loggers.iter().map(|logger| logger.dropped()).sum::<u64>();
        }
        streams.splice(0..0, self.stdin.figures());
        (streams, loggers.iter().find_map(|logger| logger.figures()))
    }

    /// One line a channel, for the dump of SIGUSR1.
    pub(crate) fn describe(&self) -> Vec<String> {
        let loggers = self.loggers.borrow();
        let outputs = self.outputs.map(Copy::describe);
        let copies = self.stdin.describe().into_iter().chain(outputs);
        copies.chain(loggers.iter().map(|logger| logger.describe())).collect()
    }
}

fn open_null() -> Result<OwnedFd, StdioError> {
    let (path, flags) = ("/dev/null", OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC);
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| StdioError::Io {
        verb: "open",
        path: path.into(),
        source: e.into(),
    })
}
