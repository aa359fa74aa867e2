//! The helper: enters the container and has a child that becomes the program. One thread, no event
//! loop; it allocates as it likes.
//!
//! Whoever has CAP_SYS_PTRACE in the container owns each process that its /proc shows: its
//! descriptors, its memory, its privileges. So all is done before the child is born, by a helper
//! whom the container's pid namespace does not show, and the child has nothing but what the program
//! is to have, and a pipe: no directory of the host, no capability, no group, no keyring, no
//! terminal, no path of the host in its memory.

use super::{Plan, descriptors};
use crate::sys::{
    self,
    enter::{self, Board, Image},
    seccomp::{self, Filter},
};
use rustix::{
    fs::{FileType, Gid, Mode, OFlags, Uid},
    process::Signal,
    thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType},
};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The name under which the helper is executed.
pub const NAME: &str = "cleat-exec";
/// Most bytes of the container's /etc/passwd, and of a line of it (bufio.MaxScanTokenSize of Go).
const MAX_PASSWD: u64 = 1 << 20;
const MAX_PASSWD_LINE: usize = 64 << 10;

/// What was tried when it failed.
type Failed = String;

fn failed(what: &str) -> impl FnOnce(io::Error) -> Failed {
    move |e| format!("{what}: {e}")
}

fn refused(what: &str) -> impl FnOnce(rustix::io::Errno) -> Failed {
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

/// Runs the helper. It ends with status 0 if there is a process, which waits for its go-ahead, or a
/// second helper, to whom the same applies: the board has the pid. Otherwise the board has the
/// reason.
pub fn run() -> ! {
    let board = sys::fd::inherited(descriptors::BOARD).and_then(Board::map);
    let Ok(board) = board else { enter::end(1) };
    match enter_container(&board) {
        Ok(Side::Helper) => enter::end(0),
        Ok(Side::Process(go, image)) => become_program(&go, &image),
        Err(reason) => {
            board.say(&reason);
            enter::end(1)
        }
    }
}

enum Side {
    /// Whose work is done.
    Helper,
    Process(OwnedFd, Image),
}

fn enter_container(board: &Board) -> Result<Side, Failed> {
    let go = sys::fd::inherited(descriptors::GO).map_err(failed("find the pipe"))?;
    let init = sys::fd::inherited(descriptors::INIT).map_err(failed("find the init"))?;
    enter::close(descriptors::BINARY);
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(refused("become undumpable"))?;
    // For whoever looks at the node's processes.
    let _ = rustix::thread::set_name(c"cleat-exec");
    // No terminal that the shim may have been started from.
    rustix::process::setsid().map_err(refused("setsid"))?;
    let (cgroups, plan) = super::parts_of(board.content()).ok_or("no plan")?;
    let plan: Plan = serde_json::from_slice(plan).map_err(|e| format!("read the plan: {e}"))?;
    let mut more = (descriptors::MORE..)
        .map(|number| sys::fd::inherited(number).map_err(failed("find a descriptor")));
    let mut next = || more.next().unwrap_or_else(|| Err("no more descriptors".to_owned()));
    let filters = if plan.seccomp { read_filters(next()?)? } else { Vec::new() };
    let tasks: Vec<OwnedFd> = (0..plan.tasks).map(|_| next()).collect::<Result<_, _>>()?;
    let unified = if plan.unified { Some(next()?) } else { None };
    if let Some(cgroup) = unified {
        let is_second =
            board.clone_helper(cgroup.as_fd()).map_err(failed("clone into the cgroup"))?;
        if !is_second {
            return Ok(Side::Helper);
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(refused("tie ourselves to the shim"))?;
    }
    join_by(tasks)?;
    check_cgroups(cgroups)?;
    if plan.resets_affinity {
        enter::use_all_processors();
    }
    match enter::join_session_keyring(&plan.keyring) {
        // Kernels without keyrings.
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {}
        result => result.map_err(failed("join the session keyring"))?,
    }
    if let Some(profile) = &plan.apparmor {
        become_confined(profile).map_err(failed("set the AppArmor profile"))?;
    }
    rustix::thread::move_into_thread_name_spaces(init.as_fd(), namespaces())
        .map_err(refused("enter the namespaces"))?;
    drop(init);
    let image = prepare(&plan)?;
    board.hide_from_children().map_err(failed("hide the board"))?;
    // What we have not been told of.
    sys::fd::close_from(descriptors::GO + 1);
    load(&filters, &plan)?;
    match board.clone_process().map_err(failed("clone"))? {
        true => Ok(Side::Process(go, image)),
        false => Ok(Side::Helper),
    }
}

/// Seen by the container. After the seccomp filters: each system call may be forbidden, and then
/// nothing has run.
fn become_program(go: &OwnedFd, image: &Image) -> ! {
    let is_leader = rustix::process::setsid().is_ok();
    if is_leader && is_to_go(go.as_fd()) {
        let _ = image.execute();
    }
    enter::end(1)
}

/// Waits until the shim knows us. Its end without a word: it has given us up, or has died.
fn is_to_go(go: BorrowedFd<'_>) -> bool {
    let mut word = [0];
    loop {
        match rustix::io::read(go, &mut word) {
            Err(rustix::io::Errno::INTR) => {}
            read => return read == Ok(1),
        }
    }
}

/// By `tasks`, not `cgroup.procs`: that waits for an RCU grace period, some 10 ms, and a thread may
/// move itself without (kernel/cgroup/cgroup.c, cgroup_procs_write_start; Linux 5.5). The helper
/// has one.
fn join_by(tasks: Vec<OwnedFd>) -> Result<(), Failed> {
    tasks
        .into_iter()
        .try_for_each(|list| File::from(list).write_all(b"0"))
        .map_err(failed("join a cgroup"))
}

/// Whether we are in the cgroups that the init is in, all of them. What was read is not left in
/// memory: it names directories of the host.
fn check_cgroups(expected: &[u8]) -> Result<(), Failed> {
    let file =
        rustix::fs::open("/proc/self/cgroup", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(refused("read our cgroups"))?;
    let mut own = vec![0; expected.len() + 1];
    let mut length = 0;
    while length < own.len() {
        match rustix::io::read(&file, &mut own[length..]).map_err(refused("read our cgroups"))? {
            0 => break,
            read => length += read,
        }
    }
    let is_same = own[..length] == *expected;
    own.fill(0);
    std::hint::black_box(&own);
    if is_same { Ok(()) } else { Err("not in the container's cgroups".to_owned()) }
}

fn read_filters(file: OwnedFd) -> Result<Vec<Filter>, Failed> {
    let filters = seccomp::read(File::from(file)).map_err(failed("read the seccomp filters"))?;
    if filters.is_empty() { Err("no seccomp filter".to_owned()) } else { Ok(filters) }
}

/// In the order of runc's `setns_init_linux.go` and `finalizeNamespace`, but that the seccomp
/// filters always come last.
fn prepare(plan: &Plan) -> Result<Image, Failed> {
    // Before the user is changed: it may not be allowed to read the file.
    let environment = environment(plan)?;
    for (resource, soft, hard) in &plan.rlimits {
        enter::set_rlimit(*resource, *soft, *hard).map_err(failed("set a resource limit"))?;
    }
    if plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(refused("set no_new_privs"))?;
    }
    let [bounding, effective, permitted, inheritable, ambient] = plan.capabilities;
    drop_from_bounding_set(bounding)?;
    rustix::thread::set_keep_capabilities(true).map_err(refused("keep capabilities"))?;
    // As root first: the user may not be allowed there, or root may not (NFS).
    let entered = rustix::process::chdir(plan.cwd.as_str());
    become_user(plan)?;
    if entered.is_err() {
        rustix::process::chdir(plan.cwd.as_str()).map_err(refused("chdir"))?;
    }
    // A directory outside of the root shows as "(unreachable)…" (CVE-2024-21626).
    let cwd = rustix::process::getcwd(Vec::new()).map_err(refused("getcwd"))?;
    if !cwd.to_bytes().starts_with(b"/") {
        return Err("the working directory is outside of the container".to_owned());
    }
    rustix::thread::set_keep_capabilities(false).map_err(refused("keep capabilities"))?;
    // Until the filters are loaded.
    let admin = if needs_admin(plan) { CapabilitySet::SYS_ADMIN.bits() } else { 0 };
    set_capabilities(effective, permitted | admin, inheritable)?;
    set_ambient_capabilities(ambient)?;
    let path = find(&plan.args[0], &environment)?;
    enter::reset_signals();
    let words: Vec<String> =
        environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    Image::new(&path, &plan.args, &words).map_err(failed("make the words"))
}

/// Loading a filter is a privilege, unless no_new_privs is set.
fn needs_admin(plan: &Plan) -> bool {
    plan.seccomp && !plan.no_new_privileges
}

/// What comes after a filter it may forbid, and then the runtime has the exec: capset(2), if that,
/// clone(2), setsid(2), read(2), execve(2).
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

/// Says which profile to be in after execve; a child inherits that. In the host's /proc, where the
/// attribute is the kernel's: in the container's it may be somebody's own file (CVE-2019-16884).
fn become_confined(profile: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let attribute = rustix::fs::open("/proc/thread-self/attr/apparmor/exec", flags, Mode::empty())?;
    File::from(attribute).write_all(format!("exec {profile}").as_bytes())
}

/// HOME from the container's /etc/passwd, if the spec has none.
fn environment(plan: &Plan) -> Result<Vec<(String, String)>, Failed> {
    let mut environment = plan.env.clone();
    let home = environment.iter_mut().find(|(name, _)| name == "HOME");
    if home.as_ref().is_some_and(|(_, value)| !value.is_empty()) {
        return Ok(environment);
    }
    let found = match read_passwd()? {
        Some(text) => home_of(plan.uid, &text)?,
        None => None,
    };
    let found = found.unwrap_or_else(|| "/".to_owned());
    match home {
        Some((_, value)) => *value = found,
        None => environment.push(("HOME".to_owned(), found)),
    }
    Ok(environment)
}

/// The file is the container's: it may be anything, and must not hold us up. `None`: there is none.
fn read_passwd() -> Result<Option<String>, Failed> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match rustix::fs::open("/etc/passwd", flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        opened => opened.map_err(refused("open /etc/passwd"))?,
    };
    let stat = rustix::fs::fstat(&fd).map_err(refused("look at /etc/passwd"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("/etc/passwd is no file".to_owned());
    }
    let mut text = Vec::new();
    File::from(fd)
        .take(MAX_PASSWD + 1)
        .read_to_end(&mut text)
        .map_err(failed("read /etc/passwd"))?;
    if text.len() as u64 > MAX_PASSWD {
        return Err("/etc/passwd is too long".to_owned());
    }
    String::from_utf8(text).map(Some).map_err(|_| "/etc/passwd is no text".to_owned())
}

/// The first entry counts. Runtimes read lines that are not as passwd(5) has them in ways of their
/// own: then the error.
fn home_of(uid: u32, text: &str) -> Result<Option<String>, Failed> {
    for line in text.lines().filter(|line| !line.is_empty()) {
        let fields: Vec<&str> = line.split(':').collect();
        let is_plain =
            line.trim() == line && !line.starts_with('#') && line.len() < MAX_PASSWD_LINE;
        let [_, _, number, group, _, home, _] = fields[..] else {
            return Err("an odd line in /etc/passwd".to_owned());
        };
        let is_number = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_digit())
                && text.parse::<i32>().is_ok()
        };
        if !(is_plain && is_number(number) && is_number(group) && home.starts_with('/')) {
            return Err("an odd line in /etc/passwd".to_owned());
        }
        if number.parse() == Ok(uid) {
            return Ok(Some(home.to_owned()));
        }
    }
    Ok(None)
}

