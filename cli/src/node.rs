//! The shims of this node: found in /proc, asked over their sockets.
//!
//! A process is taken for a shim if its command line is one and it lives in the mount namespace of
//! the node's first process, or in ours: what a container calls itself does not count, and nothing
//! that it serves is connected to. (Ours may be another one: a systemd unit with ProtectHome has
//! its own.)

use crate::{
    client::{Client, PATIENCE},
    process::{self, Memory},
};
use anyhow::{Context, Result, bail};
use cleat::{
    cgroups::Cgroup,
    protocol::{Empty, inspect, task as api},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Whose shim it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Cleat,
    /// containerd-shim-runc-v2 of containerd, or another one.
    Other,
}

/// A shim, as far as it is known.
#[derive(Debug, Serialize)]
pub(crate) struct Shim {
    pub(crate) pid: u32,
    pub(crate) kind: Kind,
    /// Its program.
    pub(crate) program: PathBuf,
    /// It was replaced since the shim started: a new pod gets another one.
    pub(crate) program_replaced: bool,
    pub(crate) version: Option<String>,
    pub(crate) namespace: String,
    /// The id that it was started with: the first container's.
    pub(crate) id: String,
    pub(crate) pod: Option<Pod>,
    pub(crate) bundle: PathBuf,
    pub(crate) bundle_gone: bool,
    pub(crate) socket: Option<PathBuf>,
    /// Clients that are connected, without us.
    pub(crate) connections: usize,
    /// A client is connected: containerd, as a rule.
    pub(crate) containerd: bool,
    pub(crate) memory_kib: Memory,
    pub(crate) threads: usize,
    pub(crate) descriptors: usize,
    pub(crate) cpu_seconds: f64,
    pub(crate) age_seconds: u64,
    pub(crate) containers: Vec<Container>,
    /// Why it could not be asked.
    pub(crate) problem: Option<String>,
    /// What a cleat shim says of itself.
    #[serde(skip)]
    pub(crate) own: Option<inspect::InspectResponse>,
}

/// A pod, by Kubernetes' names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Container {
    pub(crate) id: String,
    /// Kubernetes' name of it, or that it is the sandbox.
    pub(crate) name: Option<String>,
    pub(crate) status: &'static str,
    pub(crate) pid: u32,
    pub(crate) exit_status: Option<u32>,
    pub(crate) execs: usize,
    #[serde(flatten)]
    pub(crate) usage: Usage,
}

/// What a container has used so far.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    pub(crate) cpu_ns: u64,
    pub(crate) memory_bytes: u64,
    /// Read from and written to block devices.
    pub(crate) block_bytes: u64,
    /// Moved by the shim between the container and its readers; 0 where the shim does not tell.
    pub(crate) stream_bytes: u64,
}

/// All shims, by pid, each asked for its containers. Those that hang cost [`PATIENCE`] once, not
/// each.
pub(crate) async fn shims() -> Vec<Shim> {
    let sockets = Sockets::read();
    let mut tasks = tokio::task::JoinSet::new();
    for mut shim in processes(&sockets) {
        tasks.spawn_local(async move {
            if let Err(e) = ask(&mut shim).await {
                shim.problem = Some(format!("{e:#}"));
            }
            shim
        });
    }
    let mut shims = tasks.join_all().await;
    shims.sort_by_key(|shim| shim.pid);
    shims
}

/// That the node can be seen at all: without it an empty list would be taken for "nothing is
/// there".
pub(crate) fn check_sight() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "not root: shims belong to root and show themselves to nobody else; run it with sudo"
        );
    }
    // Rootless: there is no more to be seen than what is in our own namespaces, and that is.
    if !fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
    {
        return Ok(());
    }
    if ["1", KTHREADD].into_iter().all(|pid| mount_namespace(pid).is_none()) {
        bail!(
            "the node's processes cannot be seen (CAP_SYS_PTRACE is missing, or /proc hides them); nothing can be said of its shims"
        );
    }
    fs::metadata("/proc/1/net/unix")
        .context("the node's sockets cannot be seen; nothing can be said of its shims")?;
    Ok(())
}

/// The kernel's own threads are in the first mount namespace, and show it to root where an
/// undumpable first process does not.
const KTHREADD: &str = "2";

