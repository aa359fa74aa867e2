//! Which cgroup a process is in, on v1 and v2.

use crate::{
    bundle::{Bundle, is_absent, read_bounded},
    id::Id,
    sys::process,
};
use std::{
    io,
    os::fd::AsFd,
    path::{Component, Path, PathBuf},
};

const ROOT: &str = "/sys/fs/cgroup";
/// `f_type` of a cgroup2 mount (linux/magic.h).
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
/// Processes of a container that are listed, cgroup by cgroup: as many as a node can have by
/// default.
const MAX_PIDS: usize = 32_768;
/// Depth of nested cgroups below a container that is looked at.
pub(super) const MAX_DEPTH: usize = 16;

/// The cgroups of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// A path a controller, absolute in the file system.
    V1(Vec<(Box<str>, PathBuf)>),
    /// One path, absolute in the file system.
    V2(PathBuf),
}

/// Directories to be joined.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Joins {
    /// Of v1 hierarchies.
    pub v1: Vec<PathBuf>,
    /// Of v2.
    pub unified: Option<PathBuf>,
}

/// Whether a cgroup's directory is a container's by its name.
pub fn is_named(directory: &Path, name: &str) -> bool {
    directory.file_name().is_some_and(|last| last == name)
}

/// Whether the node has cgroup v2 only.
fn is_unified() -> bool {
    rustix::fs::statfs(ROOT).is_ok_and(|fs| fs.f_type == CGROUP2_SUPER_MAGIC)
}

