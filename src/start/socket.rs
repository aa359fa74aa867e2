//! Group → address; the socket behind it is ours to bind, stale, or alive.

use crate::{bundle::Bundle, id::Id};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use sha2::{Digest, Sha256};
use std::{
    fmt,
    fmt::Write as _,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Longest path of a unix socket, bytes, as containerd counts (`pkg/shim/util_unix.go`): sun_path
/// less the NUL, less one.
const MAX_PATH: usize = 106;
/// How long a live shim may take to accept a connection: containerd's own figure.
const PROBE_TIMEOUT: Duration = Duration::from_millis(100);

/// How long another start may hold the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Where a group's shim listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(PathBuf);

/// What [`bind`] found.
pub(super) enum Bound {
    /// A listening socket, ours.
    New(OwnedFd),
    /// A shim that answers.
    Alive,
}

/// The socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Longer than a socket path may be.
    #[error("socket path {} is longer than {MAX_PATH} bytes", .0.display())]
    TooLong(PathBuf),
    /// The file system said no.
    #[error("{verb} {}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Address {
    /// The address of a group: sha256 of `ADDRESS/NAMESPACE/GROUP`, cleaned as Go's filepath.Join
    /// does, so that every containerd since 1.6 computes the same.
    pub fn of_group(
        directory: &Path,
        containerd: &str,
        namespace: &Id,
        group: &str,
    ) -> Result<Self, SocketError> {
        // Go's Join leaves empty parts out.
        let hashed = match containerd {
            "" => clean(&format!("{namespace}/{group}")),
            _ => clean(&format!("{containerd}/{namespace}/{group}")),
        };
        let mut name = String::with_capacity(64);
        for byte in Sha256::digest(hashed.as_bytes()) {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        let path = directory.join(name);
        if path.as_os_str().len() > MAX_PATH {
            return Err(SocketError::TooLong(path));
        }
        Ok(Self(path))
    }

    /// Reads `unix:///path`.
    pub fn parse(text: &str) -> Option<Self> {
        text.strip_prefix("unix://").map(|path| Self(PathBuf::from(path)))
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes the socket, and the bundle's record of it.
    pub(super) fn forget(&self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_file("address");
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

/// Lexical cleaning as Go's `path/filepath.Clean` does it.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&"..") | None if !rooted => parts.push(".."),
                Some(_) => {
                    parts.pop();
                }
                None => {}
            },
            other => parts.push(other),
        }
    }
    let joined = parts.join("/");
    if rooted { format!("/{joined}") } else { joined }
}

/// Where containerd expects shim sockets unless it names a directory.
pub(super) fn default_directory() -> PathBuf {
    PathBuf::from("/run/containerd/s")
}

/// Leaves the caller's socket directory in the bundle as the link `s`, as upstream does.
pub(super) fn remember_directory(bundle: &Bundle, directory: &Path) -> Result<(), SocketError> {
    let link = bundle.join("s");
    let fail = |source| SocketError::Io { verb: "link", path: link.clone(), source };
    match symlink(directory, &link) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(&link).map_err(fail)?;
            symlink(directory, &link).map_err(fail)
        }
        result => result.map_err(fail),
    }
}

/// Listens, or finds who listens there already. A socket that nobody answers on is removed.
///
/// Two starts of one group at the same moment: whoever holds the directory's lock binds and
/// listens; the other finds it alive. Without the lock one could take the other's socket, bound and
/// not yet listening, for a stale one.
pub(super) fn bind(address: &Address) -> Result<Bound, SocketError> {
    let path = address.path();
    let fail =
        |verb| move |source: io::Error| SocketError::Io { verb, path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|source| {
        SocketError::Io { verb: "create directory", path: directory.to_owned(), source }
    })?;
    let _lock = lock(directory).map_err(|source| SocketError::Io {
        verb: "lock",
        path: directory.to_owned(),
        source,
    })?;
    if let Some(listener) = listen(path).map_err(fail("listen on"))? {
        return Ok(Bound::New(listener));
    }
    if is_alive(path) {
        return Ok(Bound::Alive);
    }
    std::fs::remove_file(path).map_err(fail("remove stale socket"))?;
    match listen(path).map_err(fail("listen on"))? {
        Some(listener) => Ok(Bound::New(listener)),
        None => Err(fail("listen on")(io::Error::from_raw_os_error(libc::EADDRINUSE))),
    }
}

