//! The channels of one process, from Create or Exec to Delete.

use super::{
    copy::{Copy, OnWriteError, Watched},
    file::{self, Found, Purpose},
    logger::{Logger, Taker},
    spool_policy::SpoolPolicy,
    stdio::{Plan, StdioError},
};
use crate::{
    cancel::CancelToken,
    exits::Reaper,
    protocol::{inspect, options::Options},
    sys::{self, program::Streams},
    tasks,
};
use rustix::{
    fs::{Mode, OFlags},
    pipe::{PipeFlags, pipe_with},
    termios::Winsize,
};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::JoinHandle};

/// How long a console may be silent after its process has exited, when a grandchild keeps it open.
const CONSOLE_LINGER: Duration = Duration::from_millis(500);
/// How long after its opening a stdin fifo stays open though CloseIO has come already.
const STDIN_GRACE: Duration = Duration::from_millis(200);
/// How long Delete waits for a reader that takes nothing. containerd's client closes its fifos when Delete returns (v2.3.4
/// `client/process.go`), so what it has not read by then is lost to it.
const READER_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two looks whether the reader has got all: the kernel tells nobody that a pipe has become empty.
const READER_LOOK: Duration = Duration::from_millis(1);
/// Pumps of one stream when its process has exited: with a budget of 1 MiB each, more than any pipe holds.
const FINAL_PUMPS: usize = 2;

/// How often it is looked whether a runtime fills the pipes that it hands on.
const BEGIN_LOOK: Duration = Duration::from_millis(50);
/// Bytes in such a pipe that are too many: half of what it holds.
const MAX_UNBEGUN: usize = 32 << 10;

/// The ends that the process gets: stdin, stdout, stderr; /dev/null where there is none.
pub struct ChildEnds(Streams);

impl ChildEnds {
    /// For a program.
    pub fn into_streams(self) -> Streams {
        self.0
    }

    /// The same pipes once more.
    pub fn duplicate(&self) -> io::Result<Self> {
        let [stdin, stdout, stderr] = &self.0;
        let again = |end: &Option<OwnedFd>| end.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Self([again(stdin)?, again(stdout)?, again(stderr)?]))
    }
}

/// All descriptors and copies of one process.
pub struct ProcessIo {
    plan: Plan,
    /// Our reading end of the stdin fifo, until the copy takes it.
    stdin_source: RefCell<Option<OwnedFd>>,
    /// Our writing end of the stdin fifo: without it the process would see an end whenever a client goes. CloseIO drops it.
    stdin_keeper: RefCell<Option<OwnedFd>>,
    stdin_opened: Cell<Option<Instant>>,
    /// CloseIO has come; it may come before the fifo is open.
    stdin_closed: Cell<bool>,
    exited: Cell<bool>,
    /// Who reads the stdin's file for us.
    stdin_helper: Cell<Option<file::Helper>>,
    /// Who writes the outputs for us: a logging program, or those that write files.
    loggers: RefCell<Vec<Rc<Logger>>>,
    /// Where stdout and stderr go, until the copies take them.
    sinks: RefCell<[Option<Rc<Watched>>; 2]>,
    console: RefCell<Option<Rc<Watched>>>,
    /// The console's other side. As long as its process lives, that nobody has it open must not look like its end: systemd and getty close it
    /// and open it again, and what is typed meanwhile is for whoever comes.
    slave: RefCell<Option<OwnedFd>>,
    /// A size that came before the console.
    size: Cell<Option<(u16, u16)>>,
    stdin: RefCell<Option<Rc<Copy>>>,
    outputs: RefCell<Vec<Rc<Copy>>>,
    tasks: RefCell<Vec<JoinHandle<()>>>,
    running: Cell<usize>,
    begun: CancelToken,
    drained: Notify,
}

