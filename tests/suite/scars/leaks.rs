//! Leaks.

use super::{add, delete, ends, process, signal, start, wait};
use crate::support::{
    self, CLEAT, GROUP, IMAGE, Rig, Terminal, alive, children, fd_count, kill, read_all, until,
};
use cleat::{
    protocol::{Empty, task as api},
    rpc::Code,
};
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

fn anonymous_kib(pid: u32) -> u64 {
    let text = read_all(format!("/proc/{pid}/smaps_rollup"));
    let line = text.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

// containerd #12344, #6771, #12510. Defence: Shutdown's answer, the end of an unneeded shim,
// `delete`.
#[test]
fn scar_11_churn_with_containerd_killed_in_the_middle_leaves_nothing() {
    let mut rig = Rig::with_impatient_shims();
    let run = |rig: &Rig, id: &str| {
        let arguments = ["run", "--rm", "--null-io", "--runtime", CLEAT, IMAGE, id, "true"];
        let mut command = rig.ctr_command(arguments);
        command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    };
    for round in 0..4 {
        let mut runs: Vec<_> =
            (0..16).map(|number| run(&rig, &format!("a{round}-{number}"))).collect();
        if round == 2 {
            std::thread::sleep(Duration::from_millis(400));
            rig.end_containerd(libc::SIGKILL);
        }
        for run in &mut runs {
            run.wait().unwrap();
        }
        if round == 2 {
            rig.start_containerd();
        }
    }
    // What the killed containerd did not finish is finished by its successor and its user.
    for number in 0..16 {
        let _ = rig.try_ctr(["task", "rm", "-f", &format!("a2-{number}")]);
        let _ = rig.try_ctr(["container", "rm", &format!("a2-{number}")]);
        // containerd hides a bundle before it removes it, and does not look for hidden ones when it
        // is started again.
        let _ = std::fs::remove_dir_all(rig.bundle(&format!(".a2-{number}")));
    }
}

// Found by the test above. Defence: `Bundle::is_gone` in `Shim::adopt`; `Shim::delete_given_up`.
#[test]
fn scar_11_a_container_whose_bundle_containerd_has_removed_does_not_keep_the_shim() {
    let rig = Rig::with_impatient_shims();
    rig.run_in_group("a", "a", &["sleep", "1000"]);
    // What containerd does when it is started again during a Create: it finds no task and clears
    // up.
    let take = |id: &str| {
        let bundle = rig.bundle(id).display().to_string();
        format!("umount -l {bundle}/rootfs; mv {bundle} {bundle}.gone; rm -r {bundle}.gone")
    };
    let flags = rig.runtime_script(&format!(
        "case \"$*\" in *' create '*) runc \"$@\"; {}; exit;; esac",
        take("b")
    ));
    let flags = flags.each_ref().map(String::as_str);
    let group = format!("{GROUP}=a");
    let run = [
        &["run", "-d", "--null-io", "--annotation", &group],
        &flags[..],
        &[IMAGE, "b", "sleep", "1000"],
    ];
    let output = rig.try_ctr(run.concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("was removed while the container was being created"), "{text}");
    rig.ctr(["container", "rm", "b"]);

    rig.run_in_group("a", "c", &["true"]);
    let mut direct = rig.direct("a");
    direct.call::<api::WaitResponse>("Wait", &super::process("c", "")).unwrap();
    assert!(Command::new("sh").args(["-c", &take("c")]).status().unwrap().success());
    let shutdown = api::ShutdownRequest { id: "c".into(), ..api::ShutdownRequest::default() };
    direct.call::<Empty>("Shutdown", &shutdown).unwrap();
    until("the container is deleted", || direct.state("c", "").is_err());
    direct.state("a", "").unwrap();
    let _ = rig.try_ctr(["task", "rm", "c"]);
    rig.ctr(["container", "rm", "c"]);
    rig.remove("a");
}

// containerd #13561, ttrpc #241, #9217. Defence: calls leave their lists when answered;
// `serve/idle.rs` gives memory back.
#[test]
fn scar_12_memory_is_flat_over_execs() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    let storm = |count: usize, from: usize| {
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let rig = &rig;
                scope.spawn(move || {
                    let mut direct = rig.direct("a");
                    for number in 0..count / 8 {
                        let exec = format!("e{from}-{worker}-{number}");
                        assert_eq!(direct.exec_to_end("a", &exec, "exit 5"), 5);
                    }
                    // Clients that go in mid-call.
                    direct.send("Wait", &process("a", ""));
                });
            }
        });
        // Memory is given back after a second of quiet.
        std::thread::sleep(Duration::from_secs(3));
        anonymous_kib(shim)
    };
    // The heap finds its shape in the first hundreds; `./dev soak` counts a hundred thousand more.
    let early = storm(600, 1);
    let late = storm(1400, 2);
    assert!(late <= early + early / 20, "{early} KiB, then {late} KiB");
    rig.remove("a");
}

