//! Start, delete, life and death.

use super::{ends, process};
use crate::support::{self, GROUP, IMAGE, Place, Rig, alive, kill, read_all, shim_binary, until};
use cleat::protocol::Empty;
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

// containerd #5800, #768. Defence: `start::Undo`; a daemon that nobody learned of ends when nobody
// needs it.
#[test]
fn scar_31_a_start_that_is_killed_in_the_middle_leaves_nothing_for_long() {
    let place = Place::new("cut");
    for (round, wait_us) in [200u64, 400, 600, 800, 1000, 1500, 2000, 4000].into_iter().enumerate()
    {
        let id = format!("a{round}");
        place.bundle(&id, "{}");
        let mut command = place.start_after(&id, ":", "");
        let mut child =
            command.env("CLEAT_UNNEEDED_SECONDS", "1").stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(wait_us));
        kill(child.id(), libc::SIGKILL);
        child.wait().unwrap();
        let output = place.delete(&id);
        assert!(output.status.success() && output.stderr.is_empty());
        // containerd removes the bundle after `delete`.
        std::fs::remove_dir_all(place.dir.join(&id)).unwrap();
    }
    until("no daemon is left", || place.daemons().is_empty());
}

// containerd #4020, #4021. Defence: `mount::unmount_below`: all of them, lazily as the last resort.
#[test]
fn scar_34_a_busy_rootfs_is_unmounted_all_the_same() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let rootfs = rig.bundle("a").join("rootfs");
    let mut shell = Command::new("sleep").arg("1000").current_dir(&rootfs).spawn().unwrap();
    let file = rootfs.join("etc/passwd");
    let mount = |arguments: &[&str]| {
        assert!(Command::new("mount").args(arguments).status().unwrap().success())
    };
    mount(&["--bind", "/proc/version", file.to_str().unwrap()]);
    mount(&["--bind", rootfs.to_str().unwrap(), rootfs.to_str().unwrap()]);
    rig.remove("a");
    let mounts = read_all("/proc/self/mountinfo");
    assert!(!mounts.contains(rootfs.to_str().unwrap()), "nothing is mounted there any more");
    shell.kill().unwrap();
    shell.wait().unwrap();
}

// Nothing left: each of the first openat, socket, clone calls of `start` fails. Defence:
// `start::Undo`.
#[test]
fn scar_35_start_fails_cleanly_wherever_the_kernel_says_no() {
    let place = Place::new("no");
    place.bundle("a", "{}");
    let calls = [
        ("openat", "ENOSPC"),
        ("openat", "EMFILE"),
        ("socket", "EMFILE"),
        ("clone3,clone,vfork", "EAGAIN"),
        ("write", "ENOSPC"),
        ("bind", "EACCES"),
        ("mkdir", "ENOSPC"),
    ];
    for (call, error) in calls {
        for when in 1..=6 {
            let mut command = Command::new("strace");
            // Not -f: the daemon is another matter.
            command.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
            command.arg(format!("inject={call}:error={error}:when={when}")).arg(shim_binary());
            command
                .args(["-namespace", "cleat-test", "-id", "a", "-address"])
                .arg(place.dir.join("c.sock"));
            command.arg("start").current_dir(place.dir.join("a")).stdin(Stdio::null());
            let output =
                command.env("TTRPC_ADDRESS", place.dir.join("c.sock.ttrpc")).output().unwrap();
            if output.status.success() {
                let address = String::from_utf8(output.stdout).unwrap();
                assert!(address.starts_with("unix:///"), "{address:?}");
                let daemons = place.daemons();
                assert_eq!(daemons.len(), 1);
                kill(daemons[0], libc::SIGTERM);
            } else {
                assert!(output.stdout.is_empty() || error == "ENOSPC", "{call} {when}");
            }
            until("no daemon is left", || place.daemons().is_empty());
            let _ = std::fs::remove_file(place.dir.join("a/address"));
        }
    }
}

