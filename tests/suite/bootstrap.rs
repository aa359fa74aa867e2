//! The command line: `start`, `delete`, `-info`, `-v`, without a containerd.

use crate::support::{Place, alive, cmdline, feed, kill, shim_binary, until};
use cleat::protocol::{
    Any,
    bootstrap::{BootstrapResult, Extension, Params},
    options::{OPTIONS_URL, Options},
    task::DeleteResponse,
};
use prost::Message;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn socket(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap())
}

const POD: &str = r#"{"annotations":{"io.containerd.runc.v2.group":"pod"}}"#;

#[test]
fn start_prints_the_address_and_a_second_one_finds_the_shim() {
    let place = Place::new("second");
    place.bundle("a", POD);
    place.bundle("b", r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#);
    let address = stdout(&place.start("a", b""));
    assert_eq!(address.len(), "unix:///run/containerd/s/".len() + 64);
    assert_eq!(fs::metadata(socket(&address)).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(stdout(&place.start("b", b"")), address);
    assert_eq!(stdout(&place.start("a", b"")), address);
    assert_eq!(fs::read_to_string(place.dir.join("b/address")).unwrap(), address);
    let daemons = place.daemons();
    assert_eq!(daemons.len(), 1);
    // Its bundle is its working directory, and it leads its process group.
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", daemons[0])).unwrap(), place.dir.join("a"));
    kill(daemons[0], libc::SIGTERM);
    until("the socket is gone", || !socket(&address).exists());
}

// Defence: `sys::signals::block` in `sys::spawn::daemon`.
#[test]
fn a_daemon_that_is_told_to_end_before_it_listens_removes_its_socket() {
    let place = Place::new("early");
    for round in 0..20 {
        let id = format!("r{round}");
        place.bundle(&id, "{}");
        let address = stdout(&place.start(&id, b""));
        let daemons = place.daemons();
        daemons.iter().for_each(|pid| kill(*pid, libc::SIGTERM));
        until("the daemon ends", || daemons.iter().all(|pid| !alive(*pid)));
        assert_eq!((daemons.len(), socket(&address).exists()), (1, false), "round {round}");
    }
}

/// The daemon's environment is a little larger than that of `start`: one that has just room for the
/// one has none for the other.
#[test]
fn a_daemon_that_cannot_be_executed_leaves_no_address() {
    let place = Place::new("toolarge");
    place.bundle("a", "{}");
    let padded = |count: usize, rest: usize, action: &str| {
        let mut command = Command::new(shim_binary());
        command
            .args(["-namespace", "cleat-test", "-id", "a", "-address"])
            .arg(place.dir.join("c.sock"));
        command.arg(action).current_dir(place.dir.join("a")).env("TTRPC_ADDRESS", "/nowhere");
        command.envs((0..count).map(|i| (format!("PAD{i:04}"), "x".repeat(16 << 10))));
        command.env("REST", "x".repeat(rest)).stdin(Stdio::null());
        command.output()
    };
    // E2BIG is what the parent hears of an execve that does not fit.
    let most = |fits: &dyn Fn(usize) -> bool| {
        let (mut low, mut high) = (0, 16 << 10);
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if fits(middle) { low = middle } else { high = middle }
        }
        low
    };
    let count = most(&|count| padded(count, 0, "-what").is_ok());
    let rest = most(&|rest| padded(count, rest, "-what").is_ok());
    let address = stdout(&padded(count, rest, "start").unwrap());
    until("the socket has gone", || {
        !socket(&address).exists() && !place.dir.join("a/address").exists()
    });
    assert_eq!(place.daemons(), [0; 0]);
}

// Defence: `socket::lock`.
#[test]
fn scar_30_simultaneous_starts_make_one_daemon() {
    let place = Place::new("race");
    for round in 0..5 {
        let ids: Vec<String> = (0..8).map(|i| format!("r{round}c{i}")).collect();
        for id in &ids {
            place.bundle(
                id,
                &format!(r#"{{"annotations":{{"io.containerd.runc.v2.group":"g{round}"}}}}"#),
            );
        }
        let starts: Vec<_> = ids
            .iter()
            .map(|id| place.command(id, "start").stdin(Stdio::null()).spawn().unwrap())
            .collect();
        let answers: Vec<String> =
            starts.into_iter().map(|child| stdout(&child.wait_with_output().unwrap())).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        assert_eq!(place.daemons().len(), round + 1);
    }
}

#[test]
fn a_caller_from_2_3_gets_a_bootstrap_result_in_its_own_directory() {
    let place = Place::new("params");
    let bundle = place.bundle("a", "{}");
    let sockets = place.dir.join("sockets");
    let options = Options { binary_name: "crun".into(), ..Options::default() };
    let params = Params {
        instance_id: "a".into(),
        namespace: "cleat-test".into(),
        containerd_version: "2.3.4".into(),
        socket_dir: sockets.to_str().unwrap().into(),
        extensions: vec![Extension { value: Some(Any::pack(OPTIONS_URL, &options)) }],
        ..Params::default()
    };
    let output = place.start("a", &params.encode_to_vec());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let result = BootstrapResult::decode(output.stdout.as_slice()).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    assert_eq!(socket(&result.address).parent(), Some(sockets.as_path()));
    assert_eq!(fs::metadata(&sockets).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_link(bundle.join("s")).unwrap(), sockets);
}

#[test]
fn ten_mebibytes_are_taken_and_the_log_level_is_honoured() {
    let place = Place::new("large");
    place.bundle("a", "{}");
    let large = Any { type_url: "example.org/large".into(), value: vec![7; (10 << 20) - 100] };
    let params = Params {
        instance_id: "a".into(),
        containerd_grpc_address: place.dir.join("c.sock").to_str().unwrap().into(),
        log_level: -4,
        extensions: vec![Extension { value: Some(large) }],
        ..Params::default()
    };
    let input = params.encode_to_vec();
    assert!(input.len() > 10_400_000 && input.len() <= 10 << 20);
    let output = place.start("a", &input);
    assert!(output.status.success(), "{output:?}");
    assert!(cmdline(place.daemons()[0]).contains(&"-debug".to_owned()));
}

#[test]
fn plain_options_are_told_from_bootstrap_params() {
    let place = Place::new("any");
    place.bundle("a", "{}");
    let options = Any::pack(OPTIONS_URL, &Options { root: "/x".into(), ..Options::default() });
    assert!(
        stdout(&place.start("a", &options.encode_to_vec()))
            .starts_with("unix:///run/containerd/s/")
    );
}

// rust-extensions #366. Defence: `Caller::parse` tells the senders apart; `start::Undo`.
#[test]
fn scar_65_bad_input_is_refused_with_a_message_and_leaves_nothing() {
    let place = Place::new("bad");
    place.bundle("a", "{}");
    place.bundle("broken", "{");
    fs::create_dir_all(place.dir.join("empty")).unwrap();
    let missing_cgroup = Any::pack(
        OPTIONS_URL,
        &Options { shim_cgroup: "/cleat-test-nope".into(), ..Options::default() },
    );
    let broken_options = Any { type_url: OPTIONS_URL.into(), value: vec![0xff; 9] };
    let huge = vec![0; (10 << 20) + 1];
    let cases: [(&str, &[u8], &str); 7] = [
        ("a", b"\xff\xff\xff", "stdin is neither"),
        ("a", &huge, "stdin is larger than"),
        ("a", &broken_options.encode_to_vec(), "decode containerd.runc.v1.Options"),
        ("a", &missing_cgroup.encode_to_vec(), "join shim cgroup /cleat-test-nope"),
        ("broken", b"", "config.json"),
        ("empty", b"", "config.json"),
        (
            "a",
            &Any::pack(
                OPTIONS_URL,
                &Options { shim_cgroup: "../../..".into(), ..Options::default() },
            )
            .encode_to_vec(),
            "shim cgroup",
        ),
    ];
    for (id, input, text) in cases {
        let output = place.start(id, input);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(output.stdout.is_empty(), "{text}");
        assert!(
            message.starts_with("containerd-shim-cleat-v2: ") && message.contains(text),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(!place.dir.join(id).join("address").exists());
        until("no daemon is left", || place.daemons().is_empty());
    }
}

#[test]
fn bad_arguments_are_refused() {
    let cases: [(&[&str], &str); 8] = [
        (&[], "namespace cannot be empty"),
        (&["-namespace", "n", "start"], "task id cannot be empty"),
        (&["-namespace", "n", "-id", "../../x", "start"], "-id"),
        (&["-namespace", "a/b", "-id", "x", "start"], "-namespace"),
        (&["-namespace", "n", "-id", "x", "dance"], "unknown action"),
        (&["-nope"], "flag provided but not defined: -nope"),
        (&["-id"], "flag needs an argument: -id"),
        (&["-debug=perhaps", "-id", "x"], "invalid boolean value"),
    ];
    for (arguments, text) in cases {
        let mut command = Command::new(shim_binary());
        let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty() && message.contains(text), "{arguments:?}: {message}");
    }
}

#[test]
fn a_socket_path_that_is_too_long_is_refused() {
    let place = Place::new("long");
    place.bundle("a", "{}");
    let params = Params {
        instance_id: "a".into(),
        socket_dir: format!("{}/{}", place.dir.display(), "d".repeat(60)),
        ..Params::default()
    };
    let output = place.start("a", &params.encode_to_vec());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("longer than 106 bytes"));
}

// containerd #3481, #3359. Defence: `sys::fd::close_from` in `serve::run`.
#[test]
fn scar_57_the_daemon_inherits_no_descriptors_but_its_own() {
    let place = Place::new("fds");
    place.bundle("a", "{}");
    // Descriptors as a careless parent leaves them.
    let script = "exec 5</dev/null 6</dev/null 7</etc/passwd 9</; exec \"$0\" \"$@\"";
    let template = place.command("a", "start");
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(template.get_program()).args(template.get_args());
    command
        .current_dir(place.dir.join("a"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    stdout(&command.output().unwrap());
    let daemon = place.daemons()[0];
    until("the daemon is up", || {
        fs::read_dir(format!("/proc/{daemon}/fd"))
            .unwrap()
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .all(|target| target != Path::new("/etc/passwd") && target != Path::new("/"))
    });
}

// Defence: `Runtime::has_record` before `force_delete`; missing files are no errors.
#[test]
fn scar_33_delete_is_idempotent_quiet_and_calls_no_runtime_without_state() {
    let place = Place::new("delete");
    let bundle = place.bundle("a", "{}");
    // Any runtime call would be seen.
    let runtime = place.dir.join("runtime");
    fs::write(&runtime, format!("#!/bin/sh\ntouch {}/called\n", place.dir.display())).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(bundle.join("options.json"), format!(r#"{{"binary_name":"{}"}}"#, runtime.display()))
        .unwrap();
    fs::write(bundle.join("init.pid"), "4711").unwrap();
    // Left by the daemon that has seen the runtime's record, which is no more.
    fs::write(bundle.join("record-seen"), "").unwrap();
    for _ in 0..2 {
        let output = feed(place.command("a", "delete"), b"");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let response = DeleteResponse::decode(output.stdout.as_slice()).unwrap();
        assert_eq!((response.pid, response.exit_status), (4711, 137));
        assert!(response.exited_at.unwrap().seconds > 1_700_000_000);
    }
    assert!(!place.dir.join("called").exists());
    // A runtime whose record nobody has seen may still know the container.
    fs::remove_file(bundle.join("record-seen")).unwrap();
    assert!(feed(place.command("a", "delete"), b"").status.success());
    assert!(place.dir.join("called").exists());
    // Not even a bundle.
    let mut command = place.command("a", "delete");
    fs::remove_dir_all(&bundle).unwrap();
    command.current_dir(&place.dir);
    assert!(feed(command, b"").status.success());
}

// nohup, cron and others start programs so; what they start inherits it.
#[test]
fn ignored_and_blocked_signals_of_the_caller_cost_nothing() {
    let place = Place::new("ignored");
    let bundle = place.bundle("a", "{}");
    fs::create_dir(bundle.join("rootfs")).unwrap();
    let begun = std::time::Instant::now();
    for action in ["delete", "start", "delete"] {
        let line = format!("trap '' CHLD PIPE TERM HUP; exec {} \"$@\"", shim_binary().display());
        let mut command = Command::new("sh");
        command.args(["-c", &line, "sh", "-namespace", "cleat-test", "-id", "a", "-address"]);
        command.arg(place.dir.join("c.sock")).arg(action).current_dir(&bundle).stdin(Stdio::null());
        command.env("TTRPC_ADDRESS", place.dir.join("c.sock.ttrpc"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{action}: {output:?}");
    }
    let line = format!("trap '' CHLD; exec {} -info", shim_binary().display());
    let info = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).output().unwrap();
    // Waits that had to run out took four seconds each.
    assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(info.status.success());
    for pid in place.daemons() {
        // Ignored or not, the daemon ends at it.
        kill(pid, libc::SIGTERM);
        until("the daemon ends", || !alive(pid));
    }
}

// Defence: `LOCK_PATIENCE`.
#[test]
fn a_lock_that_somebody_else_holds_is_not_waited_for_without_end() {
    let place = Place::new("lock");
    place.bundle("a", "{}");
    fs::create_dir_all("/run/containerd/s").unwrap();
    let holder = fs::File::open("/run/containerd/s").unwrap();
    rustix::fs::flock(&holder, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let output = place.start("a", b"");
    drop(holder);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn version_and_info() {
    let version = Command::new(shim_binary()).arg("-v").output().unwrap();
    let text = stdout(&version);
    assert!(
        text.contains("containerd-shim-cleat-v2") && text.contains(env!("CARGO_PKG_VERSION")),
        "{text}"
    );
    let mut command = Command::new(shim_binary());
    command.arg("-info").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = feed(command, b"");
    assert!(output.status.success() && !output.stdout.is_empty());
}