// What keeps the daemon's heap small is in its environment (`sys::malloc::keep_nothing`), and is
// nobody else's.
#[test]
fn the_runtime_has_containerds_environment() {
    let mut rig = Rig::new();
    let file = rig.dir.join("environment");
    let flags = rig.runtime_script(&format!("env > {}", file.display()));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    rig.run_with(&flags, "a", &["sleep", "1000"]);
    let own = read_all(format!("/proc/{}/environ", rig.shim()));
    assert!(own.contains("GLIBC_TUNABLES=glibc.malloc.tcache_count=0"), "{own}");
    assert!(
        read_all(&file).contains("PATH=") && !read_all(&file).contains("GLIBC_TUNABLES"),
        "{}",
        read_all(&file)
    );
    // Who sets them for all is obeyed.
    rig.set_variable("GLIBC_TUNABLES", "glibc.malloc.check=0");
    rig.end_containerd(libc::SIGKILL);
    rig.start_containerd();
    rig.run_with(&flags, "b", &["sleep", "1000"]);
    assert!(read_all(&file).contains("GLIBC_TUNABLES=glibc.malloc.check=0"));
    for id in ["a", "b"] {
        rig.remove(id);
    }
}

// containerd #9404 (1,023 threads), moby#36661, containerd #4068. Defence: fifos are opened with
// both ends ours (`open_sink`).
#[test]
fn scar_13_and_44_fifos_that_nobody_opens_neither_block_nor_cost_threads() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    for number in 0..100 {
        let exec = format!("e{number}");
        let fifos =
            ["in", "out", "err"].map(|name| support::fifo(&rig.dir, &format!("{exec}-{name}")));
        add(&mut direct, &exec, "echo out; echo err >&2; exit 4", |request| {
            request.stdin = super::text(&fifos[0]);
            request.stdout = super::text(&fifos[1]);
            request.stderr = super::text(&fifos[2]);
        });
        let begun = Instant::now();
        start(&mut direct, &exec);
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(wait(&mut direct, &exec), 4);
        assert!(read_all(format!("/proc/{shim}/status")).contains("Threads:\t1\n"));
    }
    for number in 0..100 {
        delete(&mut direct, &format!("e{number}"));
    }
    rig.remove("a");
}

