//! The one owner of all containers. Commands and kernel events come in; the pure machine in
//! `container/` decides; effects go out.
//!
//! A command borrows a container, decides, and lets go before it waits: no borrow lives across an
//! await (clippy checks it). Commands run to their end even if their caller has gone.

mod checkpoint;
mod guard;
mod inspect;
mod memory;
mod native;

pub use checkpoint::{Checkpoint, SaveState};

use crate::{
    bundle::{Bundle, BundleError, INIT_PID, Late, RecordedExit, exec_pid},
    cancel::CancelToken,
    cgroups::Cgroup,
    container::{Container, Effect, Event, Exit, Notice, PidNamespace, Refusal, Status, Stdio},
    events::{EventQueue, Topic},
    exits::{Exited, ProcessKey, Reaper},
    id::Id,
    io::{BadPolicy, ConsoleSocket, Plan, ProcessIo, SpoolPolicy, StdioError},
    mount,
    protocol::{Mount, Timestamp, events, options::Options},
    runtime::{self, CallStdio, Direct, Failure, Known, Runtime},
    sys::{self, process::ExitStatus},
    tasks,
};
use guard::Verb;
use memory::OomGuard;
use rustix::pipe::{PipeFlags, pipe_with};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};
use tokio::sync::{Notify, oneshot};

/// How long Delete waits for the outputs to end when a grandchild keeps them open: upstream's
/// figure.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long Delete waits for the exit of an init that the runtime has just killed.
const EXIT_AFTER_DELETE: Duration = Duration::from_secs(5);
/// How long mounting or unmounting a rootfs may take.
const MOUNT_DEADLINE: Duration = Duration::from_secs(120);
/// How long the kernel may take to change a cgroup.
const CGROUP_DEADLINE: Duration = Duration::from_secs(60);
/// How long `runtime exec` may go on when the container's init is dead: the init's exit waits for
/// it, since starts are told before exits. A call that hangs must not keep a dead container
/// running.
const EXEC_AFTER_INIT: Duration = Duration::from_millis(500);
/// The same for `runtime start` of the init itself: a program that ends at once is started all the
/// same, and on a busy node the runtime may take its time to say so.
const START_AFTER_INIT: Duration = Duration::from_secs(10);
/// How often, and how long apart, we look whether the cgroup of a failed create, or of a dead init,
/// is empty: a second in all.
const CLEAR_LOOKS: u32 = 200;
const CLEAR_PAUSE: Duration = Duration::from_millis(5);
/// Containers of one shim. A pod has a few; more than this is a mistake of the caller.
const MAX_CONTAINERS: usize = 4096;
/// Execs of one container that are not deleted.
const MAX_EXECS: usize = 8192;
/// Answers of Delete that nobody heard, kept for whoever asks again.
const MAX_UNHEARD: usize = 64;
/// Bytes of transitions kept for the dump: the last hundred or so.
const RING: usize = 8 << 10;
/// After a Shutdown that came too early: how long the shim stays when its last container has gone.
/// containerd usually asks again.
const LINGER: Duration = Duration::from_secs(5);
/// What waiters hear of an exec that never ran: containerd's "unknown" status.
const UNKNOWN_STATUS: u32 = 255;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// Unknown container; containerd's sentence.
    #[error("container not created")]
    NotCreated,
    /// The id is taken.
    #[error("container {0} already exists")]
    Exists(Id),
    /// A bound of ours.
    #[error("more than {0} {1}")]
    TooMany(usize, Bound),
    /// Not in this state.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The runtime failed.
    #[error("{context}: {failure}")]
    Runtime {
        /// What was tried, in containerd's words.
        context: &'static str,
        /// What the runtime said.
        failure: Failure,
    },
    /// Signal to a process that has ended; containerd's sentence.
    #[error("process already finished")]
    Finished,
    /// Signal to a container that the runtime does not know; containerd's sentence.
    #[error("no such container")]
    NoSuchContainer,
    /// Signal to an exec that was not started; containerd's sentence.
    #[error("process not created")]
    NotStarted,
    /// The channels.
    #[error("process I/O")]
    Stdio(#[from] StdioError),
    /// The spool's size.
    #[error(transparent)]
    Spool(#[from] BadPolicy),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// criu failed; containerd's sentence.
    #[error("{reason} path= {}", log.display())]
    Checkpoint {
        /// The first line of what the runtime said.
        reason: String,
        /// criu's log.
        log: PathBuf,
    },
    /// The rootfs.
    #[error("{context}: {reason}")]
    Rootfs {
        /// What was tried, in containerd's words.
        context: &'static str,
        /// Why not.
        reason: String,
    },
    /// Everything else that the kernel refused.
    #[error("{verb}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// No figures; containerd's sentence.
    #[error("cgroup does not exist")]
    NoCgroup,
    /// containerd has taken the bundle away.
    #[error("bundle {0} was removed while the container was being created")]
    GivenUp(PathBuf),
    /// Nobody waits any more.
    #[error("the caller has gone")]
    Abandoned,
    /// A Create that comes after the last Shutdown.
    #[error("the shim is shutting down")]
    Ending,
}

/// What there may be too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// In a shim.
    Containers,
    /// In a container.
    Execs,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Containers => "containers",
            Self::Execs => "execs in the container",
        })
    }
}

/// Create, checked.
#[derive(Debug)]
pub struct Create {
    /// Container id.
    pub id: Id,
    /// Its bundle.
    pub bundle: Bundle,
    /// Mounts of its rootfs.
    pub rootfs: Vec<Mount>,
    /// Its channels.
    pub stdio: Stdio,
    /// Runtime options.
    pub options: Options,
    /// Start restores it from there, instead of a new init.
    pub checkpoint: Option<Checkpoint>,
}

/// What Create learns from config.json and the options.
#[derive(Clone, Copy)]
struct Manner {
    pid_namespace: PidNamespace,
    native_exec: bool,
    has_seccomp: bool,
    late: Late,
}

/// What is known of a process.
#[derive(Debug)]
pub struct ProcessState {
    /// The container's state, or the exec's.
    pub status: crate::protocol::task::Status,
    /// Its bundle.
    pub bundle: String,
    /// Its pid; 0 if it was never born.
    pub pid: u32,
    /// Its channels.
    pub stdio: Stdio,
    /// Its exit, once published.
    pub exit: Option<Exit>,
}

/// The answer of Delete.
#[derive(Clone, Copy, Debug)]
pub struct Deleted {
    /// The process's pid.
    pub pid: u32,
    /// Its exit; `None` if it never ran.
    pub exit: Option<Exit>,
}

enum Slot {
    /// Create is under way: the id is taken, the container not there yet.
    Creating,
    There(Box<Owned>),
}

/// A container's state, which is plain data, and what belongs to it and is not.
struct Owned {
    state: Container,
    runtime: Runtime,
    options: Options,
    checkpoint: Option<Checkpoint>,
    native_exec: bool,
    has_mounts: bool,
    io: Rc<ProcessIo>,
    exec_io: HashMap<Id, Rc<ProcessIo>>,
    cgroup: Option<Rc<Cgroup>>,
    oom: Option<OomGuard>,
    /// The runtime keeps its record where it was looked for (`Runtime::keeps_record`).
    keeps_record: bool,
    /// How it is started and removed without the runtime.
    direct: Option<Rc<Direct>>,
    /// A SIGKILL was asked for.
    is_killed_by_us: bool,
    /// Number of the last event of an out-of-memory kill.
    last_oom: u64,
    /// Tells it from an earlier or later container of the same id.
    life: u64,
    /// Set when `runtime start` must end.
    start: CancelToken,
    /// Set when `runtime exec`, and what comes before it, must end.
    exec_starts: CancelToken,
    /// Deletes that came while one was under way: they get the same answer.
    deleters: Vec<oneshot::Sender<Deleted>>,
}

/// What belongs to an init that lives.
#[derive(Default)]
struct Born {
    pid: u32,
    cgroup: Option<Rc<Cgroup>>,
    oom: Option<OomGuard>,
    keeps_record: bool,
    direct: Option<Rc<Direct>>,
}