impl ProcessIo {
    /// Channels that are planned; nothing is opened yet.
    pub fn new(plan: Plan) -> Rc<Self> {
        Rc::new(Self {
            plan,
            stdin_source: RefCell::default(),
            stdin_keeper: RefCell::default(),
            stdin_opened: Cell::default(),
            stdin_closed: Cell::default(),
            exited: Cell::default(),
            stdin_helper: Cell::default(),
            loggers: RefCell::default(),
            sinks: RefCell::default(),
            console: RefCell::default(),
            slave: RefCell::default(),
            size: Cell::default(),
            stdin: RefCell::default(),
            outputs: RefCell::default(),
            tasks: RefCell::default(),
            running: Cell::default(),
            begun: CancelToken::default(),
            drained: Notify::new(),
        })
    }

    /// Starts the logger or opens the outputs, then stdin. Before [`ProcessIo::pipes_unless_terminal`] and [`ProcessIo::attach_console`].
    pub async fn open(self: &Rc<Self>, reaper: &Rc<Reaper>) -> Result<(), StdioError> {
        let Plan { stdout, stderr, create_file, logger, .. } = &self.plan;
        if let Some(plan) = logger {
            let both = self.start_logger(Taker::Program(plan.clone()), reaper).await?;
            self.sinks.replace(both.map(Some));
        } else if let Some(path) = stdout.as_ref().filter(|_| *create_file) {
            let both = self.start_logger(Taker::File { path: path.clone(), create: true }, reaper).await?;
            self.sinks.replace(both.map(Some));
        } else {
            for (at, path) in [stdout, stderr].into_iter().enumerate() {
                if let Some(path) = path {
                    let sink = self.open_output(path, reaper).await?;
                    self.sinks.borrow_mut()[at] = Some(sink);
                }
            }
        }
        self.open_stdin(reaper).await
    }

    async fn start_logger(&self, taker: Taker, reaper: &Rc<Reaper>) -> Result<[Rc<Watched>; 2], StdioError> {
        let (logger, outputs) = Logger::start(taker, reaper).await?;
        self.loggers.borrow_mut().push(logger);
        Ok(outputs.map(Watched::sink))
    }

