//! What was left behind, and the proof of each. `cleat gc --help` states the rules.

use crate::{
    args::Places,
    client::{Client, PATIENCE},
    config,
    node::{self, Shim},
    process::started,
    run_place,
};
use anyhow::{Context, Result, bail};
use cleat::protocol::{Empty, task as api};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// What is younger than this may be on its way: a socket is bound before anybody listens on it.
const YOUNG: Duration = Duration::from_secs(60);
/// How long a shim that was asked to end may take.
const END: Duration = Duration::from_secs(10);

/// Something that nobody needs any more.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Orphan {
    Socket { path: PathBuf },
    Shim { pid: u32, id: String, socket: PathBuf },
    State { id: String, root: PathBuf },
    Mount { path: PathBuf },
    Run { id: String },
}

impl std::fmt::Display for Orphan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket { path } => write!(f, "socket {}: nobody listens", path.display()),
            Self::Shim { pid, id, .. } => {
                write!(f, "shim {pid} ({id}): no container, no bundle, no client")
            }
            Self::State { id, root } => {
                write!(
                    f,
                    "state of {id} in {}: its process has ended, its bundle is gone",
                    root.display()
                )
            }
            Self::Mount { path } => write!(f, "mount {}: its bundle is gone", path.display()),
            Self::Run { id } => {
                write!(f, "container {id} of a `cleat run` that was killed: it has ended")
            }
        }
    }
}

/// Everything that is orphaned now.
pub(crate) fn find(places: &Places, shims: &[Shim]) -> Vec<Orphan> {
    let mut found: Vec<Orphan> = sockets(places);
    found.extend(
        shims
            .iter()
            .filter(|shim| shim.bundle.starts_with(&places.state))
            .filter_map(orphaned_shim),
    );
    found.extend(states(places, shims));
    found.extend(mounts(places, shims));
    found.extend(
        run_place::left(shims)
            .into_iter()
            .filter(|left| !left.lives)
            .map(|left| Orphan::Run { id: left.id }),
    );
    found
}

/// What `--state` names is there: an empty answer would be taken for "nothing is orphaned".
pub(crate) fn check_places(places: &Places) -> Result<()> {
    fs::read_dir(&places.state).map(drop).with_context(|| {
        format!("containerd's state directory {} (--state names another)", places.state.display())
    })
}

fn sockets(places: &Places) -> Vec<Orphan> {
    let entries = fs::read_dir(&places.sockets).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| is_dead_socket(path)).collect();
    paths.sort();
    paths.into_iter().map(|path| Orphan::Socket { path }).collect()
}

fn is_dead_socket(path: &Path) -> bool {
    let Ok(about) = fs::symlink_metadata(path) else { return false };
    about.file_type().is_socket() && is_old(&about) && !cleat::start::is_alive(path)
}

