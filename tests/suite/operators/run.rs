//! `cleat run`: a bundle under the shim without containerd, as `docker run` would.

use super::{cleat, json, output, ps, stderr, stdout, succeeds};
use crate::support::{LONG, Place, Terminal, kill, until, until_within};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

fn bundle(place: &Place, arguments: &[&str], terminal: bool) -> PathBuf {
    let bundle = place.dir.join("own-bundle");
    let bin = bundle.join("rootfs/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in ["sh", "cat", "echo", "sleep", "stty", "seq"] {
        let _ = std::os::unix::fs::symlink("busybox", bin.join(applet));
    }
    let path = bundle.join("config.json");
    let _ = std::fs::remove_file(&path);
    assert!(Command::new("runc").args(["spec", "-b"]).arg(&bundle).status().unwrap().success());
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    spec["process"]["terminal"] = terminal.into();
    spec["process"]["args"] = serde_json::json!(arguments);
    std::fs::write(&path, spec.to_string()).unwrap();
    bundle
}

fn run_bundle(
    place: &Place,
    id: &str,
    more: &[&str],
    bundle: &Path,
    arguments: &[&str],
) -> Command {
    let id = format!("{}-{id}", place.dir.file_name().unwrap().to_str().unwrap());
    let bundle = bundle.to_str().unwrap();
    cleat(&[&["run", "--id", &id], more, &[bundle], arguments].concat())
}

#[test]
fn run_gives_a_bundle_its_streams_and_its_exit_status() {
    let place = Place::new("run");
    let bundle = bundle(&place, &["sh", "-c", "cat; echo err >&2; exit 7"], false);
    let files = || std::fs::read_dir(&bundle).unwrap().count();
    let before = files();
    let mut command = run_bundle(&place, "streams", &["--events"], &bundle, &[]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(7), "hello"),
        "{}",
        stderr(&output)
    );
    let told = ["err\n", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];
    assert!(told.iter().all(|text| stderr(&output).contains(text)), "{}", stderr(&output));
    // Much, to the last byte; other arguments than config.json's.
    let output = run_bundle(&place, "much", &[], &bundle, &["seq", "200000"]).output().unwrap();
    assert_eq!(stdout(&output).lines().count(), 200_000);
    let output = run_bundle(&place, "none", &[], &bundle, &["/nope"]).output().unwrap();
    assert!(
        output.status.code() == Some(127) && stderr(&output).contains("/nope"),
        "{}",
        stderr(&output)
    );
    let mut child = run_bundle(
        &place,
        "signal",
        &[],
        &bundle,
        &["sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"],
    )
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    kill(child.id(), libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(files(), before, "the bundle is as it was");
}

#[test]
fn run_has_a_terminal() {
    let place = Place::new("tty");
    let bundle = bundle(&place, &["sh", "-c", "stty size; exit 4"], true);
    let (text, status) =
        Terminal::sized(run_bundle(&place, "tty", &[], &bundle, &[]), 99, 33).end();
    assert_eq!((status.code(), text.contains("33 99")), (Some(4), true), "{text}");
    let refused = run_bundle(&place, "none", &[], &bundle, &[]).output().unwrap();
    assert!(stderr(&refused).contains("--no-tty"), "{}", stderr(&refused));
}

/// The status and the output of a shell line; `$run` is `cleat run` with an id of its own,
/// `$bundle` the bundle.
fn shell(place: &Place, bundle: &Path, line: &str) -> (Option<i32>, String) {
    let run = run_bundle(place, "shell", &["--no-tty"], bundle, &[]);
    let words: Vec<&str> = run.get_args().map(|word| word.to_str().unwrap()).collect();
    let run = format!("{} {}", run.get_program().to_str().unwrap(), words.join(" "));
    let path = cleat(&[])
        .get_envs()
        .find_map(|(name, value)| (name == "PATH").then(|| value.unwrap().to_owned()))
        .unwrap();
    let output = Command::new("timeout")
        .args(["30", "bash", "-c", &line.replace("$run", &run)])
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), stdout(&output))
}

#[test]
fn run_ends_when_nobody_reads_it() {
    let place = Place::new("unread");
    let bundle = bundle(&place, &["sh"], false);
    let (status, text) =
        shell(&place, &bundle, "$run busybox yes | head -1; exit ${PIPESTATUS[0]}");
    assert_eq!(
        (status, text.as_str()),
        (Some(141), "y\n"),
        "as a shell says of a process that SIGPIPE has killed"
    );
    assert!(!Path::new("/run/cleat-run").join(id(&place, "shell")).exists());
}

