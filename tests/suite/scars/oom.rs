//! Out of memory, and figures.

use super::{add, delete, process, signal, start, wait};
use crate::support::{self, CLEAT, Rig, kill};
use cleat::{
    protocol::{Any, Empty, stats_v1::Metrics, task as api},
    rpc::Code,
};
use prost::Message;

/// Bytes: enough for a shell, not for a buffer of 20 MiB.
const LIMIT: &str = "15728640";
const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=20M count=1";

fn limited(rig: &Rig, id: &str, command: &[&str]) {
    rig.run_with(&["--runtime", CLEAT, "--memory-limit", LIMIT], id, command);
}

// containerd #8893, #8180, #12260, #12714. Defence: `report_oom_kills` before the exit goes to the
// machine.
#[test]
fn scar_26_an_oom_kill_is_told_before_the_exit_each_time() {
    let rig = Rig::new();
    let events = rig.events();
    let number = 25;
    for i in 0..number {
        limited(&rig, &format!("a{i}"), &["sh", "-c", &format!("exec {GREEDY}")]);
    }
    events.wait_for("exit", number);
    for i in 0..number {
        // The kill may come before `runtime start` has returned.
        let mut told = events.of(&format!("a{i}"));
        assert_eq!(told.pop().as_deref(), Some("exit"));
        told.sort();
        assert_eq!(told, ["create", "oom", "start"]);
        rig.remove(&format!("a{i}"));
    }
}

// moby#18470. Defence: the counter, not the notice, says how many.
#[test]
fn scar_27_oom_kills_of_execs_are_told_one_by_one() {
    let rig = Rig::new();
    let events = rig.events();
    limited(&rig, "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    for number in 1..=3 {
        let exec = format!("e{number}");
        add(&mut direct, &exec, &format!("exec {GREEDY}"), |_| {});
        start(&mut direct, &exec);
        assert_eq!(wait(&mut direct, &exec), 137);
        delete(&mut direct, &exec);
        events.wait_for("oom", number);
    }
    assert_eq!(rig.status("a").as_deref(), Some("RUNNING"));
    rig.remove("a");
    events.wait_for("delete", 1);
    assert_eq!(events.of("a").iter().filter(|topic| *topic == "oom").count(), 3);
}

// containerd #7102. Defence: `Look::Gone`.
#[test]
fn scar_28_the_end_of_a_cgroup_is_no_oom() {
    let rig = Rig::new();
    let events = rig.events();
    for number in 0..10 {
        let id = format!("a{number}");
        limited(&rig, &id, &["sleep", "1000"]);
        rig.remove(&id);
    }
    events.wait_for("delete", 10);
    assert!(events.all().iter().all(|event| event.topic != "oom"));
}

// containerd #9140, #9309. A cgroup that has gone, as a systemd scope goes with its last process,
// has used nothing.
#[test]
fn scar_58_figures_over_the_end_are_figures() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let init = rig.init("a");
    let request = api::ContainerRequest { id: "a".into() };
    for number in 0..200 {
        if number == 50 {
            kill(init, libc::SIGKILL);
            wait(&mut direct, "");
            // What the runtime's delete would do.
            for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
                let _ = std::fs::remove_dir(hierarchy.path().join(&rig.namespace).join("a"));
            }
        }
        let answer = direct.call::<api::StatsResponse>("Stats", &request).unwrap();
        assert!(answer.stats.is_some());
    }
    rig.remove("a");
}

// The Rust peer leaves CPU empty on v1 and memory without limit, rss, cache. Defence:
// `cgroups/v1.rs`.
#[test]
fn scar_59_figures_are_those_of_the_kernels_files() {
    let rig = Rig::new();
    rig.run_with(
        &["--runtime", CLEAT, "--memory-limit", "67108864"],
        "a",
        &["sh", "-c", "while :; do :; done"],
    );
    let mut direct = rig.direct("a");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let answer: api::StatsResponse =
        direct.call("Stats", &api::ContainerRequest { id: "a".into() }).unwrap();
    let any = answer.stats.unwrap();
    assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
    let metrics = Metrics::decode(any.value.as_slice()).unwrap();
    let cpu = metrics.cpu.unwrap().usage.unwrap();
    let now =
        support::read_all(format!("/sys/fs/cgroup/cpuacct/{}/a/cpuacct.usage", rig.namespace));
    let now: u64 = now.trim().parse().unwrap();
    assert!(cpu.total > 50_000_000 && cpu.total <= now, "nanoseconds: {} of {now}", cpu.total);
    assert!(cpu.user > 0 && !cpu.per_cpu.is_empty());
    let memory = metrics.memory.unwrap();
    assert_eq!(memory.usage.as_ref().unwrap().limit, 67_108_864);
    assert!(memory.usage.unwrap().usage > 0);
    assert_eq!(metrics.pids.unwrap().current, 1);
    rig.remove("a");
}

// Limits must go through the runtime. Defence: `Caller::update`.
#[test]
fn scar_60_an_update_of_one_limit_keeps_the_others() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let mut update = |json: serde_json::Value| {
        let resources = Any { type_url: String::new(), value: json.to_string().into_bytes() };
        let request = api::UpdateTaskRequest { id: "a".into(), resources: Some(resources) };
        direct.call::<Empty>("Update", &request).unwrap();
    };
    update(serde_json::json!({"memory": {"limit": 67_108_864}}));
    update(serde_json::json!({"cpu": {"shares": 512}}));
    update(serde_json::json!({"pids": {"limit": 77}}));
    let file = |controller: &str, name: &str| {
        support::read_all(format!("/sys/fs/cgroup/{controller}/{}/a/{name}", rig.namespace))
            .trim()
            .to_owned()
    };
    assert_eq!(file("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(file("cpu", "cpu.shares"), "512");
    assert_eq!(file("pids", "pids.max"), "77");
    rig.remove("a");
}

// containerd #3572: 45,646 goroutines from Stats polls. Defence: Stats waits for nothing.
#[test]
fn scar_03_a_thousand_stats_while_an_exec_hangs_leave_nothing() {
    let rig = Rig::new();
    let flags = rig.runtime_script("case \"$*\" in *' exec '*) sleep 5; exit 1;; esac");
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mut hung = rig.direct("a");
    add(&mut hung, "e", "true", |_| {});
    let fds = support::fd_count(shim);
    let call = hung.send("Start", &process("a", "e"));
    let mut direct = rig.direct("a");
    for _ in 0..1000 {
        direct
            .call::<api::StatsResponse>("Stats", &api::ContainerRequest { id: "a".into() })
            .unwrap();
    }
    // Not started yet: nothing to signal.
    assert_eq!(signal(&mut direct, "a", "e", 9).unwrap_err().code, Code::FailedPrecondition as i32);
    let (id, answer) = hung.receive();
    assert_eq!(id, call);
    answer.unwrap_err();
    drop(direct);
    support::until("descriptors are as before", || support::fd_count(shim) <= fds + 1);
    rig.remove("a");
}