/// All containers of one shim.
pub struct Shim {
    namespace: Id,
    slots: RefCell<BTreeMap<Id, Slot>>,
    waiters: RefCell<HashMap<ProcessKey, Vec<oneshot::Sender<Exit>>>>,
    reaper: Rc<Reaper>,
    runtimes: runtime::Caller,
    native: native::Native,
    events: Rc<EventQueue>,
    unheard: RefCell<BTreeMap<Id, Deleted>>,
    ring: RefCell<Ring>,
    /// Containers that there have been.
    lives: Cell<u64>,
    shutdown_asked: Cell<bool>,
    /// A Shutdown came although there were containers, or a Create's caller has gone, and nobody
    /// has looked since whether they are given up.
    doubtful: Cell<bool>,
    ended: Cell<bool>,
    changed: Notify,
}

impl Shim {
    /// A shim without containers.
    pub fn new(namespace: Id, reaper: Rc<Reaper>, events: Rc<EventQueue>) -> Rc<Self> {
        Rc::new(Self {
            namespace,
            slots: RefCell::default(),
            waiters: RefCell::default(),
            runtimes: runtime::Caller::new(Rc::clone(&reaper)),
            native: native::Native::default(),
            reaper,
            events,
            unheard: RefCell::default(),
            ring: RefCell::default(),
            lives: Cell::new(0),
            shutdown_asked: Cell::new(false),
            doubtful: Cell::new(false),
            ended: Cell::new(false),
            changed: Notify::new(),
        })
    }

    // ---- Create ---------------------------------------------------------------------------------

