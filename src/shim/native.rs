//! Execs without the runtime (`native/`), where the container wants it and it is possible.

use super::Shim;
use crate::{
    bundle::{Bundle, INIT_PID, SECCOMP, read_bounded},
    cgroups::{self, Cgroup},
    container::Status,
    exits::{BirthGuard, ProcessKey, parent_of},
    id::Id,
    io::ChildEnds,
    native::{self, Compared, Known, Stage, filters},
    runtime::{self, FileId},
    sys::{
        self,
        enter::{Left, SealedSelf},
        process::ExitStatus,
        program::Program,
    },
    tasks,
};
use rustix::{
    fs::{Mode, OFlags},
    pipe::{PipeFlags, pipe_with},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    pin::pin,
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::Interest,
    time::{Instant, timeout, timeout_at},
};

/// How long an exec may take until its program runs: it waits for nothing but a file system that
/// hangs.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile: whether the container was frozen, whether the program runs
/// although somebody holds its pipe.
const LOOK: Duration = Duration::from_millis(50);
/// How long the dying may take, of its own accord, and after it was taken out of a frozen cgroup.
const DYING: Duration = Duration::from_millis(100);
const DEAD: Duration = Duration::from_secs(2);
/// How long the helper may take that reads the init's seccomp filters: the init waits in a system
/// call, and stops at once.
const KEEP_DEADLINE: Duration = Duration::from_secs(2);
/// How long `runc --version` may take.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// After something that execs share could not be made, it is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// Most bytes of what it says that are looked at.
const MAX_VERSION: usize = 512;
/// Most runtimes whose versions are kept: more than any configuration has.
const MAX_RUNTIMES: usize = 16;
/// Most bytes of /proc/PID/cgroup.
const MAX_CGROUPS: u64 = 64 << 10;

/// What execs share, made when the first container wants them.
#[derive(Default)]
pub(super) struct Native {
    /// The helper's binary.
    sealed: RefCell<Option<Rc<OwnedFd>>>,
    copying: Making,
    versions: RefCell<HashMap<PathBuf, Version>>,
    asking: Making,
}

/// What a runtime has said of itself when its file was this one.
struct Version {
    file: FileId,
    compared: Option<Compared>,
}

/// Something that one task at a time makes.
#[derive(Default)]
struct Making {
    goes_on: Cell<bool>,
    failed: Cell<Option<Instant>>,
}

/// That it goes on; no longer when the task has ended, however it has ended.
struct Turn<'a>(&'a Making);

impl Making {
    fn is_due(&self) -> bool {
        !self.goes_on.get() && self.failed.get().is_none_or(|at| at.elapsed() >= AGAIN)
    }

    fn begin(&self) -> Option<Turn<'_>> {
        (!self.goes_on.replace(true)).then(|| {
            self.failed.set(Some(Instant::now()));
            Turn(self)
        })
    }
}

impl Turn<'_> {
    fn succeed(self) {
        self.0.failed.set(None);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.goes_on.set(false);
    }
}

/// An exec that is on its way into the container.
struct Entry {
    cgroup: Rc<Cgroup>,
    until: Instant,
}

impl Shim {
    /// A container was created whose execs are to be native, and waits for its start.
    pub(super) async fn prepare_native(
        self: &Rc<Self>,
        id: &Id,
        bundle: &Bundle,
        has_seccomp: bool,
        runtime: &str,
    ) {
        self.sealed();
        self.compared(runtime);
        if has_seccomp {
            self.keep_filters(id, bundle).await;
        }
    }

    /// Keeps the seccomp filters of an init that waits for its start. Without them the execs are
    /// the runtime's.
    async fn keep_filters(&self, id: &Id, bundle: &Bundle) {
        let Ok(init) = bundle.pid(INIT_PID) else { return };
        let helper = self.in_helper(|| filters::keep(init, bundle).map_err(|e| super::chain(&e)));
        let kept = match helper {
            Ok(helper) => self.end_of(helper, KEEP_DEADLINE).await,
            Err(e) => Err(e.to_string()),
        };
        if let Err(reason) = kept {
            log::warn!(
                "seccomp filters not kept, execs will not be native container={id}: {reason}"
            );
        }
    }