    async fn open_output(&self, path: &Path, reaper: &Rc<Reaper>) -> Result<Rc<Watched>, StdioError> {
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

    /// Opens the stdin fifo, so that what a client writes from now on is kept. Clients begin to write when it opens, and
    /// `ctr` knows how to say CloseIO only after Create or Exec: so at Create for an init, at Start for an exec.
    async fn open_stdin(self: &Rc<Self>, reaper: &Rc<Reaper>) -> Result<(), StdioError> {
        let Some(path) = &self.plan.stdin else { return Ok(()) };
        match file::find(path, Purpose::Read, reaper).await? {
            Found::Fifo(ends, _) => {
                let mut ends = ends.into_iter();
                self.stdin_source.replace(ends.next());
                self.stdin_keeper.replace(ends.next());
                self.stdin_opened.set(Some(Instant::now()));
                if self.stdin_closed.get() {
                    self.let_stdin_end();
                }
            }
            // Its end is there already.
            Found::Nothing | Found::Device(_) => {
                self.stdin_source.replace(Some(pipe(0, 0, Ours::Read)?.0));
            }
            Found::File => {
                let (content, helper) = file::read(path, reaper).await?;
                self.stdin_source.replace(Some(content));
                self.stdin_helper.set(Some(helper));
            }
        }
        Ok(())
    }

    /// Whether the process has a console.
    pub fn is_terminal(&self) -> bool {
        self.plan.terminal
    }

    /// What is kept of outputs whose reader is away.
    pub fn spool(&self) -> SpoolPolicy {
        self.plan.spool
    }

    /// The ends for a process without a console; copying starts. `None` for one with a console.
    pub fn pipes_unless_terminal(
        self: &Rc<Self>,
        options: &Options,
    ) -> Result<Option<ChildEnds>, StdioError> {
        (!self.is_terminal()).then(|| self.pipes(options.io_uid, options.io_gid)).transpose()
    }

    /// Makes pipes, owned by `uid` and `gid`, and starts copying between them and the client's fifos or files.
    /// /dev/null stands in for channels that the client left out.
    fn pipes(self: &Rc<Self>, uid: u32, gid: u32) -> Result<ChildEnds, StdioError> {
        let stdin = match self.stdin_source.take() {
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
        let fail =
            |verb| move |e: rustix::io::Errno| StdioError::Io { verb, path: name.into(), source: e.into() };
        let fifo = sink.fd();
        own(fifo, uid, gid).map_err(fail("change the owner of"))?;
        // Opened again: its own, blocking, for writing only. There is a reader, ourselves, so it does not wait for one.
        let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
        let end = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(fail("open again"))?;
        self.keep_output(Copy::direct(name, Rc::clone(sink)));
        Ok(end)
    }

    /// Takes the master of the process's console and starts copying.
    pub fn attach_console(self: &Rc<Self>, master: OwnedFd) -> Result<(), StdioError> {
        let failed = |verb| move |source| StdioError::Io { verb, path: "pty".into(), source };
        if let Some((width, height)) = self.size.get() {
            set_size(&master, width, height).map_err(failed("resize console of"))?;
        }
        match sys::pty::open_slave(master.as_fd()) {
            Ok(slave) => drop(self.slave.replace(Some(slave))),
            // Then the copy looks now and then whether somebody has it open again.
            Err(e) => log::debug!("the other side of a console stays closed: {e}"),
        }
        let console = Watched::both(master);
        let [stdout, _] = self.sinks.take();
        let sink = match stdout {
            Some(sink) => sink,
            None => Watched::sink(open(Path::new("/dev/null"), OFlags::WRONLY)?),
        };
        self.copy_output("console", Rc::clone(&console), sink)?;
        if let Some(source) = self.stdin_source.take() {
            self.copy_stdin(source, Rc::clone(&console))?;
        }
        self.console.replace(Some(console));
        Ok(())
    }

    fn copy_output(
        self: &Rc<Self>,
        name: &'static str,
        source: Rc<Watched>,
        sink: Rc<Watched>,
    ) -> Result<(), StdioError> {
        // Somebody sits before a console, who wants to see the end of a flood when he interrupts it.
        let spool = if self.plan.terminal { SpoolPolicy::OFF } else { self.plan.spool };
        let copy = Copy::new(name, source, sink, OnWriteError::Drop, spool).map_err(|e| StdioError::Io {
            verb: "watch",
            path: name.into(),
            source: e,
        })?;
        self.keep_output(copy);
        Ok(())
    }

    fn keep_output(self: &Rc<Self>, copy: Rc<Copy>) {
        self.outputs.borrow_mut().push(Rc::clone(&copy));
        self.running.set(self.running.get() + 1);
        let io = Rc::clone(self);
        self.keep(tasks::spawn("output", async move {
            io.until_begun(&copy).await;
            Rc::clone(&copy).run().await;
            io.running.set(io.running.get().saturating_sub(1));
            io.drained.notify_waiters();
            copy.wait_read().await;
        }));
    }

    /// The process runs: what is in its outputs is its own. Until then it is what the runtime has to say of a call that may fail, which goes
    /// into the error and not to the container's reader.
    pub fn begin(&self) {
        self.begun.set();
    }

    /// The end of what lies in the outputs before [`ProcessIo::begin`]: words of a runtime that has failed.
    pub fn words(&self) -> Vec<u8> {
        if self.begun.is_set() {
            return Vec::new();
        }
        self.outputs
            .borrow()
            .iter()
            .rev()
            .map(|output| output.take_words())
            .find(|words| !words.is_empty())
            .unwrap_or_default()
    }

    /// Waits for [`ProcessIo::begin`]. A runtime that says so much that it would have to wait for us is copied all the same.
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
        let copy = Copy::new("stdin", Watched::source(source), sink, OnWriteError::End, SpoolPolicy::OFF)
            .map_err(|e| StdioError::Io { verb: "watch", path: "stdin".into(), source: e })?;
        self.stdin.replace(Some(Rc::clone(&copy)));
        let io = Rc::downgrade(self);
        self.keep(tasks::spawn("input", async move {
            copy.run().await;
            // The end of a console's input hangs it up: a shell whose client is gone must not stay. Not so if the input ended because
            // the process has: its last words are still on their way.
            if let Some(io) = io.upgrade()
                && io.plan.terminal
                && !io.exited.get()
            {
                io.hang_up();
            }
        }));
        Ok(())
    }

    fn keep(&self, task: JoinHandle<()>) {
        self.tasks.borrow_mut().push(task);
    }

    /// Sets the console's size, or remembers it for a console to come. Without a console it means nothing.
    pub fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        self.size.set(Some((width, height)));
        match &*self.console.borrow() {
            Some(console) => set_size(console.fd(), width, height),
            None => Ok(()),
        }
    }