    /// Makes a container: rootfs mounted, `runtime create` done, its init watched. Returns the
    /// init's pid. On failure everything is undone.
    pub async fn create(self: &Rc<Self>, request: Create) -> Result<u32, ShimError> {
        let reservation = self.reserve(&request)?;
        has_room_for_a_process()?;
        // The mounting has a process of its own. Meanwhile we prepare what else is needed.
        let mounting = self.begin_mounting(&request);
        reservation.may_be_mounted.set(!request.rootfs.is_empty());
        let prepared = self.prepare(&request);
        let mounted = match mounting {
            Ok(Some(helper)) => self.end_of(helper, MOUNT_DEADLINE).await.map_err(|reason| {
                ShimError::Rootfs { context: "failed to mount rootfs component", reason }
            }),
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        let has_mounts = mounted.is_ok() && !request.rootfs.is_empty();
        let created = match prepared.and_then(|prepared| mounted.map(|()| prepared)) {
            Ok((io, manner)) => {
                reservation.may_be_known.set(true);
                self.create_process(&request, &io, manner).await.inspect_err(|_| io.close())
            }
            Err(e) => Err(e),
        };
        if created.is_err()
            && has_mounts
            && let Err(reason) = self.unmount(&request.bundle).await
        {
            log::warn!("unmount after a failed create container={}: {reason}", request.id);
        }
        reservation.settle(created.is_ok());
        created
    }

    /// What a Create needs beside the rootfs. Nothing is opened yet.
    fn prepare(&self, request: &Create) -> Result<(Rc<ProcessIo>, Manner), ShimError> {
        let traits = request.bundle.traits()?;
        let manner = Manner {
            pid_namespace: match traits.has_private_pid_namespace {
                true => PidNamespace::Private,
                false => PidNamespace::Shared,
            },
            native_exec: request.options.wants_native_exec(traits.native_exec.as_deref()),
            has_seccomp: traits.has_seccomp,
            late: traits.late,
        };
        let Options { spool, spool_total, annotations, .. } = &request.options;
        let spool = SpoolPolicy::decide(spool, spool_total, annotations, traits.spool.as_deref())?;
        // criu finds its pipes again, not a fifo of the host's.
        let spool = match traits.may_hold_fifos && request.checkpoint.is_none() {
            true => spool,
            false => spool.through_the_shim(),
        };
        let plan = Plan::new(&request.stdio, self.namespace.as_str(), request.id.as_str(), spool)?;
        request.bundle.forget_earlier();
        request.bundle.write_options(&request.options)?;
        let cgroup =
            traits.cgroups_path.as_deref().and_then(|path| Cgroup::at(path, request.id.as_str()));
        if cgroup.is_some_and(|cgroup| cgroup.directories().is_empty()) {
            request.bundle.note_cgroup_new()?;
        }
        Ok((ProcessIo::new(plan), manner))
    }

    fn reserve(self: &Rc<Self>, request: &Create) -> Result<Reservation, ShimError> {
        let id = &request.id;
        if self.ended.get() {
            return Err(ShimError::Ending);
        }
        let mut slots = self.slots.borrow_mut();
        if slots.contains_key(id) {
            return Err(ShimError::Exists(id.clone()));
        }
        if slots.len() >= MAX_CONTAINERS {
            return Err(ShimError::TooMany(MAX_CONTAINERS, Bound::Containers));
        }
        self.unheard.borrow_mut().remove(id);
        slots.insert(id.clone(), Slot::Creating);
        Ok(Reservation {
            shim: Rc::clone(self),
            id: id.clone(),
            runtime: Runtime::new(&request.options, &self.namespace, &request.bundle),
            bundle: request.bundle.clone(),
            may_be_mounted: Cell::new(false),
            may_be_known: Cell::new(false),
            is_settled: Cell::new(false),
        })
    }

    fn free(&self, id: &Id) {
        self.slots.borrow_mut().remove(id);
        self.changed.notify_waiters();
    }

    /// Starts mounting the rootfs; `None` if there is nothing to mount.
    fn begin_mounting(&self, request: &Create) -> Result<Option<Helper>, ShimError> {
        if request.rootfs.is_empty() {
            return Ok(None);
        }
        let rootfs = request.bundle.rootfs();
        match std::fs::DirBuilder::new().mode(0o711).create(&rootfs) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(ShimError::Io { verb: "create the rootfs directory", source: e });
            }
            _ => {}
        }
        let mounts = &request.rootfs;
        self.in_helper(|| mount::mount_all(mounts, &rootfs).map_err(|e| chain(&e)))
            .map(Some)
            .map_err(|source| ShimError::Io {
                verb: "start a helper that mounts the rootfs",
                source,
            })
    }

    async fn create_process(
        self: &Rc<Self>,
        request: &Create,
        io: &Rc<ProcessIo>,
        manner: Manner,
    ) -> Result<u32, ShimError> {
        let Create { id, bundle, options, .. } = request;
        let runtime = Runtime::new(options, &self.namespace, bundle);
        if request.checkpoint.is_some() {
            self.insert(request, &runtime, io, manner, Born::default());
            return Ok(0);
        }
        io.open(&self.reaper).await?;
        let console = io.is_terminal().then(|| ConsoleSocket::bind(bundle, "init")).transpose()?;
        let mut arguments = Vec::new();
        if let Some(console) = &console {
            arguments.extend(["--console-socket", console.name()]);
        }
        if options.no_pivot_root {
            arguments.push("--no-pivot");
        }
        if options.no_new_keyring {
            arguments.push("--no-new-keyring");
        }
        let stdio = CallStdio::of(io.pipes_unless_terminal(options)?);
        let mut is_known = runtime.has_record(id);
        if is_known && runtime.is_record_left_behind(id) {
            Box::pin(self.clear_earlier(&runtime, id)).await;
            is_known = runtime.has_record(id);
        }
        let (result, birth) = self.runtimes.create(&runtime, id, &arguments, stdio).await;
        if result.is_ok() && manner.native_exec {
            self.prepare_native(id, bundle, manner.has_seccomp, runtime.binary()).await;
        }
        // A container that the runtime knew before is somebody else's.
        let has_run = match &result {
            Err(Failure::NotStarted { .. }) => false,
            Err(failure) => !(is_known && failure.is_name_taken()),
            Ok(_) => true,
        };
        let born = result
            .map_err(|failure| ShimError::Runtime {
                context: "OCI runtime create failed",
                failure: failure.with_words(|| io.words()),
            })
            .and_then(|known| self.adopt(request, &runtime, io, console.as_ref(), manner, known));
        if born.is_err() && has_run {
            self.undo_create(&runtime, bundle, id).await;
        }
        drop(birth);
        born
    }

    /// What was not deleted in time when its shim had died would keep the container from its name.
    /// If it cannot be deleted, create says so.
    async fn clear_earlier(&self, runtime: &Runtime, id: &Id) {
        log::warn!(
            "the runtime knows an earlier container, which has ended: it is deleted container={id}"
        );
        if let Err(e) = self.runtimes.delete(runtime, id, true).await {
            log::warn!("delete an earlier container={id}: {e}");
        }
    }

    /// The runtime has made the container: takes its console, reads its pid, watches it, tells
    /// containerd.
    fn adopt(
        self: &Rc<Self>,
        request: &Create,
        runtime: &Runtime,
        io: &Rc<ProcessIo>,
        console: Option<&ConsoleSocket>,
        manner: Manner,
        known: Option<Known>,
    ) -> Result<u32, ShimError> {
        let Create { id, bundle, .. } = request;
        // A containerd that was started again during a create finds no task yet, and clears up.
        if bundle.is_gone() {
            return Err(ShimError::GivenUp(bundle.path().to_owned()));
        }
        let mut born = self.born(id, bundle, runtime, io, console)?;
        born.direct = known
            .filter(|_| born.keeps_record)
            .and_then(|known| runtime.direct(id, known, manner.late))
            .map(Rc::new);
        let pid = born.pid;
        self.insert(request, runtime, io, manner, born);
        io.begin();
        Ok(pid)
    }

    /// Takes the console of a container whose init has just been born, reads its pid, and watches
    /// it and its memory.
    fn born(
        self: &Rc<Self>,
        id: &Id,
        bundle: &Bundle,
        runtime: &Runtime,
        io: &Rc<ProcessIo>,
        console: Option<&ConsoleSocket>,
    ) -> Result<Born, ShimError> {
        if let Some(console) = console {
            io.attach_console(console.receive()?)?;
        }
        let pid = bundle.pid(INIT_PID)?;
        let keeps_record = runtime.keeps_record(id, pid);
        if keeps_record && let Err(e) = bundle.note_record_seen() {
            log::warn!("container={id}: {}", chain(&e));
        }
        let cgroup = Cgroup::of_init(pid, bundle, id).map(Rc::new);
        if let Err(e) = &cgroup {
            log::warn!("cgroup unknown container={id} pid={pid}: {e}");
        }
        let cgroup = cgroup.ok();
        let oom = cgroup.as_deref().and_then(|cgroup| self.arm_oom_watch(id, cgroup));
        let key = ProcessKey { container: id.clone(), exec: None };
        self.reaper
            .watch_process(pid, key)
            .map_err(|source| ShimError::Io { verb: "watch the container's init", source })?;
        Ok(Born { pid, cgroup, oom, keeps_record, direct: None })
    }

    /// The container is there from now on; containerd is told.
    fn insert(
        &self,
        request: &Create,
        runtime: &Runtime,
        io: &Rc<ProcessIo>,
        Manner { pid_namespace, native_exec, .. }: Manner,
        Born { pid, cgroup, oom, keeps_record, direct }: Born,
    ) {
        let Create { id, bundle, options, stdio, rootfs, checkpoint } = request;
        let state =
            Container::new(id.clone(), bundle.path().to_owned(), pid, stdio.clone(), pid_namespace);
        let owned = Owned {
            state,
            runtime: runtime.clone(),
            options: options.clone(),
            checkpoint: checkpoint.clone(),
            native_exec,
            has_mounts: !rootfs.is_empty(),
            io: Rc::clone(io),
            exec_io: HashMap::new(),
            cgroup,
            oom,
            keeps_record,
            direct,
            is_killed_by_us: false,
            last_oom: 0,
            life: self.lives.replace(self.lives.get() + 1),
            start: CancelToken::default(),
            exec_starts: CancelToken::default(),
            deleters: Vec::new(),
        };
        self.slots.borrow_mut().insert(id.clone(), Slot::There(Box::new(owned)));
        self.note(&format!("{id} created pid={pid}"));
        self.events.push(
            Topic::Create,
            &events::TaskCreate {
                container_id: id.to_string(),
                bundle: bundle.path().to_string_lossy().into_owned(),
                rootfs: rootfs.clone(),
                io: Some(events::TaskIo {
                    stdin: stdio.stdin.clone(),
                    stdout: stdio.stdout.clone(),
                    stderr: stdio.stderr.clone(),
                    terminal: stdio.terminal,
                }),
                checkpoint: checkpoint.as_ref().map_or_else(String::new, Checkpoint::image),
                pid,
            },
        );
    }

    /// A create that failed may have left state and a waiting init behind.
    async fn undo_create(&self, runtime: &Runtime, bundle: &Bundle, id: &Id) {
        if let Err(e) = self.runtimes.delete(runtime, id, true).await
            && !e.is_unknown_container()
        {
            log::warn!("delete after a failed create container={id}: {e}");
        }
        self.clear_after_create(bundle, id).await;
    }

    /// A runtime that was killed while it made the container may have left a cgroup that it does
    /// not know of itself, and in it a child of its own (crun; runc's ends by itself).
    async fn clear_after_create(&self, bundle: &Bundle, id: &Id) {
        let left = self.reaper.unclaimed_with(&bundle.path().to_string_lossy());
        let named = Cgroup::of_bundle(bundle, id);
        let cgroups: Vec<Cgroup> =
            left.iter().filter_map(|pid| Cgroup::of_process(*pid).ok()).chain(named).collect();
        for pid in &left {
            log::warn!("killed what a failed create has left container={id} pid={pid}");
            // Our own child, unreaped: the number is its own.
            let _ = sys::process::signal_child(*pid, libc::SIGKILL);
        }
        for _ in 0..CLEAR_LOOKS {
            if cgroups.iter().filter(|cgroup| !cgroup.remove(id.as_str())).count() == 0 {
                return;
            }
            tokio::time::sleep(CLEAR_PAUSE).await;
        }
        log::warn!("cgroup remains after a failed create container={id}");
    }

    // ---- Start ----------------------------------------------------------------------------------

    /// Starts the init. Returns its pid.
    pub async fn start(self: &Rc<Self>, id: &Id) -> Result<u32, ShimError> {
        let transition = self.begin(id, Event::StartRequested, Verb::Start)?;
        let pid = self.pid(id);
        let pid = if pid == 0 {
            Box::pin(self.restore(id)).await?
        } else {
            let result = self.start_init(id).await?;
            result.map_err(|failure| ShimError::Runtime {
                context: "OCI runtime start failed",
                failure,
            })?;
            pid
        };
        transition.succeed(Event::Started)?;
        Ok(pid)
    }

    /// Without the runtime where that goes.
    async fn start_init(&self, id: &Id) -> Result<Result<(), Failure>, ShimError> {
        let (direct, gone) =
            self.with(id, |owned| (owned.direct.clone(), owned.exec_starts.clone()))?;
        if let Some(direct) = direct {
            match direct.start(&gone).await {
                Ok(false) => {}
                result => return Ok(result.map(drop)),
            }
        }
        let (runtime, cut_short) =
            self.with(id, |owned| (owned.runtime.clone(), owned.start.clone()))?;
        Ok(Box::pin(self.runtimes.start(&runtime, id, cut_short)).await)
    }

    /// Adds an exec; nothing runs yet. `spec` is the process spec, JSON, as the runtime is to read
    /// it.
    pub fn exec(
        self: &Rc<Self>,
        id: &Id,
        exec: Id,
        stdio: Stdio,
        spec: Vec<u8>,
    ) -> Result<(), ShimError> {
        // What an exec leaves running may keep its fifo for as long as the container lives, and its
        // client would wait for the end.
        let spool = self.with(id, |owned| owned.io.spool())?.through_the_shim();
        let plan = Plan::new(&stdio, self.namespace.as_str(), exec.as_str(), spool)?;
        self.with(id, |owned| {
            if owned.state.execs.len() >= MAX_EXECS {
                return Err(ShimError::TooMany(MAX_EXECS, Bound::Execs));
            }
            Ok(())
        })??;
        self.apply(id, Event::ExecRequested { exec: exec.clone(), stdio, spec })?;
        self.with(id, |owned| owned.exec_io.insert(exec, ProcessIo::new(plan)))?;
        Ok(())
    }

    /// Starts an exec. Returns its pid. After a failure it may be started again, as with Go's shim.
    pub async fn start_exec(self: &Rc<Self>, id: &Id, exec: &Id) -> Result<u32, ShimError> {
        let spec = self.with(id, |owned| owned.state.execs.get(exec).map(|e| e.spec.clone()))?;
        let transition =
            self.begin(id, Event::ExecStartRequested(exec.clone()), Verb::StartExec(exec.clone()))?;
        has_room_for_a_process()?;
        let pid = self.run_exec(id, exec, &spec.unwrap_or_default()).await?;
        if let Ok(Some(io)) = self.with(id, |owned| owned.exec_io.get(exec).cloned()) {
            io.begin();
        }
        transition.succeed(Event::ExecStarted { exec: exec.clone(), pid })?;
        Ok(pid)
    }

    /// New channels for a container whose restoring has failed; those of the failed one are closed.
    fn renew_io(&self, id: &Id) {
        let renewed = self.with(id, |owned| {
            if owned.state.init.pid != 0 {
                return None;
            }
            let spool = owned.io.spool();
            let plan =
                Plan::new(&owned.state.init.stdio, self.namespace.as_str(), id.as_str(), spool)
                    .ok()?;
            Some(std::mem::replace(&mut owned.io, ProcessIo::new(plan)))
        });
        if let Ok(Some(failed)) = renewed {
            failed.close();
        }
    }

    /// New channels for an exec whose start has failed; those of the failed one are closed.
    fn renew_exec_io(&self, id: &Id, exec: &Id) {
        let renewed = self.with(id, |owned| {
            let stdio = &owned.state.execs.get(exec)?.process.stdio;
            let spool = owned.io.spool().through_the_shim();
            let plan = Plan::new(stdio, self.namespace.as_str(), exec.as_str(), spool).ok()?;
            owned.exec_io.insert(exec.clone(), ProcessIo::new(plan))
        });
        if let Ok(Some(failed)) = renewed {
            failed.close();
        }
    }

    async fn run_exec(self: &Rc<Self>, id: &Id, exec: &Id, spec: &[u8]) -> Result<u32, ShimError> {
        let (runtime, options, io, bundle, starts) = self
            .with(id, |owned| {
                let io = owned.exec_io.get(exec).cloned();
                let bundle = Bundle::new(&owned.state.bundle);
                let starts = owned.exec_starts.clone();
                io.map(|io| (owned.runtime.clone(), owned.options.clone(), io, bundle, starts))
            })?
            .ok_or_else(|| Refusal::NoExec(exec.clone()))?;
        io.open(&self.reaper).await?;
        let ends = io.pipes_unless_terminal(&options)?;
        if let Some(ends) = &ends
            && let Some((pid, birth)) = self.exec_natively(id, exec, spec, ends).await
        {
            let adopted = self.adopt_exec(id, exec, pid);
            drop(birth);
            return adopted;
        }
        let spec_name = format!("{exec}.process.json");
        match io.size() {
            // Through the runtime: by the time that we get the console, the program may have looked
            // already.
            Some(size) if io.is_terminal() => {
                bundle.write(&spec_name, &crate::spec::with_console_size(spec, size), 0o600)?
            }
            _ => bundle.write(&spec_name, spec, 0o600)?,
        }
        let _spec_file = Removed(&bundle, &spec_name);
        let console =
            io.is_terminal().then(|| ConsoleSocket::bind(&bundle, exec.as_str())).transpose()?;
        let spec_path = bundle.join(&spec_name);
        let spec_path = spec_path.to_string_lossy();
        let mut arguments: Vec<&str> = vec!["--process", &spec_path];
        if let Some(console) = &console {
            arguments.extend(["--console-socket", console.name()]);
        }
        let (result, birth) =
            self.runtimes.exec(&runtime, id, exec, &arguments, CallStdio::of(ends), starts).await;
        result.map_err(|failure| ShimError::Runtime {
            context: "OCI runtime exec failed",
            failure: failure.with_words(|| io.words()),
        })?;
        let adopted = match &console {
            Some(console) => console
                .receive()
                .map_err(Into::into)
                .and_then(|master| Ok(io.attach_console(master)?)),
            None => Ok(()),
        }
        .and_then(|()| Ok(bundle.pid(&exec_pid(exec))?))
        .and_then(|pid| self.adopt_exec(id, exec, pid));
        if adopted.is_err()
            && let Ok(PidNamespace::Private) = self.with(id, |owned| owned.state.pid_namespace)
        {
            self.reaper.kill_unclaimed(&birth);
        }
        drop(birth);
        adopted
    }

    /// The exec runs: watches it.
    fn adopt_exec(self: &Rc<Self>, id: &Id, exec: &Id, pid: u32) -> Result<u32, ShimError> {
        let key = ProcessKey { container: id.clone(), exec: Some(exec.clone()) };
        self.reaper
            .watch_process(pid, key)
            .map_err(|source| ShimError::Io { verb: "watch the exec", source })?;
        Ok(pid)
    }

    // ---- Questions ------------------------------------------------------------------------------

    /// State of the init or of an exec.
    pub fn state(&self, id: &Id, exec: Option<&Id>) -> Result<ProcessState, ShimError> {
        use crate::{container::ExecPhase, protocol::task::Status as Visible};
        self.with(id, |owned| {
            let state = &owned.state;
            let process = process(state, exec)?;
            let container_status = match state.status {
                Status::Created | Status::Starting => Visible::Created,
                Status::Running => Visible::Running,
                Status::Pausing => Visible::Pausing,
                Status::Paused | Status::Resuming => Visible::Paused,
                Status::Stopped | Status::Deleting | Status::Deleted => Visible::Stopped,
            };
            let status = match (exec.and_then(|exec| state.execs.get(exec)), container_status) {
                (None, status) => status,
                // A frozen container freezes its execs.
                (Some(_), frozen @ (Visible::Paused | Visible::Pausing)) => frozen,
                (Some(exec), _) => match exec.phase {
                    ExecPhase::Added | ExecPhase::Starting => Visible::Created,
                    ExecPhase::Running => Visible::Running,
                    ExecPhase::Stopped | ExecPhase::Deleting => Visible::Stopped,
                },
            };
            Ok(ProcessState {
                status,
                bundle: state.bundle.to_string_lossy().into_owned(),
                pid: process.pid,
                stdio: process.stdio.clone(),
                exit: process.exit,
            })
        })?
    }

    /// Waits for the exit of the init or of an exec; answers at once if it is known.
    pub async fn wait(
        &self,
        id: &Id,
        exec: Option<&Id>,
        abandoned: &CancelToken,
    ) -> Result<Exit, ShimError> {
        if let Some(exit) =
            self.with(id, |owned| process(&owned.state, exec).map(|_| owned.state.outcome(exec)))??
        {
            return Ok(exit);
        }
        let (sender, receiver) = oneshot::channel();
        let key = ProcessKey { container: id.clone(), exec: exec.cloned() };
        self.waiters.borrow_mut().entry(key.clone()).or_default().push(sender);
        let exit = tokio::select! {
            exit = receiver => exit.map_err(|_| ShimError::NotCreated),
            () = abandoned.wait() => Err(ShimError::Abandoned),
        };
        // Whoever gave up leaves its sender behind.
        if let Some(waiting) = self.waiters.borrow_mut().get_mut(&key) {
            waiting.retain(|sender| !sender.is_closed());
        }
        exit
    }

    /// Pids of all processes of the container; execs with their id. If none is left, the dead
    /// init's: a containerd that comes back takes a shim without pids for a leak and throws the
    /// exit status away (v2.3.4 `core/runtime/v2/shim_load.go`).
    pub async fn pids(&self, id: &Id) -> Result<Vec<(u32, Option<Id>)>, ShimError> {
        let (runtime, is_known) = self.with(id, |owned| {
            (owned.runtime.clone(), owned.keeps_record || owned.state.init_has_exited())
        })?;
        let named = match is_known {
            true => None,
            false => Some(self.runtimes.ps(&runtime, id).await.map_err(|failure| {
                ShimError::Runtime { context: "OCI runtime ps failed", failure }
            })?),
        };
        self.with(id, |owned| {
            let cgroup = owned.cgroup.as_deref();
            let pids = match (named, cgroup) {
                (Some(pids), _) => pids,
                (None, None) => return Err(ShimError::NoCgroup),
                (None, Some(cgroup)) => match cgroup.pids() {
                    Ok(pids) => pids,
                    Err(_) if owned.state.init_has_exited() => Vec::new(),
                    Err(source) => {
                        return Err(ShimError::Io {
                            verb: "read the container's processes",
                            source,
                        });
                    }
                },
            };
            if pids.is_empty() {
                return Ok(vec![(owned.state.init.pid, None)]);
            }
            let exec_of = |pid: u32| {
                owned
                    .state
                    .execs
                    .iter()
                    .find(|(_, e)| e.process.pid == pid)
                    .map(|(exec, _)| exec.clone())
            };
            Ok(pids.into_iter().map(|pid| (pid, exec_of(pid))).collect())
        })?
    }

    /// The container's cgroup. It may have gone, with a systemd scope for instance; then its
    /// figures are zero, as Go's shim has it.
    pub fn cgroup(&self, id: &Id) -> Result<Rc<Cgroup>, ShimError> {
        self.with(id, |owned| owned.cgroup.clone())?.ok_or(ShimError::NoCgroup)
    }

    /// The init's pid, 0 for an unknown container.
    pub fn pid(&self, id: &Id) -> u32 {
        self.with(id, |owned| owned.state.init.pid).unwrap_or(0)
    }

    // ---- Signals and I/O ------------------------------------------------------------------------

    /// Sends a signal to a process, or to all of the container's. A single process gets it through
    /// its pidfd, without a runtime.
    pub async fn kill(
        &self,
        id: &Id,
        exec: Option<&Id>,
        signal: i32,
        all: bool,
    ) -> Result<(), ShimError> {
        let (pid, runtime, cgroup, is_exact) = self.with(id, |owned| {
            owned.is_killed_by_us |= exec.is_none() && signal == libc::SIGKILL;
            let process = process(&owned.state, exec)?;
            if process.exit.is_some() || exec.is_none() && owned.state.held.is_some() {
                return Err(ShimError::Finished);
            }
            if process.pid == 0 {
                return Err(if exec.is_some() {
                    ShimError::NotStarted
                } else {
                    ShimError::NoSuchContainer
                });
            }
            Ok((process.pid, owned.runtime.clone(), owned.cgroup.clone(), owned.keeps_record))
        })??;
        if exec.is_none() && all {
            return self.signal_all(id, &runtime, signal).await.map_err(kill_failure);
        }
        // What the pid is of, a runtime that is not known alone knows: with gVisor's it is the
        // sandbox's.
        if exec.is_none() && !is_exact {
            let arguments = ["kill", id.as_str(), &signal.to_string()];
            return self.runtimes.command(&runtime, &arguments).await.map_err(kill_failure);
        }
        let key = ProcessKey { container: id.clone(), exec: exec.cloned() };
        self.reaper.signal_process(pid, &key, signal).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => ShimError::Finished,
            _ => ShimError::Io { verb: "send the signal", source: e },
        })?;
        // As runc does, which crun does not.
        if let Some(cgroup) = cgroup
            && exec.is_none()
            && signal == libc::SIGKILL
            && let Err(e) = cgroup.thaw()
        {
            log::warn!("thaw a killed container container={id}: {e}");
        }
        Ok(())
    }

    /// Sets the size of a process's console; without a console, or after the exit, it means
    /// nothing.
    pub fn resize(
        &self,
        id: &Id,
        exec: Option<&Id>,
        width: u16,
        height: u16,
    ) -> Result<(), ShimError> {
        let (io, exited) = self.io_of(id, exec)?;
        match io.resize(width, height) {
            Err(_) if exited => Ok(()),
            result => result.map_err(|source| ShimError::Io { verb: "resize the console", source }),
        }
    }

    /// Closes a process's stdin for good, started or not.
    pub fn close_stdin(&self, id: &Id, exec: Option<&Id>) -> Result<(), ShimError> {
        self.io_of(id, exec)?.0.close_stdin();
        Ok(())
    }

    fn io_of(&self, id: &Id, exec: Option<&Id>) -> Result<(Rc<ProcessIo>, bool), ShimError> {
        self.with(id, |owned| {
            let exited = process(&owned.state, exec)?.exit.is_some();
            let io = match exec {
                None => Some(&owned.io),
                Some(exec) => owned.exec_io.get(exec),
            };
            let missing = || Refusal::NoExec(exec.unwrap_or(id).clone());
            Ok((Rc::clone(io.ok_or_else(missing)?), exited))
        })?
    }

    // ---- Pause, Resume, Update ------------------------------------------------------------------

    /// Freezes the container.
    pub async fn pause(self: &Rc<Self>, id: &Id) -> Result<(), ShimError> {
        let transition = self.begin(id, Event::PauseRequested, Verb::Pause)?;
        let result = self.change_freezer(id, FREEZE).await;
        // It may have died meanwhile.
        let dead =
            self.with(id, |owned| owned.cgroup.clone().filter(|_| owned.state.init_has_exited()));
        if let Ok(Some(cgroup)) = dead {
            thaw_dead(id, &cgroup);
        }
        result?;
        transition.succeed(Event::Paused)
    }

    /// Thaws it.
    pub async fn resume(self: &Rc<Self>, id: &Id) -> Result<(), ShimError> {
        let transition = self.begin(id, Event::ResumeRequested, Verb::Resume)?;
        self.change_freezer(id, THAW).await?;
        transition.succeed(Event::Resumed)
    }

    /// Freezes or thaws a container: through its cgroup where that is its own, else the runtime.
    async fn change_freezer(&self, id: &Id, change: Freezer) -> Result<(), ShimError> {
        let Freezer { work, verb, word, context } = change;
        if let Some(cgroup) = self.own_cgroup(id)? {
            let changed = self.in_cgroup(cgroup, work).await;
            return changed.map_err(|source| ShimError::Io { verb, source });
        }
        let runtime = self.with(id, |owned| owned.runtime.clone())?;
        let changed = Box::pin(self.runtimes.command(&runtime, &[word, id.as_str()])).await;
        changed.map_err(|failure| ShimError::Runtime { context, failure })
    }

    /// The cgroup of a container whose runtime tells its state by it, as runc and crun do, if it is
    /// the container's alone.
    fn own_cgroup(&self, id: &Id) -> Result<Option<Rc<Cgroup>>, ShimError> {
        self.with(id, |owned| {
            let direct = owned.direct.clone()?;
            owned.cgroup.clone().filter(|cgroup| direct.owns(id, cgroup))
        })
    }

    /// Signals all processes of a container: SIGKILL through its cgroup where that is its own and
    /// the kernel can, else the runtime.
    async fn signal_all(&self, id: &Id, runtime: &Runtime, signal: i32) -> Result<(), Failure> {
        if signal == libc::SIGKILL
            && let Ok(Some(cgroup)) = self.own_cgroup(id)
            && cgroup.can_kill_all()
            && self.in_cgroup(cgroup, Cgroup::kill_all).await.is_ok()
        {
            return Ok(());
        }
        let number = signal.to_string();
        self.runtimes.command(runtime, &["kill", "--all", id.as_str(), &number]).await
    }

    /// Does something to all processes of a cgroup, in a helper.
    async fn in_cgroup(
        &self,
        cgroup: Rc<Cgroup>,
        work: impl FnOnce(&Cgroup) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let helper = self.in_helper(|| work(&cgroup).map_err(|e| e.to_string()))?;
        self.end_of(helper, CGROUP_DEADLINE).await.map_err(std::io::Error::other)
    }

    /// Changes the container's limits; `resources` is LinuxResources, JSON.
    pub async fn update(self: &Rc<Self>, id: &Id, resources: &[u8]) -> Result<(), ShimError> {
        self.apply(id, Event::UpdateRequested)?;
        let runtime = self.with(id, |owned| owned.runtime.clone())?;
        let result = self.runtimes.update(&runtime, id, resources).await;
        result
            .map_err(|failure| ShimError::Runtime { context: "OCI runtime update failed", failure })
    }

    // ---- Delete ---------------------------------------------------------------------------------

    /// Keeps the answer of a Delete that its caller did not wait for: a second one gets it. At most
    /// `MAX_UNHEARD` of them.
    pub fn keep_unheard(&self, id: &Id, deleted: Deleted) {
        let mut unheard = self.unheard.borrow_mut();
        if unheard.len() >= MAX_UNHEARD {
            unheard.pop_first();
        }
        unheard.insert(id.clone(), deleted);
    }

    /// Deletes the container: I/O drained, `runtime delete`, rootfs unmounted. A second Delete
    /// meanwhile gets the same answer.
    pub async fn delete(self: &Rc<Self>, id: &Id) -> Result<Deleted, ShimError> {
        loop {
            match self.with(id, join_delete) {
                Ok(Some(answer)) => match answer.await {
                    Ok(deleted) => return Ok(deleted),
                    // It failed: this one may fare better.
                    Err(_) => continue,
                },
                Ok(None) => break,
                Err(e) => return self.unheard.borrow_mut().remove(id).ok_or(e),
            }
        }
        let transition = self.begin(id, Event::DeleteRequested, Verb::Delete)?;
        self.delete_parts(id).await?;
        transition.succeed(Event::Deleted)?;
        let Some(Slot::There(owned)) = self.slots.borrow_mut().remove(id) else {
            return Err(ShimError::NotCreated);
        };
        self.waiters.borrow_mut().retain(|key, _| key.container != *id);
        owned.exec_io.values().for_each(|io| io.close());
        let deleted = Deleted { pid: owned.state.init.pid, exit: owned.state.init.exit };
        for waiting in owned.deleters {
            // It may have given up.
            let _ = waiting.send(deleted);
        }
        self.changed.notify_waiters();
        Ok(deleted)
    }

    async fn delete_parts(self: &Rc<Self>, id: &Id) -> Result<(), ShimError> {
        let (runtime, io, bundle, has_mounts, ran, born, keeps_record) =
            self.with(id, |owned| {
                let bundle = Bundle::new(&owned.state.bundle);
                let (ran, born) = (owned.state.init_has_exited(), owned.state.init.pid != 0);
                let (io, keeps_record) = (Rc::clone(&owned.io), owned.keeps_record);
                (owned.runtime.clone(), io, bundle, owned.has_mounts, ran, born, keeps_record)
            })?;
        if ran && !io.drain(DRAIN_LIMIT).await {
            log::warn!(
                "output still open {}s after Delete, closed container={id}",
                DRAIN_LIMIT.as_secs()
            );
        }
        if ran && let Ok(Some(cgroup)) = self.with(id, |owned| owned.cgroup.clone()) {
            thaw_dead(id, &cgroup);
        }
        // Neither runc nor crun needs the rootfs for the rest.
        let removed = match ran {
            true => self.remove_directly(id, &bundle, has_mounts).await,
            false => Ok(false),
        };
        if !keeps_record || runtime.has_record(id) {
            match Box::pin(self.runtimes.delete(&runtime, id, false)).await {
                Err(failure) if !failure.is_unknown_container() => {
                    return Err(ShimError::Runtime { context: "failed to delete task", failure });
                }
                _ => {}
            }
        }
        if !ran && born {
            // The runtime has killed an init that never ran; its exit comes before the delete
            // event.
            let never = CancelToken::default();
            let exit = self.wait(id, None, &never);
            if tokio::time::timeout(EXIT_AFTER_DELETE, exit).await.is_err() {
                log::warn!("init lives on after delete container={id}");
            }
        }
        if !ran {
            io.close();
        }
        if !removed? && has_mounts {
            self.unmount(&bundle).await.map_err(not_unmounted)?;
        }
        Ok(())
    }

    /// Removes what the runtime keeps of a dead container, as far as that goes, and unmounts its
    /// rootfs. `false`: neither was tried.
    async fn remove_directly(
        &self,
        id: &Id,
        bundle: &Bundle,
        has_mounts: bool,
    ) -> Result<bool, ShimError> {
        let (direct, cgroup) =
            self.with(id, |owned| (owned.direct.clone(), owned.cgroup.clone()))?;
        let (Some(direct), Some(cgroup)) = (direct.filter(|direct| direct.removes()), cgroup)
        else {
            return Ok(false);
        };
        let rootfs = has_mounts.then(|| bundle.rootfs());
        let helper = self.in_helper(|| {
            // What stays is seen, and left to the runtime.
            let _ = direct.remove(id, &cgroup);
            rootfs.map_or(Ok(()), |rootfs| unmount_below(&rootfs))
        });
        self.unmounted(helper).await.map_err(not_unmounted)?;
        Ok(true)
    }

    /// Deletes an exec: I/O drained and closed, pid file removed.
    pub async fn delete_exec(self: &Rc<Self>, id: &Id, exec: &Id) -> Result<Deleted, ShimError> {
        let transition = self.begin(
            id,
            Event::ExecDeleteRequested(exec.clone()),
            Verb::DeleteExec(exec.clone()),
        )?;
        let (io, bundle) = self.with(id, |owned| {
            (owned.exec_io.get(exec).cloned(), Bundle::new(&owned.state.bundle))
        })?;
        if let Some(io) = io
            && !io.drain(DRAIN_LIMIT).await
        {
            log::warn!(
                "output still open {}s after Delete, closed container={id} exec={exec}",
                DRAIN_LIMIT.as_secs()
            );
        }
        bundle.remove(&exec_pid(exec));
        let deleted = self.with(id, |owned| {
            owned.exec_io.remove(exec);
            owned.state.process(Some(exec)).map(|p| Deleted { pid: p.pid, exit: p.exit })
        })?;
        transition.succeed(Event::ExecDeleted(exec.clone()))?;
        let key = ProcessKey { container: id.clone(), exec: Some(exec.clone()) };
        self.waiters.borrow_mut().remove(&key);
        deleted.ok_or_else(|| Refusal::NoExec(exec.clone()).into())
    }

    async fn unmount(&self, bundle: &Bundle) -> Result<(), String> {
        self.unmounted(self.in_helper(|| unmount_below(&bundle.rootfs()))).await
    }

    /// The end of a helper that unmounts a rootfs.
    async fn unmounted(&self, helper: std::io::Result<Helper>) -> Result<(), String> {
        self.end_of(helper.map_err(|e| format!("start a helper: {e}"))?, MOUNT_DEADLINE).await
    }

    /// Begins something that may block in the kernel, in a process of its own.
    fn in_helper(&self, work: impl FnOnce() -> Result<(), String>) -> std::io::Result<Helper> {
        tasks::fail_point("helper");
        let (report, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let pid = sys::spawn::helper(write, work)?;
        Ok(Helper { pid, ended: Box::pin(self.reaper.watch_child(pid)), report })
    }

    async fn end_of(&self, helper: Helper, deadline: Duration) -> Result<(), String> {
        match tokio::time::timeout(deadline, helper.ended).await {
            Ok(0) => Ok(()),
            Ok(_) => {
                let mut text = vec![0; 4096];
                let length = rustix::io::read(&helper.report, &mut text).unwrap_or(0);
                text.truncate(length);
                Err(String::from_utf8_lossy(&text).into_owned())
            }
            Err(_) => {
                self.reaper.signal_child(helper.pid, libc::SIGKILL);
                Err(format!("no answer from the kernel in {} s", deadline.as_secs()))
            }
        }
    }

    // ---- Exits ----------------------------------------------------------------------------------

    /// A container's process was reaped: its last bytes go out, then the machine decides what is
    /// published when. Whatever becomes of the rest, its exit gets to the machine.
    pub fn process_exited(self: &Rc<Self>, exited: Exited) {
        let Exited { key: ProcessKey { container, exec }, pid, status } = exited;
        let known =
            |owned: &mut Owned| owned.state.process(exec.as_ref()).map_or(0, |process| process.pid);
        // Of an earlier container of this id, which was deleted before its init was seen to end.
        if self.with(&container, known).is_ok_and(|known| known != 0 && known != pid) {
            return log::warn!(
                "exit of a process of an earlier container container={container} pid={pid}"
            );
        }
        let before = AssertUnwindSafe(|| self.before_exit(&container, exec.as_ref(), status));
        if catch_unwind(before).is_err() {
            log::error!("what comes before an exit failed container={container} pid={pid}");
        }
        let exit = Exit { status, at: Timestamp::now() };
        let event = match exec {
            None => Event::InitExited(exit),
            Some(exec) => Event::ExecExited { exec, exit },
        };
        if self.apply(&container, event).is_err() {
            log::warn!(
                "exit of a process of a container that is gone container={container} pid={pid}"
            );
        }
    }

    fn before_exit(self: &Rc<Self>, id: &Id, exec: Option<&Id>, status: ExitStatus) {
        tasks::fail_point("before exit");
        self.report_oom_kills_at_exit(id, exec.is_none().then_some(status));
        let of_process = self.with(id, |owned| match exec {
            None => (Some(Rc::clone(&owned.io)), owned.cgroup.clone()),
            Some(exec) => (owned.exec_io.get(exec).cloned(), None),
        });
        let (io, cgroup) = of_process.unwrap_or_default();
        if let Some(cgroup) = cgroup {
            thaw_dead(id, &cgroup);
        }
        if let Some(io) = io {
            io.process_exited();
        }
    }

    /// Kills what is left of a container whose processes share somebody else's pid namespace.
    async fn kill_rest(self: Rc<Self>, id: Id) {
        let clearing = self.under_way(&id, Verb::Clear);
        if let Ok(runtime) = self.with(&id, |owned| owned.runtime.clone())
            && let Err(failure) = self.signal_all(&id, &runtime, libc::SIGKILL).await
            && !failure.is_already_finished()
            && !failure.is_unknown_container()
        {
            log::error!("kill all processes container={id}: {failure}");
        }
        self.wait_emptied(&id).await;
        drop(clearing);
    }

    /// The killed die in their own time; the init's exit is told when they have gone.
    async fn wait_emptied(&self, id: &Id) {
        let Ok(Some(cgroup)) = self.with(id, |owned| owned.cgroup.clone()) else { return };
        for _ in 0..CLEAR_LOOKS {
            if cgroup.pids().map_or(true, |pids| pids.is_empty()) {
                return;
            }
            tokio::time::sleep(CLEAR_PAUSE).await;
        }
        log::warn!("processes live on after kill --all container={id}");
    }

    // ---- The machine and its effects ------------------------------------------------------------

    fn with<T>(&self, id: &Id, look: impl FnOnce(&mut Owned) -> T) -> Result<T, ShimError> {
        match self.slots.borrow_mut().get_mut(id) {
            Some(Slot::There(owned)) => Ok(look(owned)),
            Some(Slot::Creating) | None => Err(ShimError::NotCreated),
        }
    }

    /// Applies an event to a container and carries out the effects, in order.
    fn apply(self: &Rc<Self>, id: &Id, event: Event) -> Result<(), ShimError> {
        let name = brief(&event);
        let effects = self.with(id, |owned| owned.state.apply(event))??;
        self.note(&format!("{id} {name}"));
        for effect in effects {
            match effect {
                Effect::Publish(notice) => self.publish(id, notice),
                Effect::AnswerWaiters(exec, exit) => {
                    let key = ProcessKey { container: id.clone(), exec };
                    for waiter in self.waiters.borrow_mut().remove(&key).unwrap_or_default() {
                        // It may have given up.
                        let _ = waiter.send(exit);
                    }
                }
                Effect::KillAll => {
                    tasks::spawn("kill what is left", Rc::clone(self).kill_rest(id.clone()));
                }
                Effect::CutStartsShort => {
                    let (start, exec_starts) =
                        self.with(id, |owned| (owned.start.clone(), owned.exec_starts.clone()))?;
                    tasks::spawn("cut starts short", async move {
                        tokio::time::sleep(EXEC_AFTER_INIT).await;
                        exec_starts.set();
                        tokio::time::sleep(START_AFTER_INIT - EXEC_AFTER_INIT).await;
                        start.set();
                    });
                }
                Effect::RecordExit(exit) => {
                    let bundle = self.with(id, |owned| Bundle::new(&owned.state.bundle))?;
                    if let Err(e) =
                        bundle.write_exit(RecordedExit { status: exit.status, at: exit.at })
                    {
                        log::warn!("exit not recorded container={id}: {}", chain(&e));
                    }
                }
            }
        }
        Ok(())
    }

    fn publish(&self, id: &Id, notice: Notice) {
        let container_id = id.to_string();
        match notice {
            Notice::Start { pid } => {
                self.events.push(Topic::Start, &events::TaskStart { container_id, pid });
            }
            Notice::Exit { exec, pid, exit } => {
                let id = exec.map_or_else(|| container_id.clone(), |exec| exec.to_string());
                let (exit_status, exited_at) = (exit.status, Some(exit.at));
                self.events.push(
                    Topic::Exit,
                    &events::TaskExit { container_id, id, pid, exit_status, exited_at },
                );
            }
            Notice::Delete { pid, exit } => {
                let exit_status = exit.map_or(0, |exit| exit.status);
                let exited_at = Some(exit.map_or(Timestamp::GO_ZERO, |exit| exit.at));
                let id = String::new();
                self.events.push(
                    Topic::Delete,
                    &events::TaskDelete { container_id, pid, exit_status, exited_at, id },
                );
            }
            // One that waits says it for all that come meanwhile.
            Notice::Oom => {
                let last = self.with(id, |owned| owned.last_oom).unwrap_or(0);
                if !self.events.is_waiting(last) {
                    let number =
                        self.events.push(Topic::Oom, &events::TaskContainer { container_id });
                    let _ = self.with(id, |owned| owned.last_oom = number);
                }
            }
            Notice::Checkpointed { image: checkpoint } => {
                self.events.push(
                    Topic::Checkpointed,
                    &events::TaskCheckpointed { container_id, checkpoint },
                );
            }
            Notice::Paused => {
                self.events.push(Topic::Paused, &events::TaskContainer { container_id });
            }
            Notice::Resumed => {
                self.events.push(Topic::Resumed, &events::TaskContainer { container_id });
            }
            Notice::ExecAdded(exec) => {
                let exec_id = exec.to_string();
                self.events
                    .push(Topic::ExecAdded, &events::TaskExec { container_id, exec_id, pid: 0 });
            }
            Notice::ExecStarted { exec, pid } => {
                let exec_id = exec.to_string();
                self.events
                    .push(Topic::ExecStarted, &events::TaskExec { container_id, exec_id, pid });
            }
        }
    }

    fn note(&self, text: &str) {
        log::debug!("{text}");
        crate::sys::watchdog::note(&["did ", text]);
        self.ring.borrow_mut().push(text);
    }

    // ---- The end --------------------------------------------------------------------------------

    /// Ends the shim if no container is left. If one is, the shim remembers, and ends when the last
    /// has gone.
    pub fn shutdown(&self) {
        self.shutdown_asked.set(true);
        if self.slots.borrow().is_empty() {
            self.ended.set(true);
            self.changed.notify_waiters();
        } else {
            self.doubt();
        }
    }

    /// It ends: no Create is taken any more.
    pub fn end(&self) {
        self.ended.set(true);
    }

    fn ids(&self) -> Vec<Id> {
        self.slots.borrow().keys().cloned().collect()
    }

    /// Resolves when the shim is to end.
    pub async fn until_unneeded(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before we look, so that no change is missed.
            changed.as_mut().enable();
            if self.ended.get() {
                return;
            }
            if self.shutdown_asked.get() && self.slots.borrow().is_empty() {
                if tokio::time::timeout(LINGER, changed).await.is_err()
                    && self.slots.borrow().is_empty()
                {
                    return;
                }
            } else {
                changed.await;
            }
        }
    }

    /// A container may be given up: nobody heard that it was created, or a Shutdown came all the
    /// same.
    pub fn doubt(&self) {
        self.doubtful.set(true);
        self.changed.notify_waiters();
    }

    /// Resolves when there is no container, or when those that are there may be given up.
    pub async fn until_doubtful(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_empty() || self.doubtful.take() {
                return;
            }
            changed.await;
        }
    }

    /// Deletes containers that do not run and whose bundle containerd has removed: it was killed
    /// during their Create, found no task when it was started again, and cleared up as the runtime
    /// finished its work. Nobody will ever send their Delete.
    pub async fn delete_given_up(self: &Rc<Self>) {
        let given_up = |slot: &Slot| match slot {
            Slot::There(owned) => {
                matches!(owned.state.status, Status::Created | Status::Stopped)
                    && Bundle::new(&owned.state.bundle).is_gone()
            }
            Slot::Creating => false,
        };
        let ids: Vec<Id> = self
            .slots
            .borrow()
            .iter()
            .filter(|(_, slot)| given_up(slot))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            log::warn!("its bundle was removed: the container is deleted container={id}");
            if let Err(e) = self.delete(&id).await {
                log::warn!("delete a container without bundle container={id}: {}", chain(&e));
            }
        }
    }

    /// Whether there is no container, created or being created.
    pub fn is_empty(&self) -> bool {
        self.slots.borrow().is_empty()
    }

    /// All that is known, as lines for people.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (id, slot) in self.slots.borrow().iter() {
            let Slot::There(owned) = slot else {
                lines.push(format!("container {id} is being created"));
                continue;
            };
            let s = &owned.state;
            lines.push(format!(
                "container {id} status={:?} pid={} pid_namespace={:?} exit={:?} held={:?} clearing={} bundle={}",
                s.status,
                s.init.pid,
                s.pid_namespace,
                s.init.exit.map(|e| e.status),
                s.held.map(|e| e.status),
                s.clearing,
                s.bundle.display()
            ));
            lines.extend(owned.io.describe().into_iter().map(|line| format!("  {line}")));
            for (exec, e) in &s.execs {
                let exit = e.process.exit.map(|e| e.status);
                lines.push(format!(
                    "  exec {exec} phase={:?} pid={} exit={exit:?}",
                    e.phase, e.process.pid
                ));
                let io = owned.exec_io.get(exec);
                lines.extend(
                    io.iter().flat_map(|io| io.describe()).map(|line| format!("    {line}")),
                );
            }
        }
        let waiters: usize = self.waiters.borrow().values().map(Vec::len).sum();
        lines.push(format!("containers={} waiters={waiters}", self.slots.borrow().len()));
        lines.extend(self.reaper.describe());
        lines.push(self.events.describe());
        lines.extend(self.ring.borrow().lines().map(|text| format!("transition {text}")));
        lines
    }
}

