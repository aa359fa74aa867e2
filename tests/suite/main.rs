//! The shim on a real containerd with real containers, as root. A private root, state and namespace
//! for each test; whatever is left behind at its end fails it.
//!
//! `CLEAT_TEST_SHIM`, `CLEAT_TEST_CONTAINERD`, `CLEAT_TEST_CTR`: other binaries than the ones built
//! here and found in PATH. `CLEAT_TEST_RUNTIME`: what `runc` in PATH really is (runc, crun, youki).
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests may block, and end at the first surprise"
)]
#![allow(unreachable_pub, reason = "one crate, its rooms share the support")]

mod bootstrap;
mod consoles;
mod cri;
mod docker;
mod errors;
mod events;
mod exits;
mod faults;
mod files;
mod hostile;
mod io;
mod lifecycle;
mod limits;
mod memory;
mod native;
mod nested;
mod operators;
mod recorded;
mod resources;
mod runtimes;
mod scars;
mod streams;
mod supervision;
mod support;
mod surroundings;
mod upgrade;
mod without_runtime;