    /// Width and height that were asked for.
    pub fn size(&self) -> Option<(u16, u16)> {
        self.size.get()
    }

    /// Closes stdin for good: the process reads what was written before, then sees the end.
    pub fn close_stdin(self: &Rc<Self>) {
        if !self.stdin_closed.replace(true) {
            self.let_stdin_end();
        }
    }

    /// Drops our writing end, so that the last client's close is the end. A client that waited for us to open the fifo gets
    /// [`STDIN_GRACE`] to do the same: else a CloseIO that overtakes it would cut off what it has to say.
    fn let_stdin_end(self: &Rc<Self>) {
        let Some(opened) = self.stdin_opened.get() else { return };
        let grace = STDIN_GRACE.saturating_sub(opened.elapsed());
        if grace.is_zero() {
            self.stdin_keeper.take();
            return;
        }
        let io = Rc::downgrade(self);
        self.keep(tasks::spawn("end of an input", async move {
            tokio::time::sleep(grace).await;
            if let Some(io) = io.upgrade() {
                io.stdin_keeper.take();
            }
        }));
    }

    fn hang_up(&self) {
        self.outputs.borrow().iter().for_each(|output| output.let_source_go());
        self.console.take();
        self.slave.take();
    }

    /// The process has exited: what it wrote goes to the client now, as far as there is room; its stdin is closed.
    pub fn process_exited(self: &Rc<Self>) {
        self.exited.set(true);
        self.stdin_keeper.take();
        if let Some(stdin) = self.stdin.take() {
            stdin.close();
        }
        self.stdin_helper.take();
        for output in self.outputs.borrow().iter() {
            if output.is_direct() {
                output.let_source_go();
                continue;
            }
            for _ in 0..FINAL_PUMPS {
                if !output.pump() {
                    break;
                }
            }
        }
        // From here on it is at its end when nobody else has it open.
        self.slave.take();
        self.outputs.borrow().iter().for_each(|output| output.expect_end());
        if self.plan.terminal && self.running.get() > 0 {
            let io = Rc::clone(self);
            self.keep(tasks::spawn("end of a console", async move {
                let positions =
                    || io.outputs.borrow().iter().map(|output| output.position()).collect::<Vec<_>>();
                loop {
                    let before = positions();
                    if tokio::time::timeout(CONSOLE_LINGER, io.wait_drained()).await.is_ok() {
                        io.console.take();
                        return;
                    }
                    // Bytes that move, or that wait for a slow reader, are the process's own last words.
                    let now = positions();
                    if now == before && now.iter().all(|(_, waiting)| !waiting) {
                        break;
                    }
                }
                io.hang_up();
            }));
        }
    }