/// The last transitions, a line each. One allocation for ever: small ones made in the middle of a
/// burst would each keep a page of the heap from going back to the kernel.
#[derive(Default)]
struct Ring(Vec<u8>);

impl Ring {
    fn push(&mut self, line: &str) {
        if self.0.capacity() == 0 {
            self.0.reserve_exact(RING);
        }
        let bytes = &line.as_bytes()[..line.len().min(RING / 16)];
        while self.0.len() + bytes.len() + 1 > RING {
            // The older half goes, up to the end of a line.
            let half = self.0.len() / 2;
            let end = self.0[half..]
                .iter()
                .position(|b| *b == b'\n')
                .map_or(self.0.len(), |at| half + at + 1);
            self.0.drain(..end);
        }
        self.0.extend_from_slice(bytes);
        self.0.push(b'\n');
    }

    fn lines(&self) -> impl Iterator<Item = std::borrow::Cow<'_, str>> {
        self.0.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(String::from_utf8_lossy)
    }
}

/// An event for the record: without what it carries if that is long.
fn brief(event: &Event) -> String {
    struct Brief(String);
    impl std::fmt::Write for Brief {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            const MOST: usize = 200;
            if self.0.len() + text.len() > MOST {
                // Ends the formatting: a process spec would be some ten KiB.
                return Err(std::fmt::Error);
            }
            self.0.push_str(text);
            Ok(())
        }
    }
    let mut brief = Brief(String::new());
    match std::fmt::Write::write_fmt(&mut brief, format_args!("{event:?}")) {
        Ok(()) => brief.0,
        Err(_) => brief.0.split('{').next().unwrap_or_default().to_owned(),
    }
}