    /// The helper's binary, if it is there; if not, it is made, and this exec is the runtime's.
    fn sealed(self: &Rc<Self>) -> Option<Rc<OwnedFd>> {
        let sealed = self.native.sealed.borrow().clone();
        if sealed.is_none() && self.native.copying.is_due() {
            let shim = Rc::clone(self);
            tasks::spawn("copy of the binary", async move {
                let Some(turn) = shim.native.copying.begin() else { return };
                match copy_self().await {
                    Ok(sealed) => {
                        *shim.native.sealed.borrow_mut() = Some(Rc::new(sealed));
                        turn.succeed();
                    }
                    Err(e) => log::warn!("no execs without the runtime: copy the binary: {e}"),
                }
            });
        }
        sealed
    }

    /// What the runtime's version is known for; while that is not known it is asked, and this exec
    /// is the runtime's.
    fn compared(self: &Rc<Self>, runtime: &str) -> Option<Compared> {
        let (path, file) = runtime::find(runtime)?;
        if let Some(known) =
            self.native.versions.borrow().get(&path).filter(|known| known.file == file)
        {
            return known.compared;
        }
        if self.native.asking.is_due() {
            let shim = Rc::clone(self);
            tasks::spawn("version of a runtime", async move {
                let Some(turn) = shim.native.asking.begin() else { return };
                match shim.ask_version(&path).await {
                    Ok(text) => {
                        let version = Version { file, compared: native::compared(&text) };
                        let line = text.lines().next().unwrap_or_default();
                        log::info!(
                            "runtime={} is {line:?}: native execs {}",
                            path.display(),
                            if version.compared.is_some() {
                                "possible"
                            } else {
                                "not, this version was not compared"
                            }
                        );
                        let mut versions = shim.native.versions.borrow_mut();
                        if versions.len() >= MAX_RUNTIMES {
                            versions.clear();
                        }
                        versions.insert(path, version);
                        turn.succeed();
                    }
                    Err(reason) => log::warn!("version of runtime={}: {reason}", path.display()),
                }
            });
        }
        None
    }

