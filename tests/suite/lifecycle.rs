//! Containers and pods, from birth to death.

use crate::support::{
    self, CLEAT, Direct, IMAGE, RUNC, Rig, alive, children, host_pid_namespace, process_state,
    read_all, until,
};
use cleat::{
    protocol::{Any, Empty, task as api},
    rpc::Code,
};

fn pod_of(size: usize) {
    let rig = Rig::new();
    let ids: Vec<String> = (0..size).map(|i| format!("c{i}")).collect();
    for id in &ids {
        rig.run_in_group("c0", id, &["sleep", "1000"]);
    }
    let shim = rig.shim();
    // What the check for leftovers looks for.
    assert!(
        rig.sockets()
            .contains(std::path::Path::new(rig.address("c0").trim_start_matches("unix://")))
    );
    let threads = read_all(format!("/proc/{shim}/status"));
    assert!(threads.contains("Threads:\t1\n"));
    let inits: Vec<u32> = ids.iter().map(|id| rig.init(id)).collect();
    for (id, init) in ids.iter().zip(&inits) {
        assert_eq!(rig.address(id), rig.address("c0"));
        assert_eq!(process_state(*init).unwrap().1, shim, "the shim is the parent of {id}");
        assert_eq!(rig.status(id).as_deref(), Some("RUNNING"));
    }
    // The first last: it is the pod's own.
    for id in ids.iter().rev() {
        assert!(alive(shim));
        rig.remove(id);
    }
    until("the shim ends", || !alive(shim));
}

#[test]
fn a_container_has_a_shim() {
    pod_of(1);
}

#[test]
fn two_containers_of_a_group_share_a_shim() {
    pod_of(2);
}

#[test]
fn twenty_containers_of_a_group_share_a_shim() {
    pod_of(20);
}

#[test]
fn output_and_exit_status_of_a_foreground_run() {
    let rig = Rig::new();
    let script = "echo out; echo err >&2; exit 7";
    let output =
        rig.foreground(&["--runtime", CLEAT], "a", &["sh", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    // ctr 2.3 has something to say about cgroup v1 first.
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.ends_with("err\n") && stderr.lines().count() <= 2, "{stderr}");
}

#[test]
fn the_installed_name_and_an_absolute_path_work_too() {
    let rig = Rig::new();
    let path = rig.dir.join("bin/containerd-shim-cleat-v2");
    for (id, runtime) in [("a", RUNC), ("b", path.to_str().unwrap())] {
        let output = rig.ctr(["run", "--rm", "--runtime", runtime, IMAGE, id, "echo", "x"]);
        assert_eq!(output, "x\n");
    }
}

#[test]
fn pause_and_resume() {
    let rig = Rig::new();
    rig.run("a", &["sh", "-c", "while :; do echo x >> /ticks; sleep 0.01; done"]);
    let ticks = || read_all(format!("/proc/{}/root/ticks", rig.init("a"))).len();
    let mut direct = rig.direct("a");
    rig.ctr(["task", "pause", "a"]);
    assert_eq!(rig.status("a").as_deref(), Some("PAUSED"));
    let frozen = ticks();
    let refused = direct
        .call::<Empty>("Exec", &support::exec_request("a", "e", &support::process_spec(&["true"])))
        .unwrap_err();
    assert_eq!(refused.message, "cannot exec in a paused state");
    let refused = rig.try_ctr(["task", "pause", "a"]);
    assert!(!refused.status.success());
    assert_eq!(ticks(), frozen);
    rig.ctr(["task", "resume", "a"]);
    assert_eq!(rig.status("a").as_deref(), Some("RUNNING"));
    until("it goes on", || ticks() > frozen);
    // A frozen container dies of SIGKILL.
    rig.ctr(["task", "pause", "a"]);
    rig.remove("a");
}

#[test]
fn update_changes_the_memory_limit() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let limit = || {
        ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
            .iter()
            .flat_map(|root| ["memory.limit_in_bytes", "memory.max"].map(|file| (root, file)))
            .map(|(root, file)| read_all(format!("{root}/{}/a/{file}", rig.namespace)))
            .find(|text| !text.is_empty())
            .unwrap()
    };
    let resources = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: br#"{"memory":{"limit":67108864}}"#.to_vec(),
    };
    let request = api::UpdateTaskRequest { id: "a".into(), resources: Some(resources) };
    rig.direct("a").call::<Empty>("Update", &request).unwrap();
    assert_eq!(limit().trim(), "67108864");
    rig.remove("a");
}