/// A process that does something for us and ends.
struct Helper {
    pid: u32,
    ended: std::pin::Pin<Box<dyn Future<Output = ExitStatus>>>,
    /// What it says if it fails.
    report: OwnedFd,
}

/// The id of a container that is being created. Frees it again if Create fails, and undoes what a
/// Create has done that comes to no end of its own.
struct Reservation {
    shim: Rc<Shim>,
    id: Id,
    runtime: Runtime,
    bundle: Bundle,
    may_be_mounted: Cell<bool>,
    may_be_known: Cell<bool>,
    is_settled: Cell<bool>,
}

impl Reservation {
    /// Create has made it, or has undone what it had done.
    fn settle(self, is_made: bool) {
        self.is_settled.set(true);
        if !is_made {
            self.shim.free(&self.id);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.is_settled.get() {
            return;
        }
        let (shim, id) = (Rc::clone(&self.shim), self.id.clone());
        let (may_be_known, may_be_mounted) = (self.may_be_known.get(), self.may_be_mounted.get());
        if !may_be_known && !may_be_mounted {
            return shim.free(&id);
        }
        let (runtime, bundle) = (self.runtime.clone(), self.bundle.clone());
        tasks::spawn("undo of a create", async move {
            log::error!("a create has come to no end, and is undone container={id}");
            if may_be_known {
                shim.undo_create(&runtime, &bundle, &id).await;
            }
            if may_be_mounted && let Err(reason) = shim.unmount(&bundle).await {
                log::warn!("unmount after a failed create container={id}: {reason}");
            }
            shim.free(&id);
        });
    }
}

/// A file of the bundle that goes when this does.
struct Removed<'a>(&'a Bundle, &'a str);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        self.0.remove(self.1);
    }
}

