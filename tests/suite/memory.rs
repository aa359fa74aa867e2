//! Out-of-memory kills that are not where one looks first.

use crate::support::{
    self, CLEAT, GROUP, Rig, add, is_unified, kill, read_all, signal, start, until, wait,
};
use cleat::protocol::{Empty, task as api};
use std::{
    fs,
    path::{Path, PathBuf},
};

const LIMIT: &str = "31457280";
const GREEDY: &str = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";

/// The memory cgroup of a container, and its file that counts kills.
fn memory(rig: &Rig, id: &str) -> (PathBuf, PathBuf) {
    let controller = if is_unified() { "" } else { "memory/" };
    let directory = PathBuf::from(format!("/sys/fs/cgroup/{controller}{}/{id}", rig.namespace));
    let counter = directory.join(if is_unified() { "memory.events" } else { "memory.oom_control" });
    (directory, counter)
}

fn kills(counter: &Path) -> u64 {
    let text = read_all(counter);
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.unwrap().parse().unwrap()
}

fn count(events: &support::EventLog, id: &str, topic: &str) -> usize {
    events.of(id).iter().filter(|told| *told == topic).count()
}

// systemd, containerd or docker in a container: what they start is in cgroups of their own below
// the container's.
#[test]
fn a_kill_in_a_cgroup_below_the_containers_is_told() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run_with(&["--runtime", CLEAT, "--memory-limit", LIMIT], "a", &["sleep", "1000"]);
    let (directory, _) = memory(&rig, "a");
    let below = directory.join("sub/deeper");
    fs::create_dir_all(&below).unwrap();
    let mut direct = rig.direct("a");
    add(&mut direct, "e", &format!("while [ ! -e /go ]; do sleep 0.05; done; {GREEDY}"), |_| {});
    let pid = start(&mut direct, "e");
    fs::write(below.join("cgroup.procs"), pid.to_string()).unwrap();
    fs::write(format!("/proc/{}/root/go", rig.init("a")), "").unwrap();
    assert_eq!(wait(&mut direct, "e"), 137);
    events.wait_for("oom", 1);
    fs::remove_dir(&below).unwrap();
    fs::remove_dir(below.parent().unwrap()).unwrap();
    rig.remove("a");
    events.wait_for("delete", 1);
    assert_eq!(count(&events, "a", "oom"), 1);
}

#[test]
fn kills_without_end_are_few_events_while_containerd_is_deaf() {
    let rig = Rig::new();
    let events = rig.events();
    let script =
        "while :; do dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; sleep 0.02; done";
    rig.run_with(&["--runtime", CLEAT, "--memory-limit", LIMIT], "a", &["sh", "-c", script]);
    events.wait_for("oom", 1);
    let (_, counter) = memory(&rig, "a");
    support::stop(rig.containerd_pid());
    let before = kills(&counter);
    until("it is killed over and over", || kills(&counter) > before + 15);
    let mut direct = rig.direct("a");
    let inspected: cleat::protocol::inspect::InspectResponse = direct
        .call_service(cleat::protocol::inspect::SERVICE, "Inspect", &cleat::protocol::Empty {})
        .unwrap();
    let waiting = inspected.events.unwrap().waiting;
    kill(rig.containerd_pid(), libc::SIGCONT);
    assert!(waiting <= 3, "{waiting} events wait");
    rig.remove("a");
}

#[test]
fn a_pod_in_which_containers_come_and_go_holds_no_more_than_before() {
    let rig = Rig::new();
    rig.run_in_group("p", "p", &["sleep", "1000"]);
    let shim = rig.shim();
    let descriptors = || {
        let mut kinds: Vec<String> = fs::read_dir(format!("/proc/{shim}/fd"))
            .unwrap()
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .map(|link| link.to_string_lossy().split(':').next().unwrap_or_default().to_owned())
            .collect();
        kinds.sort();
        kinds
    };
    let mut first = None;
    for number in 0..25 {
        let id = format!("c{number}");
        let annotation = format!("{GROUP}=p");
        let flags = ["--runtime", CLEAT, "--memory-limit", LIMIT, "--annotation", &annotation];
        rig.run_with(&flags, &id, &["sh", "-c", if number % 5 == 0 { GREEDY } else { "exit 3" }]);
        until("it has ended", || rig.status(&id).as_deref() == Some("STOPPED"));
        rig.remove(&id);
        // The first life opens what stays.
        if number == 2 {
            first = Some(descriptors());
        }
    }
    until("descriptors are as before", || Some(descriptors()) == first);
    rig.remove("p");
}

