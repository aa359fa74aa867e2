//! Runtimes that are not quite runc.

use crate::support::{
    self, Direct, Rig, add, alive, children, kill, process, script, signal, start, until, wait,
};
use cleat::protocol::{Empty, task as api};
use std::{fs, path::Path, process::Command};

/// A program that keeps its containers elsewhere than it is told, as gVisor's runsc and many
/// scripts do. It writes down its kills.
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
    fs::read_dir(root)
        .map_or(0, |entries| entries.flatten().filter(|entry| entry.path().is_dir()).count())
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
        [
            &["run", "-d", "--null-io"],
            &flags(&runtime)[..],
            &[support::IMAGE, "a", "sleep", "1000"],
        ]
        .concat(),
    );
    assert!(!failed.status.success());
    until("nothing is left", || records(&root) == 0);
    let _ = rig.try_ctr(["container", "rm", "a"]);
}

#[test]
fn hooks_after_the_end_may_take_their_time() {
    let rig = Rig::new();
    // Longer than any other call may take.
    let text =
        format!("case \"$*\" in *' delete '*) sleep 63; touch {}/hooked;; esac", rig.dir.display());
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
    let text =
        format!("case \"$*\" in *' exec '*) mkdir {} 2>/dev/null && exit 1;; esac", gate.display());
    let runtime = rig.runtime_script(&text);
    rig.run_with(&flags(&runtime), "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let path = support::fifo(&rig.dir, "out");
    let mut reader = support::reader(&path);
    add(&mut direct, "e", "echo out; exit 3", |request| {
        request.stdout = path.to_str().unwrap().into()
    });
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
        .call::<Empty>(
            "Kill",
            &api::KillRequest { id: "a".into(), signal: 9, ..Default::default() },
        )
        .unwrap();
    rig.remove("a");
}

// Another containerd may have a container of that name, whose records are elsewhere.
#[test]
fn a_delete_kills_nobody_in_a_cgroup_that_was_there_before() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let other = rig.dir.join("other/a");
    fs::create_dir_all(&other).unwrap();
    fs::copy(rig.bundle("a").join("config.json"), other.join("config.json")).unwrap();
    let elsewhere = rig.dir.join("elsewhere");
    fs::write(other.join("options.json"), format!("{{\"root\":\"{}\"}}", elsewhere.display()))
        .unwrap();
    fs::write(other.join("runtime"), "runc").unwrap();
    delete_action(&rig, &other, "a");
    assert_eq!(rig.status("a").as_deref(), Some("RUNNING"));
    rig.remove("a");
}

