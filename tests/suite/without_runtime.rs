//! What the shim does of a container's life without its runtime: start, pause, resume, kill,
//! delete. Afterwards all is as the runtime would have left it, and the runtime agrees at each
//! step.

use crate::support::{
    self, CLEAT, Direct, Rig, alive, bundle_beside, is_unified, kill, oci_runtime, process,
    read_all, script, signal, text, until,
};
use cleat::protocol::{
    Any, Empty,
    options::{OPTIONS_URL, Options},
    task as api,
};
use prost::Message;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A container beside another one, with a runtime of its own that can be taken away.
struct Lone {
    rig: Rig,
    direct: Direct,
    runtime: PathBuf,
    init: u32,
}

/// A file like `original` that is nobody else's.
fn copy_of(original: &str, to: &Path) {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {original}")]).output().unwrap();
    let found = fs::canonicalize(String::from_utf8(found.stdout).unwrap().trim()).unwrap();
    fs::copy(found, to).unwrap();
}

impl Lone {
    /// Created, not started.
    fn new(change: impl FnOnce(&mut Value)) -> Self {
        let rig = Rig::new();
        rig.run_with(&["--runtime", CLEAT], "a", &["sleep", "1000"]);
        let mut direct = rig.direct("a");
        let bundle = bundle_beside(&rig, |config| {
            config["process"]["args"] = json!(["sleep", "1000"]);
            change(config);
        });
        let name = if oci_runtime() == "crun" { "crun" } else { "its-runc" };
        let runtime = rig.dir.join(name);
        copy_of("runc", &runtime);
        let init = create(&mut direct, &bundle, &runtime).unwrap();
        Self { rig, direct, runtime, init }
    }

    fn root(&self) -> PathBuf {
        Path::new("/run/containerd/runc").join(&self.rig.namespace)
    }

    fn record(&self) -> PathBuf {
        self.root().join("b")
    }

    /// From now on whoever runs it is noticed, and fails.
    fn take_runtime_away(&self) {
        fs::remove_file(&self.runtime).unwrap();
        let name = self.runtime.file_name().unwrap().to_str().unwrap();
        script(
            &self.rig,
            name,
            &format!("echo \"$*\" >> {}; exit 1", text(&self.rig.dir.join("calls"))),
        );
    }

    fn calls(&self) -> String {
        read_all(self.rig.dir.join("calls"))
    }

    /// The runtime's own word on the container.
    fn status(&self) -> Option<String> {
        let output =
            Command::new("runc").arg("--root").arg(self.root()).args(["state", "b"]).output();
        let state: Value = serde_json::from_slice(&output.unwrap().stdout).ok()?;
        let listed =
            Command::new("runc").arg("--root").arg(self.root()).args(["list", "-q"]).output();
        assert!(String::from_utf8(listed.unwrap().stdout).unwrap().lines().any(|id| id == "b"));
        state["status"].as_str().map(str::to_owned)
    }

    fn start(&mut self) -> Result<u32, String> {
        let started = self.direct.call::<api::PidResponse>("Start", &process("b", ""));
        started.map(|started| started.pid).map_err(|status| status.message)
    }

    fn delete(&mut self) -> Result<(), String> {
        let deleted = self.direct.call::<api::DeleteResponse>("Delete", &process("b", ""));
        deleted.map(drop).map_err(|status| status.message)
    }

    fn call(&mut self, method: &str) {
        self.direct.call::<Empty>(method, &api::ContainerRequest { id: "b".into() }).unwrap();
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let mut all = self.rig.cgroups();
        all.retain(|path| path.ends_with("b"));
        all
    }

    fn end(self) {
        self.rig.remove("a");
    }
}

fn create(direct: &mut Direct, bundle: &Path, runtime: &Path) -> Result<u32, String> {
    let options = Options { binary_name: text(runtime), ..Options::default() };
    let request = api::CreateTaskRequest {
        id: "b".into(),
        bundle: text(bundle),
        options: Some(Any { type_url: OPTIONS_URL.into(), value: options.encode_to_vec() }),
        ..api::CreateTaskRequest::default()
    };
    let created = direct.call::<api::PidResponse>("Create", &request);
    created.map(|created| created.pid).map_err(|status| status.message)
}