/// Of a process: device and number of its mount namespace, if we may know.
fn mount_namespace(pid: &str) -> Option<(u64, u64)> {
    if pid == KTHREADD && fs::read_to_string("/proc/2/comm").ok()?.trim() != "kthreadd" {
        return None;
    }
    let about = fs::metadata(format!("/proc/{pid}/ns/mnt")).ok()?;
    Some((about.dev(), about.ino()))
}

/// Shims as the kernel knows them; nobody is asked.
fn processes(sockets: &Sockets) -> Vec<Shim> {
    let hosts: Vec<_> = ["1", KTHREADD, "self"].into_iter().filter_map(mount_namespace).collect();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_ours =
        |pid: &u32| mount_namespace(&pid.to_string()).is_some_and(|place| hosts.contains(&place));
    let found: Vec<Shim> = pids.filter(is_ours).filter_map(|pid| shim(pid, sockets)).collect();
    let known: Vec<u32> = found.iter().map(|shim| shim.pid).collect();
    // A child that has not become its program yet still bears the shim's name.
    found
        .into_iter()
        .filter(|shim| !process::parent(shim.pid).is_some_and(|parent| known.contains(&parent)))
        .collect()
}

fn shim(pid: u32, sockets: &Sockets) -> Option<Shim> {
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words =
        command_line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let name = PathBuf::from(words.next()?);
    let name = name.file_name()?.to_str()?;
    if !name.starts_with("containerd-shim-") {
        return None;
    }
    let words: Vec<String> = words.collect();
    let line = CommandLine::read(&words);
    // start and delete are shims' programs, too.
    if line.action.is_some_and(|action| ["start", "delete"].contains(&action)) {
        return None;
    }
    let (namespace, id) = (line.namespace?.to_owned(), line.id?.to_owned());
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let (program, program_replaced) = without_deleted(&link("exe"));
    let (bundle, bundle_gone) = without_deleted(&link("cwd"));
    let socket = sockets.listening(pid);
    let connections = socket.as_ref().map_or(0, |path| sockets.connected(path));
    // By its program, until it says so itself: one that does not answer is still cleat's.
    let is_cleat = program
        .file_name()
        .is_some_and(|name| name.to_string_lossy().contains("containerd-shim-cleat"));
    Some(Shim {
        pid,
        kind: if is_cleat { Kind::Cleat } else { Kind::Other },
        program,
        program_replaced,
        version: None,
        namespace,
        id,
        pod: None,
        bundle_gone: bundle_gone || !bundle.join("config.json").exists(),
        bundle,
        connections,
        containerd: connections > 0,
        socket,
        memory_kib: process::memory_kib(pid),
        threads: process::threads(pid),
        descriptors: process::descriptors(pid),
        cpu_seconds: process::cpu_seconds(pid),
        age_seconds: process::age_seconds(pid),
        containers: Vec::new(),
        problem: None,
        own: None,
    })
}

/// A shim's flags, in Go's syntax: `-id x`, `--id=x`; a value may be any word, `start` too.
#[derive(Debug, Default, PartialEq, Eq)]
struct CommandLine<'a> {
    namespace: Option<&'a str>,
    id: Option<&'a str>,
    action: Option<&'a str>,
}

impl<'a> CommandLine<'a> {
    fn read(words: &'a [String]) -> Self {
        const SWITCHES: [&str; 6] = ["debug", "v", "version", "info", "h", "help"];
        let mut line = Self::default();
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-') else {
                line.action = line.action.or(Some(word).filter(|word| !word.is_empty()));
                continue;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None if SWITCHES.contains(&flag) => (flag, None),
                None => (flag, words.next()),
            };
            match name {
                "namespace" => line.namespace = value,
                "id" => line.id = value,
                _ => {}
            }
        }
        line
    }
}

/// The kernel marks what was removed.
fn without_deleted(path: &Path) -> (PathBuf, bool) {
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(path) => (path.into(), true),
        None => (path.to_owned(), false),
    }
}

