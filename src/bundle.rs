//! The bundle: the directory that containerd makes for a container, and the files that we read and
//! write there.
//!
//! They are small and lie on a tmpfs, so they are read and written synchronously.

use crate::{
    id::Id,
    protocol::{Timestamp, options::Options},
    spec::Spec,
};
use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Largest config.json that is read, bytes. containerd's own messages end at 4 MiB; beyond this it
/// is refused.
const MAX_CONFIG: u64 = 16 << 20;
/// Largest of the other files, bytes; more is cut off.
const MAX_FILE: u64 = 1 << 20;

/// A bundle directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle(PathBuf);

/// A file of the bundle could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {}", path.display())]
pub struct BundleError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Annotations of ours begin so.
const OWN_ANNOTATIONS: &str = "io.containerd.cleat.";
/// Those that change what crun does (crun(1)).
const CRUN_ANNOTATIONS: &str = "run.oci.";

/// What config.json wants of the runtime after Create.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// Hooks after the start.
    pub poststart: bool,
    /// Hooks after the end.
    pub poststop: bool,
    /// A resctrl group.
    pub intel_rdt: bool,
    /// Something of crun's own.
    pub crun: bool,
}

/// What Create wants to know of config.json.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// It asks for a pid namespace of the container's own: one without a path.
    pub has_private_pid_namespace: bool,
    /// A file of the host's may be among its streams, and is let go when its init has exited: no
    /// security module judges by the file's path or label, no user namespace makes its owner a
    /// stranger, and no process survives the init.
    pub may_hold_fifos: bool,
    /// It has a seccomp profile.
    pub has_seccomp: bool,
    /// `linux.cgroupsPath`.
    pub cgroups_path: Option<String>,
    /// What is left for the runtime.
    pub late: Late,
    /// Its annotation `io.containerd.cleat.spool`.
    pub spool: Option<String>,
    /// Its annotation `io.containerd.cleat.native-exec`.
    pub native_exec: Option<String>,
}

/// How an init ended, written down for a later `delete` (see [`Bundle::write_exit`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedExit {
    /// Exit status.
    pub status: u32,
    /// When it was reaped.
    pub at: Timestamp,
}

impl Bundle {
    /// Names a bundle; nothing is touched.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether somebody has removed it.
    pub fn is_gone(&self) -> bool {
        matches!(self.0.try_exists(), Ok(false))
    }