impl Cgroup {
    /// The cgroups that a process is in.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let text = read_bounded(Path::new(&format!("/proc/{pid}/cgroup")), 64 << 10)?;
        let text = String::from_utf8_lossy(&text);
        if is_unified() {
            let path = text.lines().find_map(|line| line.strip_prefix("0::"));
            // As the kernel writes of a dead process whose cgroup was removed.
            let path = path.map(|path| path.strip_suffix(" (deleted)").unwrap_or(path));
            let path = path.ok_or_else(|| io::Error::other(format!("no cgroup of pid {pid}")))?;
            return Ok(Self::V2(Mounts::default().find("cgroup2", "", Path::new(ROOT), path)));
        }
        Ok(Self::V1(parse_v1(&text)))
    }

    /// Those of a container's init. One that has died already is in none of v1: the kernel shows it
    /// in the first of each hierarchy.
    pub fn of_init(pid: u32, bundle: &Bundle, id: &Id) -> io::Result<Self> {
        let found = match Self::of_process(pid)? {
            Self::V1(mut paths) => {
                paths.retain(|(_, path)| !is_root(path));
                Self::V1(paths)
            }
            v2 => v2,
        };
        match &found {
            Self::V1(paths) if paths.is_empty() => {}
            Self::V2(path) if is_root(path) => {}
            _ => return Ok(found),
        }
        let named = Self::of_bundle(bundle, id)
            .filter(|cgroup| cgroup.any_directory().is_some_and(Path::exists));
        named.ok_or_else(|| io::Error::other(format!("pid {pid} is in no cgroup of its own")))
    }

    /// Where the runtime makes those of a container, as its bundle says; None also without a word
    /// on them..
    pub fn of_bundle(bundle: &Bundle, id: &Id) -> Option<Self> {
        Self::at(&bundle.cgroups_path()?, id.as_str())
    }

    /// Those of an absolute `linux.cgroupsPath` (OCI runtime specification, config-linux.md) that
    /// ends in `name`, whether or not they are there. None for a relative one, which the runtime
    /// interprets, nor for a systemd scope, which systemd removes.
    pub fn at(path: &str, name: &str) -> Option<Self> {
        let is_plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
        let has_name = path.starts_with('/') && is_named(Path::new(path), name);
        if !has_name || path.contains('\0') || !Path::new(path).components().all(is_plain) {
            return None;
        }
        if is_unified() {
            return Some(Self::V2(below(Path::new(ROOT), path)));
        }
        let named = |hierarchy: PathBuf| {
            (
                hierarchy.file_name().unwrap_or_default().to_string_lossy().into(),
                below(&hierarchy, path),
            )
        };
        Some(Self::V1(hierarchies().ok()?.into_iter().map(named).collect()))
    }

    /// Removes its directories, if they are named `name` and empty. Returns whether none is left.
    pub fn remove(&self, name: &str) -> bool {
        let directories: Vec<&Path> = match self {
            Self::V1(paths) => paths.iter().map(|(_, path)| path.as_path()).collect(),
            Self::V2(path) => vec![path],
        };
        let ours = directories.into_iter().filter(|path| is_named(path, name));
        ours.filter(|path| std::fs::remove_dir(path).is_err_and(|e| !is_absent(&e))).count() == 0
    }

    /// Kills every process that is in one of its directories, and not in another cgroup by then.
    pub fn kill(&self) {
        let inside = || {
            let mut pids = Vec::new();
            for directory in self.directories() {
                let _ = collect_pids(&directory, MAX_DEPTH, &mut pids);
            }
            pids
        };
        let held: Vec<_> = inside()
            .into_iter()
            .filter_map(|pid| Some((pid, process::pidfd(pid).ok()??)))
            .collect();
        if held.is_empty() {
            return;
        }
        // A number may have become another's before it was held.
        let still = inside();
        for (_, pidfd) in held.iter().filter(|(pid, _)| still.contains(pid)) {
            let _ = process::signal_pidfd(pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Thaws it if it is frozen, whoever froze it. In a frozen v1 cgroup even SIGKILL waits; on v2
    /// it does not, but runc deletes no container whose cgroup is frozen.
    pub fn thaw(&self) -> io::Result<()> {
        let Some(directory) = self.directory("freezer") else { return Ok(()) };
        let (file, thawed) = match self {
            Self::V1(_) => ("freezer.state", "THAWED"),
            Self::V2(_) => ("cgroup.freeze", "0"),
        };
        let file = directory.join(file);
        match read_bounded(&file, 64) {
            Ok(text) if String::from_utf8_lossy(&text).trim() == thawed => Ok(()),
            Ok(_) => std::fs::write(file, thawed),
            Err(e) if is_absent(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Thaws the cgroup of v2 whose init has died frozen: SIGKILL reaches it there, and runc
    /// deletes no container that looks paused. (On v1 a frozen process does not die.)
    pub fn thaw_dead(&self) -> io::Result<()> {
        match self {
            Self::V1(_) => Ok(()),
            Self::V2(_) => self.thaw(),
        }
    }

    /// The directory of a v1 controller, or the one of v2.
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V1(paths) => {
                paths.iter().find(|(name, _)| &**name == controller).map(|(_, path)| path.as_path())
            }
            Self::V2(path) => Some(path),
        }
    }

    /// Every directory of it that is there, each once.
    pub fn directories(&self) -> Vec<PathBuf> {
        let mut directories: Vec<PathBuf> = match self {
            Self::V1(paths) => paths.iter().map(|(_, path)| path.clone()).collect(),
            Self::V2(path) => vec![path.clone()],
        };
        // cpu and cpuacct may be one hierarchy with two names.
        let mut seen = std::collections::HashSet::new();
        let is_new = |path: &PathBuf| {
            rustix::fs::stat(path).is_ok_and(|stat| seen.insert((stat.st_dev, stat.st_ino)))
        };
        directories.retain(is_new);
        directories
    }

    /// Which of its directories a process in the cgroups `own` has to join; where it is already,
    /// nothing. An error if one is not there.
    pub fn not_joined_by(&self, own: &Self) -> io::Result<Joins> {
        let all: Vec<(&str, &PathBuf)> = match (self, own) {
            (Self::V2(path), Self::V2(same)) if path == same => Vec::new(),
            (Self::V2(path), Self::V2(_)) => vec![("", path)],
            (Self::V1(paths), Self::V1(own)) => {
                let others = paths.iter().filter(|entry| !own.contains(entry));
                others.map(|(name, path)| (&**name, path)).collect()
            }
            _ => return Err(io::Error::other("cgroups of another version")),
        };
        let mut joins = Joins::default();
        for (name, path) in all {
            rustix::fs::stat(path)?;
            match name {
                "" => joins.unified = Some(path.clone()),
                _ => joins.v1.push(path.clone()),
            }
        }
        Ok(joins)
    }

    /// One of its directories that is there.
    pub fn any_directory(&self) -> Option<&Path> {
        match self {
            Self::V1(paths) => {
                paths.iter().map(|(_, path)| path.as_path()).find(|path| path.exists())
            }
            Self::V2(path) => Some(path),
        }
    }

    /// Pids of all processes in it and below it.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let directory = ["devices", "pids", "memory", "freezer", "name=systemd"]
            .iter()
            .find_map(|controller| self.directory(controller))
            .ok_or_else(|| io::Error::other("no controller knows the container's processes"))?;
        let mut pids = Vec::new();
        collect_pids(directory, MAX_DEPTH, &mut pids)?;
        Ok(pids)
    }
}

fn collect_pids(directory: &Path, depth: usize, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = read_bounded(&directory.join("cgroup.procs"), 4 << 20)?;
    pids.extend(String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse::<u32>().ok()));
    if depth == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir(directory)?.flatten() {
        if pids.len() > MAX_PIDS {
            break;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // It may go while we look.
            let _ = collect_pids(&entry.path(), depth - 1, pids);
        }
    }
    Ok(())
}

fn parse_v1(text: &str) -> Vec<(Box<str>, PathBuf)> {
    let mut mounts = Mounts::default();
    let mut paths = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            // The v2 hierarchy beside them, where systemd mounts it ("hybrid").
            paths.push((
                "".into(),
                mounts.find("cgroup2", "", &Path::new(ROOT).join("unified"), path),
            ));
            continue;
        }
        for controller in controllers.split(',') {
            // name=systemd is mounted as systemd.
            let mount = controller.strip_prefix("name=").unwrap_or(controller);
            let usual = Path::new(ROOT).join(mount);
            paths.push((controller.into(), mounts.find("cgroup", controller, &usual, path)));
        }
    }
    paths
}