    async fn wait_drained(&self) {
        loop {
            let notified = self.drained.notified();
            if self.running.get() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Waits until the outputs have ended and their reader has got them, at most `limit`; then closes everything. Returns whether
    /// they ended by themselves.
    pub async fn drain(&self, limit: Duration) -> bool {
        let ended = tokio::time::timeout(limit, self.wait_drained()).await.is_ok();
        let _ = tokio::time::timeout(limit, self.wait_read()).await;
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

    /// Returns when the readers have got all, have gone, or take nothing any more.
    async fn wait_read(&self) {
        let unread = || {
            let outputs = self.outputs.borrow();
            let read = outputs.iter().filter(|output| output.has_reader());
            read.map(|output| output.unread_bytes()).sum::<usize>()
        };
        let (mut left, mut since) = (unread(), Instant::now());
        while left > 0 && since.elapsed() < READER_PATIENCE {
            tokio::time::sleep(READER_LOOK).await;
            let now = unread();
            if now < left {
                since = Instant::now();
            }
            left = now;
        }
    }

    /// Closes everything at once.
    pub fn close(&self) {
        for task in self.tasks.borrow_mut().drain(..) {
            task.abort();
        }
        // Whoever waits for them waits for nobody.
        self.running.set(0);
        self.drained.notify_waiters();
        for output in self.outputs.borrow_mut().drain(..) {
            output.close();
        }
        if let Some(stdin) = self.stdin.take() {
            stdin.close();
        }
        self.stdin_source.take();
        self.stdin_keeper.take();
        self.console.take();
        self.slave.take();
        self.sinks.take();
        self.stdin_helper.take();
        for logger in self.loggers.borrow().iter().map(Rc::clone) {
            tasks::spawn("end of a logger", async move { logger.end().await });
        }
    }

    /// Figures of each channel, and of the logging program.
    pub fn figures(&self) -> (Vec<inspect::Stream>, Option<inspect::Logger>) {
        let stdin = self.stdin.borrow();
        let outputs = self.outputs.borrow();
        let loggers = self.loggers.borrow();
        let mut streams: Vec<_> = outputs.iter().map(|copy| copy.figures()).collect();
        // Whose bytes a file's writer dropped is not told.
        if let Some(first) = streams.first_mut() {
            first.dropped_bytes += loggers.iter().map(|logger| logger.dropped()).sum::<u64>();
        }
        streams.splice(0..0, stdin.iter().map(|copy| copy.figures()));
        (streams, loggers.iter().find_map(|logger| logger.figures()))
    }

    /// One line a channel, for the dump.
    pub fn describe(&self) -> Vec<String> {
        let stdin = self.stdin.borrow();
        let outputs = self.outputs.borrow();
        let loggers = self.loggers.borrow();
        let copies = stdin.iter().chain(outputs.iter()).map(|copy| copy.describe());
        copies.chain(loggers.iter().map(|logger| logger.describe())).collect()
    }
}

enum Ours {
    Read,
    Write,
}

/// A pipe whose end on our side does not block. The process may open its end again through /proc/self/fd, so it gets the owner
/// that the options name.
fn pipe(uid: u32, gid: u32, ours: Ours) -> Result<(OwnedFd, OwnedFd), StdioError> {
    let make = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let our_end = match ours {
            Ours::Read => &read,
            Ours::Write => &write,
        };
        let flags = rustix::fs::fcntl_getfl(our_end)?;
        rustix::fs::fcntl_setfl(our_end, flags | OFlags::NONBLOCK)?;
        own(&read, uid, gid)?;
        Ok((read, write))
    };
    make().map_err(|e| StdioError::Io { verb: "make", path: "pipe".into(), source: e.into() })
}

/// Gives a pipe or fifo to the owner that the options name, if they name one.
fn own(pipe: &OwnedFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    if uid == 0 && gid == 0 {
        return Ok(());
    }
    rustix::fs::fchown(pipe, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, StdioError> {
    rustix::fs::open(path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| StdioError::Io { verb: "open", path: path.to_owned(), source: e.into() })
}

fn set_size(console: &OwnedFd, width: u16, height: u16) -> io::Result<()> {
    let size = Winsize { ws_col: width, ws_row: height, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(console, size)?)
}
