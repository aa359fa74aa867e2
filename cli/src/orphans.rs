//! What was left behind, and the proof of each. `cleat gc --help` states the rules.

use crate::{
    args::Places,
    client::{Client, PATIENCE},
    node::Shim,
    process::started,
};
use anyhow::{Context, Result, bail};
use cleat::protocol::{Empty, task as api};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
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
}

impl std::fmt::Display for Orphan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket { path } => write!(f, "socket {}: nobody listens", path.display()),
            Self::Shim { pid, id, .. } => write!(f, "shim {pid} ({id}): no container, no bundle, no client"),
            Self::State { id, root } => {
                write!(f, "state of {id} in {}: its process has ended, its bundle is gone", root.display())
            }
            Self::Mount { path } => write!(f, "mount {}: its bundle is gone", path.display()),
        }
    }
}

/// Everything that is orphaned now.
pub(crate) fn find(places: &Places, shims: &[Shim]) -> Vec<Orphan> {
    let mut found: Vec<Orphan> = sockets(places);
    found
        .extend(shims.iter().filter(|shim| shim.bundle.starts_with(&places.state)).filter_map(orphaned_shim));
    found.extend(states(places, shims));
    found.extend(mounts(places, shims));
    found
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
    about.file_type().is_socket()
        && is_old(&about)
        && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
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
    shims
        .iter()
        .any(|shim| shim.problem.is_some() || shim.containers.iter().any(|container| container.id == id))
}

fn mounts(places: &Places, shims: &[Shim]) -> Vec<Orphan> {
    let tasks = places.state.join("io.containerd.runtime.v2.task");
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points =
        text.lines().filter_map(|line| line.split(' ').nth(4)).map(|path| PathBuf::from(unescaped(path)));
    points.filter(|path| is_dead_mount(path, &tasks, shims)).map(|path| Orphan::Mount { path }).collect()
}

fn is_dead_mount(path: &Path, tasks: &Path, shims: &[Shim]) -> bool {
    // TASKS/NAMESPACE/ID/rootfs
    let Some(bundle) =
        path.parent().filter(|bundle| path.ends_with("rootfs") && bundle.ancestors().nth(2) == Some(tasks))
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
                if !is_dead_socket(path) {
                    bail!("somebody listens on it now");
                }
                fs::remove_file(path).context("remove it")
            }
            Self::Shim { pid, id, socket } => {
                let begun = started(*pid);
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
                if !is_dead_state(&root.join(id)) {
                    bail!("it lives now");
                }
                let output = std::process::Command::new("runc")
                    .arg("--root")
                    .arg(root)
                    .args(["delete", id])
                    .output()
                    .context("runc delete")?;
                if !output.status.success() {
                    bail!("runc delete: {}", String::from_utf8_lossy(&output.stderr).trim());
                }
                Ok(())
            }
            Self::Mount { path } => {
                if !is_dead_mount(path, &places.state.join("io.containerd.runtime.v2.task"), &[]) {
                    bail!("its bundle is there again");
                }
                // Not detached: one that is in use says so.
                rustix::mount::unmount(path, rustix::mount::UnmountFlags::NOFOLLOW).context("unmount it")
            }
        }
    }
}
