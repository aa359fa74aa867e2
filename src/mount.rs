//! The rootfs: mounted in order, undone in reverse. Every call here may block in the kernel (a
//! network file system, a busy one, dirty pages), so the daemon runs it in a helper process
//! (`sys::spawn::helper`).
//!
//! Options as containerd reads them: v2.3.4 `core/mount/mount_linux.go`.

use crate::{
    bundle::read_bounded,
    protocol::Mount,
    sys::{self, loopdev},
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};
use std::{
    ffi::{CString, OsString},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

/// Bytes of mount options that the kernel takes.
const PAGE: usize = 4096;
/// The same, less room for what it adds.
const MAX_DATA: usize = PAGE - 512;
/// Unmounts of one mount point before it is given up: that many mounts can lie on top of each
/// other.
const MAX_STACKED: usize = 64;
/// File systems that a program mounts, by the prefix of their type, and the program: the type goes
/// on with the name of their own program (`fuse3.fuse-overlayfs`).
const HELPERS: [(&str, &str); 2] = [("fuse.", "mount.fuse"), ("fuse3.", "mount.fuse3")];
/// How long it may take: less than the helper process may.
const HELPER_DEADLINE: Duration = Duration::from_secs(100);
/// Largest mountinfo that is read, bytes: some 100,000 mounts.
const MAX_MOUNTINFO: u64 = 32 << 20;

/// A mount that did not work.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The system call failed.
    #[error("mount source {source_path:?}, target {target:?}, fstype {fstype}, data {data:?}")]
    Call {
        /// What.
        source_path: String,
        /// Where.
        target: PathBuf,
        /// Kind of file system.
        fstype: String,
        /// Its options.
        data: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Meant for containerd's mount manager.
    #[error("internal mount option {0:?} was not consumed by the mount manager")]
    Internal(String),
    /// uidmap and gidmap.
    #[error("{verb} for an id-mapped mount of {}", path.display())]
    IdMapped {
        /// What was tried.
        verb: &'static str,
        /// What is mapped.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A map that is not `container:host:size`.
    #[error("id map {0:?} is no list of container:host:size")]
    IdMap(String),
    /// `mount.fuse` or `mount.fuse3` failed.
    #[error("mount helper [{command}] failed: {output:?}: {status}")]
    Helper {
        /// It and its arguments.
        command: String,
        /// What it said.
        output: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It could not be started.
    #[error("mount helper [{command}] failed: exec: {program:?}")]
    NoHelper {
        /// It and its arguments.
        command: String,
        /// Its name.
        program: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// More than a page.
    #[error("mount options of {0} bytes are too long")]
    TooLong(usize),
    /// A target that leaves the rootfs.
    #[error("mount target {0:?} leaves the rootfs")]
    Escapes(String),
    /// A loop device.
    #[error("attach {image} to a loop device")]
    Loop {
        /// The file.
        image: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, PartialEq)]
struct Parsed {
    flags: MountFlags,
    propagation: MountPropagationFlags,
    remount: bool,
    data: Vec<String>,
    loop_device: bool,
    /// `container:host:size`, with commas between.
    uid_map: String,
    gid_map: String,
}

/// Mounts all, in order, onto `rootfs`; on failure unmounts what was mounted.
pub fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), MountError> {
    for mount in mounts {
        if let Err(e) = mount_one(mount, rootfs) {
            unmount_below(rootfs);
            return Err(e);
        }
    }
    Ok(())
}

fn mount_one(mount: &Mount, rootfs: &Path) -> Result<(), MountError> {
    let target = beneath(rootfs, &mount.target)?;
    for (prefix, program) in HELPERS {
        if let Some(kind) = mount.r#type.strip_prefix(prefix) {
            return mount_by_program(program, kind, mount, &target);
        }
    }
    let mut parsed = parse(&mount.options)?;
    let namespace = user_namespace(&parsed, &target)?;
    // An overlay's layers are mapped, through a mount that is needed until the overlay has its own
    // copies of it.
    let _lower = match &namespace {
        Some(namespace) if mount.r#type == "overlay" => {
            map_lower_directories(&mut parsed.data, rootfs, namespace)?
        }
        _ => None,
    };
    if mount.r#type == "overlay" && length(&parsed.data) >= MAX_DATA {
        compact_lower_directories(&mut parsed.data);
    }
    let mut source = mount.source.clone();
    // Open until the mount holds the device; it detaches itself afterwards.
    let mut _device = None;
    if parsed.loop_device {
        let direct = parsed.data.iter().any(|o| o == "direct-io");
        parsed.data.retain(|o| o != "direct-io");
        let read_only = parsed.flags.contains(MountFlags::RDONLY);
        let (device, path) = loopdev::attach(Path::new(&source), read_only, direct)
            .map_err(|e| MountError::Loop { image: source.clone(), source: e })?;
        source = path.to_string_lossy().into_owned();
        _device = Some(device);
    }
    apply(&source, &target, &mount.r#type, &parsed)?;
    match &namespace {
        Some(namespace) if mount.r#type != "overlay" => {
            map_onto(&target, &target, namespace, false)
        }
        _ => Ok(()),
    }
}