/// Where cgroups are mounted. Read only if they are not where they usually are.
#[derive(Default)]
struct Mounts(Option<String>);

/// Most bytes of mountinfo that are read: nodes have some thousand mounts.
const MAX_MOUNTINFO: u64 = 8 << 20;

impl Mounts {
    /// The directory of a cgroup that /proc/PID/cgroup calls `path`. With a cgroup namespace of our
    /// own, or on a host, that is a path below the mount. In a container with the host's cgroup
    /// namespace it begins with what is the mount's root (proc(5), mountinfo).
    fn find(&mut self, kind: &str, controller: &str, usual: &Path, path: &str) -> PathBuf {
        let plain = below(usual, path);
        if !path.contains("/..") && plain.exists() {
            return plain;
        }
        let read = || {
            let text =
                read_bounded(Path::new("/proc/self/mountinfo"), MAX_MOUNTINFO).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        };
        let text = self.0.get_or_insert_with(read);
        let found = text.lines().filter_map(|line| mounted(line, kind, controller, path));
        found.into_iter().find(|path| path.exists()).unwrap_or(plain)
    }
}

/// The directory of a cgroup in this mount, if the line of mountinfo is of its hierarchy and shows
/// it.
fn mounted(line: &str, kind: &str, controller: &str, path: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut words = file_system.split(' ');
    let options = (words.next()? == kind).then(|| words.nth(1))??;
    if !controller.is_empty() && !options.split(',').any(|option| option == controller) {
        return None;
    }
    let mut words = mount.split(' ').skip(3);
    let (root, point) = (words.next()?, words.next()?);
    let rest = path.strip_prefix(root.trim_end_matches('/'))?;
    // No way up, and no name that only begins alike.
    let is_below = rest.is_empty() || rest.starts_with('/');
    let has_way_up = rest.split('/').any(|part| part == "..");
    (is_below && !has_way_up).then(|| below(Path::new(&unescaped(point)), rest))
}

