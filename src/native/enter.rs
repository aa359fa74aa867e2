//! The helper: enters the container and becomes the program. One thread, no event loop; it allocates as it likes.

use super::{Plan, descriptors};
use crate::{
    cgroups,
    sys::{
        self, enter,
        seccomp::{self, Filter},
    },
};
use rustix::{
    fs::{FileType, Gid, Mode, OFlags, Uid},
    thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType},
};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The name under which the helper is executed.
pub const NAME: &str = "cleat-exec";
/// Most bytes of the container's /etc/passwd.
const MAX_PASSWD: u64 = 1 << 20;

/// What was tried when it failed.
type Failed = String;

fn failed(what: &str) -> impl FnOnce(io::Error) -> Failed {
    move |e| format!("{what}: {e}")
}

/// All namespaces but the user's: containers that have one of their own are the runtime's.
fn namespaces() -> ThreadNameSpaceType {
    ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP
}

/// Runs the helper. Reports `P` and the process's pid, then, if it comes to nothing, `E` and why; the end of the report without an `E` is success.
pub fn run() -> ! {
    let Ok(report) = sys::fd::inherited(descriptors::REPORT) else { enter::end(1) };
    let mut report = File::from(report);
    let status = match enter_container(&mut report) {
        Ok(Side::Parent) => 0,
        Ok(Side::Child(plan, filters)) => {
            let reason = become_program(&plan, &filters);
            let _ = writeln!(report, "E{reason}");
            1
        }
        Err(reason) => {
            let _ = writeln!(report, "E{reason}");
            1
        }
    };
    enter::end(status)
}

enum Side {
    Parent,
    Child(Box<Plan>, Vec<Filter>),
}

fn enter_container(report: &mut File) -> Result<Side, Failed> {
    let plan = sys::fd::inherited(descriptors::PLAN).map_err(failed("find the plan"))?;
    let init = sys::fd::inherited(descriptors::INIT).map_err(failed("find the init"))?;
    enter::close_range(descriptors::BINARY, descriptors::BINARY);
    // Nobody in the container may look into us before we are what it expects.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| failed("become undumpable")(e.into()))?;
    let plan = read_plan(plan)?;
    let filters = if plan.seccomp { read_filters()? } else { Vec::new() };
    let cgroup = join_cgroups(&plan)?;
    if let Some(score) = plan.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(failed("set oom_score_adj"))?;
    }
    rustix::thread::move_into_thread_name_spaces(init.as_fd(), namespaces())
        .map_err(|e| failed("enter the namespaces")(e.into()))?;
    drop(init);
    let child = match &cgroup {
        Some(cgroup) => enter::clone_into(cgroup.as_fd()),
        None => enter::clone_for_parent(),
    };
    drop(cgroup);
    match child.map_err(failed("clone"))? {
        0 => Ok(Side::Child(Box::new(plan), filters)),
        pid => {
            writeln!(report, "P{pid}").map_err(failed("report the pid"))?;
            Ok(Side::Parent)
        }
    }
}

/// In v1 hierarchies the helper moves; into a v2 cgroup, which is returned, the process is to be born. Neither waits for an RCU grace period, some
/// 10 ms, as a move by `cgroup.procs` does: a thread may move itself without (kernel/cgroup/cgroup.c, cgroup_procs_write_start; Linux 5.5), and
/// the helper has one.
fn join_cgroups(plan: &Plan) -> Result<Option<OwnedFd>, Failed> {
    let mut unified = None;
    for directory in &plan.cgroups {
        match cgroups::enter(&directory.join("tasks"), 0) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let opened = rustix::fs::open(directory, flags, Mode::empty());
                unified = Some(opened.map_err(|e| failed("open the cgroup")(e.into()))?);
            }
            Err(e) => return Err(failed("join the cgroup")(e)),
        }
    }
    Ok(unified)
}

fn read_plan(plan: OwnedFd) -> Result<Plan, Failed> {
    let mut text = Vec::new();
    File::from(plan).read_to_end(&mut text).map_err(failed("read the plan"))?;
    serde_json::from_slice(&text).map_err(|e| format!("read the plan: {e}"))
}

