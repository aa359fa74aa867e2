//! The `delete` action: cleans up after a dead shim. Idempotent, quiet, and without a runtime process when the runtime
//! knows nothing of the container any more. Synchronous: containerd waits for 5 s at most.

use crate::{
    args::Common,
    bundle::{Bundle, INIT_PID},
    cgroups::Cgroup,
    id::Id,
    mount,
    protocol::{Timestamp, task::DeleteResponse},
    runtime::Runtime,
    start, sys,
};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{os::fd::OwnedFd, path::Path, time::Duration};

/// How long the OCI runtime may take; containerd gives the whole action 5 s.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(4);
/// 5 ms each: half a second, within containerd's five.
const CGROUP_LOOKS: u32 = 100;
/// Status of an init that was killed: 128 + SIGKILL.
const KILLED: u32 = 137;

/// Runs `delete`. Returns what belongs on stdout: a `DeleteResponse`. Missing files are no errors.
pub fn run(common: &Common) -> Vec<u8> {
    let bundle = bundle_of(common);
    let options = bundle.options().unwrap_or_default();
    let pid = bundle.pid(INIT_PID).unwrap_or(0);
    let runtime = Runtime::new(&options, &common.namespace, &bundle);
    if runtime.knows(&common.id) {
        force_delete(&runtime, &common.id);
        remove_cgroup(&bundle, &common.id);
    }
    mount::unmount_below(&bundle.rootfs());
    remove_stale_socket(&bundle);
    let (exit_status, exited_at) = match bundle.exit() {
        Some(exit) => (exit.status, exit.at),
        None => (KILLED, Timestamp::now()),
    };
    DeleteResponse { pid, exit_status, exited_at: Some(exited_at) }.encode_to_vec()
}

/// `-bundle`, or the sibling of the working directory that is named after the id, as upstream finds it.
fn bundle_of(common: &Common) -> Bundle {
    if let Some(path) = &common.bundle {
        return Bundle::new(path);
    }
    match std::env::current_dir() {
        Ok(cwd) => Bundle::new(cwd.parent().unwrap_or(Path::new("/")).join(common.id.as_str())),
        Err(_) => Bundle::new("."),
    }
}

/// `runtime delete --force`, killed at the deadline.
fn force_delete(runtime: &Runtime, id: &Id) {
    let mut command = runtime.command();
    command.args(["delete", "--force", id.as_str()]);
    let Ok(pid) = command.start(&[None, None, None], &[]) else { return };
    if !ended_in_time(pid) {
        let _ = sys::process::signal_child(pid, libc::SIGKILL);
    }
    let _ = sys::process::reap_pid(pid);
}

/// A runtime that was killed before it wrote its state down has left a cgroup that its `delete --force` knows nothing of, and in it
/// a child of its own (crun; runc's ends by itself).
fn remove_cgroup(bundle: &Bundle, id: &Id) {
    let Some(cgroup) = Cgroup::of_bundle(bundle, id) else { return };
    let pause = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    for _ in 0..CGROUP_LOOKS {
        if cgroup.remove(id.as_str()) {
            return;
        }
        cgroup.kill();
        let _ = poll(&mut [], Some(&pause));
    }
}

fn ended_in_time(pid: u32) -> bool {
    let Ok(Some(pidfd)) = sys::process::pidfd(pid) else {
        return polled(pid);
    };
    let pidfd: OwnedFd = pidfd;
    let timeout = Timespec { tv_sec: RUNTIME_DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// For kernels without pidfds: looks every 10 ms.
fn polled(pid: u32) -> bool {
    let step = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    for _ in 0..RUNTIME_DEADLINE.as_millis() / 10 {
        if !matches!(sys::process::reap_pid(pid), Ok(None)) {
            return true;
        }
        let _ = poll(&mut [], Some(&step));
    }
    false
}

/// The dead shim's socket, if the bundle names one and nobody answers there: another container of the group may have
/// a new shim on the same address.
fn remove_stale_socket(bundle: &Bundle) {
    let Some(address) = bundle.address().as_deref().and_then(start::Address::parse) else { return };
    if address.path().exists() && !start::is_alive(address.path()) {
        let _ = std::fs::remove_file(address.path());
    }
}
