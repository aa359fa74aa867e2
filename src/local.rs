//! What can be looked at without waiting for anybody. A file system that needs a server (NFS, FUSE)
//! hangs with it, and with it whoever looks a name up there. What is in the kernel's cache, on a
//! file system that needs nobody, does not.

use crate::{bundle::read_bounded, sys::program::Program};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags},
    io::Errno,
};
use std::{
    cell::RefCell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

/// Mounts that are known to be local.
const MAX_KNOWN: usize = 16;
/// How long one is known whose number may come to another mount (before Linux 6.8).
const LEASE: Duration = Duration::from_millis(200);
/// Largest mountinfo that is read, bytes.
const MAX_MOUNTINFO: u64 = 4 << 20;
/// File systems that answer without anybody's help.
const LOCAL: [&str; 18] = [
    "tmpfs", "ramfs", "rootfs", "devtmpfs", "devpts", "overlay", "ext2", "ext3", "ext4", "xfs",
    "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "erofs", "squashfs", "vfat",
];
/// openat2(2): only what is in the cache (since Linux 5.12).
const RESOLVE_CACHED: ResolveFlags = ResolveFlags::from_bits_retain(0x20);
/// Lookups in the cache fail when something is renamed or mounted meanwhile.
const CACHE_TRIES: u32 = 3;
/// statx(2): the number of a mount that no other one ever gets (since Linux 6.8).
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

thread_local! {
    static KNOWN: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
}

/// A mount of a local file system.
struct Known {
    mount: u64,
    device: (u32, u32),
    /// `None`: the number is its own.
    until: Option<Instant>,
}

/// The place that a path leads to, and whether all of it was in the cache; `None` if it was not,
/// and somebody must be asked who may not answer.
pub fn locate(path: &Path) -> rustix::io::Result<Option<(OwnedFd, bool)>> {
    locate_at(CWD, path, OFlags::empty(), RESOLVE_CACHED)
}

fn locate_at(
    from: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<Option<(OwnedFd, bool)>> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    for _ in 0..CACHE_TRIES {
        match rustix::fs::openat2(from, path, flags, Mode::empty(), resolve) {
            Ok(place) => return Ok(Some((place, true))),
            Err(Errno::AGAIN) => {}
            // The kernel cannot say (before 5.12), or a filter forbids to ask.
            Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                return rustix::fs::openat(from, path, flags, Mode::empty())
                    .map(|place| Some((place, false)));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// Type and numbers, as the kernel has them; the file system is not asked.
pub fn kind(place: &OwnedFd) -> rustix::io::Result<Statx> {
    rustix::fs::statx(place, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, MNT_ID_UNIQUE)
}

/// Whether the file system of a place needs nobody's help to answer. `kind` is the place's.
pub fn is_local(place: &OwnedFd, kind: &Statx) -> bool {
    let is_unique = StatxFlags::from_bits_retain(kind.stx_mask).contains(MNT_ID_UNIQUE);
    let device = (kind.stx_dev_major, kind.stx_dev_minor);
    let now = Instant::now();
    KNOWN.with_borrow_mut(|known| {
        known.retain(|known| known.until.is_none_or(|until| until > now));
        let is_it = |known: &Known| known.mount == kind.stx_mnt_id && known.device == device;
        if known.iter().any(is_it) {
            return true;
        }
        // The number that mountinfo has. As long as we hold the place no other mount gets it.
        let id = match is_unique {
            false => kind.stx_mnt_id,
            true => {
                let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
                match rustix::fs::statx(place, "", flags, StatxFlags::empty()) {
                    Ok(again) => again.stx_mnt_id,
                    Err(_) => return false,
                }
            }
        };
        let mounts =
            read_bounded(Path::new("/proc/self/mountinfo"), MAX_MOUNTINFO).unwrap_or_default();
        let is_local = is_local_mount(&String::from_utf8_lossy(&mounts), id, device);
        if is_local {
            if known.len() >= MAX_KNOWN {
                known.remove(0);
            }
            let until = (!is_unique).then(|| now + LEASE);
            known.push(Known { mount: kind.stx_mnt_id, device, until });
        }
        is_local
    })
}

/// Looks a mount up in mountinfo (proc_pid_mountinfo(5)).
fn is_local_mount(mounts: &str, id: u64, (major, minor): (u32, u32)) -> bool {
    let (id, device) = (id.to_string(), format!("{major}:{minor}"));
    mounts.lines().any(|line| {
        let mut words = line.split(' ');
        let is_it = words.next() == Some(&id) && words.nth(1) == Some(&device);
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        is_it && kind.is_some_and(|kind| LOCAL.contains(&kind))
    })
}

/// Whether whoever starts a program may wait for a file system that hangs: its file is the first of
/// these that is there.
pub fn may_hang(program: &Program) -> bool {
    // What a process names by its own descriptors is not ours to look up.
    let is_descriptor = program.path().starts_with("/proc/self");
    !is_descriptor && program.paths().iter().find_map(|path| may_path_hang(path)).unwrap_or(false)
}

/// `None`: there is nothing, nor anybody to be waited for.
fn may_path_hang(path: &Path) -> Option<bool> {
    match look(path) {
        Ok(Some(hangs)) => Some(hangs),
        // What is looked up is in the cache from then on.
        Ok(None) => match is_in_its_directory(path) {
            Some(false) => None,
            Some(true) => Some(look(path).ok().flatten().unwrap_or(true)),
            None => Some(true),
        },
        Err(_) => None,
    }
}

/// Whether what is there may hang; `None` if that cannot be told from the cache.
fn look(path: &Path) -> rustix::io::Result<Option<bool>> {
    let Some((place, is_cached)) = locate(path)? else { return Ok(None) };
    Ok(Some(is_cached && !is_local(&place, &kind(&place)?)))
}

/// Looks a name up in its directory if that is on a local file system, and stays on it; `None` if
/// nothing can be said.
fn is_in_its_directory(path: &Path) -> Option<bool> {
    let (directory, _) = locate(path.parent()?).ok()??;
    if !is_local(&directory, &kind(&directory).ok()?) {
        return None;
    }
    let name = Path::new(path.file_name()?);
    match locate_at(directory.as_fd(), name, OFlags::NOFOLLOW, ResolveFlags::NO_XDEV) {
        Ok(_) => Some(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_both_numbers_and_its_kind_counts() {
        let mounts = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 21 0:40 / /a\\040b rw shared:3 master:1 - fuse.sshfs host rw\n\
            31 21 0:41 / /run rw shared:4 - tmpfs tmpfs rw\n";
        assert!(is_local_mount(mounts, 21, (8, 1)));
        assert!(is_local_mount(mounts, 31, (0, 41)));
        assert!(!is_local_mount(mounts, 30, (0, 40)));
        assert!(!is_local_mount(mounts, 31, (0, 40)));
        assert!(!is_local_mount(mounts, 32, (0, 41)));
    }

    #[test]
    fn what_is_on_a_local_file_system_or_missing_does_not_hang() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, b"").unwrap();
        std::os::unix::fs::symlink("file", directory.path().join("link")).unwrap();
        // While others mount and rename, the cache does not always tell.
        let mostly = |path: &Path, answers: &[Option<bool>]| {
            (0..1000).any(|_| answers.contains(&may_path_hang(path)))
        };
        for name in ["file", "link", "missing", "missing/file", "file/below"] {
            assert!(mostly(&directory.path().join(name), &[None, Some(false)]), "{name}");
        }
        assert!(mostly(&file, &[Some(false)]));
        // Of a kind that is not in the list.
        assert_eq!(may_path_hang(Path::new("/proc/version")), Some(true));
    }
}