#[test]
fn metrics_of_a_running_container() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let metrics = rig.ctr(["task", "metrics", "a"]);
    assert!(
        metrics.contains("memory.usage_in_bytes") || metrics.contains("memory.usage"),
        "{metrics}"
    );
    rig.remove("a");
}

#[test]
fn kill_all_reaches_processes_that_share_the_hosts_pid_namespace() {
    let rig = Rig::new();
    rig.run_with(
        &["--runtime", CLEAT, "--with-ns", &host_pid_namespace()],
        "a",
        &["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000 & wait"],
    );
    let init = rig.init("a");
    until("the children run", || children(init).len() == 2);
    let all: Vec<u32> = children(init).iter().map(|(pid, _)| *pid).chain([init]).collect();
    rig.ctr(["task", "kill", "-a", "-s", "9", "a"]);
    until("all are gone", || all.iter().all(|pid| !alive(*pid)));
    rig.remove("a");
}

// containerd #3149, #10608. Defence: `Effect::KillAll`, `Shim::wait_emptied`.
#[test]
fn scar_09_a_shared_pid_namespace_is_cleared_when_the_init_exits() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run_with(
        &["--runtime", CLEAT, "--with-ns", &host_pid_namespace()],
        "a",
        &["sh", "-c", "sleep 1000 & sleep 1000 & sleep 0.3; exit 3"],
    );
    let init = rig.init("a");
    until("the children run", || children(init).len() >= 2);
    let all: Vec<u32> = children(init).iter().map(|(pid, _)| *pid).collect();
    events.wait_for("exit", 1);
    assert!(all.iter().all(|pid| !alive(*pid)), "the exit comes after the others are gone");
    assert_eq!(events.all().iter().find(|e| e.topic == "exit").unwrap().status, 3);
    rig.remove("a");
}

#[test]
fn illegal_transitions_answer_in_containerds_words() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let process =
        |id: &str, exec: &str| api::ProcessRequest { id: id.into(), exec_id: exec.into() };
    let mut refused = |method: &str, id: &str, exec: &str| {
        let status = direct.call::<Empty>(method, &process(id, exec)).unwrap_err();
        (status.code, status.message)
    };
    let expected = |code: Code, text: &str| (code as i32, text.to_owned());
    assert_eq!(
        refused("Delete", "a", ""),
        expected(Code::FailedPrecondition, "cannot delete a running process")
    );
    assert_eq!(
        refused("Start", "a", ""),
        expected(Code::Unknown, "cannot start a running process")
    );
    assert_eq!(
        refused("Resume", "a", ""),
        expected(Code::Unknown, "cannot resume a running process")
    );
    for method in ["Start", "Delete", "State", "Wait", "Pause", "Resume", "Pids", "Stats"] {
        let (code, message) = refused(method, "nope", "");
        assert_eq!(code, Code::NotFound as i32, "{method}: {message}");
        assert!(message == "container not created: not found", "{method}: {message}");
    }
    let (code, message) = refused("State", "a", "nope");
    assert_eq!(code, Code::NotFound as i32, "{message}");
    let kill = |signal: u32, id: &str, exec: &str| api::KillRequest {
        id: id.into(),
        exec_id: exec.into(),
        signal,
        all: false,
    };
    let mut direct = rig.direct("a");
    assert_eq!(
        direct.call::<Empty>("Kill", &kill(1 << 31, "a", "")).unwrap_err().code,
        Code::InvalidArgument as i32
    );
    direct.call::<Empty>("Kill", &kill(0, "a", "")).unwrap();
    let exec = support::exec_request("a", "e", &support::process_spec(&["true"]));
    direct.call::<Empty>("Exec", &exec).unwrap();
    assert_eq!(direct.call::<Empty>("Exec", &exec).unwrap_err().code, Code::AlreadyExists as i32);
    let early = direct.call::<Empty>("Kill", &kill(9, "a", "e")).unwrap_err();
    assert_eq!(early.code, Code::FailedPrecondition as i32);
    assert!(early.message.contains("process not created"), "{}", early.message);
    direct.call::<Empty>("Kill", &kill(9, "a", "")).unwrap();
    direct.call::<api::WaitResponse>("Wait", &process("a", "")).unwrap();
    let late = direct.call::<Empty>("Kill", &kill(9, "a", "")).unwrap_err();
    assert_eq!(late.code, Code::NotFound as i32);
    assert!(late.message.contains("process already finished"), "{}", late.message);
    let late = direct.call::<Empty>("Start", &process("a", "e")).unwrap_err();
    assert_eq!(late.code, Code::FailedPrecondition as i32, "{}", late.message);
    rig.remove("a");
}