/// `mount.fuse3 SOURCE TARGET -o OPTION … -t KIND`. The daemon that serves the file system stays,
/// and ends when it is unmounted.
fn mount_by_program(
    program: &'static str,
    kind: &str,
    mount: &Mount,
    target: &Path,
) -> Result<(), MountError> {
    // A descriptor of ours means nothing to it.
    let target = match target.starts_with("/proc/self/fd") {
        true => std::fs::read_link(target).unwrap_or_else(|_| target.to_owned()),
        false => target.to_owned(),
    };
    let mut arguments: Vec<OsString> = vec![mount.source.as_str().into(), target.into_os_string()];
    for option in &mount.options {
        arguments.extend(["-o".into(), option.into()]);
    }
    arguments.extend(["-t".into(), kind.into()]);
    let shown = || {
        let words = arguments.iter().map(|argument| argument.to_string_lossy());
        std::iter::once(program.into()).chain(words).collect::<Vec<_>>().join(" ")
    };
    let (status, output) =
        sys::spawn::to_its_end(Command::new(program).args(&arguments), HELPER_DEADLINE)
            .map_err(|source| MountError::NoHelper { command: shown(), program, source })?;
    match status.success() {
        true => Ok(()),
        false => Err(MountError::Helper { command: shown(), output, status }),
    }
}

/// The user namespace that the options ask for. One map without the other means nothing (upstream
/// ignores it).
fn user_namespace(parsed: &Parsed, target: &Path) -> Result<Option<OwnedFd>, MountError> {
    if parsed.uid_map.is_empty() || parsed.gid_map.is_empty() {
        return Ok(None);
    }
    let make =
        || sys::idmap::user_namespace(&kernel_map(&parsed.uid_map)?, &kernel_map(&parsed.gid_map)?);
    let fail = |source| MountError::IdMapped {
        verb: "make a user namespace",
        path: target.to_owned(),
        source,
    };
    make().map(Some).map_err(fail)
}

/// `0:100000:65536,…` → lines as /proc/PID/uid_map takes them.
fn kernel_map(map: &str) -> io::Result<String> {
    let line = |entry: &str| {
        let numbers: Vec<u32> = entry.split(':').map_while(|number| number.parse().ok()).collect();
        match (numbers.as_slice(), entry.split(':').count()) {
            ([container, host, size], 3) => Some(format!("{container} {host} {size}\n")),
            _ => None,
        }
    };
    let lines: Option<String> = map.split(',').map(line).collect();
    lines.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, MountError::IdMap(map.to_owned()))
    })
}

/// A copy of the mount at `source`, with mapped ids, on `target`.
fn map_onto(
    source: &Path,
    target: &Path,
    namespace: &OwnedFd,
    read_only: bool,
) -> Result<(), MountError> {
    let attempt = || -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, source, flags)?;
        sys::idmap::map(tree.as_fd(), namespace.as_fd(), read_only)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(tree.as_fd(), "", CWD, target, flags)?;
        Ok(())
    };
    attempt().map_err(|source_error| MountError::IdMapped {
        verb: "map",
        path: source.to_owned(),
        source: source_error,
    })
}