/// flock(2) on the socket directory; freed when the descriptor closes. Other starts hold it for
/// microseconds (a probe of a deaf shim: 100 ms). Anybody else may hold it for ever: then we go on
/// without it after [`LOCK_PATIENCE`], which is only unsafe if two starts of one group find the
/// same stale socket in the same moment.
fn lock(directory: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{FlockOperation, Mode, OFlags};
    let fd = rustix::fs::open(
        directory,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let begun = Instant::now();
    let pause = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
    loop {
        match rustix::fs::flock(fd.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_PATIENCE => {
                let _ = poll(&mut [], Some(&pause));
            }
            Ok(()) | Err(Errno::WOULDBLOCK) => return Ok(fd),
            Err(e) => return Err(e.into()),
        }
    }
}

/// A listening socket at `path`; `None` if something is there already.
fn listen(path: &Path) -> io::Result<Option<OwnedFd>> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    match rustix::net::bind(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::ADDRINUSE) => return Ok(None),
        result => result?,
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(Some(socket))
}

/// Connections that wait until the daemon is up, and bursts later on.
const BACKLOG: i32 = 128;

/// Whether somebody accepts connections at `path`.
pub fn is_alive(path: &Path) -> bool {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
    let attempt = || -> rustix::io::Result<bool> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
            Ok(()) => return Ok(true),
            // A full backlog: somebody owns the socket and is busy. That is a shim, not a stale
            // file.
            Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(e),
        }
        let mut ready = [PollFd::new(&socket, PollFlags::OUT)];
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(PROBE_TIMEOUT.subsec_nanos()) };
        poll(&mut ready, Some(&timeout))?;
        Ok(sockopt::socket_error(&socket)?.is_ok())
    };
    attempt().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_the_hash_that_containerd_computes() {
        // printf /run/containerd/containerd.sock/k8s.io/pod | sha256sum
        let id = Id::new("k8s.io").unwrap();
        let address =
            Address::of_group(&default_directory(), "/run/containerd/containerd.sock", &id, "pod")
                .unwrap();
        assert_eq!(
            address.to_string(),
            "unix:///run/containerd/s/b9cab8e84f817f3c3bb561c7ea8dcbfba051d5d8f56ec2c3f204bc387d13f7d0"
        );
    }

    #[test]
    fn cleaning_follows_go() {
        for (path, cleaned) in [
            ("/a//b/./c", "/a/b/c"),
            ("/a/../b", "/b"),
            ("/../b", "/b"),
            ("a/../../b", "../b"),
            ("/a/b/", "/a/b"),
        ] {
            assert_eq!(clean(path), cleaned);
        }
    }

    #[test]
    fn too_long_a_path_is_refused() {
        let id = Id::new("n").unwrap();
        assert!(
            Address::of_group(Path::new(&format!("/{}", "d".repeat(40))), "", &id, "g").is_ok()
        );
        assert!(
            Address::of_group(Path::new(&format!("/{}", "d".repeat(41))), "", &id, "g").is_err()
        );
    }

    #[test]
    fn stale_socket_is_replaced_and_a_live_one_found() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address(dir.path().join("s/x"));
        let Bound::New(listener) = bind(&address).unwrap() else { panic!("not new") };
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(address.path()), 0o600);
        assert_eq!(mode(address.path().parent().unwrap()), 0o700);
        assert!(matches!(bind(&address).unwrap(), Bound::Alive));
        drop(listener);
        assert!(address.path().exists());
        assert!(matches!(bind(&address).unwrap(), Bound::New(_)));
    }
}
