//! Nothing of the daemon dies unseen, and no verb stays half done.

use crate::support::{
    self, CLEAT, Rig, add, alive, children, host_pid_namespace, kill, process, script, signal,
    start, until, wait,
};
use cleat::{
    protocol::{Empty, task as api},
    rpc::Code,
};

/// The build that has points to fail at.
fn debug_rig() -> Rig {
    let rig = Rig::new();
    support::use_debug_build(&rig);
    rig
}

fn fail_next(direct: &mut support::Direct, point: &str) {
    direct.call::<Empty>("FailNextForTest", &api::ContainerRequest { id: point.into() }).unwrap();
}

#[test]
fn after_a_panic_of_the_reaper_exits_are_told_as_before() {
    let rig = debug_rig();
    let events = rig.events();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    for number in 0..3 {
        fail_next(&mut direct, "reaper");
        assert_eq!(direct.exec_to_end("a", &format!("e{number}"), "exit 3"), 3);
    }
    fail_next(&mut direct, "reaper");
    kill(rig.init("a"), libc::SIGKILL);
    assert_eq!(wait(&mut direct, ""), 137);
    events.wait_for("exit", 4);
    until("it is in the log", || rig.log().contains("is begun again"));
    rig.remove("a");
}

#[test]
fn after_a_panic_of_the_publisher_events_are_told_as_before() {
    let rig = debug_rig();
    let events = rig.events();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    fail_next(&mut direct, "publisher");
    direct.exec_to_end("a", "e", "exit 3");
    rig.remove("a");
    events.wait_for("delete", 1);
    let told = events.of("a");
    assert_eq!(told.iter().filter(|topic| *topic == "exit:e").count(), 1, "{told:?}");
}

#[test]
fn a_verb_that_panics_leaves_the_container_as_it_was() {
    let rig = debug_rig();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let id = api::ContainerRequest { id: "a".into() };
    let fails = |direct: &mut support::Direct, method: &str| {
        fail_next(direct, "helper");
        let failed = direct.call::<Empty>(method, &id).unwrap_err();
        assert_eq!(failed.code, Code::Internal as i32, "{method}: {}", failed.message);
    };
    fails(&mut direct, "Pause");
    assert_eq!(direct.state("a", "").unwrap().status, api::Status::Running as i32);
    direct.call::<Empty>("Pause", &id).unwrap();
    fails(&mut direct, "Resume");
    assert_eq!(direct.state("a", "").unwrap().status, api::Status::Paused as i32);
    direct.call::<Empty>("Resume", &id).unwrap();

    add(&mut direct, "e", "exit 4", |_| {});
    fails_exec(&mut direct);
    assert_eq!(direct.state("a", "e").unwrap().status, api::Status::Created as i32);
    start(&mut direct, "e");
    assert_eq!(wait(&mut direct, "e"), 4);

    kill(rig.init("a"), libc::SIGKILL);
    wait(&mut direct, "");
    fails(&mut direct, "Delete");
    assert_eq!(direct.state("a", "").unwrap().status, api::Status::Stopped as i32);
    // The exit of the init was not held back by anything.
    rig.remove("a");
}

fn fails_exec(direct: &mut support::Direct) {
    fail_next(direct, "runtime call");
    let failed = direct.call::<api::PidResponse>("Start", &process("a", "e")).unwrap_err();
    assert_eq!(failed.code, Code::Internal as i32);
}

#[test]
fn who_joins_a_delete_that_fails_deletes_for_himself() {
    let rig = Rig::new();
    let gate = rig.dir.join("gate");
    let text = format!(
        "case \"$*\" in *' delete '*) if mkdir {0} 2>/dev/null; then sleep 2; exit 1; fi;; esac",
        gate.display()
    );
    let flags = rig.runtime_script(&text);
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sleep", "1000"]);
    kill(rig.init("a"), libc::SIGKILL);
    until("it has ended", || rig.status("a").as_deref() == Some("STOPPED"));
    let mut one = rig.ctr_command(["task", "delete", "a"]).spawn().unwrap();
    until("the runtime deletes", || gate.exists());
    let other = rig.try_ctr(["task", "delete", "a"]);
    assert!(!one.wait().unwrap().success());
    assert!(other.status.success(), "{other:?}");
    rig.ctr(["container", "rm", "a"]);
}

// The logger is waited for before the runtime is called: by then the order to hurry has long been
// given.
#[test]
fn an_exec_whose_logger_is_slow_does_not_hold_the_exit_of_a_dead_init() {
    let rig = Rig::new();
    let logger = script(&rig, "logger", "sleep 3; exec 5>&-; exec cat <&3 >/dev/null");
    let flags = rig.runtime_script("case \"$*\" in *' exec '*) sleep 600;; esac");
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    add(&mut direct, "e", "exit 0", |request| {
        request.stdout = format!("binary://{}", logger.display())
    });
    direct.send("Start", &process("a", "e"));
    let shim = rig.shim();
    until("the logger starts", || children(shim).len() >= 2);
    kill(rig.init("a"), libc::SIGKILL);
    let mut other = rig.direct("a");
    assert_eq!(wait(&mut other, ""), 137);
    // What the script leaves is the shim's orphan.
    for (pid, _) in children(shim) {
        kill(pid, libc::SIGKILL);
    }
    rig.remove("a");
}