/// A mount and its directory that are needed for a moment.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Lazily: a descriptor somewhere must not keep it.
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Mounts the directory that all layers share once more, with mapped ids, beside the rootfs, and
/// names the layers below that.
fn map_lower_directories(
    options: &mut [String],
    rootfs: &Path,
    namespace: &OwnedFd,
) -> Result<Option<Temporary>, MountError> {
    let Some(lowerdir) = options.iter_mut().find(|o| o.starts_with("lowerdir=")) else {
        return Ok(None);
    };
    let layers: Vec<&str> = lowerdir["lowerdir=".len()..].split(':').collect();
    let fail =
        |source| MountError::IdMapped { verb: "find the layers", path: rootfs.to_owned(), source };
    let common = common_directory(&layers).ok_or_else(|| {
        fail(io::Error::new(io::ErrorKind::InvalidInput, "the layers share no directory"))
    })?;
    let place = rootfs.with_file_name("idmap");
    std::fs::create_dir_all(&place).map_err(fail)?;
    let temporary = Temporary(place);
    map_onto(Path::new(&common), &temporary.0, namespace, true)?;
    let mapped: Vec<String> = layers
        .iter()
        .map(|layer| format!("{}{}", temporary.0.display(), &layer[common.len()..]))
        .collect();
    *lowerdir = format!("lowerdir={}", mapped.join(":"));
    Ok(Some(temporary))
}

fn apply(source: &str, target: &Path, fstype: &str, parsed: &Parsed) -> Result<(), MountError> {
    if length(&parsed.data) > PAGE {
        return Err(MountError::TooLong(length(&parsed.data)));
    }
    let data = parsed.data.join(",");
    let fail = |e: io::Error| MountError::Call {
        source_path: source.to_owned(),
        target: target.to_owned(),
        fstype: fstype.to_owned(),
        data: data.clone(),
        source: e,
    };
    let text = CString::new(data.as_str()).map_err(|e| fail(e.into()))?;
    if parsed.remount {
        rustix::mount::mount_remount(target, parsed.flags, text.as_c_str())
            .map_err(|e| fail(e.into()))?;
    } else {
        rustix::mount::mount(source, target, fstype, parsed.flags, text.as_c_str())
            .map_err(|e| fail(e.into()))?;
    }
    if !parsed.propagation.is_empty() {
        rustix::mount::mount_change(target, parsed.propagation).map_err(|e| fail(e.into()))?;
    }
    if parsed.flags.contains(MountFlags::BIND | MountFlags::RDONLY) && !parsed.remount {
        // A bind mount takes its flags in a second call.
        rustix::mount::mount_remount(target, parsed.flags, c"").map_err(|e| fail(e.into()))?;
    }
    Ok(())
}

