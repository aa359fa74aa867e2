//! Things that break on purpose.

use crate::support::{self, CLEAT, IMAGE, Rig, alive, children, kill, until};
use cleat::{
    protocol::{Empty, task as api},
    rpc::Code,
};
use std::time::Instant;

fn process(id: &str, exec: &str) -> api::ProcessRequest {
    api::ProcessRequest { id: id.into(), exec_id: exec.into() }
}

// containerd #3572, moby#40817. Defence: `Shim::kill` signals through the pidfd; no borrow lives
// across `run_exec`.
#[test]
fn scar_03_kill_state_wait_and_stats_answer_while_an_exec_hangs() {
    let rig = Rig::new();
    let flags = rig.runtime_script("case \"$*\" in *' exec '*) sleep 600;; esac");
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sleep", "1000"]);
    let mut hung = rig.direct("a");
    let spec = support::process_spec(&["true"]);
    hung.call::<Empty>("Exec", &support::exec_request("a", "e", &spec)).unwrap();
    let start = hung.send("Start", &process("a", "e"));
    let shim = rig.shim();
    until("the runtime hangs", || children(shim).len() >= 2);

    let mut direct = rig.direct("a");
    let begun = Instant::now();
    for _ in 0..1000 {
        direct
            .call::<api::StatsResponse>("Stats", &api::ContainerRequest { id: "a".into() })
            .unwrap();
    }
    assert_eq!(direct.state("a", "").unwrap().status, api::Status::Running as i32);
    assert_eq!(direct.state("a", "e").unwrap().status, api::Status::Created as i32);
    direct.call::<api::PidsResponse>("Pids", &api::ContainerRequest { id: "a".into() }).unwrap();
    let refused = direct.call::<Empty>("Delete", &process("a", "e")).unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition as i32);
    let wait = direct.send("Wait", &process("a", ""));
    let killed = api::KillRequest { id: "a".into(), signal: 9, ..api::KillRequest::default() };
    direct.call::<Empty>("Kill", &killed).unwrap();
    let (id, answer) = direct.receive();
    assert_eq!(id, wait);
    let waited: api::WaitResponse = prost::Message::decode(answer.unwrap().as_slice()).unwrap();
    assert_eq!(waited.exit_status, 137);
    // The runtime sleeps for 600 s; the deadline of the whole is generous.
    assert!(begun.elapsed() < support::LONG);

    // The call that hangs is killed with the container, and its caller hears of it.
    let (id, answer) = hung.receive();
    assert_eq!(id, start);
    assert!(answer.unwrap_err().message.contains("OCI runtime exec failed"));
    // The wrapper's sleep outlives the wrapper and is the shim's orphan now.
    for (pid, _) in children(shim) {
        kill(pid, libc::SIGKILL);
    }
    rig.remove("a");
}

// containerd commit dbcaa504c. Defence: `Slot::Creating`: the id is taken, nothing is locked.
#[test]
fn scar_43_a_slow_create_stops_nobody_else() {
    let rig = Rig::new();
    rig.run_in_group("a", "a", &["sleep", "1000"]);
    let flags = rig.runtime_script("case \"$*\" in *' create '*) sleep 3;; esac");
    let annotation = format!("{}=a", support::GROUP);
    let mut slow = rig.ctr_command(
        [
            &["run", "-d", "--null-io", "--annotation", &annotation],
            &flags.each_ref().map(String::as_str)[..],
            &[IMAGE, "b", "sleep", "1000"],
        ]
        .concat(),
    );
    let mut slow = slow.spawn().unwrap();
    let mut direct = rig.direct("a");
    let shim = rig.shim();
    until("the runtime is at work", || children(shim).len() == 2);
    let begun = Instant::now();
    assert_eq!(direct.state("b", "").unwrap_err().code, Code::NotFound as i32);
    assert_eq!(direct.exec_to_end("a", "e", "exit 6"), 6);
    let duplicate = api::CreateTaskRequest {
        id: "b".into(),
        bundle: rig.bundle("b").to_str().unwrap().into(),
        ..api::CreateTaskRequest::default()
    };
    assert_eq!(
        direct.call::<api::PidResponse>("Create", &duplicate).unwrap_err().code,
        Code::AlreadyExists as i32
    );
    assert!(
        children(shim).iter().any(|(pid, _)| support::cmdline(*pid).contains(&"create".to_owned())),
        "{:?}",
        begun.elapsed()
    );
    assert!(slow.wait().unwrap().success());
    rig.remove("b");
    rig.remove("a");
}