    /// A file or directory of the bundle.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The container's root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.join("rootfs")
    }

    /// The OCI runtime's log.
    pub fn runtime_log(&self) -> PathBuf {
        self.join("log.json")
    }

    /// config.json's annotations, and nothing else of it.
    pub fn annotations(&self) -> Result<BTreeMap<String, String>, BundleError> {
        annotations_in(&self.config_text()?).map_err(|source| self.bad_config(source))
    }

    /// What Create wants to know of config.json.
    pub fn traits(&self) -> Result<Traits, BundleError> {
        let wants =
            |name: &str| name.starts_with(OWN_ANNOTATIONS) || name.starts_with(CRUN_ANNOTATIONS);
        let mut spec = self.spec(wants)?;
        let has_crun_annotations =
            spec.annotations.keys().any(|name| name.starts_with(CRUN_ANNOTATIONS));
        let has_private_pid_namespace =
            spec.namespaces.iter().any(|n| n.kind == "pid" && n.path.is_empty());
        let has_user_namespace = spec.namespaces.iter().any(|n| n.kind == "user");
        let is_confined = !spec.apparmor_profile.is_empty() || !spec.selinux_label.is_empty();
        let mut annotation = |name: &str| {
            let text = spec.annotations.remove(&format!("{OWN_ANNOTATIONS}{name}"));
            text.filter(|text| !text.is_empty())
        };
        Ok(Traits {
            has_private_pid_namespace,
            may_hold_fifos: has_private_pid_namespace && !has_user_namespace && !is_confined,
            has_seccomp: spec.has_seccomp,
            cgroups_path: spec.cgroups_path,
            late: Late {
                poststart: spec.has_poststart,
                poststop: spec.has_poststop,
                intel_rdt: spec.has_intel_rdt,
                crun: has_crun_annotations,
            },
            spool: annotation("spool"),
            native_exec: annotation("native-exec"),
        })
    }

    /// `linux.cgroupsPath` of config.json, in which the runtime makes the container's cgroup.
    pub fn cgroups_path(&self) -> Option<String> {
        self.spec(|_| false).ok()?.cgroups_path
    }

    /// config.json as it is.
    pub fn config_text(&self) -> Result<Vec<u8>, BundleError> {
        let path = self.join("config.json");
        let fail = |source| BundleError { verb: "read", path: path.clone(), source };
        let bytes = read_own(&path, MAX_CONFIG + 1).map_err(fail)?;
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(fail(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 16 MiB")));
        }
        Ok(bytes)
    }

    fn spec(&self, wants: impl Fn(&str) -> bool) -> Result<Spec, BundleError> {
        Spec::read(&self.config_text()?, wants).map_err(|e| self.bad_config(invalid_data(e)))
    }

    fn bad_config(&self, source: io::Error) -> BundleError {
        BundleError { verb: "read", path: self.join("config.json"), source }
    }

    /// Reads `options.json` as either shim writes it; defaults where there is none.
    pub fn options(&self) -> Result<Options, BundleError> {
        let path = self.join("options.json");
        match read_own(&path, MAX_FILE) {
            Ok(bytes) => crate::options::from_json(&bytes).map_err(|e| BundleError {
                verb: "read",
                path,
                source: invalid_data(e),
            }),
            Err(e) if is_absent(&e) => Ok(Options::default()),
            Err(source) => Err(BundleError { verb: "read", path, source }),
        }
    }

    /// Writes `options.json` and `runtime`, for a `delete` that comes after us.
    pub fn write_options(&self, options: &Options) -> Result<(), BundleError> {
        let json = serde_json::to_vec(options).map_err(|e| BundleError {
            verb: "encode",
            path: self.join("options.json"),
            source: e.into(),
        })?;
        self.write("options.json", &json, 0o600)?;
        self.write("runtime", options.binary_name.as_bytes(), 0o600)
    }

    /// Writes the `address` file, which containerd 1.6 reads when it is restarted.
    pub fn write_address(&self, address: &str) -> Result<(), BundleError> {
        self.write("address", address.as_bytes(), 0o600)
    }

    /// The address in the `address` file.
    pub fn address(&self) -> Option<String> {
        let text = String::from_utf8(read_own(&self.join("address"), MAX_FILE).ok()?).ok()?;
        (!text.is_empty()).then_some(text)
    }

    /// Writes down how the init ended, so that a `delete` after our own end still reports it.
    pub fn write_exit(&self, exit: RecordedExit) -> Result<(), BundleError> {
        let text = format!("{} {} {}\n", exit.status, exit.at.seconds, exit.at.nanos);
        self.write(EXIT, text.as_bytes(), 0o600)
    }

    /// What [`Bundle::write_exit`] wrote; `None` if nothing usable is there.
    pub fn exit(&self) -> Option<RecordedExit> {
        let text = String::from_utf8(read_own(&self.join(EXIT), 64).ok()?).ok()?;
        let mut words = text.split_whitespace();
        let status = words.next()?.parse().ok()?;
        let seconds = words.next()?.parse().ok()?;
        let nanos = words.next()?.parse().ok()?;
        Some(RecordedExit { status, at: Timestamp { seconds, nanos } })
    }

    /// Reads a pid file of the bundle, as the OCI runtime writes it: decimal, host's pid namespace.
    pub fn pid(&self, name: &str) -> Result<u32, BundleError> {
        let path = self.join(name);
        let fail = |source| BundleError { verb: "read pid from", path: path.clone(), source };
        let bytes = read_own(&path, 64).map_err(fail)?;
        let text = String::from_utf8_lossy(&bytes);
        match text.trim().parse::<i32>() {
            Ok(pid) if pid > 0 => Ok(pid.unsigned_abs()),
            _ => Err(fail(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{:?} is no pid", text.trim()),
            ))),
        }
    }

    /// Opens a file for reading.
    pub fn open(&self, name: &str) -> io::Result<std::fs::File> {
        open_with(&self.join(name), OWN)
    }

    /// Whether a Create has begun, and so the runtime may have been called.
    pub fn has_called_runtime(&self) -> bool {
        self.join("runtime").exists() || self.join(INIT_PID).exists()
    }

    /// Notes for a later `delete` that the runtime was seen to keep its record where we look for
    /// it: that no record is left then means that the runtime knows the container no more.
    pub fn note_record_seen(&self) -> Result<(), BundleError> {
        self.write(RECORD_SEEN, b"", 0o600)
    }

    /// Whether [`Bundle::note_record_seen`] was called.
    pub fn is_record_seen(&self) -> bool {
        self.join(RECORD_SEEN).exists()
    }

    /// Notes for a later `delete` that the container's cgroup was not there before the runtime was
    /// called: who is in it is the container's.
    pub fn note_cgroup_new(&self) -> Result<(), BundleError> {
        self.write(CGROUP_NEW, b"", 0o600)
    }

    /// Whether [`Bundle::note_cgroup_new`] was called.
    pub fn is_cgroup_new(&self) -> bool {
        self.join(CGROUP_NEW).exists()
    }

    /// Removes what an earlier container may have left in the same bundle, and what is said of it
    /// there.
    pub fn forget_earlier(&self) {
        for name in [INIT_PID, EXIT, RECORD_SEEN, CGROUP_NEW] {
            self.remove(name);
        }
    }

    /// Removes a file; a missing one is fine.
    pub fn remove(&self, name: &str) {
        if let Err(e) = std::fs::remove_file(self.join(name))
            && !is_absent(&e)
        {
            log::warn!("remove {}: {e}", self.join(name).display());
        }
    }

    /// Writes a file of the bundle whole.
    pub fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), BundleError> {
        let path = self.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(|source| BundleError { verb: "write", path: path.clone(), source })?;
        file.write_all(bytes).map_err(|source| BundleError { verb: "write", path, source })
    }
}