/// The lock that `start` takes before it looks at a socket, removes a dead one and binds its own;
/// freed when the descriptor closes.
fn lock(directory: &Path) -> Result<OwnedFd> {
    use rustix::fs::{FlockOperation, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty())?;
    let end = Instant::now() + PATIENCE;
    while rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > end {
            bail!("somebody holds the lock of {}", directory.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(fd)
}

fn is_old(about: &fs::Metadata) -> bool {
    about.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > YOUNG)
}

fn orphaned_shim(shim: &Shim) -> Option<Orphan> {
    let is_orphaned = shim.bundle_gone
        && shim.connections == 0
        && shim.problem.is_none()
        && shim.containers.is_empty()
        && shim.age_seconds > YOUNG.as_secs();
    is_orphaned.then(|| Orphan::Shim {
        pid: shim.pid,
        id: shim.id.clone(),
        socket: shim.socket.clone().unwrap_or_default(),
    })
}

/// The part of runc's state.json that tells whether anybody lives.
#[derive(Deserialize)]
struct State {
    init_process_pid: u32,
    init_process_start: u64,
    #[serde(default)]
    cgroup_paths: BTreeMap<String, PathBuf>,
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    labels: Vec<String>,
}

fn states(places: &Places, shims: &[Shim]) -> Vec<Orphan> {
    let mut found = Vec::new();
    for namespace in fs::read_dir(places.state.join("runc")).into_iter().flatten().flatten() {
        for container in fs::read_dir(namespace.path()).into_iter().flatten().flatten() {
            let Ok(id) = container.file_name().into_string() else { continue };
            if !is_known(&id, shims) && is_dead_state(&container.path()) {
                found.push(Orphan::State { id, root: namespace.path() });
            }
        }
    }
    found
}

/// Its first process has ended, its cgroups are empty, and its bundle is gone.
fn is_dead_state(directory: &Path) -> bool {
    let path = directory.join("state.json");
    let read = || {
        let about = fs::metadata(&path).ok()?;
        let text = cleat::bundle::read_bounded(&path, 16 << 20).ok()?;
        Some((about, serde_json::from_slice::<State>(&text).ok()?))
    };
    let Some((about, state)) = read() else { return false };
    let bundle = state.config.labels.iter().find_map(|label| label.strip_prefix("bundle="));
    let is_empty = |path: &PathBuf| {
        fs::read_to_string(path.join("cgroup.procs")).map_or(true, |pids| pids.trim().is_empty())
    };
    is_old(&about)
        && started(state.init_process_pid) != Some(state.init_process_start)
        && state.cgroup_paths.values().all(is_empty)
        && bundle.is_some_and(|bundle| matches!(Path::new(bundle).try_exists(), Ok(false)))
}

/// A shim has it, or one that does not answer may have it.
fn is_known(id: &str, shims: &[Shim]) -> bool {
    shims.iter().any(|shim| {
        shim.problem.is_some() || shim.containers.iter().any(|container| container.id == id)
    })
}

fn mounts(places: &Places, shims: &[Shim]) -> Vec<Orphan> {
    let tasks = places.state.join("io.containerd.runtime.v2.task");
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = text
        .lines()
        .filter_map(MountLine::read)
        .filter(|mount| is_dead_mount(&mount.point, &tasks, shims));
    let mounts: Vec<MountLine> = mounts.collect();
    if mounts.is_empty() {
        return Vec::new();
    }
    let roots = roots();
    mounts
        .into_iter()
        .filter(|mount| !roots.contains(&mount.what))
        .map(|mount| Orphan::Mount { path: mount.point })
        .collect()
}

/// A line of mountinfo (proc_pid_mountinfo(5)).
struct MountLine {
    /// Device, and the directory of its file system that is mounted: the same in all namespaces.
    what: (String, String),
    point: PathBuf,
}

impl MountLine {
    fn read(line: &str) -> Option<Self> {
        let mut fields = line.split(' ').skip(2).map(str::to_owned);
        let what = (fields.next()?, fields.next()?);
        Some(Self { what, point: PathBuf::from(unescaped(&fields.next()?)) })
    }
}

/// What processes have as their root, in whichever mount namespace; asks no file system, so none
/// can hang us.
fn roots() -> Vec<(String, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut seen = std::collections::HashSet::new();
    let mut found = Vec::new();
    for pid in pids {
        // A namespace may have processes with several roots, so each process is looked at; the
        // node's own need not be: a mount below is no root of theirs.
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { continue };
        found.extend(
            text.lines()
                .filter_map(MountLine::read)
                .filter(|mount| mount.point == Path::new("/"))
                .map(|mount| mount.what)
                .filter(|what| seen.insert(what.clone())),
        );
    }
    found
}

fn is_dead_mount(path: &Path, tasks: &Path, shims: &[Shim]) -> bool {
    // TASKS/NAMESPACE/ID/rootfs
    let Some(bundle) = path
        .parent()
        .filter(|bundle| path.ends_with("rootfs") && bundle.ancestors().nth(2) == Some(tasks))
    else {
        return false;
    };
    let id = bundle.file_name().unwrap_or_default().to_string_lossy();
    !is_known(&id, shims) && matches!(bundle.join("config.json").try_exists(), Ok(false))
}

/// mountinfo writes blanks and the like in octal.
fn unescaped(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

impl Orphan {
    /// Looks once more, and removes it.
    pub(crate) async fn remove(&self, places: &Places) -> Result<()> {
        match self {
            Self::Socket { path } => {
                let _lock = lock(path.parent().unwrap_or(Path::new("/")))?;
                if !is_dead_socket(path) {
                    bail!("somebody listens on it now");
                }
                fs::remove_file(path).context("remove it")
            }
            Self::Shim { pid, id, socket } => {
                let begun = started(*pid);
                let now = node::shims().await;
                if !now.iter().any(|shim| shim.pid == *pid && orphaned_shim(shim).is_some()) {
                    bail!("somebody needs it now");
                }
                let mut client = Client::connect(socket).await?;
                let request = api::ShutdownRequest { id: id.clone(), now: false };
                // It ends in the middle of its answer, or after it.
                let _: Result<Empty> = client.task("Shutdown", &request, Some(PATIENCE)).await;
                let end = async {
                    while begun.is_some() && started(*pid) == begun {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                tokio::time::timeout(END, end).await.context("it was asked to end and did not")
            }
            Self::State { id, root } => {
                if is_known(id, &node::shims().await) || !is_dead_state(&root.join(id)) {
                    bail!("it lives now");
                }
                finish(Command::new("runc").arg("--root").arg(root).args(["delete", id]))
            }
            Self::Mount { path } => {
                let again = mounts(places, &node::shims().await);
                if !again
                    .iter()
                    .any(|orphan| matches!(orphan, Self::Mount { path: again } if again == path))
                {
                    bail!("somebody has it now");
                }
                // Not detached: one that is in use says so. In a process of its own: a dead
                // server's hangs.
                finish(Command::new("umount").arg("--no-canonicalize").arg(path))
            }
            Self::Run { id } => run_place::remove(id).await,
        }
    }
}

/// A program that is to succeed, and soon.
fn finish(command: &mut Command) -> Result<()> {
    let (status, _, stderr) = config::output(command)?;
    if !status.success() {
        bail!("{}: {}", command.get_program().to_string_lossy(), stderr.trim());
    }
    Ok(())
}