// containerd #10984, #11720. Defence: `serve::services` registers both names.
#[test]
fn scar_67_one_socket_speaks_both_versions_and_refuses_others() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let request = api::ContainerRequest { id: "a".into() };
    for service in api::SERVICES {
        let answer: api::ConnectResponse =
            direct.call_service(service, "Connect", &request).unwrap();
        assert_eq!((answer.shim_pid, answer.task_pid), (rig.shim(), rig.init("a")));
    }
    for (service, method) in
        [("containerd.task.v4.Task", "Connect"), (api::SERVICES[0], "Dance"), ("", "")]
    {
        let refused = direct.call_service::<Empty>(service, method, &request).unwrap_err();
        assert_eq!(refused.code, Code::Unimplemented as i32);
    }
    rig.remove("a");
}

#[test]
fn a_failed_create_says_why_and_leaves_nothing() {
    let rig = Rig::new();
    let output = rig.try_ctr(["run", "-d", "--runtime", CLEAT, IMAGE, "a", "/nope"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(message.contains("OCI runtime create failed: "), "{message}");
    let said = match support::oci_runtime().as_str() {
        "crun" => "executable file `/nope` not found",
        "youki" => "/nope",
        _ => "exec: \"/nope\": stat /nope: no such file or directory",
    };
    assert!(message.contains(said), "{message}");
    let _ = rig.try_ctr(["container", "rm", "a"]);
    // Another client finds the id free again.
    rig.run("a", &["sleep", "1000"]);
    rig.remove("a");
}

// containerd #11535, #11916. Defence: `Bundle::write_address`; both services on one socket.
#[test]
fn scar_39_containerd_restarts_under_a_running_pod_and_adopts_it() {
    let mut rig = Rig::new();
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        rig.run_in_group("a", "a", &["sleep", "1000"]);
        rig.run_in_group("a", "b", &["sleep", "1000"]);
        let (shim, init) = (rig.shim(), rig.init("a"));
        rig.end_containerd(signal);
        assert!(alive(shim) && alive(init));
        rig.start_containerd();
        assert_eq!(rig.status("a").as_deref(), Some("RUNNING"));
        assert_eq!(rig.status("b").as_deref(), Some("RUNNING"));
        let output = rig.ctr(["task", "exec", "--exec-id", "e", "a", "echo", "alive"]);
        assert_eq!(output, "alive\n");
        // The pod takes new containers.
        rig.run_in_group("a", "c", &["sleep", "1000"]);
        assert_eq!(rig.shim(), shim);
        for id in ["c", "b", "a"] {
            rig.remove(id);
        }
        until("the shim ends", || !alive(shim));
    }
}

#[test]
fn an_exit_while_containerd_is_away_is_told_when_it_is_back() {
    let mut rig = Rig::new();
    rig.run_in_group("a", "a", &["sleep", "1000"]);
    rig.run_in_group("a", "b", &["sleep", "1000"]);
    let init = rig.init("b");
    rig.end_containerd(libc::SIGKILL);
    support::kill(init, libc::SIGKILL);
    until("the init is reaped", || process_state(init).is_none());
    rig.start_containerd();
    until("the task stops", || rig.status("b").as_deref() == Some("STOPPED"));
    rig.remove("b");
    rig.remove("a");
}

#[test]
fn shutdown_ends_an_empty_shim_and_no_other() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mut direct: Direct = rig.direct("a");
    direct.call::<Empty>("Shutdown", &api::ShutdownRequest { id: "a".into(), now: true }).unwrap();
    assert_eq!(direct.state("a", "").unwrap().status, api::Status::Running as i32);
    assert!(alive(shim));
    rig.remove("a");
    until("the shim ends", || !alive(shim));
}