async fn ask(shim: &mut Shim) -> Result<()> {
    let Some(socket) = &shim.socket else { anyhow::bail!("it listens on no socket") };
    let mut client = Client::connect(socket).await?;
    let answer = client
        .ask::<inspect::InspectResponse>(inspect::SERVICE, "Inspect", &Empty {}, Some(PATIENCE))
        .await?;
    if let Ok(own) = answer {
        shim.kind = Kind::Cleat;
        shim.version = Some(own.version.clone());
        shim.containers = own.containers.iter().map(container).collect();
        shim.own = Some(own);
    } else {
        for id in bundles_of(shim) {
            let request = api::ProcessRequest { id: id.clone(), exec_id: String::new() };
            let answer = client
                .ask::<api::StateResponse>(api::SERVICES[0], "State", &request, Some(PATIENCE))
                .await?;
            // A bundle may be there before its container, and after.
            let Ok(state) = answer else { continue };
            shim.containers.push(Container {
                id,
                name: None,
                status: status_name(state.status),
                pid: state.pid,
                exit_status: (state.status == api::Status::Stopped as i32)
                    .then_some(state.exit_status),
                execs: 0,
                usage: usage(state.pid),
            });
        }
    }
    describe_pod(shim);
    Ok(())
}

fn container(known: &inspect::Container) -> Container {
    let init = known.init.as_ref();
    let processes = known.init.iter().chain(&known.execs);
    let streams = processes.flat_map(|process| &process.streams);
    let pid = init.map_or(0, |init| init.pid);
    Container {
        id: known.id.clone(),
        name: None,
        status: status_name(known.status),
        pid,
        exit_status: init.and_then(|init| init.exit).map(|exit| exit.status),
        execs: known.execs.len(),
        usage: Usage { stream_bytes: streams.map(|stream| stream.bytes).sum(), ..usage(pid) },
    }
}

/// Name of a containerd.v1.types.Status.
pub(crate) fn status_name(status: i32) -> &'static str {
    match status {
        0 => "creating",
        1 => "created",
        2 => "running",
        3 => "stopped",
        4 => "paused",
        5 => "pausing",
        _ => "unknown",
    }
}

/// Ids of the containers whose bundles name the shim's socket.
fn bundles_of(shim: &Shim) -> Vec<String> {
    let (Some(socket), Some(parent)) = (&shim.socket, shim.bundle.parent()) else {
        return Vec::new();
    };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut ids: Vec<String> = entries
        .filter(|entry| address_of(&entry.path()).as_ref() == Some(socket))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    ids.sort();
    ids
}

/// The socket that a bundle names: `bootstrap.json`, or `address` (containerd 1.6).
pub(crate) fn address_of(bundle: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Bootstrap {
        address: String,
    }
    let read = |name: &str| cleat::bundle::read_bounded(&bundle.join(name), 64 << 10).ok();
    let bootstrap =
        read("bootstrap.json").and_then(|text| serde_json::from_slice::<Bootstrap>(&text).ok());
    let address = match bootstrap {
        Some(bootstrap) => bootstrap.address,
        None => String::from_utf8(read("address")?).ok()?,
    };
    Some(PathBuf::from(address.trim().strip_prefix("unix://")?))
}

/// Kubernetes' names, from the annotations that containerd's CRI plugin writes.
fn describe_pod(shim: &mut Shim) {
    let parent = shim.bundle.parent().map(Path::to_owned);
    let mut known: HashMap<String, BTreeMap<String, String>> = HashMap::new();
    for container in &shim.containers {
        let bundle = parent.as_ref().map(|parent| parent.join(&container.id));
        known.insert(
            container.id.clone(),
            bundle.map(|bundle| annotations(&bundle)).unwrap_or_default(),
        );
    }
    let of_first = known.get(&shim.id).cloned().unwrap_or_else(|| annotations(&shim.bundle));
    let get = |of: &BTreeMap<String, String>, key: &str| {
        of.get(&format!("io.kubernetes.cri.{key}")).cloned()
    };
    shim.pod = get(&of_first, "sandbox-name").map(|name| Pod {
        name,
        namespace: get(&of_first, "sandbox-namespace").unwrap_or_default(),
    });
    for container in &mut shim.containers {
        let Some(of) = known.get(&container.id) else { continue };
        container.name = match get(of, "container-type").as_deref() {
            Some("sandbox") => Some("(sandbox)".to_owned()),
            _ => get(of, "container-name"),
        };
    }
}

