//! Every exit arrives, with its status, in order, once.

use crate::support::{
    self, CLEAT, IMAGE, Rig, alive, children, cmdline, fd_count, host_pid_namespace, until,
};
use cleat::protocol::task as api;
use std::time::{Duration, Instant};

#[test]
fn exit_codes_0_to_255_and_signals_of_execs() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    for code in 0..=255 {
        assert_eq!(direct.exec_to_end("a", &format!("c{code}"), &format!("exit {code}")), code);
    }
    // Those that end no process: CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH. And youki's
    // processes inherit an ignored PIPE.
    let mut harmless = vec![17, 18, 19, 20, 21, 22, 23, 28];
    if support::oci_runtime() == "youki" {
        harmless.push(13);
    }
    for signal in (1..=31).filter(|n| !harmless.contains(n)).chain([34, 64]) {
        let exec = format!("s{signal}");
        let spec = support::process_spec(&["sleep", "1000"]);
        direct
            .call::<cleat::protocol::Empty>("Exec", &support::exec_request("a", &exec, &spec))
            .unwrap();
        let process = api::ProcessRequest { id: "a".into(), exec_id: exec.clone() };
        let started: api::PidResponse = direct.call("Start", &process).unwrap();
        // runc may return while its own init, which handles some signals, is about to become the
        // program.
        until("the program runs", || {
            cmdline(started.pid).first().is_some_and(|name| name == "sleep")
        });
        let kill = api::KillRequest { id: "a".into(), exec_id: exec, signal, all: false };
        direct.call::<cleat::protocol::Empty>("Kill", &kill).unwrap();
        let waited: api::WaitResponse = direct.call("Wait", &process).unwrap();
        assert_eq!(waited.exit_status, 128 + signal);
    }
    rig.remove("a");
}

#[test]
fn exit_codes_and_signals_of_inits() {
    let rig = Rig::new();
    for code in [0, 1, 7, 126, 127, 128, 137, 255] {
        let id = format!("c{code}");
        let script = format!("exit {code}");
        let output = rig.try_ctr([
            "run",
            "--rm",
            "--null-io",
            "--runtime",
            CLEAT,
            IMAGE,
            &id,
            "sh",
            "-c",
            &script,
        ]);
        assert_eq!(output.status.code(), Some(code));
    }
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGSEGV, 34, 64] {
        let id = format!("s{signal}");
        // The kernel protects pid 1 of a namespace from signals without a handler, so the host's
        // namespace it is.
        rig.run_with(
            &["--runtime", CLEAT, "--with-ns", &host_pid_namespace()],
            &id,
            &["sleep", "1000"],
        );
        let process = api::ProcessRequest { id: id.clone(), exec_id: String::new() };
        let mut direct = rig.direct(&id);
        let kill = api::KillRequest {
            id: id.clone(),
            signal: signal.unsigned_abs(),
            ..api::KillRequest::default()
        };
        direct.call::<cleat::protocol::Empty>("Kill", &kill).unwrap();
        let waited: api::WaitResponse = direct.call("Wait", &process).unwrap();
        assert_eq!(waited.exit_status, 128 + signal.unsigned_abs());
        rig.remove(&id);
    }
}

// containerd #9719, #932. Defence: the `BirthGuard` of `Caller::create` keeps unknown zombies until
// the pid is watched.
#[test]
fn scar_06_inits_that_die_at_once() {
    let rig = Rig::new();
    let events = rig.events();
    for i in 0..30 {
        let id = format!("a{i}");
        let output = rig.try_ctr([
            "run",
            "--rm",
            "--null-io",
            "--runtime",
            CLEAT,
            IMAGE,
            &id,
            "sh",
            "-c",
            "exit 7",
        ]);
        assert_eq!(output.status.code(), Some(7));
    }
    events.wait_for("delete", 30);
    for i in 0..30 {
        assert_eq!(events.of(&format!("a{i}")), ["create", "start", "exit", "delete"]);
    }
}