    async fn ask_version(&self, runtime: &Path) -> Result<String, String> {
        let said = sys::fd::memory_file(c"runtime-version").map_err(|e| e.to_string())?;
        let streams = [None, Some(said.try_clone().map_err(|e| e.to_string())?), None];
        let mut program = Program::new(runtime);
        program.arg("--version");
        let started = self.reaper.turn().await.start(&program, streams, &[]).await;
        let (pid, ended) = started.map_err(|e| e.to_string())?;
        match timeout(VERSION_DEADLINE, ended).await {
            Ok(0) => {}
            Ok(status) => return Err(format!("status {status}")),
            Err(_) => {
                self.reaper.signal_child(pid, libc::SIGKILL);
                return Err("no answer".to_owned());
            }
        }
        let mut text = vec![0; MAX_VERSION];
        let length = rustix::io::pread(&said, &mut text, 0).map_err(|e| e.to_string())?;
        text.truncate(length);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Starts an exec by the helper. `None`: no program has run, nor will, and the runtime must do
    /// it. The guard of the birth is as with the runtime's.
    pub(super) async fn exec_natively(
        self: &Rc<Self>,
        id: &Id,
        exec: &Id,
        spec: &[u8],
        ends: &ChildEnds,
    ) -> Option<(u32, BirthGuard)> {
        if !self.with(id, |owned| owned.native_exec).ok()? {
            return None;
        }
        let birth = self.reaper.birth();
        match self.run_helper(id, spec, ends).await {
            Ok(pid) => Some((pid, birth)),
            Err(reason) => {
                log::debug!("exec by the runtime container={id} exec={exec}: {reason}");
                None
            }
        }
    }

    async fn run_helper(
        self: &Rc<Self>,
        id: &Id,
        spec: &[u8],
        ends: &ChildEnds,
    ) -> Result<u32, String> {
        let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        let (bundle, runtime, options, cgroup, init, status) = self
            .with(id, |owned| {
                let state = &owned.state;
                (
                    Bundle::new(&state.bundle),
                    owned.runtime.binary().to_owned(),
                    owned.options.clone(),
                    owned.cgroup.clone(),
                    state.init.pid,
                    state.status,
                )
            })
            .map_err(|e| e.to_string())?;
        let cgroup = cgroup.ok_or("an unknown cgroup")?;
        if status != Status::Running || is_frozen(&cgroup) {
            return Err("the container is not running, or frozen".to_owned());
        }
        let filters = bundle.open(SECCOMP).ok();
        let known = Known {
            binary: &runtime,
            compared: self.compared(&runtime),
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            knows_filters: filters.is_some(),
            open_files_raised: sys::process::has_all_open_files(),
            labelled_alike: sys::process::is_labelled_as_we_are(init),
            is_apart: is_apart(init),
        };
        let config = bundle.config_text().map_err(|e| super::chain(&e))?;
        let mut plan = native::decide(&config, spec, id.as_str(), &known)?;
        let binary = self.sealed().ok_or("no copy of the binary yet")?;
        let key = ProcessKey { container: id.clone(), exec: None };
        let init_fd = self.reaper.pidfd_of(init, &key).ok_or("no pidfd of the init")?;
        // A hierarchy in which it cannot be moved is the runtime's business: outside of it the
        // program would have no limits.
        let joins = Joining::of(init, &cgroup).map_err(failed("find the cgroups"))?;
        (plan.tasks, plan.unified) = (joins.tasks.len(), joins.unified.is_some());
        let board = native::board(&joins.text, &plan)?;
        let board = sys::fd::input(&board).map_err(failed("keep the plan"))?;
        let (wait, go) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("pipe")(e.into()))?;
        rustix::io::ioctl_fionbio(&go, true).map_err(|e| failed("pipe")(e.into()))?;
        let again = |fd: &OwnedFd| fd.try_clone().map_err(failed("duplicate a descriptor"));
        let mut descriptors = vec![again(&board)?, wait, init_fd, again(&binary)?];
        descriptors.extend(filters.filter(|_| plan.seccomp).map(OwnedFd::from));
        descriptors.extend(joins.tasks);
        descriptors.extend(joins.unified);
        let streams = ends.duplicate().map_err(failed("duplicate the pipes"))?.into_streams();
        let mut program = Program::new(format!("/proc/self/fd/{}", native::descriptors::BINARY));
        program.name(native::NAME).env_clear();
        let started = self.reaper.turn().await.start(&program, streams, &descriptors).await;
        drop(descriptors);
        let (pid, ended) = started.map_err(|e| {
            // Whoever gets hold of it may take its mode away, on old kernels.
            self.native.sealed.borrow_mut().take();
            failed("start the helper")(e)
        })?;
        let entry = Entry { cgroup, until: Instant::now() + DEADLINE };
        let entered = self.enter(&entry, pid, ended, &board, go).await;
        if entered.is_err()
            && let Some(left) = Left::read(board.as_fd()).ok().and_then(|left| left.process)
        {
            return match self.end_process(&entry, left).await {
                Stage::Program => Ok(left),
                _ => entered,
            };
        }
        entered
    }