/// All files of a place, and all mounts and cgroups of the machine.
fn inventory(rig: &Rig) -> Vec<String> {
    let find = |place: &Path| {
        let output =
            Command::new("find").arg(place).args(["-printf", "%p %y %m\n"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut all = find(&Path::new("/run/containerd/runc").join(&rig.namespace));
    all += &find(&rig.dir.join("b"));
    // Numbers of mounts differ.
    let mounts = read_all("/proc/self/mountinfo");
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.for_each(|point| all += &format!("mount {point}\n"));
    rig.cgroups().iter().for_each(|cgroup| all += &find(cgroup));
    let mut lines: Vec<String> = all.lines().map(str::to_owned).collect();
    // The kernel's and the shim's own files come and go.
    lines.retain(|line| line.contains(&*rig.namespace) || line.contains(&*text(&rig.dir)));
    lines.sort();
    lines
}

#[test]
fn a_whole_life_has_one_call_of_the_runtime() {
    let mut lone = Lone::new(|_| {});
    assert_eq!(lone.status().as_deref(), Some("created"));
    lone.take_runtime_away();
    assert_eq!(lone.start(), Ok(lone.init));
    assert_eq!(lone.status().as_deref(), Some("running"));
    until("it is its program", || {
        support::cmdline(lone.init).first().is_some_and(|word| word == "sleep")
    });
    assert!(lone.start().is_err(), "twice");
    lone.call("Pause");
    assert_eq!(lone.status().as_deref(), Some("paused"));
    lone.call("Resume");
    assert_eq!(lone.status().as_deref(), Some("running"));
    let request =
        api::KillRequest { id: "b".into(), exec_id: String::new(), signal: 9, all: is_unified() };
    lone.direct.call::<Empty>("Kill", &request).unwrap();
    let waited: api::WaitResponse = lone.direct.call("Wait", &process("b", "")).unwrap();
    assert_eq!(waited.exit_status, 137);
    assert_eq!(lone.status().as_deref(), Some("stopped"));
    // As a systemd in it makes them.
    let nested: Vec<PathBuf> = lone.cgroups().iter().map(|cgroup| cgroup.join("x/y")).collect();
    assert!(!nested.is_empty());
    nested.iter().for_each(|nested| fs::create_dir_all(nested).unwrap());
    lone.delete().unwrap();
    assert_eq!(lone.status(), None);
    assert!(!lone.record().exists() && lone.cgroups().is_empty(), "{:?}", lone.cgroups());
    assert_eq!(lone.calls(), "");
    lone.end();
}

#[test]
fn what_is_left_is_what_the_runtime_leaves() {
    let left = |by_runtime: bool| {
        let mut lone = Lone::new(|_| {});
        let before = inventory(&lone.rig).len();
        lone.start().unwrap();
        signal(&mut lone.direct, "b", "", 9).unwrap();
        let waited: api::WaitResponse = lone.direct.call("Wait", &process("b", "")).unwrap();
        assert_eq!(waited.exit_status, 137);
        if by_runtime {
            let delete =
                Command::new("runc").arg("--root").arg(lone.root()).args(["delete", "b"]).status();
            assert!(delete.unwrap().success());
        }
        lone.delete().unwrap();
        let own = lone.rig.namespace.clone();
        let left = inventory(&lone.rig);
        assert!(left.len() < before);
        lone.end();
        left.into_iter().map(|line| line.replace(&own, "NS")).collect::<Vec<_>>()
    };
    assert_eq!(left(false), left(true));
}

#[test]
fn a_runtime_that_is_a_script_is_called_each_time() {
    let rig = Rig::new();
    let log = rig.dir.join("calls");
    let flags = rig.runtime_script(&format!("echo \"$*\" >> {}", text(&log)));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    rig.run_with(&flags, "a", &["sleep", "1000"]);
    rig.ctr(["task", "pause", "a"]);
    rig.ctr(["task", "resume", "a"]);
    rig.remove("a");
    if !support::is_go() {
        let calls = read_all(log);
        for verb in ["create", "start", "pause", "resume", "delete"] {
            assert!(
                calls.lines().any(|line| line.split(' ').any(|word| word == verb)),
                "{verb}: {calls}"
            );
        }
    }
}

#[test]
fn hooks_after_the_start_and_after_the_end_run() {
    let hook = |lines: &Path, name: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo {name} >> {}", text(lines))]}]);
    let lines = std::env::temp_dir().join(format!("cleat-test-{}-hooks", std::process::id()));
    let mut lone = Lone::new(|config| {
        config["hooks"] =
            json!({"poststart": hook(&lines, "poststart"), "poststop": hook(&lines, "poststop")});
    });
    lone.start().unwrap();
    assert_eq!(read_all(&lines), "poststart\n");
    signal(&mut lone.direct, "b", "", 9).unwrap();
    let _: api::WaitResponse = lone.direct.call("Wait", &process("b", "")).unwrap();
    lone.delete().unwrap();
    assert_eq!(read_all(&lines), "poststart\npoststop\n");
    fs::remove_file(&lines).unwrap();
    lone.end();
}

#[test]
fn what_is_unknown_in_a_record_is_the_runtimes() {
    let mut lone = Lone::new(|_| {});
    lone.start().unwrap();
    fs::write(lone.record().join("of-a-newer-version"), "").unwrap();
    signal(&mut lone.direct, "b", "", 9).unwrap();
    let _: api::WaitResponse = lone.direct.call("Wait", &process("b", "")).unwrap();
    lone.delete().unwrap();
    assert!(!lone.record().exists() && lone.cgroups().is_empty());
    lone.end();
}

#[test]
fn an_init_that_died_before_its_start_is_not_started() {
    let mut lone = Lone::new(|_| {});
    kill(lone.init, libc::SIGKILL);
    until("it is dead", || !alive(lone.init));
    let error = lone.start().unwrap_err();
    assert!(
        error.contains("stopped") || error.contains("not running") || error.contains("state"),
        "{error}"
    );
    lone.delete().unwrap();
    assert!(!lone.record().exists() && lone.cgroups().is_empty());
    lone.end();
}

#[test]
fn an_init_that_dies_while_it_is_started_is_told() {
    for _ in 0..10 {
        let mut lone = Lone::new(|_| {});
        kill(lone.init, libc::SIGSTOP);
        lone.direct.send("Start", &process("b", ""));
        kill(lone.init, libc::SIGKILL);
        let (_, answer) = lone.direct.receive();
        // Whether it came to its program first is a matter of luck.
        drop(answer);
        let waited: api::WaitResponse = lone.direct.call("Wait", &process("b", "")).unwrap();
        assert_eq!(waited.exit_status, 137);
        lone.delete().unwrap();
        assert!(!lone.record().exists() && lone.cgroups().is_empty());
        lone.end();
    }
}

#[test]
fn somebody_else_may_have_started_it() {
    let mut lone = Lone::new(|_| {});
    let root = lone.root();
    assert!(
        Command::new("runc")
            .arg("--root")
            .arg(&root)
            .args(["start", "b"])
            .status()
            .unwrap()
            .success()
    );
    // The runtime's words.
    assert!(lone.start().is_err());
    signal(&mut lone.direct, "b", "", 9).unwrap();
    assert_eq!(wait_for(&mut lone.direct), 137);
    lone.delete().unwrap();
    assert!(!lone.record().exists() && lone.cgroups().is_empty());
    lone.end();
}

fn wait_for(direct: &mut Direct) -> u32 {
    let waited: api::WaitResponse = direct.call("Wait", &process("b", "")).unwrap();
    waited.exit_status
}

#[test]
fn the_runtime_pauses_and_resumes_what_we_have_started_and_we_what_it_has_paused() {
    let mut lone = Lone::new(|_| {});
    lone.start().unwrap();
    let root = lone.root();
    let runc = |word: &str| {
        assert!(
            Command::new("runc")
                .arg("--root")
                .arg(&root)
                .args([word, "b"])
                .status()
                .unwrap()
                .success()
        );
    };
    lone.direct.call::<Empty>("Pause", &api::ContainerRequest { id: "b".into() }).unwrap();
    runc("resume");
    runc("pause");
    lone.direct.call::<Empty>("Resume", &api::ContainerRequest { id: "b".into() }).unwrap();
    assert_eq!(lone.status().as_deref(), Some("running"));
    // By itself, by the kernel's own word.
    let frozen = lone.direct.call::<Empty>("Pause", &api::ContainerRequest { id: "b".into() });
    frozen.unwrap();
    signal(&mut lone.direct, "b", "", 9).unwrap();
    assert_eq!(wait_for(&mut lone.direct), 137);
    lone.delete().unwrap();
    assert!(!lone.record().exists() && lone.cgroups().is_empty());
    lone.end();
}

#[test]
fn what_is_being_born_does_not_keep_it_from_standing_still() {
    let mut lone = Lone::new(|config| {
        config["process"]["args"] = json!([
            "sh",
            "-c",
            "for i in 1 2 3 4; do while :; do (true); busybox true; done & done; wait"
        ]);
    });
    lone.start().unwrap();
    lone.take_runtime_away();
    for _ in 0..30 {
        lone.call("Pause");
        assert_eq!(lone.status().as_deref(), Some("paused"));
        lone.call("Resume");
    }
    lone.call("Pause");
    signal(&mut lone.direct, "b", "", 9).unwrap();
    assert_eq!(wait_for(&mut lone.direct), 137);
    lone.delete().unwrap();
    assert_eq!(lone.calls(), "");
    lone.end();
}
