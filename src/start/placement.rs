//! Where the daemon lives: cgroup, OOM score, core scheduling.

use crate::cgroups;
use std::io;

/// The daemon could not be placed as asked.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// The ShimCgroup option.
    #[error("join shim cgroup {cgroup}")]
    Cgroup {
        /// The option's text.
        cgroup: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// With SCHED_CORE set, gives this process group a core scheduling cookie; the daemon and its
/// containers inherit it. A kernel without core scheduling is no error: the daemon says so in its
/// log.
pub(super) fn share_core_with_pod() {
    if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
        let _ = crate::sys::process::create_core_scheduling_cookie();
    }
}

/// Puts the daemon into the cgroup of the ShimCgroup option: on v1 in every hierarchy that has it.
pub(super) fn join_cgroup(pid: u32, cgroup: &str) -> Result<(), PlacementError> {
    if cgroup.is_empty() {
        return Ok(());
    }
    cgroups::join(pid, cgroup)
        .map_err(|source| PlacementError::Cgroup { cgroup: cgroup.to_owned(), source })
}

/// The daemon's oom_score_adj: containerd's plus one, at most 1000, so that the shim goes before
/// containerd does. A refusal (no CAP_SYS_RESOURCE) leaves it as it is.
pub(super) fn adjust_oom_score(pid: u32) {
    let parent = rustix::process::getppid().map_or(1, |p| p.as_raw_nonzero().get());
    let Ok(text) = std::fs::read_to_string(format!("/proc/{parent}/oom_score_adj")) else { return };
    let Ok(score) = text.trim().parse::<i32>() else { return };
    let score = score.saturating_add(1).min(1000);
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
}