#[test]
fn an_overlay_of_more_layers_than_a_page_of_options_holds() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    // A second container in the same shim, as containerd would ask for it.
    let bundle = rig.dir.join("b");
    std::fs::create_dir_all(&bundle).unwrap();
    let config = read_all(rig.bundle("a").join("config.json"));
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["linux"]["cgroupsPath"] = format!("/{}/b", rig.namespace).into();
    std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let mounts = read_all("/proc/self/mountinfo");
    let rootfs = rig.bundle("a").join("rootfs");
    let line = mounts.lines().find(|line| line.contains(&*rootfs.to_string_lossy())).unwrap();
    let image = line.split("lowerdir=").nth(1).unwrap().split(',').next().unwrap();
    let snapshots = rig.dir.join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let mut layers: Vec<String> = (0..60)
        .map(|number| snapshots.join(format!("{}/fs", 1000 + number)).to_str().unwrap().to_owned())
        .collect();
    // The image has no /run, which runc wants to mount on.
    layers.iter().for_each(|layer| std::fs::create_dir_all(format!("{layer}/run")).unwrap());
    layers.push(image.to_owned());
    let lowerdir = format!("lowerdir={}", layers.join(":"));
    assert!(lowerdir.len() > 4096);
    let request = api::CreateTaskRequest {
        id: "b".into(),
        bundle: bundle.to_str().unwrap().into(),
        rootfs: vec![cleat::protocol::Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec!["ro".into(), lowerdir],
        }],
        ..api::CreateTaskRequest::default()
    };
    let mut direct = rig.direct("a");
    let created = direct.call::<api::PidResponse>("Create", &request);
    assert!(created.is_ok(), "{created:?}");
    let process = api::ProcessRequest { id: "b".into(), exec_id: String::new() };
    direct.call::<api::DeleteResponse>("Delete", &process).unwrap();
    rig.remove("a");
}

/// fuse-overlayfs' snapshotter asks for such mounts.
#[test]
fn a_rootfs_that_a_program_mounts_serves_the_container_and_goes() {
    if !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("no /dev/fuse");
        return;
    }
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let image = support::text(&rig.bundle("a").join("rootfs"));
    let directory = |name: &str| {
        let path = rig.dir.join(name);
        std::fs::create_dir(&path).unwrap();
        support::text(&path)
    };
    let (upper, work) = (directory("upper"), directory("work"));
    let rootfs = cleat::protocol::Mount {
        r#type: "fuse3.fuse-overlayfs".into(),
        source: "overlay".into(),
        target: String::new(),
        options: vec![
            format!("lowerdir={image}"),
            format!("upperdir={upper}"),
            format!("workdir={work}"),
        ],
    };
    let mut direct = rig.direct("a");
    support::second_container(&rig, &mut direct, rootfs, |config| {
        config["process"]["args"] =
            serde_json::json!(["sh", "-c", "echo here > /made; exec sleep 1000"]);
    });
    let mountpoint = support::text(&rig.dir.join("b/rootfs"));
    let mounted = || read_all("/proc/self/mounts").lines().any(|line| line.contains(&mountpoint));
    let serving = || {
        children(rig.shim())
            .iter()
            .any(|(pid, _)| support::cmdline(*pid).concat().contains("fuse-overlayfs"))
    };
    assert!(mounted() && serving());
    until("the container writes", || read_all(format!("{upper}/made")) == "here\n");
    support::remove_second_container(&mut direct);
    assert!(!mounted());
    until("the file system's daemon ends", || !serving());
    rig.remove("a");
}