// memory.oom.group: the kernel counts each of its processes.
#[test]
fn a_group_that_is_killed_as_a_whole_is_one_kill() {
    if !is_unified() {
        return;
    }
    let rig = Rig::new();
    let events = rig.events();
    let many = "i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i+1)); done";
    let script = format!("{many}; while [ ! -e /go ]; do sleep 0.05; done; {GREEDY}");
    rig.run_with(&["--runtime", CLEAT, "--memory-limit", LIMIT], "a", &["sh", "-c", &script]);
    fs::write(memory(&rig, "a").0.join("memory.oom.group"), "1").unwrap();
    fs::write(format!("/proc/{}/root/go", rig.init("a")), "").unwrap();
    events.wait_for("exit", 1);
    rig.remove("a");
    events.wait_for("delete", 1);
    assert_eq!(count(&events, "a", "oom"), 1);
}

// Not by our own Kill, which thaws. On v2 SIGKILL reaches a frozen process, and runc deletes no
// container that looks paused.
#[test]
fn a_frozen_container_that_somebody_kills_can_be_deleted() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    direct.call::<Empty>("Pause", &api::ContainerRequest { id: "a".into() }).unwrap();
    kill(rig.init("a"), libc::SIGKILL);
    if !is_unified() {
        // Here it waits for the thaw.
        signal(&mut direct, "a", "", 9).unwrap();
    }
    assert_eq!(wait(&mut direct, ""), 137);
    rig.remove("a");
}

// Where systemd runs: `./dev vm`. It removes a scope, with its counters, as soon as nobody is in
// it.
#[test]
fn systemd_removes_no_kill_with_its_scope() {
    if !Path::new("/run/systemd/private").exists() {
        return;
    }
    let lives =
        std::env::var("CLEAT_OOM_LIVES").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    let rig = Rig::new();
    let events = rig.events();
    for life in 0..lives {
        let id = format!("a{life}");
        let cgroup = format!("system.slice:cleat-test:{id}");
        let flags = ["--runtime", support::RUNC, "--runc-systemd-cgroup", "--cgroup", &cgroup];
        let limit = ["--memory-limit", LIMIT];
        rig.run_with(&[flags.as_slice(), &limit].concat(), &id, &["sh", "-c", GREEDY]);
        events.wait_for("exit", life + 1);
        assert_eq!(count(&events, &id, "oom"), 1, "{id}: {:?}", events.of(&id));
        rig.remove(&id);
    }
}

// A SIGKILL that is nobody's want of memory, beside one that is, under systemd.
#[test]
fn systemd_scopes_that_go_tell_no_kill_of_a_neighbour() {
    if !Path::new("/run/systemd/private").exists() {
        return;
    }
    let rig = Rig::new();
    let events = rig.events();
    for (id, command) in [("a", "exec sleep 1000"), ("b", GREEDY)] {
        let cgroup = format!("system.slice:cleat-test:{id}");
        let annotation = format!("{GROUP}=p");
        let flags = ["--runtime", support::RUNC, "--runc-systemd-cgroup", "--cgroup", &cgroup];
        let more = ["--annotation", &annotation, "--memory-limit", LIMIT];
        rig.run_with(&[flags.as_slice(), &more].concat(), id, &["sh", "-c", command]);
    }
    events.wait_for("exit", 1);
    kill(rig.init("a"), libc::SIGKILL);
    events.wait_for("exit", 2);
    rig.remove("b");
    rig.remove("a");
    events.wait_for("delete", 2);
    assert_eq!((count(&events, "a", "oom"), count(&events, "b", "oom")), (0, 1));
}

// Reading the counters takes no descriptor that is not there already.
#[test]
fn a_kill_is_told_though_there_is_no_descriptor_left() {
    let rig = Rig::new();
    let events = rig.events();
    let script = format!("while [ ! -e /go ]; do sleep 0.1; done; {GREEDY}");
    rig.run_with(&["--runtime", CLEAT, "--memory-limit", LIMIT], "a", &["sh", "-c", &script]);
    let mut direct = rig.direct("a");
    direct.state("a", "").unwrap();
    let shim = rig.shim();
    let limits = read_all(format!("/proc/{shim}/limits"));
    let hard = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let maximum = hard.split_whitespace().nth(1).unwrap().parse().ok();
    let limit = |files: u64| {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        let limit = Rlimit { current: Some(files), maximum };
        prlimit(Pid::from_raw(shim.cast_signed()), Resource::Nofile, limit).unwrap();
    };
    limit(4);
    fs::write(format!("/proc/{}/root/go", rig.init("a")), "").unwrap();
    assert_eq!(wait(&mut direct, ""), 137);
    limit(1024);
    rig.remove("a");
    events.wait_for("delete", 1);
    assert_eq!(count(&events, "a", "oom"), 1, "{:?}", events.of("a"));
}