// rust-extensions #111, #112; embedshim #22. Defence: `ProcessIo` owns every descriptor, `Removed`
// every file.
#[test]
fn scar_14_descriptors_and_bundle_are_as_before_whatever_became_of_the_exec() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    direct.exec_to_end("a", "warm", "true");
    let bundle = || {
        let entries = std::fs::read_dir(rig.bundle("a")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let (fds, files) = (fd_count(shim), bundle());
    let stdin = support::fifo(&rig.dir, "in");
    let stdout = support::fifo(&rig.dir, "out");
    for number in 0..15 {
        for kind in ["plain", "stdin", "tty", "failing", "never", "killed", "deleted-twice"] {
            let exec = format!("{kind}{number}");
            let script = if kind == "killed" { "sleep 1000" } else { "true" };
            let mut request =
                support::exec_request("a", &exec, &support::process_spec(&["sh", "-c", script]));
            if kind == "failing" {
                request = support::exec_request("a", &exec, &support::process_spec(&["/nope"]));
            }
            if kind != "plain" {
                request.stdout = super::text(&stdout);
            }
            if kind == "stdin" || kind == "tty" {
                request.stdin = super::text(&stdin);
            }
            request.terminal = kind == "tty";
            direct.call::<Empty>("Exec", &request).unwrap();
            match kind {
                "never" => {}
                "failing" => {
                    direct.call::<api::PidResponse>("Start", &process("a", &exec)).unwrap_err();
                }
                _ => {
                    start(&mut direct, &exec);
                    if kind == "killed" {
                        signal(&mut direct, "a", &exec, 9).unwrap();
                    }
                    wait(&mut direct, &exec);
                }
            }
            delete(&mut direct, &exec);
            if kind == "deleted-twice" {
                let again = direct.call::<api::DeleteResponse>("Delete", &process("a", &exec));
                assert_eq!(again.unwrap_err().code, Code::NotFound as i32);
            }
        }
    }
    until("descriptors are as before", || fd_count(shim) <= fds);
    assert_eq!(bundle(), files);
    rig.remove("a");
}

// rust-extensions #337, #59. Defence: everything is non-blocking; the loop simply ends.
#[test]
fn scar_15_the_end_is_not_held_up_by_what_is_open() {
    let rig = Rig::new();
    rig.run_with(&["--runtime", CLEAT, "--memory-limit", "67108864"], "a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    let stdin = support::fifo(&rig.dir, "in");
    let stdout = support::fifo(&rig.dir, "out");
    for (exec, terminal) in [("pipe", false), ("tty", true)] {
        add(&mut direct, exec, "cat", |request| {
            (request.stdin, request.stdout) = (super::text(&stdin), super::text(&stdout));
            request.terminal = terminal;
        });
        start(&mut direct, exec);
    }
    kill(rig.init("a"), libc::SIGKILL);
    wait(&mut direct, "");
    delete(&mut direct, "");
    let begun = Instant::now();
    direct.call::<Empty>("Shutdown", &api::ShutdownRequest { id: "a".into(), now: false }).unwrap();
    ends(shim);
    assert!(begun.elapsed() < Duration::from_secs(5));
    until("containerd has forgotten the task", || rig.status("a").is_none());
    rig.ctr(["container", "rm", "a"]);
}

/// Ends a shim whose container was deleted behind containerd's back.
fn end(rig: &Rig, direct: &mut support::Direct, id: &str) {
    direct.call::<Empty>("Shutdown", &api::ShutdownRequest { id: id.into(), now: false }).unwrap();
    until("containerd has forgotten the task", || rig.status(id).is_none());
    rig.ctr(["container", "rm", id]);
}

// containerd #7496, #9309, #14020. Defence: `join_delete`: a Delete under way is joined, not
// refused.
#[test]
fn scar_46_a_delete_that_outlives_its_caller_may_be_repeated() {
    let rig = Rig::new();
    let flags = rig.runtime_script("case \"$*\" in *' delete a'*) sleep 2;; esac");
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sh", "-c", "exit 7"]);
    let mut direct = rig.direct("a");
    assert_eq!(wait(&mut direct, ""), 7);
    let init = rig.init("a");
    let late = direct.call_within("Delete", &process("a", ""), Duration::from_millis(300));
    assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded as i32);
    let again: api::DeleteResponse = direct.call("Delete", &process("a", "")).unwrap();
    assert_eq!((again.pid, again.exit_status), (init, 7));
    end(&rig, &mut direct, "a");
    // And so when the first has ended long ago, unheard.
    rig.run_with(&flags.each_ref().map(String::as_str), "b", &["sh", "-c", "exit 8"]);
    let mut direct = rig.direct("b");
    direct.call::<api::WaitResponse>("Wait", &process("b", "")).unwrap();
    let path = rig.runtime_script("case \"$*\" in *' delete b'*) sleep 1;; esac");
    assert!(path[3].ends_with("runtime"));
    let late = direct.call_within("Delete", &process("b", ""), Duration::from_millis(300));
    assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded as i32);
    until("it is deleted", || direct.state("b", "").is_err());
    let again: api::DeleteResponse = direct.call("Delete", &process("b", "")).unwrap();
    assert_eq!(again.exit_status, 8);
    assert!(direct.call::<api::DeleteResponse>("Delete", &process("b", "")).is_err(), "heard once");
    end(&rig, &mut direct, "b");
}

// containerd #13958, #11916. Defence: `Shim::until_unneeded` remembers a Shutdown that came too
// early.
#[test]
fn scar_47_the_last_container_of_a_pod_ends_the_shim_whoever_was_last() {
    let rig = Rig::new();
    for id in ["a", "b", "c"] {
        rig.run_in_group("a", id, &["sleep", "1000"]);
    }
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    for id in ["a", "b", "c"] {
        signal(&mut direct, id, "", 9).unwrap();
        direct.call::<api::WaitResponse>("Wait", &process(id, "")).unwrap();
        direct.call::<api::DeleteResponse>("Delete", &process(id, "")).unwrap();
        if id == "a" {
            direct
                .call::<Empty>("Shutdown", &api::ShutdownRequest { id: id.into(), now: false })
                .unwrap();
        }
        assert!(alive(shim));
    }
    ends(shim);
    for id in ["a", "b", "c"] {
        let _ = rig.try_ctr(["task", "rm", "-f", id]);
        rig.ctr(["container", "rm", id]);
    }
}