/// The annotations in the text of a config.json.
pub fn annotations_in(config: &[u8]) -> io::Result<BTreeMap<String, String>> {
    let spec = Spec::read(config, |_| true).map_err(invalid_data)?;
    if spec.has_odd_annotations {
        return Err(invalid_data("its annotations are no texts"));
    }
    Ok(spec.annotations)
}

fn invalid_data(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Whether an error says that there is no such file (a parent that is no directory counts).
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The file in which the runtime names a container's init.
pub const INIT_PID: &str = "init.pid";

/// The one in which it names an exec. The prefix keeps an exec called `init` apart from the init.
pub fn exec_pid(exec: &Id) -> String {
    format!("exec-{exec}.pid")
}

/// See [`Bundle::note_record_seen`].
const RECORD_SEEN: &str = "record-seen";
/// See [`Bundle::note_cgroup_new`].
const CGROUP_NEW: &str = "cgroup-new";
/// See [`Bundle::write_exit`].
const EXIT: &str = "exit";

/// The file in which the seccomp filters of the init are kept (`native::filters`).
pub const SECCOMP: &str = "seccomp";

/// Reads at most `limit` bytes of a file; never waits on a fifo.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_with(path, limit, libc::O_NONBLOCK)
}

/// The same for a file of a bundle, which is no link.
fn read_own(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_with(path, limit, OWN)
}

/// A file of a bundle is no link, and we never wait for it.
const OWN: libc::c_int = libc::O_NONBLOCK | libc::O_NOFOLLOW;

fn open_with(path: &Path, flags: libc::c_int) -> io::Result<std::fs::File> {
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn read_with(path: &Path, limit: u64, flags: libc::c_int) -> io::Result<Vec<u8>> {
    let file = open_with(path, flags)?;
    // Most files in one read: from nothing it would take eight for four KiB.
    let mut bytes = Vec::with_capacity(FIRST_READ);
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes asked for at first.
const FIRST_READ: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: &str) -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let bundle = Bundle::new(dir.path());
        (dir, bundle)
    }

    #[test]
    fn private_pid_namespace_is_one_without_a_path() {
        let cases = [
            (r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#, true),
            (r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#, false),
            (r#"{"linux":{"namespaces":[{"type":"mount"}]}}"#, false),
            (r#"{"ociVersion":"1.0.2"}"#, false),
        ];
        for (config, expected) in cases {
            assert_eq!(
                bundle(config).1.traits().unwrap().has_private_pid_namespace,
                expected,
                "{config}"
            );
        }
    }

    #[test]
    fn what_is_confined_or_shared_holds_no_fifo() {
        let cases = [
            (r#"{"process":{"apparmorProfile":""},"linux":{"namespaces":[{"type":"pid"}]}}"#, true),
            (
                r#"{"process":{"apparmorProfile":"p"},"linux":{"namespaces":[{"type":"pid"}]}}"#,
                false,
            ),
            (r#"{"process":{"selinuxLabel":"l"},"linux":{"namespaces":[{"type":"pid"}]}}"#, false),
            (r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"user"}]}}"#, false),
            (r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#, false),
        ];
        for (config, expected) in cases {
            assert_eq!(bundle(config).1.traits().unwrap().may_hold_fifos, expected, "{config}");
        }
    }

    #[test]
    fn options_survive_the_bundle() {
        let (_dir, bundle) = bundle("{}");
        assert_eq!(bundle.options().unwrap(), Options::default());
        let options =
            Options { root: "/r".into(), systemd_cgroup: true, io_uid: 7, ..Options::default() };
        bundle.write_options(&options).unwrap();
        assert_eq!(bundle.options().unwrap(), options);
        let json = std::fs::read_to_string(bundle.join("options.json")).unwrap();
        assert_eq!(json, r#"{"io_uid":7,"root":"/r","systemd_cgroup":true}"#);
    }

    #[test]
    fn exit_survives_the_bundle() {
        let (_dir, bundle) = bundle("{}");
        assert_eq!(bundle.exit(), None);
        let exit = RecordedExit { status: 137, at: Timestamp { seconds: 5, nanos: 6 } };
        bundle.write_exit(exit).unwrap();
        assert_eq!(bundle.exit(), Some(exit));
    }

    #[test]
    fn pid_files_are_checked() {
        let (_dir, bundle) = bundle("{}");
        for (text, pid) in [
            ("42", Some(42)),
            ("42\n", Some(42)),
            ("", None),
            ("-1", None),
            ("0", None),
            ("x", None),
        ] {
            std::fs::write(bundle.join("init.pid"), text).unwrap();
            assert_eq!(bundle.pid("init.pid").ok(), pid, "{text:?}");
        }
        assert!(bundle.pid("none.pid").is_err());
    }
}
