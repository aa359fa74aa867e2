//! Exec without a runtime: a helper, re-executed from our own binary, enters the container and becomes the program.
//!
//! `runc exec` costs some 12 ms of CPU time, most of it Go's start-up, twice; the work itself takes one. For the kubelet's probes that is most of
//! what a node spends on them. Off unless the handler's options (`NativeExec = true`) or the container's annotation
//! (`io.containerd.cleat.native-exec`) ask for it.
//!
//! ```text
//! shim ── decide ── what the helper cannot do exactly as runc does it ──▶ the runtime, as ever
//!           │ Plan, in a memfd
//!           ▼
//!         helper: cgroups, namespaces (setns by pidfd) ── clone, CLONE_PARENT ──▶ the process, a child of the shim: session, keyring,
//!           limits, capabilities, user, cwd, environment, execve. Any error before that: told through a pipe, and the runtime does it.
//! ```
//! Never here: container state, the event loop.

mod decide;
mod enter;
pub mod filters;

pub use decide::{Plan, Runtimes, decide};
pub use enter::{NAME, run};

/// The descriptors that the helper is born with, besides its three streams.
pub mod descriptors {
    /// The plan.
    pub const PLAN: i32 = 3;
    /// Where it reports.
    pub const REPORT: i32 = 4;
    /// pidfd of the container's init.
    pub const INIT: i32 = 5;
    /// The sealed copy of the binary that it runs from.
    pub const BINARY: i32 = 6;
    /// The seccomp filters, if the plan wants any.
    pub const FILTERS: i32 = 7;
}
