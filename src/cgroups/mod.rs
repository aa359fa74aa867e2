//! The kernel's accounting: where a container's cgroup is, what it used, who was killed for memory.
//!
//! Missing files are left out, never errors: controllers differ from node to node.

mod control;
mod files;
mod oom;
mod path;
mod v1;
mod v2;

#[cfg(fuzzing)]
pub use files::FUZZED;
pub use oom::{Look, OomWatch};
pub use path::{Cgroup, Joins, enter, is_named, join};

use crate::protocol::{Any, stats_v1, stats_v2};

/// All figures of a container, as the message that belongs to its version of cgroups.
pub fn metrics(cgroup: &Cgroup) -> Any {
    match cgroup {
        Cgroup::V1(_) => Any::pack(stats_v1::METRICS_URL, &v1::metrics(cgroup)),
        Cgroup::V2(directory) => Any::pack(stats_v2::METRICS_URL, &v2::metrics(directory)),
    }
}