/// mountinfo writes blanks, tabs, line feeds and backslashes as octal numbers.
fn unescaped(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// Whether a cgroup is the first of its hierarchy, which is the host's: only that one has no
/// `cgroup.type` (v2), and a `release_agent` (v1).
fn is_root(directory: &Path) -> bool {
    let has = |file: &str| directory.join(file).exists();
    has("release_agent") || has("cgroup.controllers") && !has("cgroup.type")
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Where the hierarchies of v1 are mounted; cpuacct may be a link to cpu.
fn hierarchies() -> io::Result<Vec<PathBuf>> {
    let mut hierarchies: Vec<PathBuf> =
        std::fs::read_dir(ROOT)?.flatten().map(|e| e.path()).filter(|p| !p.is_symlink()).collect();
    hierarchies.sort();
    Ok(hierarchies)
}

/// Writes a process, or 0 for whoever writes, into a cgroup's list of processes or tasks, which is
/// there.
pub fn enter(list: &Path, pid: u32) -> io::Result<()> {
    let mut list = std::fs::OpenOptions::new().write(true).open(list)?;
    io::Write::write_all(&mut list, pid.to_string().as_bytes())
}

/// Puts a process into a cgroup that exists: on v1 in every hierarchy where the path does (at least
/// one), on v2 in the one.
pub fn join(pid: u32, cgroup: &str) -> io::Result<()> {
    if cgroup.contains("..") || cgroup.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "invalid cgroup path"));
    }
    let write = |directory: &Path| enter(&directory.join("cgroup.procs"), pid);
    if is_unified() {
        return write(&below(Path::new(ROOT), cgroup));
    }
    let mut joined = false;
    for hierarchy in hierarchies()? {
        let directory = below(&hierarchy, cgroup);
        if directory.join("cgroup.procs").exists() {
            write(&directory)?;
            joined = true;
        }
    }
    if joined {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, "cgroup deleted or never made"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_paths_by_controller() {
        let text = "12:cpu,cpuacct:/a\n3:memory:/b/c\n1:name=systemd:/d\n0::/x\n";
        let cgroup = Cgroup::V1(parse_v1(text));
        assert_eq!(cgroup.directory("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpuacct/a")));
        assert_eq!(cgroup.directory("memory"), Some(Path::new("/sys/fs/cgroup/memory/b/c")));
        assert_eq!(cgroup.directory("name=systemd"), Some(Path::new("/sys/fs/cgroup/systemd/d")));
        assert_eq!(cgroup.directory("pids"), None);
    }

    #[test]
    fn a_mount_may_show_a_part_of_its_hierarchy() {
        let line = |root: &str, point: &str, options: &str| {
            format!("31 24 0:27 {root} {point} rw,nosuid shared:9 - cgroup cgroup rw,{options}")
        };
        let found = |line: &str, path: &str| mounted(line, "cgroup", "memory", path);
        let host = line("/", "/sys/fs/cgroup/memory", "memory");
        assert_eq!(found(&host, "/a/b"), Some("/sys/fs/cgroup/memory/a/b".into()));
        assert_eq!(found(&line("/", "/x", "cpu"), "/a"), None);
        let bound = line("/docker/x", "/sys/fs/cg\\040roup", "memory");
        assert_eq!(found(&bound, "/docker/x/a"), Some("/sys/fs/cg roup/a".into()));
        assert_eq!(found(&bound, "/docker/x"), Some("/sys/fs/cg roup/".into()));
        for path in ["/docker/xy/a", "/a", "/docker/x/../y"] {
            assert_eq!(found(&bound, path), None, "{path}");
        }
        // Beside our own cgroup namespace.
        assert_eq!(found(&line("/..", "/c", "memory"), "/../a"), Some("/c/a".into()));
        let unified = "31 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(mounted(unified, "cgroup2", "", "/a"), Some("/sys/fs/cgroup/a".into()));
    }

    #[test]
    fn only_an_absolute_path_names_a_cgroup() {
        for path in ["", "/", "a", "a/b", "/a/../b", "..", "/..", "system.slice:cri:a", "/a\0"] {
            let name = path.rsplit('/').next().unwrap();
            assert_eq!(Cgroup::at(path, name), None, "{path:?}");
        }
        assert_eq!(Cgroup::at("/cleat-none/a", "b"), None);
        let cgroup = Cgroup::at("/cleat-none/a", "a").unwrap();
        // Nothing is there, and so nothing is left.
        assert!(cgroup.remove("a") && cgroup.directories().is_empty());
    }

    #[test]
    fn a_directory_that_is_missing_cannot_be_joined() {
        let v1 = |cpu: &str, memory: &str| {
            Cgroup::V1(vec![
                ("cpu".into(), cpu.into()),
                ("memory".into(), memory.into()),
                ("".into(), "/tmp".into()),
            ])
        };
        let joins = |to: Cgroup, from: Cgroup| to.not_joined_by(&from);
        let Joins { v1: joined, unified } = joins(v1("/sys", "/proc"), v1("/sys", "/dev")).unwrap();
        assert_eq!((joined, unified), (vec!["/proc".into()], None));
        assert!(joins(v1("/sys", "/cleat-none"), v1("/sys", "/dev")).is_err());
        // One hierarchy that is mounted nowhere does no harm while nobody has to move in it.
        assert_eq!(
            joins(v1("/cleat-none", "/dev"), v1("/cleat-none", "/dev")).unwrap(),
            Joins::default()
        );
        assert_eq!(
            joins(Cgroup::V2("/sys".into()), Cgroup::V2("/dev".into())).unwrap().unified,
            Some("/sys".into())
        );
        assert!(joins(Cgroup::V2("/cleat-none".into()), Cgroup::V2("/dev".into())).is_err());
        assert!(joins(Cgroup::V2("/sys".into()), v1("/sys", "/dev")).is_err());
    }

    #[test]
    fn the_first_of_a_hierarchy_is_the_hosts() {
        for hierarchy in hierarchies().unwrap().into_iter().chain([PathBuf::from(ROOT)]) {
            if hierarchy.join("cgroup.procs").exists() {
                assert!(is_root(&hierarchy), "{}", hierarchy.display());
            }
        }
        let own = Cgroup::of_process(std::process::id()).unwrap();
        let below =
            own.directories().into_iter().find(|path| !hierarchies().unwrap().contains(path));
        assert!(below.is_none_or(|path| !is_root(&path)));
    }

    #[test]
    fn own_pid_is_in_its_own_cgroup() {
        let own = std::process::id();
        assert!(Cgroup::of_process(own).unwrap().pids().unwrap().contains(&own));
    }
}