fn process<'a>(
    state: &'a Container,
    exec: Option<&Id>,
) -> Result<&'a crate::container::Process, ShimError> {
    state.process(exec).ok_or_else(|| match exec {
        Some(exec) => Refusal::NoExec(exec.clone()).into(),
        None => ShimError::NotCreated,
    })
}

/// The answer of a Delete that is under way already.
fn join_delete(owned: &mut Owned) -> Option<oneshot::Receiver<Deleted>> {
    if owned.state.status != Status::Deleting {
        return None;
    }
    let (sender, receiver) = oneshot::channel();
    owned.deleters.push(sender);
    Some(receiver)
}

/// An init that died frozen, or that is frozen after its death, cannot be deleted on v2.
fn thaw_dead(id: &Id, cgroup: &Cgroup) {
    if let Err(e) = cgroup.thaw_dead() {
        log::warn!("thaw a dead container container={id}: {e}");
    }
}

/// Refuses what would take one of the last descriptors.
fn has_room_for_a_process() -> Result<(), ShimError> {
    if sys::fd::has_room_for_a_process() {
        return Ok(());
    }
    let source = std::io::Error::from_raw_os_error(libc::EMFILE);
    Err(ShimError::Io { verb: "start a process", source })
}

/// A change of a container's freezer: by us, and by the runtime.
struct Freezer {
    work: fn(&Cgroup) -> std::io::Result<()>,
    verb: &'static str,
    word: &'static str,
    context: &'static str,
}

const FREEZE: Freezer = Freezer {
    work: Cgroup::freeze,
    verb: "freeze the container",
    word: "pause",
    context: "OCI runtime pause failed",
};
const THAW: Freezer = Freezer {
    work: Cgroup::thaw,
    verb: "thaw the container",
    word: "resume",
    context: "OCI runtime resume failed",
};

fn not_unmounted(reason: String) -> ShimError {
    ShimError::Rootfs { context: "failed rootfs umount", reason }
}

/// In a helper.
fn unmount_below(rootfs: &std::path::Path) -> Result<(), String> {
    match mount::unmount_below(rootfs) {
        None => Ok(()),
        Some((point, errno)) => Err(format!(
            "unmount {}: {}",
            point.display(),
            std::io::Error::from_raw_os_error(errno)
        )),
    }
}

fn kill_failure(failure: Failure) -> ShimError {
    if failure.is_already_finished() {
        ShimError::Finished
    } else if failure.is_unknown_container() {
        ShimError::NoSuchContainer
    } else {
        ShimError::Runtime { context: "unknown error after kill", failure }
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
