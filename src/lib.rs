//! cleat: a containerd shim for OCI runtimes.
//!
//! One binary, three lives: `start` finds or makes the shim of a group of containers, the daemon is
//! that shim, `delete` cleans up after a dead one. ARCHITECTURE.md has the map.

pub mod args;
pub mod bundle;
pub mod cancel;
pub mod cgroups;
pub mod cleanup;
pub mod container;
pub mod events;
pub mod exits;
pub mod id;
pub mod info;
pub mod inspect;
pub mod io;
pub mod json;
pub mod local;
pub mod log;
pub mod mount;
pub mod native;
pub mod options;
pub mod protocol;
pub mod remedy;
pub mod rpc;
pub mod runtime;
pub mod serve;
pub mod shim;
pub mod spec;
pub mod start;
pub mod sys;
pub mod task;
pub mod tasks;
