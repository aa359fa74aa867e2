//! The kernel's accounting: where a container's cgroup is, what it used, who was killed for memory.
//!
//! Missing files are left out, never errors: controllers differ from node to node.

mod oom;
mod path;
mod v1;

pub use oom::OomWatch;
pub use path::{Cgroup, join};
#[cfg(fuzzing)]
pub use v1::FUZZED;
pub use v1::metrics;
