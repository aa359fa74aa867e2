//! The `delete` action: cleans up after a dead shim. Idempotent, quiet, and without a runtime
//! process when the runtime is known to know nothing of the container any more. Synchronous:
//! containerd waits for 5 s at most.

use crate::{
    args::Common,
    bundle::{Bundle, INIT_PID},
    cgroups::Cgroup,
    id::Id,
    local, mount,
    protocol::{Timestamp, task::DeleteResponse},
    runtime::Runtime,
    start, sys,
};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

/// How long we wait for the OCI runtime; containerd gives the whole action 5 s.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(4);
/// How long it may go on with the container's poststop hooks after that. As in the daemon.
const RUNTIME_LIFE: Duration = Duration::from_secs(600);
/// When we answer at the latest, whether or not a hung file system has been unmounted.
const PATIENCE: Duration = Duration::from_millis(4700);
/// How much of that is for the unmounting.
const UNMOUNT_SHARE: Duration = Duration::from_millis(300);
/// How long the processes of a cgroup may take to die.
const CGROUP_PATIENCE: Duration = Duration::from_millis(500);
/// Status of an init that was killed: 128 + SIGKILL.
const KILLED: u32 = 137;

/// Runs `delete`. Returns what belongs on stdout: a `DeleteResponse`. Missing files are no errors.
pub fn run(common: &Common) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    let bundle = bundle_of(common);
    let options = bundle.options().unwrap_or_default();
    let pid = bundle.pid(INIT_PID).unwrap_or(0);
    let runtime = Runtime::new(&options, &common.namespace, &bundle);
    let has_record = runtime.has_record(&common.id);
    let may_be_known = bundle.has_called_runtime() && !bundle.is_record_seen();
    if may_be_known || has_record {
        force_delete(&runtime, &common.id, has_record);
        // Whose cgroup it is nobody can say if neither the record nor the daemon has.
        let is_ours = has_record || pid != 0 || bundle.is_cgroup_new();
        remove_cgroup(&bundle, &common.id, is_ours, deadline - UNMOUNT_SHARE);
    }
    unmount(&bundle.rootfs(), deadline);
    remove_stale_socket(&bundle);
    let (exit_status, exited_at) = match bundle.exit() {
        Some(exit) => (exit.status, exit.at),
        None => (KILLED, Timestamp::now()),
    };
    DeleteResponse { pid, exit_status, exited_at: Some(exited_at) }.encode_to_vec()
}

/// `-bundle`, or the sibling of the working directory that is named after the id, as upstream finds
/// it.
fn bundle_of(common: &Common) -> Bundle {
    if let Some(path) = &common.bundle {
        return Bundle::new(path);
    }
    match std::env::current_dir() {
        Ok(cwd) => Bundle::new(cwd.parent().unwrap_or(Path::new("/")).join(common.id.as_str())),
        Err(_) => Bundle::new("."),
    }
}

/// `runtime delete --force`. One that takes longer than we may wait is killed: going on alone it
/// might kill the next container of that id. But not if its record has gone meanwhile: then it is
/// running the container's poststop hooks, and knows no container any more.
fn force_delete(runtime: &Runtime, id: &Id, had_record: bool) {
    let mut command = runtime.command();
    command.args(["delete", "--force", id.as_str()]);
    let started = match local::may_hang(&command) {
        false => command.start_lasting(&[]),
        // Why it could not be started nobody would hear.
        true => null().and_then(|null| command.start_lasting_apart(&[], &null)),
    };
    let Ok(pid) = started else { return };
    if sys::process::reap_until(pid, Instant::now() + RUNTIME_PATIENCE).is_some() {
        return;
    }
    let in_hooks = had_record && !runtime.has_record(id);
    let held = sys::process::pidfd(pid).ok().flatten().filter(|_| in_hooks);
    let guarded = held.as_ref().is_some_and(|pidfd| {
        let guard = sys::spawn::apart(pidfd, |pidfd| {
            let life = Timespec::try_from(RUNTIME_LIFE).unwrap_or_default();
            let _ = poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], Some(&life));
            let _ = sys::process::signal_pidfd(pidfd, libc::SIGKILL);
        });
        guard.is_ok()
    });
    if !guarded {
        // Our own child, unreaped: the number is its own.
        let _ = sys::process::signal_child(pid, libc::SIGKILL);
    }
}

/// Unmounts the rootfs, in a process that may hang in the kernel. It costs a third of this action,
/// and mostly there is nothing to unmount.
fn unmount(rootfs: &Path, deadline: Instant) {
    if mount::is_bare(rootfs) {
        return;
    }
    let started = null().and_then(|null| {
        sys::spawn::apart(&null, |_: std::os::fd::BorrowedFd<'_>| {
            drop(mount::unmount_below(rootfs))
        })
    });
    match started {
        Ok(pid) => drop(sys::process::reap_until(pid, deadline)),
        Err(_) => drop(mount::unmount_below(rootfs)),
    }
}

fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?)
}

/// A runtime that was killed before it wrote its state down has left a cgroup that its `delete
/// --force` knows nothing of, and in it a child of its own (crun; runc's ends by itself).
fn remove_cgroup(bundle: &Bundle, id: &Id, is_ours: bool, deadline: Instant) {
    let Some(cgroup) = Cgroup::of_bundle(bundle, id) else { return };
    let pause = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    let patience = deadline.min(Instant::now() + CGROUP_PATIENCE);
    while !cgroup.remove(id.as_str()) && Instant::now() < patience {
        if is_ours {
            cgroup.kill();
        }
        let _ = poll(&mut [], Some(&pause));
    }
}

/// The dead shim's socket, if the bundle names one and nobody answers there: another container of
/// the group may have a new shim on the same address.
fn remove_stale_socket(bundle: &Bundle) {
    let Some(address) = bundle.address().as_deref().and_then(start::Address::parse) else { return };
    if address.path().exists() && !start::is_alive(address.path()) {
        let _ = std::fs::remove_file(address.path());
    }
}