fn delete_action(rig: &Rig, bundle: &Path, id: &str) {
    let mut command = std::process::Command::new(support::shim_binary());
    command.args(["-namespace", &rig.namespace, "-id", id, "-address", "/nowhere", "-bundle"]);
    let output = command.arg(bundle).arg("delete").current_dir(bundle).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_delete_that_was_not_waited_for_does_not_meet_the_next_container() {
    let rig = Rig::new();
    let gate = rig.dir.join("gate");
    let text = format!(
        "case \"$*\" in *' delete --force '*) mkdir {} 2>/dev/null && sleep 12;; esac",
        gate.display()
    );
    let runtime = rig.runtime_script(&text);
    rig.run_with(&flags(&runtime), "a", &["sleep", "1000"]);
    let begun = std::time::Instant::now();
    kill(rig.shim(), libc::SIGKILL);
    until("containerd has cleared up", || rig.status("a").is_none());
    let run = || {
        let _ = rig.try_ctr(["container", "rm", "a"]);
        let words = [
            &["run", "-d", "--null-io"],
            &flags(&runtime)[..],
            &[support::IMAGE, "a", "sleep", "1000"],
        ];
        rig.try_ctr(words.concat()).status.success()
    };
    // As soon as containerd has let go of the first one's bundle: what the runtime still knows is
    // no reason to refuse the second. (Go's shim does.)
    until("its bundle has gone", || !rig.bundle("a").exists());
    assert!(run() || support::is_go() && run(), "{}", rig.log());
    let init = rig.init("a");
    // By then the first one would have come to its work.
    std::thread::sleep(std::time::Duration::from_secs(14).saturating_sub(begun.elapsed()));
    assert!(alive(init));
    rig.remove("a");
}

// What is not certainly dead, and of this very bundle, is not ours to delete.
#[test]
fn what_lives_or_is_anothers_keeps_its_record() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let bundle = support::bundle_beside(&rig, |_| {});
    let (root, mut idle) =
        (rig.dir.join("root"), Command::new("sleep").arg("1000").spawn().unwrap());
    let record = root.join(&rig.namespace).join("b/state.json");
    let options =
        cleat::protocol::options::Options { root: support::text(&root), ..Default::default() };
    let create = api::CreateTaskRequest {
        id: "b".into(),
        bundle: support::text(&bundle),
        options: Some(cleat::protocol::Any::pack("containerd.runc.v1.Options", &options)),
        ..Default::default()
    };
    let end = |direct: &mut Direct| {
        signal(direct, "b", "", 9).unwrap();
        direct.call::<api::WaitResponse>("Wait", &process("b", "")).unwrap();
        direct.call::<api::DeleteResponse>("Delete", &process("b", "")).unwrap();
    };
    let pid = direct.call::<api::PidResponse>("Create", &create).unwrap().pid;
    let written = fs::read_to_string(&record).unwrap();
    end(&mut direct);
    let leave = |from: &str, to: &str| {
        assert!(written.contains(from), "{from} {written}");
        fs::create_dir_all(record.parent().unwrap()).unwrap();
        fs::write(&record, written.replace(from, to)).unwrap();
    };
    let started = |pid: u32| {
        support::read_all(format!("/proc/{pid}/stat")).split(' ').nth(21).unwrap().to_owned()
    };
    let at = written.split("init_process_start\":").nth(1).unwrap().split(',').next().unwrap();
    let of =
        |pid: u32, at: &str| format!("\"init_process_pid\":{pid},\"init_process_start\":{at},");
    let ours = format!("bundle={}\"", bundle.display());
    let cases = [
        (of(pid, at), of(idle.id(), &started(idle.id()))),
        (ours.clone(), ours.replace("/b\"", "/another\"")),
    ];
    for (from, to) in cases {
        leave(&from, &to);
        let refused = direct.call::<api::PidResponse>("Create", &create).unwrap_err();
        assert!(refused.message.contains("already exists"), "{}", refused.message);
        assert!(record.exists(), "{to}");
    }
    assert!(alive(idle.id()));
    leave(&of(pid, at), &of(pid, at));
    direct.call::<api::PidResponse>("Create", &create).unwrap();
    end(&mut direct);
    idle.kill().unwrap();
    idle.wait().unwrap();
    rig.remove("a");
}

// The same bundle once more, as callers other than containerd do it: what is said there of the
// first container is not true of the second.
#[test]
fn a_second_life_in_a_bundle_inherits_nothing() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let bundle = support::bundle_beside(&rig, |_| {});
    let mut create = api::CreateTaskRequest {
        id: "b".into(),
        bundle: support::text(&bundle),
        ..Default::default()
    };
    direct.call::<api::PidResponse>("Create", &create).unwrap();
    direct.call::<api::PidResponse>("Start", &process("b", "")).unwrap();
    signal(&mut direct, "b", "", 9).unwrap();
    direct.call::<api::WaitResponse>("Wait", &process("b", "")).unwrap();
    direct.call::<api::DeleteResponse>("Delete", &process("b", "")).unwrap();
    let (runtime, root) = elsewhere(&rig);
    let options =
        cleat::protocol::options::Options { binary_name: runtime[3].clone(), ..Default::default() };
    let value = prost::Message::encode_to_vec(&options);
    create.options =
        Some(cleat::protocol::Any { type_url: "containerd.runc.v1.Options".into(), value });
    let pid = direct.call::<api::PidResponse>("Create", &create).unwrap().pid;
    direct.call::<api::PidResponse>("Start", &process("b", "")).unwrap();
    kill(rig.shim(), libc::SIGKILL);
    until("the shim has gone", || rig.shims().is_empty());
    delete_action(&rig, &bundle, "b");
    until("it has ended", || !alive(pid) && records(&root) == 0);
    until("containerd has cleared up", || rig.status("a").is_none());
    rig.ctr(["container", "rm", "a"]);
}

