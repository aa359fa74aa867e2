//! Events: all of them, in order, even if the shim ends right after.

use crate::support::{CLEAT, IMAGE, Rig, alive, kill, until};

#[test]
fn events_of_a_life_come_in_order() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run("a", &["sleep", "1000"]);
    rig.ctr(["task", "exec", "--exec-id", "e", "a", "true"]);
    rig.ctr(["task", "pause", "a"]);
    rig.ctr(["task", "resume", "a"]);
    rig.remove("a");
    events.wait_for("delete", 1);
    assert_eq!(
        events.of("a"),
        [
            "create",
            "start",
            "exec-added:e",
            "exec-started:e",
            "exit:e",
            "paused",
            "resumed",
            "exit",
            "delete"
        ]
    );
}

// Seen with Go's shim. Defence: `events.wait_empty()` at the end of `serve`.
#[test]
fn scar_71_no_event_is_lost_when_shims_end_at_once() {
    let rig = Rig::new();
    let events = rig.events();
    let number = 60;
    for i in 0..number {
        rig.ctr(["run", "--rm", "--null-io", "--runtime", CLEAT, IMAGE, &format!("a{i}"), "true"]);
    }
    events.wait_for("delete", number);
    for i in 0..number {
        assert_eq!(events.of(&format!("a{i}")), ["create", "start", "exit", "delete"]);
    }
}

// containerd #4400, #3177. Defence: `EventQueue` keeps the head; `Publisher::answer` probes instead
// of sending twice.
#[test]
fn scar_53_events_wait_while_containerd_is_stopped() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let containerd = rig.containerd_pid();
    crate::support::stop(containerd);
    for i in 0..50 {
        assert_eq!(direct.exec_to_end("a", &format!("e{i}"), &format!("exit {i}")), i);
    }
    kill(containerd, libc::SIGCONT);
    events.wait_for("exit", 50);
    let exits: Vec<u64> =
        events.all().iter().filter(|e| e.topic == "exit").map(|e| e.status).collect();
    assert_eq!(exits, (0..50).collect::<Vec<u64>>());
    rig.remove("a");
}

// containerd #5502, rust-extensions #59. Defence: `remove_socket` first, then the flush, in
// `serve`.
#[test]
fn scar_49_sigterm_flushes_events_removes_the_socket_and_leaves_the_container() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let (shim, init) = (rig.shim(), rig.init("a"));
    let socket = rig.address("a").replace("unix://", "");
    kill(shim, libc::SIGTERM);
    until("the shim ends", || !alive(shim));
    assert!(!std::path::Path::new(&socket).exists());
    // containerd sees the connection close and calls `delete`, which ends the container.
    until("containerd cleans up", || !alive(init));
    rig.ctr(["container", "rm", "a"]);
}

// containerd #12678, #13692. Defence: `sys::signals::survive_harmless`, `serve/dump.rs`.
#[test]
fn scar_70_signals_that_mean_nothing_end_nothing_and_usr1_dumps() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    let deadly = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGSTOP];
    // Faults of the program itself; nobody sends them to be polite.
    let faults = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGABRT,
        libc::SIGTRAP,
        libc::SIGSYS,
    ];
    for signal in (1..=31).filter(|n| !deadly.contains(n) && !faults.contains(n)) {
        kill(shim, signal);
        kill(shim, libc::SIGCONT);
    }
    assert_eq!(rig.direct("a").exec_to_end("a", "e", "exit 4"), 4);
    kill(shim, libc::SIGUSR1);
    until("the dump is in the log", || {
        let log = rig.log();
        log.contains("container a status=Running") && log.contains("transition a ")
    });
    rig.remove("a");
}

// Scar 53 at length: ten minutes. `cargo nextest run --run-ignored only -E 'test(five_thousand)'`.
#[test]
#[ignore = "takes ten minutes"]
fn scar_53_five_thousand_exits_while_containerd_is_stopped_for_ten_minutes() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run("a", &["sleep", "100000"]);
    crate::support::stop(rig.containerd_pid());
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        for worker in 0..8u32 {
            let rig = &rig;
            scope.spawn(move || {
                let mut direct = rig.direct("a");
                for number in 0..625 {
                    let code = (worker * 625 + number) % 200;
                    let exec = format!("e{worker}-{number}");
                    assert_eq!(direct.exec_to_end("a", &exec, &format!("exit {code}")), code);
                }
            });
        }
    });
    std::thread::sleep(std::time::Duration::from_secs(600).saturating_sub(begun.elapsed()));
    kill(rig.containerd_pid(), libc::SIGCONT);
    // 15,000 events, one acknowledged after the other.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(240);
    let exits = || events.all().iter().filter(|event| event.topic == "exit").count();
    while exits() < 5000 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    let told = events.of("a");
    assert_eq!(told.len(), 2 + 3 * 5000);
    for worker in 0..8 {
        for number in 0..625 {
            let exec = format!(":e{worker}-{number}");
            let of_exec: Vec<&str> =
                told.iter().filter_map(|topic| topic.strip_suffix(&*exec)).collect();
            assert_eq!(of_exec, ["exec-added", "exec-started", "exit"], "{exec}");
        }
    }
    rig.remove("a");
}
