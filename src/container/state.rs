//! Container, init and exec as values.

use crate::{id::Id, protocol::Timestamp};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When it was reaped.
    pub at: Timestamp,
}

/// The three channels as the client named them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// Fifo, or empty.
    pub stdin: String,
    /// Fifo or URI, or empty.
    pub stdout: String,
    /// Fifo, or empty.
    pub stderr: String,
    /// A console instead of three pipes.
    pub terminal: bool,
}

/// Where the container's processes have their pids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// In a namespace of its own: the kernel kills them with the init.
    Private,
    /// In the host's or another container's: we kill them when the init has exited.
    Shared,
}

/// Where the init is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// The runtime has made it; its program does not run yet.
    Created,
    /// `runtime start` is under way.
    Starting,
    /// Its program runs.
    Running,
    /// `runtime pause` is under way.
    Pausing,
    /// Frozen.
    Paused,
    /// `runtime resume` is under way.
    Resuming,
    /// Exited, and everybody has been told.
    Stopped,
    /// `runtime delete` is under way.
    Deleting,
    /// Gone.
    Deleted,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Pid in the shim's pid namespace; 0: not born. A created container's init is born, unless
    /// Start is to restore it from a checkpoint.
    pub pid: u32,
    /// Its channels.
    pub stdio: Stdio,
    /// Set once the exit has been published.
    pub exit: Option<Exit>,
}

/// Where an exec is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecPhase {
    /// Known by its id; nothing runs.
    Added,
    /// `runtime exec` is under way.
    Starting,
    /// It runs.
    Running,
    /// It has exited, or its start failed.
    Stopped,
    /// Its I/O is being drained for Delete.
    Deleting,
}

/// A process added to a container later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The process.
    pub process: Process,
    /// Its life.
    pub phase: ExecPhase,
    /// The process spec (JSON), until it is started.
    pub spec: Vec<u8>,
    /// Its last start has failed: what those hear who wait for its end.
    #[serde(default)]
    pub failed: Option<Exit>,
}

/// A container and all that is known of its processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its id.
    pub id: Id,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// The init's life.
    pub status: Status,
    /// Its first process.
    pub init: Process,
    /// Who kills its processes when the init goes.
    pub pid_namespace: PidNamespace,
    /// Execs by id, ended ones too, until they are deleted.
    pub execs: BTreeMap<Id, Exec>,
    /// The init has exited and this has not been published yet.
    pub held: Option<Exit>,
    /// Processes outside a pid namespace of its own are being killed.
    pub clearing: bool,
    /// Where a failed Delete leads back to.
    pub before_delete: Status,
}

impl Container {
    /// A container that the runtime has just created.
    pub fn new(
        id: Id,
        bundle: PathBuf,
        pid: u32,
        stdio: Stdio,
        pid_namespace: PidNamespace,
    ) -> Self {
        Self {
            id,
            bundle,
            status: Status::Created,
            init: Process { pid, stdio, exit: None },
            pid_namespace,
            execs: BTreeMap::new(),
            held: None,
            clearing: false,
            before_delete: Status::Created,
        }
    }

    /// The init has exited, published or not.
    pub fn init_has_exited(&self) -> bool {
        self.held.is_some() || self.init.exit.is_some()
    }

    /// What those hear who wait for the end of a process: its exit, or that it was not to be
    /// started.
    pub fn outcome(&self, exec: Option<&Id>) -> Option<Exit> {
        match exec {
            None => self.init.exit,
            Some(exec) => self.execs.get(exec).and_then(|e| e.process.exit.or(e.failed)),
        }
    }

    /// A process by exec id; `None` is the init.
    pub fn process(&self, exec: Option<&Id>) -> Option<&Process> {
        match exec {
            None => Some(&self.init),
            Some(exec) => self.execs.get(exec).map(|e| &e.process),
        }
    }
}