// containerd #6402, #6572. Defence: `cleanup::run` answers pid and status.
#[test]
fn scar_32_a_killed_shim_is_cleaned_up_after() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run_in_group("a", "a", &["sleep", "1000"]);
    rig.run_in_group("a", "b", &["sleep", "1000"]);
    let inits = [rig.init("a"), rig.init("b")];
    kill(rig.shim(), libc::SIGKILL);
    until("the containers are gone", || inits.iter().all(|pid| !alive(*pid)));
    events.wait_for("exit", 2);
    assert!(events.all().iter().filter(|e| e.topic == "exit").all(|e| e.status == 137));
    until("containerd has forgotten the tasks", || {
        rig.status("a").is_none() && rig.status("b").is_none()
    });
    // The same names and group work again at once.
    for id in ["a", "b"] {
        rig.ctr(["container", "rm", id]);
        rig.run_in_group("a", id, &["sleep", "1000"]);
    }
    rig.remove("b");
    rig.remove("a");
}

// containerd #14020. Defence: `Effect::RecordExit`.
#[test]
fn scar_55_the_true_status_survives_the_shim() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run("a", &["sh", "-c", "sleep 0.5; exit 7"]);
    let (shim, containerd) = (rig.shim(), rig.containerd_pid());
    support::stop(containerd);
    let exit = rig.bundle("a").join("exit");
    until("the exit is written down", || exit.exists());
    kill(shim, libc::SIGKILL);
    kill(containerd, libc::SIGCONT);
    events.wait_for("exit", 1);
    assert_eq!(events.all().iter().find(|e| e.topic == "exit").unwrap().status, 7);
    until("containerd has forgotten the task", || rig.status("a").is_none());
    rig.ctr(["container", "rm", "a"]);
}

// docker/for-linux#643, containerd #10192. Defence: `socket::bind` probes.
#[test]
fn scar_29_a_stale_socket_is_replaced() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let socket = rig.address("a").replace("unix://", "");
    rig.remove("a");
    until("the socket goes with the shim", || !std::path::Path::new(&socket).exists());
    // The same container will ask for the same address; nobody listens on it.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    rig.run("a", &["sleep", "1000"]);
    assert_eq!(rig.address("a").replace("unix://", ""), socket);
    rig.remove("a");
}

// containerd #4538. Defence: `Shim::undo_create`.
#[test]
fn scar_10_a_killed_runtime_leaves_nothing() {
    let rig = Rig::new();
    for delay in ["0.005", "0.015", "0.03", "0.05"] {
        let flags = rig.runtime_script(&format!(
            "case \"$*\" in *' create '*) runc \"$@\" & sleep {delay}; kill -9 $!; wait; exit 1;; esac"
        ));
        let flags = flags.each_ref().map(String::as_str);
        let output = rig.try_ctr(
            [&["run", "-d", "--null-io"], &flags[..], &[IMAGE, "a", "sleep", "1000"]].concat(),
        );
        assert!(!output.status.success());
        let _ = rig.try_ctr(["container", "rm", "a"]);
    }
}

// The runtime writes its state down later: nothing but config.json tells of the cgroup. Defence:
// `Cgroup::of_bundle`.
#[test]
fn scar_10_a_runtime_killed_with_a_cgroup_and_no_state_leaves_none() {
    let rig = Rig::new();
    let marker = rig.dir.join("seen");
    for (victims, delay) in
        ["$runtime", "$runtime $PPID"].iter().flat_map(|v| ["0", "0.001", "0.003"].map(|d| (v, d)))
    {
        let flags = rig.runtime_script(&format!(
            "case \"$*\" in *' create '*)
                runc \"$@\" & runtime=$!
                until [ -d /sys/fs/cgroup/pids/{0}/a ] || [ -d /sys/fs/cgroup/{0}/a ]; do :; done
                : >{marker}
                [ {delay} = 0 ] || sleep {delay}
                kill -9 {victims}; wait; exit 1;;
            esac",
            rig.namespace,
            marker = marker.display()
        ));
        let flags = flags.each_ref().map(String::as_str);
        let output = rig.try_ctr(
            [&["run", "-d", "--null-io"], &flags[..], &[IMAGE, "a", "sleep", "1000"]].concat(),
        );
        assert!(!output.status.success());
        std::fs::remove_file(&marker).expect("the runtime was killed where it was meant to be");
        let _ = rig.try_ctr(["container", "rm", "a"]);
        until(&format!("no cgroup is left after {victims} {delay}"), || rig.cgroups().is_empty());
    }
}