fn read_filters() -> Result<Vec<Filter>, Failed> {
    let file = sys::fd::inherited(descriptors::FILTERS).map_err(failed("find the seccomp filters"))?;
    let filters = seccomp::read(File::from(file)).map_err(failed("read the seccomp filters"))?;
    if filters.is_empty() { Err("no seccomp filter".to_owned()) } else { Ok(filters) }
}

/// In the order of runc's `setns_init_linux.go` and `finalizeNamespace`, but that the seccomp filters always come last. Returns why it could not be
/// done.
fn become_program(plan: &Plan, filters: &[Filter]) -> Failed {
    match prepare(plan).and_then(|prepared| load(filters, plan).map(|()| prepared)) {
        Err(reason) => reason,
        Ok((path, environment)) => {
            let error = enter::execute(&path, &plan.args, &environment);
            format!("exec {path:?}: {error}")
        }
    }
}

fn prepare(plan: &Plan) -> Result<(String, Vec<String>), Failed> {
    let errno = |what: &'static str| move |e: rustix::io::Errno| failed(what)(e.into());
    rustix::process::setsid().map_err(errno("setsid"))?;
    // Of the container's processes alone. Not its /proc: there an attribute may be somebody's own file (CVE-2019-16884).
    let confinement = plan.apparmor.as_deref().map(|profile| enter::processes().map(|proc| (profile, proc)));
    let confinement = confinement.transpose().map_err(failed("mount a /proc"))?;
    if let Some(name) = &plan.keyring {
        match enter::join_session_keyring(name) {
            // Kernels without keyrings.
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {}
            result => result.map_err(failed("join the session keyring"))?,
        }
    }
    for (resource, soft, hard) in &plan.rlimits {
        enter::set_rlimit(*resource, *soft, *hard).map_err(failed("set a resource limit"))?;
    }
    if plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(errno("set no_new_privs"))?;
    }
    let [bounding, effective, permitted, inheritable, ambient] = plan.capabilities;
    drop_from_bounding_set(bounding)?;
    rustix::thread::set_keep_capabilities(true).map_err(errno("keep capabilities"))?;
    // As root first: the user may not be allowed there, or root may not (NFS).
    let entered = rustix::process::chdir(plan.cwd.as_str());
    become_user(plan)?;
    if entered.is_err() {
        rustix::process::chdir(plan.cwd.as_str()).map_err(errno("chdir"))?;
    }
    // A directory outside of the root shows as "(unreachable)…" (CVE-2024-21626).
    let cwd = rustix::process::getcwd(Vec::new()).map_err(errno("getcwd"))?;
    if !cwd.to_bytes().starts_with(b"/") {
        return Err("the working directory is outside of the container".to_owned());
    }
    rustix::thread::set_keep_capabilities(false).map_err(errno("keep capabilities"))?;
    // Until the filters are loaded.
    let admin = if needs_admin(plan) { CapabilitySet::SYS_ADMIN.bits() } else { 0 };
    set_capabilities(effective, permitted | admin, inheritable)?;
    set_ambient_capabilities(ambient)?;
    if let Some((profile, proc)) = confinement {
        become_confined(profile, proc.as_fd()).map_err(failed("set the AppArmor profile"))?;
    }
    let environment = environment(plan);
    let path = find(&plan.args[0], &environment)?;
    enter::reset_signals();
    let words = environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok((path, words))
}

/// Loading a filter is a privilege, unless no_new_privs is set.
fn needs_admin(plan: &Plan) -> bool {
    plan.seccomp && !plan.no_new_privileges
}

/// What comes after a filter it may forbid: here it is one capset(2), if that, and execve(2). Both are also runc's.
fn load(filters: &[Filter], plan: &Plan) -> Result<(), Failed> {
    let [_, effective, permitted, inheritable, _] = plan.capabilities;
    if needs_admin(plan) {
        let admin = CapabilitySet::SYS_ADMIN.bits();
        set_capabilities(effective | admin, permitted | admin, inheritable)?;
    }
    for filter in filters {
        filter.load().map_err(failed("load a seccomp filter"))?;
    }
    if needs_admin(plan) {
        set_capabilities(effective, permitted, inheritable)?;
    }
    Ok(())
}