    /// Waits for the helpers, gives the process its go-ahead, and waits until it is the program.
    async fn enter(
        &self,
        entry: &Entry,
        helper: u32,
        ended: impl Future<Output = ExitStatus>,
        board: &OwnedFd,
        go: OwnedFd,
    ) -> Result<u32, String> {
        let left = || Left::read(board.as_fd()).map_err(|e| format!("read the board: {e}"));
        if let Err(reason) = self.end_helper(entry, helper, ended, &left).await {
            // It may have had its second just before.
            if let Some(second) = left()?.helper {
                self.end_process(entry, second).await;
            }
            return Err(reason);
        }
        if let Some(second) = left()?.helper {
            self.end_helper(entry, second, self.reaper.watch_child(second), &left).await?;
        }
        let process = left()?.process.ok_or_else(|| "no process".to_owned())?;
        if !sys::process::is_child(process) || native::stage_of(process) != Stage::Before {
            return Err("the process has gone".to_owned());
        }
        let go = sys::fd::watch(Rc::new(go), Interest::ERROR)
            .map_err(|e| format!("watch the pipe: {e}"))?;
        // An error: the container has filled the pipe, or closed it for the process.
        rustix::io::write(go.get_ref(), b"g").map_err(|e| format!("give the go-ahead: {e}"))?;
        loop {
            // In error when nobody has the other end: execve(2) closes it, after it has cleared the
            // flag, and so does a death. Who holds it open in the container, or closes it for the
            // process, betrays nobody: the flag counts.
            let closed = timeout(LOOK, go.ready(Interest::ERROR)).await.is_ok();
            match native::stage_of(process) {
                Stage::Program => return Ok(process),
                Stage::Never => return Err("the process has ended".to_owned()),
                Stage::Before if closed => return Err("the process has given up".to_owned()),
                Stage::Before => {
                    entry.check()?;
                    // Somebody else may have read it. More than one does no harm.
                    let _ = rustix::io::write(go.get_ref(), b"g");
                }
            }
        }
    }

    /// Waits for the end of a helper. Afterwards it has ended, or is as good as dead.
    async fn end_helper(
        &self,
        entry: &Entry,
        pid: u32,
        ended: impl Future<Output = ExitStatus>,
        left: &impl Fn() -> Result<Left, String>,
    ) -> Result<(), String> {
        let mut ended = pin!(ended);
        loop {
            match timeout_at(entry.until.min(Instant::now() + LOOK), &mut ended).await {
                Ok(0) => return Ok(()),
                Ok(status) => {
                    let reason = left()?.text;
                    return Err(if reason.is_empty() {
                        format!("the helper ended with status {status}")
                    } else {
                        reason
                    });
                }
                Err(_) => {
                    if let Err(reason) = entry.check() {
                        self.reaper.signal_child(pid, libc::SIGKILL);
                        self.see_dead(entry, pid, ended).await;
                        return Err(reason);
                    }
                }
            }
        }
    }

    /// Kills a process that is not to become a program: how far it has come.
    async fn end_process(&self, entry: &Entry, pid: u32) -> Stage {
        if !sys::process::is_child(pid) {
            return Stage::Never;
        }
        let _ = sys::process::signal_child(pid, libc::SIGKILL);
        let ended = async {
            if let Ok(Some(pidfd)) = sys::process::pidfd(pid)
                && let Ok(pidfd) = sys::fd::watch(Rc::new(pidfd), Interest::READABLE)
            {
                let _ = pidfd.readable().await;
            }
        };
        self.see_dead(entry, pid, pin!(ended)).await;
        native::stage_of(pid)
    }

    /// Waits until somebody who was killed is dead. In a frozen v1 cgroup a signal waits: it is
    /// taken out.
    async fn see_dead<T>(
        &self,
        entry: &Entry,
        pid: u32,
        mut ended: std::pin::Pin<&mut impl Future<Output = T>>,
    ) {
        if timeout(DYING, &mut ended).await.is_ok() {
            return;
        }
        if let Some(list) = entry.way_out() {
            let shim = std::process::id();
            let errand = move || {
                if parent_of(pid) == Some(shim) {
                    let _ = cgroups::enter(&list, pid);
                }
            };
            match sys::spawn::errand(errand) {
                Ok(errand) => drop(self.reaper.watch_child(errand)),
                Err(e) => log::warn!("take a killed process out of a frozen cgroup pid={pid}: {e}"),
            }
        }
        if timeout(DEAD, ended).await.is_err() {
            log::warn!("a killed process does not die pid={pid}");
        }
    }
}

impl Entry {
    /// Whether there is a reason to wait no more.
    fn check(&self) -> Result<(), String> {
        if is_frozen(&self.cgroup) {
            return Err("the container is frozen".to_owned());
        }
        if Instant::now() >= self.until {
            return Err("it does not come to an end".to_owned());
        }
        Ok(())
    }