#[test]
fn each_signal_reaches_the_process() {
    let place = Place::new("signals");
    let bundle = bundle(
        &place,
        &[
            "sh",
            "-c",
            "for s in HUP INT QUIT USR1 USR2 ALRM TERM; do trap \"echo $s\" $s; done; echo up; while :; do sleep 0.1; done",
        ],
        false,
    );
    let mut child =
        run_bundle(&place, "all", &[], &bundle, &[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("up"));
    for (signal, name) in [
        (libc::SIGHUP, "HUP"),
        (libc::SIGINT, "INT"),
        (libc::SIGQUIT, "QUIT"),
        (libc::SIGUSR1, "USR1"),
        (libc::SIGUSR2, "USR2"),
        (libc::SIGALRM, "ALRM"),
        (libc::SIGTERM, "TERM"),
    ] {
        kill(child.id(), signal);
        assert_eq!(lines.next().as_deref(), Some(name));
    }
    let shims = json(&["ps", "-o", "json"]);
    let pid = shims
        .as_array()
        .unwrap()
        .iter()
        .find(|shim| shim["id"] == id(&place, "all"))
        .unwrap()["containers"][0]["pid"]
        .as_u64()
        .unwrap();
    kill(u32::try_from(pid).unwrap(), libc::SIGKILL);
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn its_own_failures_are_not_the_containers() {
    let place = Place::new("codes");
    let bundle = bundle(&place, &["sh"], false);
    let code = |id: &str, more: &[&str], arguments: &[&str]| {
        let output = run_bundle(&place, id, more, &bundle, arguments).output().unwrap();
        (output.status.code(), stderr(&output))
    };
    assert_eq!(code("own", &[], &["sh", "-c", "exit 1"]).0, Some(1));
    assert_eq!(code("missing", &[], &["nope"]).0, Some(127));
    assert_eq!(code("denied", &[], &["/etc"]).0.map(|code| code == 126 || code == 127), Some(true));
    assert_eq!(code("runtime", &["--runtime", "nonesuch"], &["sh"]).0, Some(125));
    assert_eq!(code("shim", &["--shim", "/nonesuch"], &["sh"]).0, Some(125));
    assert_eq!(output(&["run", "--no-such-flag"]).status.code(), Some(125));
    assert_eq!(output(&["run", "/no/such/bundle"]).status.code(), Some(125));
    // The habits of others.
    assert_eq!(code("habit", &["--rm"], &["sh", "-c", "exit 3"]).0, Some(3));
    let file = output(&["run", bundle.join("config.json").to_str().unwrap()]);
    assert!(
        file.status.code() == Some(125) && stderr(&file).contains("name the directory"),
        "{file:?}"
    );
    assert_eq!(
        std::fs::read_dir("/run/cleat-run")
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix(&place)))
            .count(),
        0
    );
}

fn prefix(place: &Place) -> String {
    place.dir.file_name().unwrap().to_str().unwrap().to_owned()
}

fn id(place: &Place, name: &str) -> String {
    format!("{}-{name}", prefix(place))
}

#[test]
fn gos_shim_runs_a_bundle_too() {
    let place = Place::new("go");
    let bundle = bundle(&place, &["sh"], false);
    let go = std::env::var("CLEAT_TEST_GO_SHIM")
        .unwrap_or_else(|_| "containerd-shim-runc-v2".to_owned());
    let mut command =
        run_bundle(&place, "go", &["--shim", &go], &bundle, &["sh", "-c", "cat; exit 3"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(3), "hello"),
        "{}",
        stderr(&output)
    );
    until("its shim has ended", || {
        let shims = json(&["ps", "-o", "json"]);
        shims.as_array().unwrap().iter().all(|shim| shim["id"] != id(&place, "go"))
    });
}

#[test]
fn what_a_killed_run_leaves_is_seen_and_removed() {
    let place = Place::new("left");
    let bundle = bundle(&place, &["sh"], false);
    let id = id(&place, "left");
    let mut child =
        run_bundle(&place, "left", &[], &bundle, &["sh", "-c", "echo up; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    let mut line = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut line).unwrap();
    let directory = place.dir.to_str().unwrap();
    let refused = output(&["run", "--remove", "--id", &id]);
    assert!(stderr(&refused).contains("lives"), "{}", stderr(&refused));
    child.kill().unwrap();
    child.wait().unwrap();
    let shim = json(&["ps", "-o", "json"])
        .as_array()
        .unwrap()
        .iter()
        .find(|shim| shim["id"] == id.as_str())
        .unwrap()["pid"]
        .as_u64()
        .unwrap();
    let shim = u32::try_from(shim).unwrap();
    let doctor: Value = serde_json::from_slice(&output(&["doctor", "-o", "json"]).stdout).unwrap();
    let check = doctor.as_array().unwrap().iter().find(|check| check["what"] == "run").unwrap();
    assert!(
        check["found"].as_str().unwrap().contains(&id)
            && check["remedy"].as_str().unwrap().contains("--remove"),
        "{check}"
    );
    let gc = |more: &[&str]| {
        succeeds(&[&["gc", "--state", directory, "--sockets", directory], more].concat())
    };
    assert!(!gc(&[]).contains(&id), "what lives is left alone");
    assert_eq!(ps(shim)["containers"][0]["status"], "running");
    // Once it has ended it is an orphan.
    let pid = ps(shim)["containers"][0]["pid"].as_u64().unwrap();
    kill(u32::try_from(pid).unwrap(), libc::SIGKILL);
    until("it is seen", || {
        gc(&["--dry-run"]).contains(&format!("container {id} of a `cleat run`"))
    });
    assert!(gc(&[]).contains("removed container"));
    assert!(!Path::new("/run/cleat-run").join(&id).exists());
    // Nobody takes its last events any more: it waits 30 s for somebody.
    until_within(2 * LONG, "its shim has ended", || ps(shim) == Value::Null);
    // The other way: it is killed and removed at once, and the same id may be used.
    let mut child =
        run_bundle(&place, "left", &[], &bundle, &["sh", "-c", "echo up; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    child.stdout.take().unwrap().read_exact(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let again = run_bundle(&place, "left", &["--remove"], &bundle, &["sh", "-c", "exit 4"])
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(4), "{}", stderr(&again));
    succeeds(&["ps"]);
}