// containerd #8557. Defence: as above, in `Caller::exec`.
#[test]
fn scar_06_an_exec_that_dies_before_its_runtime_call_returns() {
    let rig = Rig::new();
    let script =
        "case \"$*\" in *' exec '*) runc \"$@\"; status=$?; sleep 0.2; exit $status;; esac";
    let flags = rig.runtime_script(script);
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sleep", "1000"]);
    let events = rig.events();
    let mut direct = rig.direct("a");
    for i in 0..5 {
        assert_eq!(direct.exec_to_end("a", &format!("e{i}"), "exit 7"), 7);
    }
    events.wait_for("exit", 5);
    for i in 0..5 {
        let of_exec: Vec<String> =
            events.of("a").into_iter().filter(|topic| topic.ends_with(&format!(":e{i}"))).collect();
        assert_eq!(
            of_exec,
            ["exec-added", "exec-started", "exit"].map(|topic| format!("{topic}:e{i}"))
        );
    }
    rig.remove("a");
}

// containerd #9719. Defence: `Container::hold`: no exit before the start was told.
#[test]
fn scar_06_an_init_that_dies_before_start_returns() {
    let rig = Rig::new();
    // As on a node that is very busy.
    let script = "case \"$*\" in *' start '*) runc \"$@\"; status=$?; sleep 2; exit $status;; esac";
    let flags = rig.runtime_script(script);
    let events = rig.events();
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sh", "-c", "exit 9"]);
    events.wait_for("exit", 1);
    assert_eq!(events.of("a"), ["create", "start", "exit"]);
    assert_eq!(events.all().last().unwrap().status, 9);
    rig.remove("a");
}

// containerd #1131. Defence: `Reaper::kill_unclaimed`.
#[test]
fn scar_06_a_runtime_that_writes_no_pid_leaves_an_error_and_nothing_running() {
    let rig = Rig::new();
    let script = "case \"$*\" in *' exec '*) runc \"$@\"; for a; do case $b in --pid-file) : > $a;; esac; b=$a; done; exit 0;; esac";
    let flags = rig.runtime_script(script);
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let spec = support::process_spec(&["sleep", "1000"]);
    direct.call::<cleat::protocol::Empty>("Exec", &support::exec_request("a", "e", &spec)).unwrap();
    let process = api::ProcessRequest { id: "a".into(), exec_id: "e".into() };
    let refused = direct.call::<api::PidResponse>("Start", &process).unwrap_err();
    assert!(refused.message.contains("e.pid"), "{}", refused.message);
    let shim = rig.shim();
    until("only the init is left", || children(shim).len() == 1);
    assert_eq!(rig.status("a").as_deref(), Some("RUNNING"));
    rig.remove("a");
}

// runc names the process last, and then takes its time to leave: nobody need wait for that
// (`runtime/naming.rs`).
#[test]
fn a_runtime_that_has_done_its_work_is_not_waited_for() {
    let rig = Rig::new();
    // Acts as runc: parent of the init, keeps a record, names the init last. Then it lingers, and
    // fails.
    let script = r#"while [ $# -gt 0 ]; do case $1 in --root) root=$2;; --pid-file) file=$2;; create|delete) word=$1;; *) id=$1;; esac; shift; done
case $word in create) ;; delete) rm -r $root/$id; exit;; *) exit 0;; esac
sleep 1000 & mkdir -p $root/$id; echo "{\"id\":\"$id\",\"init_process_pid\":$!}" > $root/$id/state.json
echo $! > $file.new; mv $file.new $file; sleep 3; exit 7"#;
    let flags = rig.runtime_script(script);
    let begun = Instant::now();
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["true"]);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    until("its failure is told", || rig.log().contains("failed after its work was done"));
    rig.remove("a");
}