    /// Where whoever is frozen in the container's v1 cgroup dies: in ours.
    fn way_out(&self) -> Option<PathBuf> {
        if matches!(*self.cgroup, Cgroup::V2(_)) {
            return None;
        }
        Some(
            Cgroup::of_process(std::process::id()).ok()?.directory("freezer")?.join("cgroup.procs"),
        )
    }
}

/// What the helper is given to join the container's cgroups.
struct Joining {
    /// What it must find of itself then.
    text: Vec<u8>,
    tasks: Vec<OwnedFd>,
    unified: Option<OwnedFd>,
}

impl Joining {
    /// An error where the init has moved since it was made, or one of its cgroups cannot be joined.
    fn of(init: u32, cgroup: &Cgroup) -> io::Result<Self> {
        let text = read_bounded(Path::new(&format!("/proc/{init}/cgroup")), MAX_CGROUPS)?;
        let now = Cgroup::of_process(init)?;
        if has_moved(cgroup, &now) {
            return Err(io::Error::other("the init has moved"));
        }
        let joins = now.not_joined_by(&Cgroup::of_process(std::process::id())?)?;
        let open = |path: PathBuf, flags| {
            Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
        };
        let tasks = joins.v1.iter().map(|directory| open(directory.join("tasks"), OFlags::WRONLY));
        Ok(Self {
            text,
            tasks: tasks.collect::<io::Result<_>>()?,
            unified: joins
                .unified
                .map(|path| open(path, OFlags::PATH | OFlags::DIRECTORY))
                .transpose()?,
        })
    }
}

/// Whether an init has left one of the cgroups that it was made in. A hierarchy that was mounted
/// since then has it in its root.
fn has_moved(made: &Cgroup, now: &Cgroup) -> bool {
    match (made, now) {
        (Cgroup::V1(made), Cgroup::V1(now)) => made.iter().any(|entry| !now.contains(entry)),
        _ => made != now,
    }
}

/// Whether it is, or is about to be, whoever does it.
fn is_frozen(cgroup: &Cgroup) -> bool {
    let Some(directory) = cgroup.directory("freezer") else { return false };
    let text = |file: &str| {
        let bytes = read_bounded(&directory.join(file), 4096).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    match cgroup {
        Cgroup::V1(_) => !matches!(text("freezer.state").trim(), "THAWED" | ""),
        Cgroup::V2(_) => {
            text("cgroup.freeze").trim() == "1"
                || text("cgroup.events").lines().any(|line| line == "frozen 1")
        }
    }
}

/// Whether a process has a mount and a pid namespace of its own, and our user namespace. In ours
/// there would be nothing between the container and us.
fn is_apart(pid: u32) -> bool {
    let of =
        |process: &str, kind: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}")).ok();
    let init = pid.to_string();
    let differs = |kind: &str| match (of(&init, kind), of("self", kind)) {
        (Some(theirs), Some(ours)) => Some(theirs != ours),
        _ => None,
    };
    differs("mnt") == Some(true) && differs("pid") == Some(true) && differs("user") == Some(false)
}

async fn copy_self() -> io::Result<OwnedFd> {
    let mut copy = SealedSelf::begin()?;
    while copy.go_on()? {
        tokio::task::yield_now().await;
    }
    copy.sealed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_that_is_mounted_later_moves_nobody() {
        let v1 = |entries: &[(&str, &str)]| {
            Cgroup::V1(
                entries.iter().map(|(name, path)| ((*name).into(), (*path).into())).collect(),
            )
        };
        let made = v1(&[("cpu", "/cpu/a"), ("pids", "/pids/a")]);
        assert!(!has_moved(&made, &made));
        assert!(!has_moved(
            &made,
            &v1(&[("net_cls", "/net_cls"), ("pids", "/pids/a"), ("cpu", "/cpu/a")])
        ));
        assert!(has_moved(&made, &v1(&[("cpu", "/cpu/a"), ("pids", "/pids/b")])));
        assert!(has_moved(&made, &v1(&[("cpu", "/cpu/a")])));
        assert!(
            has_moved(&made, &Cgroup::V2("/a".into()))
                && has_moved(&Cgroup::V2("/b".into()), &Cgroup::V2("/a".into()))
        );
    }
}