fn annotations(bundle: &Path) -> BTreeMap<String, String> {
    let text =
        cleat::bundle::read_bounded(&bundle.join("config.json"), 16 << 20).unwrap_or_default();
    cleat::bundle::annotations_in(&text).unwrap_or_default()
}

/// What the cgroup of a process has used.
fn usage(pid: u32) -> Usage {
    let Some(cgroup) = (pid > 0).then(|| Cgroup::of_process(pid).ok()).flatten() else {
        return Usage::default();
    };
    let read = |controller: &str, file: &str| {
        cgroup
            .directory(controller)
            .and_then(|directory| fs::read_to_string(directory.join(file)).ok())
            .unwrap_or_default()
    };
    let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
    match cgroup {
        Cgroup::V1(_) => Usage {
            cpu_ns: number(read("cpuacct", "cpuacct.usage")),
            memory_bytes: number(read("memory", "memory.usage_in_bytes")),
            block_bytes: field(
                &read("blkio", "blkio.throttle.io_service_bytes_recursive"),
                "Total",
            ),
            stream_bytes: 0,
        },
        Cgroup::V2(_) => Usage {
            cpu_ns: field(&read("cpu", "cpu.stat"), "usage_usec") * 1000,
            memory_bytes: number(read("memory", "memory.current")),
            block_bytes: read("io", "io.stat")
                .split_whitespace()
                .filter_map(|word| word.strip_prefix("rbytes=").or(word.strip_prefix("wbytes=")))
                .filter_map(|count| count.parse::<u64>().ok())
                .sum(),
            stream_bytes: 0,
        },
    }
}

/// The number on the line `NAME NUMBER`.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
}

/// Unix sockets of the node's network namespace (/proc/1/net/unix); ours may be another one.
struct Sockets {
    rows: Vec<Row>,
}

struct Row {
    inode: u64,
    listens: bool,
    connected: bool,
    path: PathBuf,
}

impl Sockets {
    fn read() -> Self {
        /// Flag of a socket that listens (__SO_ACCEPTCON).
        const ACCEPTS: u32 = 1 << 16;
        let text = fs::read_to_string("/proc/1/net/unix")
            .or_else(|_| fs::read_to_string("/proc/net/unix"))
            .unwrap_or_default();
        let row = |line: &str| {
            let mut fields = line.split_whitespace();
            let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
            let connected = fields.nth(1)? == "03";
            let inode = fields.next()?.parse().ok()?;
            let path = PathBuf::from(fields.next()?);
            Some(Row { inode, listens: flags & ACCEPTS != 0, connected, path })
        };
        Self { rows: text.lines().skip(1).filter_map(row).collect() }
    }

    /// The socket on which a process listens: of several, the one with the lowest descriptor.
    fn listening(&self, pid: u32) -> Option<PathBuf> {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let inode = |entry: fs::DirEntry| {
            let number: u32 = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            let inode: u64 =
                target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
            Some((number, inode))
        };
        let mut inodes: Vec<(u32, u64)> = entries.filter_map(inode).collect();
        inodes.sort_unstable();
        let mut rows = inodes.iter().filter_map(|(_, inode)| {
            self.rows.iter().find(|row| row.listens && row.inode == *inode)
        });
        rows.next().map(|row| row.path.clone())
    }

    fn connected(&self, path: &Path) -> usize {
        self.rows.iter().filter(|row| row.connected && row.path == path).count()
    }
}

/// Whether anybody listens on the socket of a path.
pub(crate) fn is_listened_to(path: &Path) -> bool {
    Sockets::read().rows.iter().any(|row| row.listens && row.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_be_called_start() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (text, id, action) in [
            ("-namespace n -id start -address /a", Some("start"), None),
            ("-namespace n --id=delete", Some("delete"), None),
            ("-namespace n -id a -debug start", Some("a"), Some("start")),
            ("-id a -bundle /b delete", Some("a"), Some("delete")),
        ] {
            let words = words(text);
            let line = CommandLine::read(&words);
            assert_eq!((line.id, line.action), (id, action), "{text}");
        }
    }
}
