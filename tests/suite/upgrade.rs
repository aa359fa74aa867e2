//! Another containerd, another shim, under containers that run.

use crate::support::{CLEAT, RUNC, Rig, alive, kill, shim_binary, until};
use std::{fs, os::unix::fs::symlink, path::Path};

/// Puts a binary under the name `containerd-shim-runc-v2`, as a package does: by rename.
fn install(rig: &Rig, binary: &Path) {
    let name = rig.dir.join("bin/containerd-shim-runc-v2");
    symlink(binary, name.with_extension("new")).unwrap();
    fs::rename(name.with_extension("new"), name).unwrap();
}

/// The Go shim that came with this containerd.
fn go_shim() -> std::path::PathBuf {
    if let Some(path) = std::env::var_os("CLEAT_TEST_GO_SHIM") {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("containerd-shim-runc-v2"))
        .find(|p| p.exists());
    found.expect("Debian's containerd brings containerd-shim-runc-v2")
}

/// A container made by one shim, whose `delete` is done by the other after a crash.
fn deleted_by_another(maker: &Path, cleaner: &Path) {
    let mut rig = Rig::new();
    install(&rig, maker);
    let events = rig.events();
    rig.run_with(&["--runtime", RUNC], "a", &["sleep", "1000"]);
    let (shim, init) = (rig.shim(), rig.init("a"));
    let first_socket = rig.address("a").replace("unix://", "");
    install(&rig, cleaner);
    kill(shim, libc::SIGKILL);
    until("the container is gone", || !alive(init));
    events.wait_for("exit", 1);
    assert_eq!(events.all().iter().find(|e| e.topic == "exit").unwrap().status, 137);
    until("containerd has forgotten the task", || rig.status("a").is_none());
    rig.ctr(["container", "rm", "a"]);
    // The same while containerd is away.
    install(&rig, maker);
    rig.run_with(&["--runtime", RUNC], "b", &["sleep", "1000"]);
    let (shim, init) = (rig.shim(), rig.init("b"));
    let socket = rig.address("b").replace("unix://", "");
    drop(events);
    rig.end_containerd(libc::SIGKILL);
    kill(shim, libc::SIGKILL);
    install(&rig, cleaner);
    rig.start_containerd();
    until("the container is gone", || !alive(init));
    until("containerd has forgotten the task", || rig.status("b").is_none());
    rig.ctr(["container", "rm", "b"]);
    // Go's `delete` leaves the dead shim's socket.
    for path in [first_socket, socket] {
        let _ = fs::remove_file(path);
    }
}

#[test]
fn cleat_deletes_what_gos_shim_has_made() {
    deleted_by_another(&go_shim(), &shim_binary());
}

#[test]
fn gos_shim_deletes_what_cleat_has_made() {
    deleted_by_another(&shim_binary(), &go_shim());
}

// containerd #10888, moby#39432. Defence: `start::daemon` falls back to /proc/self/exe; a running
// group keeps its daemon.
#[test]
fn scar_66_a_new_binary_under_a_running_pod() {
    let rig = Rig::new();
    let copy = rig.dir.join("bin/containerd-shim-cleat-v2");
    let old = rig.dir.join("old");
    fs::copy(shim_binary(), &old).unwrap();
    fs::rename(&old, &copy).unwrap();
    rig.run_in_group("a", "a", &["sleep", "1000"]);
    let shim = rig.shim();
    fs::copy(shim_binary(), &old).unwrap();
    fs::rename(&old, &copy).unwrap();
    assert!(
        fs::read_link(format!("/proc/{shim}/exe"))
            .unwrap()
            .to_string_lossy()
            .ends_with("(deleted)")
    );
    rig.run_in_group("a", "b", &["sleep", "1000"]);
    assert_eq!(rig.shim(), shim);
    assert_eq!(rig.ctr(["task", "exec", "--exec-id", "e", "b", "echo", "x"]), "x\n");
    rig.remove("b");
    rig.remove("a");
}

/// `CLEAT_TEST_CONTAINERDS`: binaries, oldest first, with colons between.
#[test]
#[ignore = "needs several containerds: ./dev upgrade"]
fn containers_outlive_upgrades_of_containerd() {
    let list =
        std::env::var("CLEAT_TEST_CONTAINERDS").expect("CLEAT_TEST_CONTAINERDS names containerds");
    let binaries: Vec<&str> = list.split(':').collect();
    let mut rig = Rig::with_containerd(binaries[0]);
    // Both runtime names: by the second one containerd sends runc options.
    for (i, runtime) in [CLEAT, RUNC].iter().enumerate() {
        for binary in &binaries {
            let id = format!("c{i}-{}", binaries.iter().position(|b| b == binary).unwrap());
            let script = "trap 'exit 5' TERM; while :; do sleep 0.05; done";
            rig.run_with(&["--runtime", runtime], &id, &["sh", "-c", script]);
        }
    }
    let log = rig.dir.join("output.log");
    let uri = format!("file://{}", log.display());
    rig.ctr([
        "run",
        "-d",
        "--runtime",
        CLEAT,
        "--log-uri",
        &uri,
        crate::support::IMAGE,
        "talker",
        "sh",
        "-c",
        "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done",
    ]);
    let inits: Vec<u32> = (0..binaries.len()).map(|n| rig.init(&format!("c0-{n}"))).collect();
    for (n, binary) in binaries.iter().enumerate() {
        if n > 0 {
            rig.end_containerd(libc::SIGTERM);
            rig.set_containerd(binary);
            rig.start_containerd();
        }
        for (rest, init) in inits.iter().enumerate().skip(n) {
            assert!(alive(*init), "{binary}");
            assert_eq!(rig.status(&format!("c0-{rest}")).as_deref(), Some("RUNNING"), "{binary}");
        }
        // One container of each kind ends under each containerd.
        for kind in 0..2 {
            let id = format!("c{kind}-{n}");
            let exec = rig.ctr(["task", "exec", "--exec-id", "e", &id, "echo", "alive"]);
            assert_eq!(exec, "alive\n", "{binary}");
            rig.ctr(["task", "metrics", &id]);
            rig.ctr(["task", "kill", "-s", "TERM", &id]);
            until("it stops", || rig.status(&id).as_deref() == Some("STOPPED"));
            assert_eq!(rig.direct(&id).state(&id, "").unwrap().exit_status, 5, "{binary}");
            rig.ctr(["task", "delete", &id]);
            rig.ctr(["container", "delete", &id]);
        }
    }
    let lines: Vec<u64> =
        fs::read_to_string(&log).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1), "no line is missing");
    rig.remove("talker");
}