/// Says which profile to be in after execve: the kernel takes it from the process itself alone, with the credentials that it opened the file with.
fn become_confined(profile: &str, proc: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let attribute = rustix::fs::openat(proc, "thread-self/attr/apparmor/exec", flags, Mode::empty())?;
    File::from(attribute).write_all(format!("exec {profile}").as_bytes())
}

/// HOME from the container's /etc/passwd, if the spec has none.
fn environment(plan: &Plan) -> Vec<(String, String)> {
    let mut environment = plan.env.clone();
    let home = environment.iter_mut().find(|(name, _)| name == "HOME");
    if home.as_ref().is_some_and(|(_, value)| !value.is_empty()) {
        return environment;
    }
    let found = home_of(plan.uid).unwrap_or_else(|| "/".to_owned());
    match home {
        Some((_, value)) => *value = found,
        None => environment.push(("HOME".to_owned(), found)),
    }
    environment
}

/// The file is the container's: it may be anything, and must not hold us up.
fn home_of(uid: u32) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    File::from(fd).take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line =
        text.lines().find(|line| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(uid))?;
    line.split(':').nth(5).filter(|home| !home.is_empty()).map(str::to_owned)
}

/// execve's path, as Go's LookPath finds it: by PATH unless the name has a slash.
fn find(program: &str, environment: &[(String, String)]) -> Result<String, Failed> {
    if program.contains('/') {
        return Ok(program.to_owned());
    }
    let path = environment.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
    for directory in path.split(':') {
        if !directory.starts_with('/') {
            return Err(format!("{directory:?} in PATH is relative"));
        }
        let candidate = format!("{}/{program}", directory.trim_end_matches('/'));
        let is_file = std::fs::metadata(&candidate).is_ok_and(|metadata| !metadata.is_dir());
        if is_file && rustix::fs::access(candidate.as_str(), rustix::fs::Access::EXEC_OK).is_ok() {
            return Ok(candidate);
        }
    }
    Err(format!("{program:?} is not in PATH"))
}

fn drop_from_bounding_set(kept: u64) -> Result<(), Failed> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            // The last that this kernel knows was the one before.
            Err(_) => break,
            Ok(true) if kept & (1 << number) == 0 => {
                rustix::thread::remove_capability_from_bounding_set(capability)
                    .map_err(|e| failed("drop a capability")(e.into()))?;
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Failed> {
    let set = CapabilitySet::from_bits_retain;
    let sets = CapabilitySets {
        effective: set(effective),
        permitted: set(permitted),
        inheritable: set(inheritable),
    };
    rustix::thread::set_capabilities(None, sets).map_err(|e| failed("set capabilities")(e.into()))
}

fn set_ambient_capabilities(ambient: u64) -> Result<(), Failed> {
    rustix::thread::clear_ambient_capability_set()
        .map_err(|e| failed("clear ambient capabilities")(e.into()))?;
    for number in (0..64).filter(|number| ambient & (1 << number) != 0) {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .map_err(|e| failed("set ambient capabilities")(e.into()))?;
    }
    Ok(())
}

fn become_user(plan: &Plan) -> Result<(), Failed> {
    let errno = |what: &'static str| move |e: rustix::io::Errno| failed(what)(e.into());
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    own_streams(uid)?;
    let groups: Vec<Gid> = plan.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups).map_err(errno("set groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(errno("set the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(errno("set the user"))
}

/// The streams are the user's (runc leaves the group), so that it may open them again through /proc/self/fd; /dev/null is everybody's.
fn own_streams(uid: Uid) -> Result<(), Failed> {
    let streams = (io::stdin(), io::stdout(), io::stderr());
    let streams: [BorrowedFd<'_>; 3] = [streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()];
    for stream in streams {
        let stat = rustix::fs::fstat(stream).map_err(|e| failed("look at a stream")(e.into()))?;
        let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3);
        if is_null || stat.st_uid == uid.as_raw() {
            continue;
        }
        match rustix::fs::fchown(stream, Some(uid), None) {
            // As runc: a file that may not be changed stays as it is.
            Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::ROFS | rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(failed("give a stream to the user")(e.into())),
        }
    }
    Ok(())
}
