//! Acts towards a shim binary as containerd does: runs `start`, speaks the Task API, takes its
//! events, runs `delete`.
//!
//! Works with every shim that follows containerd's shim protocol, so that one can stand beside
//! another in the same run. Needs root, runc and a static busybox; keeps to its own directory,
//! namespace and cgroup.

pub mod bench;
mod driver;
mod inventory;
mod ledger;
pub use cleat_cli::process as measure;

pub use driver::{Annotations, Client, Driver, DriverError, Pod};
pub use inventory::Inventory;
pub use ledger::{Ledger, Verdict};
