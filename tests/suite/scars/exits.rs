//! Exits and states.

use super::{add, delete, process, signal, start, wait};
use crate::support::{self, CLEAT, Rig, alive, children, host_pid_namespace, kill, until};
use cleat::{
    protocol::{Empty, task as api},
    rpc::Code,
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

// containerd #10603, #10636, #13849. Defence: `Container::hold` keeps the exit until its execs have
// gone, and nothing is lossy.
#[test]
fn scar_01_an_init_killed_among_five_hundred_execs_is_reported_once() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run("a", &["sleep", "1000"]);
    let init = rig.init("a");
    let killed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let (rig, killed) = (&rig, &killed);
            scope.spawn(move || {
                let mut direct = rig.direct("a");
                for number in 0..60 {
                    let exec = format!("e{worker}-{number}");
                    let request =
                        support::exec_request("a", &exec, &support::process_spec(&["date"]));
                    let added = direct.call::<Empty>("Exec", &request);
                    let done = added.and_then(|_| {
                        direct.call::<api::PidResponse>("Start", &process("a", &exec))
                    });
                    if done.is_ok() {
                        direct.call::<api::WaitResponse>("Wait", &process("a", &exec)).unwrap();
                    } else {
                        assert!(killed.load(Ordering::Relaxed), "{done:?}");
                    }
                    let _ = direct.call::<api::DeleteResponse>("Delete", &process("a", &exec));
                }
            });
        }
        std::thread::sleep(Duration::from_secs(1));
        killed.store(true, Ordering::Relaxed);
        kill(init, libc::SIGKILL);
    });
    let mut direct = rig.direct("a");
    assert_eq!(wait(&mut direct, ""), 137);
    assert_eq!(direct.state("a", "").unwrap().status, api::Status::Stopped as i32);
    until("the exit is told", || events.of("a").contains(&"exit".to_owned()));
    let told = events.of("a");
    assert_eq!(told.iter().filter(|topic| *topic == "exit").count(), 1);
    assert_eq!(told.last().unwrap(), "exit");
    for exec in told.iter().filter_map(|topic| topic.strip_prefix("exec-started:")) {
        assert_eq!(
            told.iter().filter(|topic| **topic == format!("exit:{exec}")).count(),
            1,
            "{exec}"
        );
    }
    rig.remove("a");
}

// containerd #2709, #4509. Defence: the reaper delivers by value, no channel between it and the
// owner.
#[test]
fn scar_02_seventy_execs_at_once_and_state_answers() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let state = scope.spawn(|| {
            let mut direct = rig.direct("a");
            let mut slowest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let begun = Instant::now();
                direct.state("a", "").unwrap();
                slowest = slowest.max(begun.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            slowest
        });
        let execs: Vec<_> = (0..70)
            .map(|number| {
                let rig = &rig;
                scope.spawn(move || {
                    let code = number % 200;
                    assert_eq!(
                        rig.direct("a").exec_to_end(
                            "a",
                            &format!("e{number}"),
                            &format!("exit {code}")
                        ),
                        code
                    );
                })
            })
            .collect();
        execs.into_iter().for_each(|exec| exec.join().unwrap());
        done.store(true, Ordering::Relaxed);
        assert!(state.join().unwrap() < Duration::from_secs(1));
    });
    rig.remove("a");
}

// containerd #2624. Defence: Delete waits in its own task (`ProcessIo::drain`), no lock.
#[test]
fn scar_04_deleting_one_exec_blocks_no_other() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let stdout = support::fifo(&rig.dir, "out");
    add(&mut direct, "b1", "sleep 3 & echo ok", |request| request.stdout = super::text(&stdout));
    let _reader = super::reader(&stdout);
    start(&mut direct, "b1");
    wait(&mut direct, "b1");
    let slow = direct.send("Delete", &process("a", "b1"));
    let begun = Instant::now();
    let mut other = rig.direct("a");
    for number in 0..5 {
        assert_eq!(other.exec_to_end("a", &format!("b2-{number}"), "exit 1"), 1);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "five execs within one Delete");
    assert_eq!(direct.receive().0, slow);
    rig.remove("a");
}

// rust-extensions #340. Defence: no borrow over an await (clippy denies it).
#[test]
fn scar_05_random_calls_from_many_clients_are_all_answered() {
    let rig = Rig::new();
    for id in ["a", "b", "c", "d"] {
        rig.run_in_group("a", id, &["sleep", "1000"]);
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    std::thread::scope(|scope| {
        let rig = &rig;
        let mut workers = Vec::new();
        for worker in 0u32..16 {
            workers.push(scope.spawn(move || {
                let mut direct = rig.direct("a");
                let mut random = worker.wrapping_mul(2_654_435_761).wrapping_add(1);
                while Instant::now() < deadline {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let id = ["a", "b", "c", "d"][(random >> 8) as usize % 4];
                    let exec = format!("e{}", (random >> 16) % 8);
                    let container = api::ContainerRequest { id: id.into() };
                    // Whatever the answer: there is one, or `receive` panics.
                    match (random >> 24) % 9 {
                        0 => drop(direct.call::<api::StatsResponse>("Stats", &container)),
                        1 => drop(direct.call::<api::PidsResponse>("Pids", &container)),
                        2 => drop(direct.state(id, &exec)),
                        3 => drop(direct.call::<Empty>("Pause", &container)),
                        4 | 5 => drop(direct.call::<Empty>("Resume", &container)),
                        6 => {
                            let spec = support::process_spec(&["true"]);
                            let request = support::exec_request(id, &exec, &spec);
                            drop(direct.call::<Empty>("Exec", &request));
                            drop(direct.call::<api::PidResponse>("Start", &process(id, &exec)));
                        }
                        7 => drop(signal(&mut direct, id, &exec, 9)),
                        _ => {
                            // A paused container's exec ends when it is resumed.
                            drop(direct.call::<Empty>("Resume", &container));
                            drop(direct.call::<api::DeleteResponse>("Delete", &process(id, &exec)));
                        }
                    }
                }
            }));
        }
        // A runtime that enters a container as it is paused goes on when it is resumed, and the
        // last call of all may have been a Pause.
        let mut direct = rig.direct("a");
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
            if Instant::now() > deadline {
                for id in ["a", "b", "c", "d"] {
                    let container = api::ContainerRequest { id: id.into() };
                    let _ = direct.call::<Empty>("Resume", &container);
                }
            }
        }
    });
    let mut direct = rig.direct("a");
    for id in ["a", "b", "c", "d"] {
        let _ = direct.call::<Empty>("Resume", &api::ContainerRequest { id: id.into() });
        direct.state(id, "").unwrap();
    }
    for id in ["b", "c", "d", "a"] {
        rig.remove(id);
    }
}