/// execve's path, as Go's LookPath finds it: by PATH unless the name has a slash.
fn find(program: &str, environment: &[(String, String)]) -> Result<String, Failed> {
    if program.contains('/') {
        return Ok(program.to_owned());
    }
    let path =
        environment.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
    for directory in path.split(':') {
        if !directory.starts_with('/') {
            return Err(format!("{directory:?} in PATH is relative"));
        }
        let candidate = format!("{}/{program}", directory.trim_end_matches('/'));
        if !std::fs::metadata(&candidate).is_ok_and(|metadata| !metadata.is_dir()) {
            continue;
        }
        // Some versions of Go look at the mode alone, and take it all the same.
        rustix::fs::access(candidate.as_str(), rustix::fs::Access::EXEC_OK)
            .map_err(refused("execute what PATH has"))?;
        return Ok(candidate);
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
                    .map_err(refused("drop a capability"))?;
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
    rustix::thread::set_capabilities(None, sets).map_err(refused("set capabilities"))
}

fn set_ambient_capabilities(ambient: u64) -> Result<(), Failed> {
    rustix::thread::clear_ambient_capability_set()
        .map_err(refused("clear ambient capabilities"))?;
    for number in (0..64).filter(|number| ambient & (1 << number) != 0) {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .map_err(refused("set ambient capabilities"))?;
    }
    Ok(())
}

fn become_user(plan: &Plan) -> Result<(), Failed> {
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    own_streams(uid)?;
    let groups: Vec<Gid> = plan.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups).map_err(refused("set groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(refused("set the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(refused("set the user"))
}

/// The streams are the user's (runc leaves the group), so that it may open them again through
/// /proc/self/fd; /dev/null is everybody's.
fn own_streams(uid: Uid) -> Result<(), Failed> {
    let streams = (io::stdin(), io::stdout(), io::stderr());
    let streams: [BorrowedFd<'_>; 3] = [streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()];
    for stream in streams {
        let stat = rustix::fs::fstat(stream).map_err(refused("look at a stream"))?;
        let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3);
        if is_null || stat.st_uid == uid.as_raw() {
            continue;
        }
        match rustix::fs::fchown(stream, Some(uid), None) {
            // As runc: a file that may not be changed stays as it is.
            Ok(())
            | Err(rustix::io::Errno::PERM | rustix::io::Errno::ROFS | rustix::io::Errno::INVAL) => {
            }
            Err(e) => return Err(refused("give a stream to the user")(e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_that_of_the_first_entry_and_an_odd_file_is_the_runtimes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:\ntwin:x:1000:1:,:/home/twin:/bin/sh\n";
        assert_eq!(home_of(1000, passwd), Ok(Some("/home/user".to_owned())));
        assert_eq!(home_of(7, passwd), Ok(None));
        for odd in [
            "user",
            "# root",
            " root:x:0:0::/:",
            "a:x:b:0::/:",
            "a:x:+1:0::/:",
            "a:x:1:::/:",
            "a:x:1:1:::",
            "a:x:1:1::/:x:y",
        ] {
            let before = format!("{odd}\n{passwd}");
            assert!(home_of(1000, &before).is_err(), "{odd}");
        }
        let long = format!("a:x:1:1:{}:/:\n{passwd}", "x".repeat(MAX_PASSWD_LINE));
        assert!(home_of(1000, &long).is_err());
    }
}