// A program around the runtime may have more to do when the runtime has named the process.
#[test]
fn a_program_around_the_runtime_is_waited_for() {
    let rig = Rig::new();
    let script = "case \"$*\" in *' create '*|*' exec '*) runc \"$@\"; status=$?; sleep 1; echo done >> done; exit $status;; esac";
    let flags = rig.runtime_script(script);
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sleep", "1000"]);
    let done = rig.bundle("a").join("done");
    assert_eq!(std::fs::read_to_string(&done).unwrap(), "done\n");
    rig.direct("a").exec_to_end("a", "e", "exit 0");
    assert_eq!(std::fs::read_to_string(&done).unwrap(), "done\ndone\n");
    rig.remove("a");
}

#[test]
fn two_hundred_execs_eight_at_a_time_leave_nothing() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    rig.direct("a").exec_to_end("a", "warm", "exit 0");
    let bundle = || {
        let mut names: Vec<_> =
            std::fs::read_dir(rig.bundle("a")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let (fds, files) = (fd_count(shim), bundle());
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let rig = &rig;
            scope.spawn(move || {
                let mut direct = rig.direct("a");
                for i in 0..25 {
                    let code = (worker * 25 + i) % 200;
                    assert_eq!(
                        direct.exec_to_end("a", &format!("e{worker}-{i}"), &format!("exit {code}")),
                        code
                    );
                }
            });
        }
    });
    until("descriptors are as before", || fd_count(shim) <= fds);
    assert_eq!(bundle(), files);
    assert!(children(shim).iter().all(|(_, state)| *state != 'Z'));
    assert_eq!(rig.status("a").as_deref(), Some("RUNNING"));
    rig.remove("a");
}

// containerd #9828, #10634. Defence: `Container::release` waits for `execs`.
#[test]
fn scar_08_the_inits_exit_comes_after_its_execs() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run_with(
        &["--runtime", CLEAT, "--with-ns", &host_pid_namespace()],
        "a",
        &["sleep", "1000"],
    );
    let mut direct = rig.direct("a");
    for i in 0..20 {
        let exec = format!("e{i}");
        let spec = support::process_spec(&["sleep", "1000"]);
        direct
            .call::<cleat::protocol::Empty>("Exec", &support::exec_request("a", &exec, &spec))
            .unwrap();
        let process = api::ProcessRequest { id: "a".into(), exec_id: exec };
        direct.call::<api::PidResponse>("Start", &process).unwrap();
    }
    support::kill(rig.init("a"), libc::SIGKILL);
    events.wait_for("exit", 21);
    let exits: Vec<String> =
        events.of("a").into_iter().filter(|topic| topic.starts_with("exit")).collect();
    assert_eq!(exits.last().unwrap(), "exit");
    assert_eq!(exits.len(), 21);
    rig.remove("a");
}

// containerd #9979, #10002. Defence: `Reaper::reap_all` forgets who is not watched.
#[test]
fn scar_69_orphans_are_reaped() {
    let rig = Rig::new();
    rig.run_with(
        &["--runtime", CLEAT, "--with-ns", &host_pid_namespace()],
        "a",
        &["sleep", "1000"],
    );
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    for i in 0..5 {
        direct.exec_to_end(
            "a",
            &format!("e{i}"),
            "for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.1 &) ; done",
        );
    }
    until("no zombie is left", || children(shim).iter().all(|(_, state)| *state != 'Z'));
    rig.remove("a");
}

#[test]
fn wait_answers_before_and_after_the_exit_and_every_waiter() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let process = api::ProcessRequest { id: "a".into(), exec_id: String::new() };
    for _ in 0..100 {
        direct.send("Wait", &process);
    }
    support::kill(rig.init("a"), libc::SIGKILL);
    for _ in 0..100 {
        let (_, answer) = direct.receive();
        let waited: api::WaitResponse = prost::Message::decode(answer.unwrap().as_slice()).unwrap();
        assert_eq!(waited.exit_status, 137);
    }
    let late: api::WaitResponse = direct.call("Wait", &process).unwrap();
    assert_eq!(late.exit_status, 137);
    assert!(!alive(rig.init("a")));
    rig.remove("a");
}