/// `target` below `rootfs`: neither `..` nor a link may lead out of it. Held open, and named by its
/// descriptor, so that nobody who can write there exchanges it before we mount. Only ever runs in a
/// helper process, which ends soon and takes the descriptor with it.
fn beneath(rootfs: &Path, target: &str) -> Result<PathBuf, MountError> {
    let relative: PathBuf = Path::new(target)
        .components()
        .filter(|component| !matches!(component, Component::RootDir | Component::CurDir))
        .collect();
    if relative.as_os_str().is_empty() {
        return Ok(rootfs.to_owned());
    }
    if relative.components().any(|component| !matches!(component, Component::Normal(_))) {
        return Err(MountError::Escapes(target.to_owned()));
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::open(rootfs, flags, Mode::empty())
        .and_then(|root| rustix::fs::openat2(root, &relative, flags, Mode::empty(), resolve));
    match opened {
        Ok(fd) => {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            std::mem::forget(fd);
            Ok(path.into())
        }
        // Before Linux 5.6, and in old seccomp filters.
        Err(Errno::NOSYS | Errno::PERM) => beneath_by_hand(rootfs, &relative, target),
        Err(Errno::XDEV | Errno::LOOP) => Err(MountError::Escapes(target.to_owned())),
        Err(_) => Ok(rootfs.join(relative)),
    }
}

fn beneath_by_hand(rootfs: &Path, relative: &Path, target: &str) -> Result<PathBuf, MountError> {
    let mut path = rootfs.to_owned();
    for component in relative.components() {
        path.push(component);
        if path.is_symlink() {
            return Err(MountError::Escapes(target.to_owned()));
        }
    }
    Ok(path)
}

fn parse(options: &[String]) -> Result<Parsed, MountError> {
    let mut parsed = Parsed {
        flags: MountFlags::empty(),
        propagation: MountPropagationFlags::empty(),
        remount: false,
        data: Vec::new(),
        loop_device: false,
        uid_map: String::new(),
        gid_map: String::new(),
    };
    for option in options {
        if option.starts_with("X-containerd.") {
            return Err(MountError::Internal(option.clone()));
        }
        let (set, flag) = match option.as_str() {
            "async" => (false, MountFlags::SYNCHRONOUS),
            "atime" => (false, MountFlags::NOATIME),
            "bind" => (true, MountFlags::BIND),
            "dev" => (false, MountFlags::NODEV),
            "diratime" => (false, MountFlags::NODIRATIME),
            "dirsync" => (true, MountFlags::DIRSYNC),
            "exec" => (false, MountFlags::NOEXEC),
            "mand" => (true, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
            "noatime" => (true, MountFlags::NOATIME),
            "nodev" => (true, MountFlags::NODEV),
            "nodiratime" => (true, MountFlags::NODIRATIME),
            "noexec" => (true, MountFlags::NOEXEC),
            "nomand" => (false, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
            "norelatime" => (false, MountFlags::RELATIME),
            "nostrictatime" => (false, MountFlags::STRICTATIME),
            "nosuid" => (true, MountFlags::NOSUID),
            "rbind" => (true, MountFlags::BIND | MountFlags::REC),
            "relatime" => (true, MountFlags::RELATIME),
            "ro" => (true, MountFlags::RDONLY),
            "rw" => (false, MountFlags::RDONLY),
            "strictatime" => (true, MountFlags::STRICTATIME),
            "suid" => (false, MountFlags::NOSUID),
            "sync" => (true, MountFlags::SYNCHRONOUS),
            "remount" => {
                parsed.remount = true;
                continue;
            }
            "loop" => {
                parsed.loop_device = true;
                continue;
            }
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" | "unbindable"
            | "runbindable" => {
                parsed.propagation |= propagation(option);
                continue;
            }
            other => {
                match other.split_once('=') {
                    Some(("uidmap", map)) => map.clone_into(&mut parsed.uid_map),
                    Some(("gidmap", map)) => map.clone_into(&mut parsed.gid_map),
                    _ => parsed.data.push(option.clone()),
                }
                continue;
            }
        };
        parsed.flags.set(flag, set);
    }
    Ok(parsed)
}

/// Bytes that mount options take, with the commas between.
fn length(options: &[String]) -> usize {
    options.iter().map(|option| option.len() + 1).sum()
}

fn propagation(option: &str) -> MountPropagationFlags {
    let (recursive, kind) = match option.strip_prefix('r') {
        Some(kind) => (MountPropagationFlags::REC, kind),
        None => (MountPropagationFlags::empty(), option),
    };
    recursive
        | match kind {
            "shared" => MountPropagationFlags::SHARED,
            "slave" => MountPropagationFlags::DOWNSTREAM,
            "unbindable" => MountPropagationFlags::UNBINDABLE,
            _ => MountPropagationFlags::PRIVATE,
        }
}

/// Shortens `lowerdir=` by changing into the directory that all layers share. Only ever runs in a
/// helper process, whose working directory nobody misses.
fn compact_lower_directories(options: &mut [String]) {
    let Some(lowerdir) = options.iter_mut().find(|o| o.starts_with("lowerdir=")) else { return };
    let layers: Vec<&str> = lowerdir["lowerdir=".len()..].split(':').collect();
    let Some(common) = common_directory(&layers) else { return };
    let short: Vec<&str> =
        layers.iter().map(|layer| layer[common.len()..].trim_start_matches('/')).collect();
    if short.iter().any(|s| s.is_empty()) || std::env::set_current_dir(&common).is_err() {
        return;
    }
    *lowerdir = format!("lowerdir={}", short.join(":"));
}

fn common_directory(layers: &[&str]) -> Option<String> {
    let first = Path::new(layers.first()?);
    let mut common = first.parent()?;
    while !layers.iter().all(|layer| Path::new(layer).starts_with(common)) {
        common = common.parent()?;
    }
    (common.is_absolute() && common != Path::new("/"))
        .then(|| common.to_string_lossy().into_owned())
}

/// Unmounts whatever is mounted at or below `root`, deepest first, lazily as the last resort.
/// Returns the first mount point that would not go, with its errno. A missing directory is fine.
pub fn unmount_below(root: &Path) -> Option<(PathBuf, i32)> {
    match unmount_stack(root, UnmountFlags::NOFOLLOW) {
        Ok(()) if !may_have_mounts_below(root) => return None,
        Ok(()) => {}
        // Something below it, or somebody in it: find out.
        Err(_) => {}
    }
    let mut points = mount_points_below(root);
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    let mut failed = None;
    for point in points {
        if unmount_stack(&point, UnmountFlags::NOFOLLOW).is_ok() {
            continue;
        }
        if let Err(e) = unmount_stack(&point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            failed.get_or_insert((point, e.raw_os_error()));
        }
    }
    failed
}

/// Whether nothing is mounted on the directory `root` or below it, as far as that can be told
/// without asking a file system that may be mounted there.
pub fn is_bare(root: &Path) -> bool {
    let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else { return false };
    let look = || -> rustix::io::Result<bool> {
        let parent = rustix::fs::open(parent, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_XDEV;
        let root = rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)?;
        let mut buffer = [MaybeUninit::uninit(); 256];
        let mut entries = rustix::fs::RawDir::new(root, &mut buffer);
        while let Some(entry) = entries.next() {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    };
    match look() {
        Ok(is_empty) => is_empty,
        Err(e) => e == Errno::NOENT,
    }
}

/// After the rootfs itself has gone, mounts can only remain below it if it was a plain directory
/// with mounts inside.
fn may_have_mounts_below(root: &Path) -> bool {
    std::fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some())
}

fn unmount_stack(point: &Path, flags: UnmountFlags) -> rustix::io::Result<()> {
    for _ in 0..MAX_STACKED {
        match rustix::mount::unmount(point, flags) {
            Ok(()) => {}
            // Not a mount point, or not there.
            Err(
                rustix::io::Errno::INVAL | rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR,
            ) => {
                return Ok(());
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn mount_points_below(root: &Path) -> Vec<PathBuf> {
    let root = std::fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let table = read_bounded(Path::new("/proc/self/mountinfo"), MAX_MOUNTINFO).unwrap_or_default();
    table
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(&root))
        .collect()
}

/// proc_pid_mountinfo(5) writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        if let (b'\\', Some(&[a, b, c])) = (*first, tail.first_chunk::<3>())
            && [a, b, c].iter().all(|d| (b'0'..=b'7').contains(d))
        {
            bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_become_flags_and_data() {
        let parsed = parse(&words("ro nosuid rbind rprivate lowerdir=/a:/b index=off")).unwrap();
        assert_eq!(
            parsed.flags,
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::BIND | MountFlags::REC
        );
        assert_eq!(parsed.propagation, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
        assert_eq!(parsed.data, words("lowerdir=/a:/b index=off"));
        assert_eq!(parse(&words("ro rw")).unwrap().flags, MountFlags::empty());
        assert!(matches!(parse(&words("X-containerd.x=1")), Err(MountError::Internal(_))));
    }

    #[test]
    fn targets_stay_below_the_rootfs() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        assert_eq!(beneath(dir.path(), "").unwrap(), dir.path());
        assert_eq!(beneath(dir.path(), "/a/b").unwrap(), dir.path().join("a/b"));
        assert!(beneath(dir.path(), "../x").is_err());
        assert!(beneath(dir.path(), "out").is_err());
    }

    #[test]
    fn layers_share_a_directory() {
        assert_eq!(common_directory(&["/s/12/fs", "/s/1/fs"]).as_deref(), Some("/s"));
        assert_eq!(common_directory(&["/a/fs", "/b/fs"]), None);
    }

    #[test]
    fn mountinfo_escapes() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(br"/a\04"), Path::new(r"/a\04"));
    }
}