// containerd #13814: a maintainer's recipe. Defence: `Effect::KillAll` is a task of its own, its
// end an event.
#[test]
fn scar_09_ten_shared_pid_namespaces_with_children_end_with_their_inits() {
    let rig = Rig::new();
    let events = rig.events();
    for number in 0..10 {
        let flags = ["--runtime", CLEAT, "--with-ns", &host_pid_namespace()];
        rig.run_with(
            &flags,
            &format!("a{number}"),
            &["sh", "-c", "sleep 1000 & sleep 1000 & exit 3"],
        );
    }
    events.wait_for("exit", 10);
    assert!(events.all().iter().filter(|e| e.topic == "exit").all(|e| e.status == 3));
    for number in 0..10 {
        rig.remove(&format!("a{number}"));
    }
}

// containerd #13539, #13544, #13814. Defence: after each wake-up every child is asked for
// (`Reaper::reap`).
#[test]
fn scar_41_exits_that_merge_into_one_sigchld_are_all_seen() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let pids: Vec<u32> = (0..60)
        .map(|number| {
            add(&mut direct, &format!("e{number}"), "sleep 1000", |_| {});
            start(&mut direct, &format!("e{number}"))
        })
        .collect();
    let shim = rig.shim();
    support::stop(shim);
    pids.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
    until("they are dead", || pids.iter().all(|pid| !alive(*pid)));
    kill(shim, libc::SIGCONT);
    events.wait_for("exit", 60);
    for number in 0..60 {
        assert_eq!(wait(&mut direct, &format!("e{number}")), 137);
        delete(&mut direct, &format!("e{number}"));
    }
    rig.remove("a");
}

// containerd #3529, #2855. Defence: `BATCH` in the reaper; our own children are known by pidfd.
#[test]
fn scar_42_a_flood_of_orphans_stops_nothing() {
    let rig = Rig::new();
    rig.run_with(
        &["--runtime", CLEAT, "--with-ns", &host_pid_namespace()],
        "a",
        &["sleep", "1000"],
    );
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    add(
        &mut direct,
        "e",
        "i=0; while [ $i -lt 3000 ]; do (true &) ; i=$((i+1)); done; exit 9",
        |_| {},
    );
    start(&mut direct, "e");
    let mut other = rig.direct("a");
    let begun = Instant::now();
    while other.state("a", "e").unwrap().status == api::Status::Running as i32 {
        let asked = Instant::now();
        other.state("a", "").unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1));
        assert!(begun.elapsed() < support::LONG * 2, "the exec ends");
    }
    assert_eq!(wait(&mut direct, "e"), 9);
    until("no zombie is left", || children(shim).iter().all(|(_, state)| *state != 'Z'));
    rig.remove("a");
}

// containerd #9828, #10634: a late Start. Defence: `Refusal::InitGone`.
#[test]
fn scar_08_an_exec_started_after_the_init_has_gone_is_refused() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    add(&mut direct, "late", "true", |_| {});
    kill(rig.init("a"), libc::SIGKILL);
    wait(&mut direct, "");
    let refused = direct.call::<api::PidResponse>("Start", &process("a", "late")).unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition as i32, "{}", refused.message);
    rig.remove("a");
}

// containerd #3572 and §4 of the contract: Pids and other execs, while create, exec or delete of
// the container hang.
#[test]
fn scar_03_everything_answers_while_delete_hangs() {
    let rig = Rig::new();
    let flags = rig.runtime_script("case \"$*\" in *' delete a'*) sleep 3;; esac");
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    kill(rig.init("a"), libc::SIGKILL);
    wait(&mut direct, "");
    let deleting = direct.send("Delete", &process("a", ""));
    let mut other = rig.direct("a");
    let begun = Instant::now();
    for _ in 0..200 {
        other.state("a", "").unwrap();
        assert_eq!(wait(&mut other, ""), 137);
        other.call::<api::PidsResponse>("Pids", &api::ContainerRequest { id: "a".into() }).unwrap();
        let refused = signal(&mut other, "a", "", 9).unwrap_err();
        assert_eq!(refused.code, Code::NotFound as i32);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "800 answers within one Delete");
    assert_eq!(direct.receive().0, deleting);
    direct.call::<Empty>("Shutdown", &api::ShutdownRequest { id: "a".into(), now: false }).unwrap();
    until("containerd has forgotten the task", || rig.status("a").is_none());
    rig.ctr(["container", "rm", "a"]);
}