// containerd #11160. Defence: `ProcessIo::close` drops the master.
#[test]
fn scar_50_no_pty_master_is_left() {
    let rig = Rig::new();
    rig.run_in_group("a", "a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    let stdout = support::fifo(&rig.dir, "out");
    // Open for both directions it sees no end between the execs.
    let mut output = std::fs::OpenOptions::new().read(true).write(true).open(&stdout).unwrap();
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    for number in 0..40 {
        let exec = format!("e{number}");
        add(&mut direct, &exec, "tty", |request| {
            request.stdout = super::text(&stdout);
            request.terminal = true;
        });
        start(&mut direct, &exec);
        assert_eq!(wait(&mut direct, &exec), 0);
        delete(&mut direct, &exec);
    }
    let masters = || {
        let entries = std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap().flatten();
        entries
            .filter(|e| std::fs::read_link(e.path()).is_ok_and(|to| to.ends_with("ptmx")))
            .count()
    };
    until("no master is open", || masters() == 0);
    rig.remove("a");
}

// containerd #11254. Defence: `ConsoleSocket::bind` in the bundle.
#[test]
fn scar_51_consoles_need_no_tmp() {
    let mut rig = Rig::new();
    rig.set_variable("TMPDIR", "/nonexistent");
    rig.set_variable("XDG_RUNTIME_DIR", "/nonexistent");
    rig.end_containerd(libc::SIGTERM);
    rig.start_containerd();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let stdout = support::fifo(&rig.dir, "out");
    add(&mut direct, "e", "tty", |request| {
        request.stdout = super::text(&stdout);
        request.terminal = true;
    });
    start(&mut direct, "e");
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    let mut failing = support::exec_request("a", "f", &support::process_spec(&["/nope"]));
    failing.terminal = true;
    direct.call::<Empty>("Exec", &failing).unwrap();
    direct.call::<api::PidResponse>("Start", &process("a", "f")).unwrap_err();
    delete(&mut direct, "f");
    let left = std::fs::read_dir(rig.bundle("a")).unwrap().flatten();
    assert_eq!(left.filter(|e| e.file_name().to_string_lossy().ends_with(".pty")).count(), 0);
    rig.remove("a");
}

// containerd #8856. Policy: an exec lives on without its client; it is visible in the dump, and
// ends at CloseIO or Kill.
#[test]
fn scar_52_an_interactive_exec_without_its_client_is_visible_and_can_be_ended() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let ctr = rig.ctr_command(["task", "exec", "-t", "--exec-id", "lonely", "a", "sh"]);
    let client = Terminal::spawn(ctr);
    let mut direct = rig.direct("a");
    until("it runs", || {
        direct.state("a", "lonely").is_ok_and(|s| s.status == api::Status::Running as i32)
    });
    // ctr, the child of the timeout(1) that bounds it.
    kill(children(client.pid())[0].0, libc::SIGKILL);
    client.end();
    kill(rig.shim(), libc::SIGUSR1);
    until("it is in the dump", || rig.log().contains("exec lonely phase=Running"));
    signal(&mut direct, "a", "lonely", 9).unwrap();
    assert_eq!(wait(&mut direct, "lonely"), 137);
    delete(&mut direct, "lonely");
    rig.remove("a");
}

// rust-extensions: TestContainerPTY left shims. Defence: as 15.
#[test]
fn scar_74_a_console_under_load_leaves_no_shim() {
    let rig = Rig::new();
    let expected: Vec<String> = (1..=30_000).map(|line: u32| line.to_string()).collect();
    // The first four end under load: ctr, told of the exit, closes its fifo with what is in it. The
    // others wait until all was seen.
    for number in 0..8 {
        let (id, waits) = (format!("a{number}"), number >= 4);
        let group = format!("{GROUP}={id}");
        let flags = ["-t", "--runtime", CLEAT, "--annotation", &group];
        let script = if waits { "seq 1 30000; read go" } else { "seq 1 30000" };
        let mut terminal = Terminal::spawn(rig.foreground(&flags, &id, &["sh", "-c", script]));
        if waits {
            terminal.read_until("\n30000\r");
            terminal.write(b"\n");
        }
        let (text, status) = terminal.end();
        assert!(status.success(), "{status}");
        let seen: Vec<&str> = text.split_whitespace().collect();
        // Else the last line may be cut.
        let whole = if waits { seen.len() } else { seen.len().saturating_sub(1) };
        assert!(
            seen[..whole] == expected[..whole] && (!waits || seen == expected),
            "{} bytes",
            text.len()
        );
    }
    until("no shim is left", || rig.shims().is_empty());
    assert!(children(rig.containerd_pid()).iter().all(|(_, state)| *state != 'Z'));
}

// containerd's rust peer published a delete without an id for a deleted exec. Defence: `Notice`
// knows no delete of an exec.
#[test]
fn scar_72_no_delete_event_for_an_exec() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run("a", &["sleep", "1000"]);
    rig.direct("a").exec_to_end("a", "e", "true");
    events.wait_for("exit", 1);
    rig.remove("a");
    events.wait_for("delete", 1);
    assert_eq!(
        events.of("a"),
        ["create", "start", "exec-added:e", "exec-started:e", "exit:e", "exit", "delete"]
    );
}