// containerd #4538. Defence: `Shim::undo_create`.
#[test]
fn scar_10_a_create_that_succeeds_and_then_fails_is_undone() {
    let rig = Rig::new();
    let flags = rig.runtime_script("case \"$*\" in *' create '*) runc \"$@\"; exit 1;; esac");
    let flags = flags.each_ref().map(String::as_str);
    let output = rig.try_ctr(
        [&["run", "-d", "--null-io"], &flags[..], &[IMAGE, "a", "sleep", "1000"]].concat(),
    );
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("OCI runtime create failed"));
    rig.ctr(["container", "rm", "a"]);
}

#[test]
fn containerd_killed_in_the_middle_of_everything() {
    // containerd 1.6 adopts a shim that never got its Create, and cannot delete it: it ends by
    // itself.
    let mut rig = Rig::with_impatient_shims();
    for round in 0..3 {
        let mut runs: Vec<_> = (0..4)
            .map(|i| {
                let id = format!("a{round}-{i}");
                let arguments =
                    ["run", "-d", "--null-io", "--runtime", CLEAT, IMAGE, &id, "sleep", "1000"];
                let mut command = rig.ctr_command(arguments);
                command.stderr(std::process::Stdio::null()).spawn().unwrap()
            })
            .collect();
        std::thread::sleep(std::time::Duration::from_millis(60 + 50 * round));
        rig.end_containerd(libc::SIGKILL);
        for run in &mut runs {
            run.wait().unwrap();
        }
        rig.start_containerd();
        for i in 0..4 {
            let id = format!("a{round}-{i}");
            let _ = rig.try_ctr(["task", "rm", "-f", &id]);
            let _ = rig.try_ctr(["container", "rm", &id]);
        }
    }
}

// Defence: `Id::new`, `task/request.rs`.
#[test]
fn scar_40_hostile_ids_and_messages_are_refused_and_the_shim_lives() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let exec =
        |id: &str, exec: &str| support::exec_request(id, exec, &support::process_spec(&["true"]));
    for bad in ["../../x", "a/b", "", "-x", &"y".repeat(77)] {
        assert_eq!(
            direct.call::<Empty>("Exec", &exec("a", bad)).unwrap_err().code,
            Code::InvalidArgument as i32
        );
        let create = api::CreateTaskRequest {
            id: bad.into(),
            bundle: "/run".into(),
            ..api::CreateTaskRequest::default()
        };
        assert_eq!(
            direct.call::<Empty>("Create", &create).unwrap_err().code,
            Code::InvalidArgument as i32
        );
        assert_eq!(direct.state(bad, "").unwrap_err().code, Code::NotFound as i32);
    }
    let mut broken = exec("a", "e");
    broken.spec = None;
    assert_eq!(
        direct.call::<Empty>("Exec", &broken).unwrap_err().code,
        Code::InvalidArgument as i32
    );
    for _ in 0..3 {
        // Deleting a live task kills nobody.
        assert_eq!(
            direct.call::<Empty>("Delete", &process("a", "")).unwrap_err().code,
            Code::FailedPrecondition as i32
        );
    }
    assert!(alive(rig.init("a")));
    rig.remove("a");
}

// containerd #12393. Defence: `Shim::shutdown_asked` is remembered.
#[test]
fn scar_45_deletes_at_once_and_a_shutdown_end_the_shim() {
    let rig = Rig::new();
    for i in 0..5 {
        let id = format!("a{i}");
        rig.run(&id, &["sleep", "1000"]);
        let shim = rig.shim();
        let mut direct = rig.direct(&id);
        kill(rig.init(&id), libc::SIGKILL);
        direct.call::<api::WaitResponse>("Wait", &process(&id, "")).unwrap();
        let first = direct.send("Delete", &process(&id, ""));
        let second = direct.send("Delete", &process(&id, ""));
        direct.send("Shutdown", &api::ShutdownRequest { id: id.clone(), now: false });
        for _ in 0..3 {
            let (call, answer) = direct.receive();
            if call == first {
                let deleted: api::DeleteResponse =
                    prost::Message::decode(answer.unwrap().as_slice()).unwrap();
                assert_eq!(deleted.exit_status, 137);
            } else if call == second
                && let Err(status) = answer
            {
                assert_eq!(status.code, Code::NotFound as i32);
            }
        }
        until("the shim ends", || !alive(shim));
        let _ = rig.try_ctr(["task", "rm", "-f", &id]);
        until("containerd has forgotten the task", || rig.status(&id).is_none());
        rig.ctr(["container", "rm", &id]);
    }
}