#[test]
fn a_create_after_the_last_shutdown_is_refused() {
    let rig = Rig::new();
    rig.run("a", &["true"]);
    until("it has ended", || rig.status("a").as_deref() == Some("STOPPED"));
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    // containerd is there and takes no events: the shim stays for them.
    support::stop(rig.containerd_pid());
    direct.call::<api::DeleteResponse>("Delete", &process("a", "")).unwrap();
    let shutdown = api::ShutdownRequest { id: "a".into(), now: false };
    direct.call::<Empty>("Shutdown", &shutdown).unwrap();
    assert!(alive(shim));
    let create = api::CreateTaskRequest {
        id: "b".into(),
        bundle: rig.bundle("a").to_str().unwrap().into(),
        ..api::CreateTaskRequest::default()
    };
    let refused = direct.call::<api::PidResponse>("Create", &create).unwrap_err();
    assert_eq!(refused.code, Code::Unavailable as i32, "{}", refused.message);
    kill(rig.containerd_pid(), libc::SIGCONT);
    until("the shim ends", || !alive(shim));
    // containerd clears up by itself.
    until("the bundle has gone", || rig.status("a").is_none() && !rig.bundle("a").exists());
    rig.ctr(["container", "rm", "a"]);
}

// The kernel lists children in the order of their births; those that live come first.
#[test]
fn orphans_are_reaped_behind_any_number_of_living_children() {
    let rig = Rig::new();
    let flags = rig.runtime_script("case \"$*\" in *slow.process.json*) sleep 600;; esac");
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let namespace = host_pid_namespace();
    flags.extend(["--with-ns", &namespace]);
    rig.run_with(&flags, "a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    direct.exec_to_end("a", "e1", "i=0; while [ $i -lt 600 ]; do sleep 1000 & i=$((i+1)); done");
    until("they are the shim's", || children(shim).len() > 600);
    direct.exec_to_end("a", "e2", "for i in 1 2 3 4 5; do sleep 3 & done; sleep 0.1");
    // From now on something is being born, and unknown zombies that are not older, by the kernel's
    // hundredths of a second, may be it.
    add(&mut direct, "slow", "exit 0", |_| {});
    direct.send("Start", &process("a", "slow"));
    until("the runtime hangs", || {
        children(shim).iter().any(|(pid, _)| support::cmdline(*pid).contains(&"exec".into()))
    });
    std::thread::sleep(std::time::Duration::from_secs(3));
    until("orphans are reaped", || children(shim).iter().all(|(_, state)| *state != 'Z'));
    let mut other = rig.direct("a");
    signal(&mut other, "a", "", 9).unwrap();
    assert_eq!(wait(&mut other, ""), 137);
    for (pid, _) in children(shim) {
        kill(pid, libc::SIGKILL);
    }
    rig.remove("a");
}

#[test]
fn a_second_pod_of_the_same_runtime_is_not_touched() {
    let rig = Rig::new();
    rig.run_with(&["--runtime", CLEAT], "a", &["sleep", "1000"]);
    rig.run_with(&["--runtime", CLEAT], "b", &["sleep", "1000"]);
    rig.remove("a");
    assert_eq!(rig.status("b").as_deref(), Some("RUNNING"));
    rig.remove("b");
}

#[test]
fn an_exit_is_told_though_all_that_comes_before_it_fails() {
    let rig = debug_rig();
    let events = rig.events();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    fail_next(&mut direct, "before exit");
    assert_eq!(direct.exec_to_end("a", "e", "exit 3"), 3);
    fail_next(&mut direct, "before exit");
    kill(rig.init("a"), libc::SIGKILL);
    assert_eq!(wait(&mut direct, ""), 137);
    events.wait_for("exit", 2);
    rig.remove("a");
}

#[test]
fn a_create_that_panics_is_undone() {
    let rig = debug_rig();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let bundle = support::bundle_beside(&rig, |config| config["root"]["path"] = "rootfs".into());
    let rootfs = cleat::protocol::Mount {
        r#type: "bind".into(),
        source: support::text(&rig.bundle("a").join("rootfs")),
        options: vec!["rbind".into()],
        ..Default::default()
    };
    let create = api::CreateTaskRequest {
        id: "b".into(),
        bundle: support::text(&bundle),
        rootfs: vec![rootfs],
        ..Default::default()
    };
    fail_next(&mut direct, "runtime call");
    assert_eq!(
        direct.call::<api::PidResponse>("Create", &create).unwrap_err().code,
        Code::Internal as i32
    );
    let mounts = || support::read_all("/proc/self/mountinfo");
    until("its rootfs is unmounted", || !mounts().contains(&support::text(&bundle.join("rootfs"))));
    // The id is free again.
    until("it can be created", || direct.call::<api::PidResponse>("Create", &create).is_ok());
    signal(&mut direct, "b", "", 9).unwrap();
    direct.call::<api::WaitResponse>("Wait", &process("b", "")).unwrap();
    direct.call::<api::DeleteResponse>("Delete", &process("b", "")).unwrap();
    rig.remove("a");
}

#[test]
fn connections_count_however_they_end() {
    let rig = debug_rig();
    rig.run("a", &["sleep", "1000"]);
    let connections = || {
        let mut direct = rig.direct("a");
        let inspected: cleat::protocol::inspect::InspectResponse =
            direct.call_service(cleat::protocol::inspect::SERVICE, "Inspect", &Empty {}).unwrap();
        inspected.connections
    };
    let before = connections();
    for _ in 0..3 {
        let mut victim = rig.direct("a");
        fail_next(&mut victim, "connection");
        until("it is cut off", || victim.try_state("a").is_none());
    }
    until("they are gone", || connections() <= before);
    rig.remove("a");
}