// stdout and stderr of `start` are read together. Defence: nothing is printed but the answer.
#[test]
fn scar_36_nothing_disturbs_the_address() {
    let place = Place::new("noise");
    place.bundle("a", "{}");
    let mut command = place.start_after("a", ":", "-debug");
    for (name, value) in [
        ("RUST_LOG", "trace"),
        ("RUST_BACKTRACE", "full"),
        ("MALLOC_CHECK_", "3"),
        ("LD_PRELOAD", ""),
        ("GOMAXPROCS", "4"),
        ("OTEL_SDK_DISABLED", "x"),
        ("TZ", "nowhere"),
        ("LC_ALL", "xx_XX"),
    ] {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    let address = String::from_utf8(output.stdout).unwrap();
    assert_eq!(address.len(), "unix:///run/containerd/s/".len() + 64, "{address:?}");
}

// containerd #4274; rust-extensions #299, #115. Defence: the panic hook in `serve::run`,
// `catch_panic`.
#[test]
fn scar_37_a_panic_is_in_the_log_with_its_place_and_ends_only_its_call() {
    let rig = Rig::new();
    support::use_debug_build(&rig);
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let failed = direct.call::<Empty>("PanicForTest", &process("a", "")).unwrap_err();
    assert_eq!(failed.code, cleat::rpc::Code::Internal as i32);
    until("the panic is in containerd's log", || {
        let log = rig.log();
        log.contains("panic:") && log.contains("intercept.rs:")
    });
    assert_eq!(direct.exec_to_end("a", "e", "exit 3"), 3);
    rig.remove("a");
}

// Large and long. Defence: bounds with room, said in their docs.
#[test]
fn scar_38_long_ids_and_large_configurations_work() {
    let rig = Rig::new();
    let long = "x".repeat(76);
    rig.run(&long, &["sleep", "1000"]);
    assert_eq!(rig.direct(&long).exec_to_end(&long, &"e".repeat(76), "exit 3"), 3);
    rig.remove(&long);
    let place = Place::new("large");
    let annotation = "v".repeat(4 << 20);
    place.bundle(
        "a",
        &format!(
            r#"{{"process":{{"env":["{annotation}"]}},"annotations":{{"x":"{annotation}","{GROUP}":"g"}}}}"#
        ),
    );
    let output = place.start_after("a", ":", "").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(place.daemons().len(), 1);
}

// containerd #13848, #5597, #11416. Defence: nothing that containerd asks at its start waits.
#[test]
fn scar_48_containerd_comes_back_though_some_shims_are_in_trouble() {
    let mut rig = Rig::new();
    let flags = rig.runtime_script("case \"$*\" in *' exec '*) exec sleep 1000;; esac");
    let flags = flags.each_ref().map(String::as_str);
    let ids: Vec<String> = (0..8).map(|number| format!("a{number}")).collect();
    let mut hung = Vec::new();
    for id in &ids {
        rig.run_with(&flags, id, &["sleep", "1000"]);
        let mut direct = rig.direct(id);
        let request = support::exec_request(id, "e", &support::process_spec(&["true"]));
        direct.call::<Empty>("Exec", &request).unwrap();
        direct.send("Start", &process(id, "e"));
        hung.push(direct);
    }
    rig.end_containerd(libc::SIGKILL);
    let begun = Instant::now();
    rig.start_containerd();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for id in &ids {
        assert_eq!(rig.status(id).as_deref(), Some("RUNNING"));
        rig.remove(id);
    }
}

// containerd #5502. Defence: `serve` selects on SIGTERM beside all else.
#[test]
fn scar_49_sigterm_during_create_ends_the_shim_in_two_seconds() {
    let rig = Rig::new();
    let flags = rig.runtime_script("case \"$*\" in *' create '*) sleep 5;; esac");
    let annotation = format!("{GROUP}=a");
    rig.run_in_group("a", "a", &["sleep", "1000"]);
    let shim = rig.shim();
    let flags = flags.each_ref().map(String::as_str);
    let arguments = [
        &["run", "-d", "--null-io", "--annotation", &annotation],
        &flags[..],
        &[IMAGE, "b", "true"],
    ]
    .concat();
    let mut create = rig.ctr_command(arguments).stderr(Stdio::null()).spawn().unwrap();
    until("create is under way", || support::children(shim).len() >= 2);
    let begun = Instant::now();
    kill(shim, libc::SIGTERM);
    ends(shim);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    create.wait().unwrap();
    for id in ["b", "a"] {
        until("containerd has forgotten the task", || rig.status(id).is_none());
        rig.ctr(["container", "rm", id]);
    }
}

// containerd #4837, #3380. Defence: `placement::adjust_oom_score`.
#[test]
fn scar_56_the_oom_score_is_the_parents_plus_one_and_at_most_1000() {
    for (parent, expected) in [(500, 501), (999, 1000), (1000, 1000)] {
        let place = Place::new(&format!("oom{parent}"));
        place.bundle("a", "{}");
        let output = place
            .start_after("a", &format!("echo {parent} > /proc/self/oom_score_adj"), "")
            .output()
            .unwrap();
        assert!(output.status.success());
        let daemon = place.daemons()[0];
        assert_eq!(read_all(format!("/proc/{daemon}/oom_score_adj")).trim(), expected.to_string());
    }
}

// containerd #6011, #6108. A kernel without core scheduling is no failure; the call is made.
// Defence: `share_core_with_pod`.
#[test]
fn scar_68_core_scheduling_is_asked_for_and_its_refusal_is_no_failure() {
    let place = Place::new("core");
    place.bundle("a", "{}");
    let trace = place.dir.join("trace");
    let mut command = Command::new("strace");
    command.args(["-qq", "-e", "trace=prctl", "-o"]).arg(&trace).arg(shim_binary());
    command
        .args(["-namespace", "cleat-test", "-id", "a", "-address"])
        .arg(place.dir.join("c.sock"))
        .arg("start");
    command.current_dir(place.dir.join("a")).stdin(Stdio::null()).env("SCHED_CORE", "1");
    let output = command.env("TTRPC_ADDRESS", place.dir.join("c.sock.ttrpc")).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(
        read_all(&trace).contains("PR_SCHED_CORE, PR_SCHED_CORE_CREATE"),
        "{}",
        read_all(&trace)
    );
}

// The Rust peer's `start` that fails half-way leaves its daemon. Defence: `start::Undo`.
#[test]
fn scar_73_a_start_that_fails_after_the_daemon_is_up_takes_it_along() {
    use prost::Message;
    use std::io::Write;
    let place = Place::new("half");
    place.bundle("a", "{}");
    let options = cleat::protocol::options::Options {
        shim_cgroup: "/cleat-test-none".into(),
        ..Default::default()
    };
    let any = cleat::protocol::Any::pack(cleat::protocol::options::OPTIONS_URL, &options);
    let mut command = place.start_after("a", ":", "");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&any.encode_to_vec()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    until("no daemon is left", || place.daemons().is_empty());
}

// containerd #12344: a daemon with no container, no bundle and no client. Defence:
// `serve/unneeded.rs`.
#[test]
fn scar_11_a_shim_that_nobody_needs_ends_and_one_with_a_container_does_not() {
    let mut rig = Rig::with_impatient_shims();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    let place = Place::new("unneeded");
    let bundle = place.bundle("a", "{}");
    let mut command = place.start_after("a", ":", "");
    assert!(command.env("CLEAT_UNNEEDED_SECONDS", "1").output().unwrap().status.success());
    let idle = place.daemons()[0];
    std::fs::remove_dir_all(&bundle).unwrap();
    until("it ends by itself", || !alive(idle));
    rig.end_containerd(libc::SIGKILL);
    std::thread::sleep(Duration::from_secs(3));
    assert!(alive(shim), "one with a container stays though containerd has gone");
    rig.start_containerd();
    rig.remove("a");
}

// The loop that hangs is seen. Defence: `sys/watchdog.rs`.
#[test]
fn a_shim_that_hangs_is_seen_in_the_log() {
    let rig = Rig::new();
    support::use_debug_build(&rig);
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    direct.send("HangForTest", &process("a", ""));
    until("the watchdog speaks", || rig.log().contains("watchdog: the event loop has not turned"));
    // The loop cannot write its own dump: the alarm does, from what was noted last.
    until("it has dumped", || rig.log().contains("watchdog: === END dump"));
    let log = rig.log();
    let dump = log.split("watchdog: === BEGIN dump").nth(1).unwrap();
    assert!(
        dump.contains("call HangForTest a")
            && dump.contains("did a Started")
            && dump.contains("start+0x"),
        "{dump}"
    );
    until("it goes on", || {
        let mut other = rig.direct("a");
        other.state("a", "").is_ok()
    });
    rig.remove("a");
}

// A dead file system holds the loop where no signal reaches it (state D); SIGSTOP stands in for it.
// Defence: the alarm sees that it came late.
#[test]
fn a_shim_that_was_held_by_the_kernel_says_so() {
    let rig = Rig::new();
    support::use_debug_build(&rig);
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    direct.send("HangForTest", &process("a", ""));
    // In the middle of a turn, with the alarm set.
    std::thread::sleep(Duration::from_millis(500));
    support::stop(rig.shim());
    std::thread::sleep(Duration::from_secs(12));
    support::kill(rig.shim(), libc::SIGCONT);
    until("the watchdog speaks", || rig.log().contains("watchdog: the event loop was held for"));
    until("it has dumped", || rig.log().contains("watchdog: === END dump"));
    rig.remove("a");
}

// A node has hundreds of shims. Defence: no timer runs while nothing is to be done; the watchdog
// disarms itself (`sys/watchdog.rs`).
#[test]
fn an_idle_shim_does_not_wake_up() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    // A logging program that lives is no reason to look after it.
    let logger = rig.dir.join("logger");
    std::fs::write(&logger, "#!/bin/sh\nexec 5>&-; exec sleep 1000\n").unwrap();
    std::fs::set_permissions(&logger, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut direct = rig.direct("a");
    let mut logged = support::exec_request("a", "e", &support::process_spec(&["sleep", "1000"]));
    logged.stdout = format!("binary://{}", logger.display());
    direct.call::<Empty>("Exec", &logged).unwrap();
    direct.call::<cleat::protocol::task::PidResponse>("Start", &process("a", "e")).unwrap();
    drop(direct);
    let shim = rig.shim();
    let woken = || {
        let status = read_all(format!("/proc/{shim}/status"));
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    // The heap is trimmed after a second, the watchdog disarmed after five; after 15 the shim has
    // looked whether anybody needs it.
    std::thread::sleep(Duration::from_secs(23));
    let before = woken();
    std::thread::sleep(Duration::from_secs(12));
    let after = woken();
    if after != before {
        kill(shim, libc::SIGUSR1);
        std::thread::sleep(Duration::from_secs(1));
        panic!("woken {} times; its state:\n{}", after - before, rig.log());
    }
    rig.remove("a");
}
