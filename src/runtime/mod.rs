//! The OCI runtime (runc, crun …): by its command line, and where it is known, without it.
//!
//! Enters: what to do with which container. Leaves: done, or a [`Failure`] in the words that
//! clients know. Never here: container state. Never a wait without a deadline.

mod call;
mod direct;
mod failure;
mod identity;
mod naming;
mod record;

pub use call::{CallStdio, Caller};
pub use direct::Direct;
pub use failure::{Failure, last_error_in};
pub use identity::{FileId, Known, find};

use crate::{
    bundle::{Bundle, Late},
    id::Id,
    protocol::options::Options,
    sys::{self, program::Program},
};
use std::path::{Path, PathBuf};

/// State directory of the runtime unless the options name one; below it a directory a namespace.
const DEFAULT_ROOT: &str = "/run/containerd/runc";
/// The runtime unless the options name one.
const DEFAULT_BINARY: &str = "runc";

/// How one container's runtime is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    binary: String,
    root: PathBuf,
    systemd_cgroup: bool,
    bundle: PathBuf,
}

impl Runtime {
    /// The runtime that the options ask for.
    pub fn new(options: &Options, namespace: &Id, bundle: &Bundle) -> Self {
        let or = |text: &str, default: &str| {
            if text.is_empty() { default.to_owned() } else { text.to_owned() }
        };
        Self {
            binary: or(&options.binary_name, DEFAULT_BINARY),
            root: Path::new(&or(&options.root, DEFAULT_ROOT)).join(namespace.as_str()),
            systemd_cgroup: options.systemd_cgroup,
            bundle: bundle.path().to_owned(),
        }
    }

    /// Name or path of the binary.
    pub fn binary(&self) -> &str {
        &self.binary
    }

    /// Whether this runtime keeps its record of the container where runc does, and names this init
    /// in it: what [`Runtime::has_record`] says may then be relied on, and a signal to the init's
    /// pid reaches its program.
    pub fn keeps_record(&self, id: &Id, init: u32) -> bool {
        record::names(&self.record(id), init)
    }

    /// What needs no runtime of a container that was made by a program that we know.
    pub fn direct(&self, id: &Id, by: Known, late: Late) -> Option<Direct> {
        let is_its = record::is_of(&self.record(id), by);
        is_its.then(|| Direct::new(by, self.record(id), late, self.systemd_cgroup))
    }

    /// Whether there is a record of this container. Its absence means something only if one was
    /// seen before.
    pub fn has_record(&self, id: &Id) -> bool {
        self.record(id).exists()
    }

    /// Whether the record is of an earlier container in the same bundle, which has ended: it keeps
    /// this one from its name.
    pub fn is_record_left_behind(&self, id: &Id) -> bool {
        record::is_left_behind(&self.record(id), &self.bundle)
    }

    /// Where runc keeps what it knows of this container.
    fn record(&self, id: &Id) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// The command with its global flags, running in the bundle; errors go to the bundle's
    /// log.json.
    pub fn command(&self) -> Program {
        self.command_logging_to(&self.bundle.join("log.json"))
    }

    fn command_logging_to(&self, log: &Path) -> Program {
        let mut command = Program::new(&self.binary);
        let has_bundle = self.bundle.is_dir();
        // A runtime that cannot open its log does nothing; without a bundle its stderr speaks.
        let log = if has_bundle { log } else { Path::new("/dev/null") };
        command.arg("--root").arg(&self.root).arg("--log").arg(log).args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        if has_bundle {
            command.current_dir(&self.bundle);
        }
        // Readiness of containerd's own unit is none of the runtime's business (go-runc does the
        // same).
        command.env_remove("NOTIFY_SOCKET");
        sys::malloc::as_they_like(&mut command);
        command
    }
}
