//! Runtimes that are not quite runc.

use crate::support::{self, Rig, add, alive, children, kill, process, script, signal, start, until, wait};
use cleat::protocol::{Empty, task as api};
use std::{fs, path::Path};

/// A program that keeps its containers elsewhere than it is told, as gVisor's runsc and many scripts do. It writes down its kills.
fn elsewhere(rig: &Rig) -> ([String; 4], std::path::PathBuf) {
    let root = rig.dir.join("elsewhere");
    let text = format!(
        "case \"$*\" in *' kill '*|*' ps '*) echo \"$*\" >> {0}/kills;; esac\n\
         mkdir -p {1}; shift 2; exec runc --root {1} \"$@\"",
        rig.dir.display(),
        root.display()
    );
    let path = script(rig, "elsewhere-runtime", &text);
    let flags = ["--runtime", support::RUNC, "--runc-binary", path.to_str().unwrap()];
    (flags.map(str::to_owned), root)
}

fn records(root: &Path) -> usize {
    fs::read_dir(root).map_or(0, |entries| entries.flatten().filter(|entry| entry.path().is_dir()).count())
}

fn flags(flags: &[String; 4]) -> [&str; 4] {
    flags.each_ref().map(String::as_str)
}

#[test]
fn a_runtime_with_a_root_of_its_own_is_told_to_kill_and_to_delete() {
    let rig = Rig::new();
    let (runtime, root) = elsewhere(&rig);
    for _ in 0..2 {
        rig.run_with(&flags(&runtime), "a", &["sleep", "1000"]);
        assert_eq!(records(&root), 1);
        let mut direct = rig.direct("a");
        assert_eq!(direct.exec_to_end("a", "e", "exit 5"), 5);
        let id = api::ContainerRequest { id: "a".into() };
        let pids: api::PidsResponse = direct.call("Pids", &id).unwrap();
        assert_eq!(pids.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [rig.init("a")]);
        signal(&mut direct, "a", "", 9).unwrap();
        assert_eq!(wait(&mut direct, ""), 137);
        rig.remove("a");
        assert_eq!(records(&root), 0, "the runtime has forgotten it");
    }
    if !support::is_go() {
        let kills = fs::read_to_string(rig.dir.join("kills")).unwrap();
        assert!(kills.contains("kill a 9") && kills.contains("ps --format json a"), "{kills}");
    }
}

#[test]
fn after_the_death_of_the_shim_such_a_runtime_deletes_too() {
    let rig = Rig::new();
    let (runtime, root) = elsewhere(&rig);
    rig.run_with(&flags(&runtime), "a", &["sleep", "1000"]);
    let init = rig.init("a");
    kill(rig.shim(), libc::SIGKILL);
    until("the container has ended", || !alive(init));
    until("containerd has cleared up", || rig.status("a").is_none());
    until("the runtime has forgotten it", || records(&root) == 0);
    rig.ctr(["container", "rm", "a"]);
}

#[test]
fn a_create_that_fails_leaves_nothing_with_such_a_runtime() {
    let rig = Rig::new();
    let (runtime, root) = elsewhere(&rig);
    // Made, and then not named.
    let text = fs::read_to_string(&runtime[3]).unwrap().replace(
        "exec runc",
        "case \"$*\" in *create*) runc --root $(dirname $0)/elsewhere \"$@\"; exit 1;; esac\nexec runc",
    );
    fs::write(&runtime[3], text).unwrap();
    let failed = rig.try_ctr(
        [&["run", "-d", "--null-io"], &flags(&runtime)[..], &[support::IMAGE, "a", "sleep", "1000"]].concat(),
    );
    assert!(!failed.status.success());
    until("nothing is left", || records(&root) == 0);
    let _ = rig.try_ctr(["container", "rm", "a"]);
}

#[test]
fn hooks_after_the_end_may_take_their_time() {
    let rig = Rig::new();
    // Longer than any other call may take.
    let text = format!("case \"$*\" in *' delete '*) sleep 63; touch {}/hooked;; esac", rig.dir.display());
    let runtime = rig.runtime_script(&text);
    rig.run_with(&flags(&runtime), "a", &["true"]);
    until("it has ended", || rig.status("a").as_deref() == Some("STOPPED"));
    rig.ctr(["task", "delete", "a"]);
    assert!(rig.dir.join("hooked").exists());
    rig.ctr(["container", "rm", "a"]);
}

#[test]
fn an_exec_may_be_called_init() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let init = rig.init("a");
    let mut direct = rig.direct("a");
    add(&mut direct, "init", "exec sleep 1000", |_| {});
    start(&mut direct, "init");
    assert_eq!(rig.init("a"), init);
    signal(&mut direct, "a", "init", 9).unwrap();
    assert_eq!(wait(&mut direct, "init"), 137);
    support::delete(&mut direct, "init");
    assert_eq!(rig.init("a"), init);
    // What clears up after a dead shim reads it.
    kill(rig.shim(), libc::SIGKILL);
    until("the container has ended", || !alive(init));
    until("containerd has cleared up", || rig.status("a").is_none());
    rig.ctr(["container", "rm", "a"]);
}

// containerd #10589: an exec that was never started is created still.
#[test]
fn an_exec_whose_start_failed_is_as_it_was_and_may_be_started_again() {
    let rig = Rig::new();
    let gate = rig.dir.join("gate");
    let text = format!("case \"$*\" in *' exec '*) mkdir {} 2>/dev/null && exit 1;; esac", gate.display());
    let runtime = rig.runtime_script(&text);
    rig.run_with(&flags(&runtime), "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let path = support::fifo(&rig.dir, "out");
    let mut reader = support::reader(&path);
    add(&mut direct, "e", "echo out; exit 3", |request| request.stdout = path.to_str().unwrap().into());
    direct.call::<api::PidResponse>("Start", &process("a", "e")).unwrap_err();
    let state = direct.state("a", "e").unwrap();
    assert_eq!((state.status, state.pid, state.exit_status), (api::Status::Created as i32, 0, 0));
    if !support::is_go() {
        start(&mut direct, "e");
        assert_eq!(wait(&mut direct, "e"), 3);
        let mut said = [0; 4];
        std::io::Read::read_exact(&mut reader, &mut said).unwrap();
        assert_eq!(&said, b"out\n");
    }
    support::delete(&mut direct, "e");
    rig.remove("a");
}

#[test]
fn an_exec_that_waits_for_its_start_dies_with_the_runtime_call_only() {
    let rig = Rig::new();
    let runtime = rig.runtime_script("case \"$*\" in *' exec '*) exit 1;; esac");
    rig.run_with(&flags(&runtime), "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    for number in 0..20 {
        let exec = format!("e{number}");
        add(&mut direct, &exec, "exit 0", |_| {});
        direct.call::<api::PidResponse>("Start", &process("a", &exec)).unwrap_err();
        direct.call::<api::DeleteResponse>("Delete", &process("a", &exec)).unwrap();
    }
    assert_eq!(children(rig.shim()).len(), 1);
    direct
        .call::<Empty>("Kill", &api::KillRequest { id: "a".into(), signal: 9, ..Default::default() })
        .unwrap();
    rig.remove("a");
}