// The kernel shows a dead process in the first cgroup of each hierarchy of v1, which is the host's.
#[test]
fn an_init_that_is_dead_already_is_not_the_whole_host() {
    let rig = Rig::new();
    let text = format!(
        "case \"$*\" in *' create '*) runc \"$@\" || exit 1; kill -9 $(cat {}); sleep 0.3; exit 0;; esac",
        rig.bundle("a").join("init.pid").display()
    );
    let runtime = rig.runtime_script(&text);
    let words = [
        &["run", "-d", "--null-io"],
        &flags(&runtime)[..],
        &[support::IMAGE, "a", "sleep", "1000"],
    ];
    let mut run = rig.ctr_command(words.concat()).spawn().unwrap();
    until("there is a task", || rig.status("a").is_some());
    let mut direct = rig.direct("a");
    let id = api::ContainerRequest { id: "a".into() };
    if let Ok(pids) = direct.call::<api::PidsResponse>("Pids", &id) {
        assert!(pids.processes.len() <= 1, "{:?}", pids.processes);
    }
    let _ = run.wait();
    let _ = rig.try_ctr(["task", "delete", "-f", "a"]);
    let _ = rig.try_ctr(["container", "rm", "a"]);
}

#[test]
fn a_pause_that_crosses_the_end_of_the_init_leaves_nothing_frozen() {
    if !support::is_unified() {
        return;
    }
    let rig = Rig::new();
    let text = format!(
        "case \"$*\" in *' pause '*) kill -9 $(cat {0}); sleep 0.5; echo 1 > /sys/fs/cgroup/{1}/a/cgroup.freeze; exit 0;; esac",
        rig.bundle("a").join("init.pid").display(),
        rig.namespace
    );
    let runtime = rig.runtime_script(&text);
    rig.run_with(&flags(&runtime), "a", &["sleep", "1000"]);
    let _ = rig.try_ctr(["task", "pause", "a"]);
    until("it has ended", || rig.status("a").as_deref() == Some("STOPPED"));
    rig.remove("a");
}

// What a runtime says of its failure is in the error, and not in the container's output, where a
// reader would take it for the program's.
#[test]
fn a_runtimes_own_words_are_not_the_containers() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let (out, err) = (support::fifo(&rig.dir, "out"), support::fifo(&rig.dir, "err"));
    let mut readers = [&out, &err].map(|path| support::reader(path));
    let mut request = support::exec_request("a", "e", &support::process_spec(&["/not/there"]));
    (request.stdout, request.stderr) = (support::text(&out), support::text(&err));
    direct.call::<Empty>("Exec", &request).unwrap();
    let failed = direct.call::<api::PidResponse>("Start", &process("a", "e")).unwrap_err();
    assert!(failed.message.contains("/not/there"), "{}", failed.message);
    support::delete(&mut direct, "e");
    for reader in &mut readers {
        rustix::fs::fcntl_setfl(&*reader, rustix::fs::OFlags::NONBLOCK).unwrap();
        let mut said = String::new();
        let _ = std::io::Read::read_to_string(reader, &mut said);
        assert_eq!(said, "");
    }
    // The same of an init whose output is a file.
    let log = rig.dir.join("file");
    let failed = rig.try_ctr([
        "run",
        "-d",
        "--log-uri",
        &format!("file://{}", log.display()),
        "--runtime",
        support::CLEAT,
        support::IMAGE,
        "b",
        "/not/there",
    ]);
    assert!(!failed.status.success());
    assert_eq!(fs::read_to_string(&log).unwrap_or_default(), "");
    let _ = rig.try_ctr(["container", "rm", "b"]);
    rig.remove("a");
}
