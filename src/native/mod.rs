//! Exec without a runtime: a helper, re-executed from our own binary, enters the container and
//! becomes the program.
//!
//! `runc exec` costs some 12 ms of CPU time, most of it Go's start-up, twice; the work itself takes
//! one. For the kubelet's probes that is most of what a node spends on them. Off unless the
//! handler's options (`NativeExec = true`) or the container's annotation
//! (`io.containerd.cleat.native-exec`) ask for it.
//!
//! ```text
//! shim ── decide ── what the helper cannot do exactly as runc does it ──▶ the runtime, as ever
//!           │ Plan, on a board that only the two see
//!           ▼
//!         helper: the container's cgroups, keyring, namespaces (setns by pidfd), then all that
//!           the program is to be: limits, capabilities, user, directory, seccomp filters
//!           │ clone, CLONE_PARENT; its pid is on the board
//!           ▼
//!         the process, a child of the shim, waits
//!           │ the shim holds it by a pidfd: go
//!           ▼
//!         execve. Whatever fails before: nothing has run, and the runtime does it.
//! ```
//! Never here: container state, the event loop.

mod decide;
mod enter;
pub mod filters;
mod stage;
mod versions;

pub use decide::{Known, Plan, decide};
pub use enter::{NAME, run};
pub use stage::{Stage, of as stage_of};
pub use versions::{Compared, compared};

use crate::sys::enter::BOARD_HEAD;

/// The descriptors that the helper is born with, besides its three streams.
pub mod descriptors {
    /// The board: what is to be done, and what came of it.
    pub const BOARD: i32 = 3;
    /// The reading end of a pipe: a byte is the go-ahead. The process alone keeps it, until it is
    /// the program.
    pub const GO: i32 = 4;
    /// pidfd of the container's init.
    pub const INIT: i32 = 5;
    /// The sealed copy of the binary that it runs from.
    pub const BINARY: i32 = 6;
    /// What the plan speaks of, in this order: the seccomp filters, `tasks` files of v1 cgroups,
    /// the directory of a v2 cgroup.
    pub const MORE: i32 = 7;
}

/// A board for the helper: the cgroups that it must be in, as /proc/PID/cgroup tells them, and the
/// plan.
pub fn board(cgroups: &[u8], plan: &Plan) -> Result<Vec<u8>, String> {
    let length = u32::try_from(cgroups.len()).map_err(|e| e.to_string())?;
    let plan = serde_json::to_vec(plan).map_err(|e| e.to_string())?;
    Ok([vec![0; BOARD_HEAD], length.to_ne_bytes().to_vec(), cgroups.to_vec(), plan].concat())
}

/// What comes after the head of a [`board`].
fn parts_of(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = content.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_ne_bytes(*length)).ok()?)
}
