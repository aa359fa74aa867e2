//! `cleat`, the command for operators, on shims that live.

mod doctor;
mod gc;
mod install;
mod metrics;
mod run;
mod top;
mod troubleshooting;

use doctor::Doctor;

use crate::support::{self, Place, Rig, Terminal, cli_binary, kill, read_all, shim_binary, until};
use cleat::protocol::{Empty, task as api};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

fn cleat(words: &[&str]) -> Command {
    let mut command = Command::new(cli_binary());
    let path =
        format!("{}:{}", shim_binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    command.args(words).env("PATH", path).stdin(Stdio::null());
    command
}

fn output(words: &[&str]) -> Output {
    cleat(words).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeeds(words: &[&str]) -> String {
    let output = output(words);
    assert!(output.status.success(), "{words:?}: {}", stderr(&output));
    stdout(&output)
}

fn json(words: &[&str]) -> Value {
    serde_json::from_str(&succeeds(words)).unwrap()
}

/// What `cleat ps` says of a shim.
fn ps(pid: u32) -> Value {
    let all = json(&["ps", "-o", "json"]);
    all.as_array().unwrap().iter().find(|shim| shim["pid"] == pid).cloned().unwrap_or_default()
}

const POD: [&str; 6] = [
    "--annotation",
    "io.kubernetes.cri.sandbox-name=web-0",
    "--annotation",
    "io.kubernetes.cri.sandbox-namespace=prod",
    "--annotation",
    "io.kubernetes.cri.container-type=sandbox",
];

#[test]
fn ps_shows_a_pod_and_who_is_connected() {
    let mut rig = Rig::new();
    rig.run_with(&[&["--runtime", support::CLEAT], &POD[..]].concat(), "a", &["sleep", "1000"]);
    rig.run_in_group("a", "b", &["sh", "-c", "exit 3"]);
    let shim = rig.shim();
    until("b has ended", || rig.status("b").as_deref() == Some("STOPPED"));
    let seen = ps(shim);
    assert_eq!(seen["kind"], "cleat");
    assert_eq!(seen["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&seen["namespace"], &seen["id"]), (&rig.namespace.as_str().into(), &"a".into()));
    assert_eq!(seen["pod"], serde_json::json!({ "namespace": "prod", "name": "web-0" }));
    assert_eq!(seen["threads"], 1);
    assert_eq!(seen["containerd"], true);
    let [a, b] = [&seen["containers"][0], &seen["containers"][1]];
    assert_eq!(
        (&a["id"], &a["status"], &a["pid"], &a["name"]),
        (&"a".into(), &"running".into(), &rig.init("a").into(), &"(sandbox)".into())
    );
    assert_eq!(
        (&b["id"], &b["status"], &b["exit_status"]),
        (&"b".into(), &"stopped".into(), &3.into())
    );
    assert!(
        seen["memory_kib"]["private"].as_u64().unwrap() > 50
            && a["memory_bytes"].as_u64().unwrap() > 10_000,
        "{seen}"
    );
    let table = succeeds(&["ps"]);
    let line = table.lines().find(|line| line.starts_with(&shim.to_string())).unwrap();
    assert!(
        line.contains("prod/web-0")
            && line.contains("1 running, 1 stopped")
            && line.ends_with("connected"),
        "{line}"
    );
    assert!(
        succeeds(&["ps", "--containers"])
            .lines()
            .any(|line| line.starts_with("b ") && line.contains("stopped (3)"))
    );
    rig.end_containerd(libc::SIGKILL);
    until("it is seen that containerd has gone", || ps(shim)["containerd"] == false);
    rig.start_containerd();
    until("and that it is back", || ps(shim)["containerd"] == true);
    for id in ["b", "a"] {
        rig.remove(id);
    }
}

#[test]
fn go_shims_are_shown_as_well() {
    let rig = Rig::new();
    let go =
        Command::new("sh").args(["-c", "command -v containerd-shim-runc-v2"]).output().unwrap();
    let go = std::env::var("CLEAT_TEST_GO_SHIM").unwrap_or_else(|_| stdout(&go).trim().to_owned());
    rig.run_with(&["--runtime", &go], "a", &["sleep", "1000"]);
    let seen = ps(rig.shim());
    assert_eq!(
        (&seen["kind"], &seen["containers"][0]["status"]),
        (&"other".into(), &"running".into())
    );
    assert!(seen["threads"].as_u64().unwrap() > 4 && seen["containerd"] == true, "{seen}");
    assert!(succeeds(&["inspect", &rig.shim().to_string()]).contains("running"));
    rig.remove("a");
}

#[test]
fn inspect_tells_what_a_shim_is_doing() {
    let mut rig = Rig::new();
    let flags = rig.runtime_script("case \" $* \" in *' exec '*) sleep 3;; esac");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    rig.run_with(&flags, "inspected", &["sleep", "1000"]);
    let shim = rig.shim().to_string();
    let logger = support::script(&rig, "logger", "exec 5>&-; exec cat <&3 >/dev/null");
    let mut direct = rig.direct("inspected");
    let mut exec =
        support::exec_request("inspected", "slow", &support::process_spec(&["echo", "hello"]));
    exec.stdout = format!("binary://{}", logger.display());
    direct.call::<Empty>("Exec", &exec).unwrap();
    direct.send("Start", &support::process("inspected", "slow"));
    let open = |method: &str| {
        let seen = json(&["inspect", "inspect", "-o", "json"]);
        seen["calls"]
            .as_array()
            .unwrap()
            .iter()
            .any(|call| call["method"] == method && call["id"] == "inspected")
    };
    until("the call that hangs is shown", || open("Start"));
    until("it ends", || !open("Start"));
    let exec = || json(&["inspect", &shim, "-o", "json"])["processes"][0]["execs"][0].clone();
    until("the exit is shown", || exec()["exit_status"] == 0);
    let seen = exec();
    assert_eq!((&seen["exec_id"], &seen["status"]), (&"slow".into(), &"stopped".into()));
    let stdout = seen["streams"]
        .as_array()
        .unwrap()
        .iter()
        .find(|stream| stream["name"] == "stdout")
        .unwrap()
        .clone();
    assert_eq!((&stdout["bytes"], &stdout["ended"]), (&6.into(), &true.into()));
    assert_eq!(seen["logger"]["path"], logger.to_str().unwrap());
    let whole = json(&["inspect", &shim, "-o", "json"]);
    assert_eq!(whole["events"]["waiting"], 0);
    assert!(whole["events"]["acknowledged"].as_u64().unwrap() >= 4, "{whole}");
    assert!(
        whole["transitions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|line| line.as_str().unwrap().contains("ExecStarted"))
    );
    for text in ["Processes", "I/O", "inspected exec slow", "Last transitions"] {
        assert!(succeeds(&["inspect", &shim]).contains(text), "{text}");
    }
    rig.end_containerd(libc::SIGKILL);
    direct.call::<api::DeleteResponse>("Delete", &support::process("inspected", "slow")).unwrap();
    kill(rig.init("inspected"), libc::SIGKILL);
    until("an event waits", || json(&["inspect", &shim, "-o", "json"])["events"]["waiting"] == 1);
    until("the trouble is shown", || {
        succeeds(&["inspect", &shim]).contains("waiting for containerd")
    });
    rig.start_containerd();
    rig.remove("inspected");
    let refused = output(&["inspect", "no-such-thing"]);
    assert!(
        !refused.status.success() && stderr(&refused).contains("cleat ps -c"),
        "{}",
        stderr(&refused)
    );
}

// A container may call its process as it likes, and serve what it likes. Defence:
// `node::processes`, the mount namespace.
#[test]
fn a_container_that_plays_the_shim_is_not_believed() {
    let rig = Rig::new();
    let mount = format!(
        "type=bind,src={},dst=/containerd-shim-fake-v2,options=bind:ro",
        shim_binary().display()
    );
    let words = ["/containerd-shim-fake-v2", "-namespace", "x", "-id", "y", "-socket", "/tmp/s"];
    rig.run_with(&["--runtime", support::CLEAT, "--mount", &mount], "a", &words);
    let socket = format!("/proc/{}/root/tmp/s", rig.init("a"));
    until("it serves", || Path::new(&socket).exists());
    assert_eq!(ps(rig.init("a")), Value::Null);
    assert!(!succeeds(&["ps"]).contains("fake"));
    rig.remove("a");
}

struct Follower {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Follower {
    fn new(words: &[&str]) -> Self {
        let mut child = cleat(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let reader = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            reader.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn events_are_shown_as_they_happen_each_once() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let follower = Follower::new(&["events", "-f", "-o", "json"]);
    let mut direct = rig.direct("a");
    let topics = ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"];
    let mut number = 0;
    let next = |wait: Duration| -> Option<Value> {
        loop {
            let line = follower.lines.recv_timeout(wait).ok()?;
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["namespace"] == rig.namespace.as_str() {
                return Some(event);
            }
        }
    };
    let mut exec = || {
        number += 1;
        let id = format!("e{number}");
        direct
            .call::<Empty>(
                "Exec",
                &support::exec_request("a", &id, &support::process_spec(&["true"])),
            )
            .unwrap();
        support::start(&mut direct, &id);
        support::wait(&mut direct, &id);
        support::delete(&mut direct, &id);
        id
    };
    // From the first event on that it shows, it shows each.
    let mut shown = None;
    until("it follows", || {
        exec();
        shown = next(Duration::from_millis(300));
        shown.is_some()
    });
    std::thread::sleep(Duration::from_millis(500));
    while next(Duration::from_millis(300)).is_some() {}
    let wanted: Vec<(String, &str)> = (0..20)
        .flat_map(|_| {
            let id = exec();
            topics.map(|topic| (id.clone(), topic))
        })
        .collect();
    for (id, topic) in wanted {
        let event = next(Duration::from_secs(20)).expect("an event is missing");
        let exec =
            if topic == "/tasks/exit" { &event["event"]["id"] } else { &event["event"]["exec_id"] };
        assert_eq!((event["topic"].as_str(), exec.as_str()), (Some(topic), Some(id.as_str())));
    }
    rig.remove("a");
}

#[test]
fn top_shows_what_is_used() {
    let rig = Rig::new();
    rig.run("busy", &["sh", "-c", "while :; do :; done"]);
    rig.run("idle", &["sleep", "1000"]);
    let text = succeeds(&["top", "--batch", "--count", "2", "--interval", "1"]);
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let cpu = |name: &str| -> f64 {
        rows.iter().rfind(|row| row.first() == Some(&name)).unwrap()[2].parse().unwrap()
    };
    assert!(cpu("busy") > 5.0 && cpu("idle") < 5.0, "{text}");
    let refused = output(&["top", "--interval", "0"]);
    assert!(stderr(&refused).contains("at least 0.1"), "{}", stderr(&refused));
    // On a terminal: q ends it, and the screen is as before.
    let mut screen = Terminal::sized(cleat(&["top", "--interval", "0.3"]), 150, 40);
    screen.read_until("busy");
    screen.write(b"mq");
    let (seen, status) = screen.end();
    assert!(status.success() && seen.contains("\x1b[?1049l"), "the screen was not given back");
    rig.remove("busy");
    rig.remove("idle");
}

/// Makes a file look as if it had been there for long.
fn age(path: &Path) {
    assert!(
        Command::new("touch")
            .args(["-h", "-d", "1 hour ago"])
            .arg(path)
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn the_end_of_a_pipe_is_no_failure_and_help_has_examples() {
    let mut child =
        cleat(&["metrics"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    for command in ["ps", "inspect", "top", "events", "doctor", "gc", "run", "install", "metrics"] {
        assert!(succeeds(&[command, "--help"]).contains("Examples:"), "{command}");
        assert!(succeeds(&["generate", "completion", "bash"]).contains(command));
    }
    let place = Place::new("man");
    succeeds(&["generate", "man", place.dir.to_str().unwrap()]);
    assert!(read_all(place.dir.join("cleat-gc.1")).contains("nobody listens on it"));
}
