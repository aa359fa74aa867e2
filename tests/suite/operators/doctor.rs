//! `cleat doctor`: each thing is broken on purpose.

use super::{age, cleat, output, stdout, succeeds};
use crate::support::{self, Rig, containerd_binary, kill, until};
use cleat::protocol::Empty;
use serde_json::Value;
use std::{
    os::unix::{fs::OpenOptionsExt, net::UnixListener},
    process::{Command, Stdio},
};

/// A doctor for one rig.
pub(super) struct Doctor(Vec<String>);

impl Doctor {
    pub(super) fn of(rig: &Rig) -> Self {
        let path = |name: &str| rig.dir.join(name).to_string_lossy().into_owned();
        let words = [
            "doctor",
            "-o",
            "json",
            "--config",
            &path("config.toml"),
            "--address",
            &path("c.sock"),
            "--state",
            &path("state"),
            "--sockets",
            &path("s"),
        ];
        Self(words.map(str::to_owned).to_vec())
    }

    fn words(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }

    /// What it says of one thing; its exit status is that of the worst.
    pub(super) fn says(&self, what: &str) -> Value {
        let output = output(&self.words());
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = stdout(&output);
        let worst = match () {
            () if text.contains("\"broken\"") => 2,
            () if text.contains("\"warning\"") || text.contains("\"unknown\"") => 1,
            () => 0,
        };
        assert_eq!(output.status.code(), Some(worst), "{all}");
        let check = all
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["what"] == what)
            .cloned()
            .unwrap_or_default();
        // Each line that is not well says what to do.
        assert!(
            check["state"] == "ok" || check["remedy"].is_string() || check.is_null(),
            "{check}"
        );
        check
    }

    pub(super) fn is(&self, what: &str, state: &str, found: &str) {
        let check = self.says(what);
        assert!(
            check["state"] == state && check["found"].as_str().unwrap().contains(found),
            "{check}"
        );
    }
}

#[test]
fn doctor_names_what_is_wrong_and_what_to_do() {
    let mut rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let doctor = Doctor::of(&rig);
    let all = [
        "user",
        "kernel",
        "pidfd",
        "cgroups",
        "shim",
        "runc",
        "containerd",
        "socket",
        "files",
        "handler",
        "containers",
        "orphans",
    ];
    for what in all {
        assert_eq!(doctor.says(what)["state"], "ok", "{what}: {}", doctor.says(what));
    }
    doctor.is("socket", "ok", "answers");
    let sockets = rig.dir.join("s");
    std::fs::create_dir(&sockets).unwrap();
    drop(UnixListener::bind(sockets.join("dead")).unwrap());
    age(&sockets.join("dead"));
    assert!(doctor.says("orphans")["remedy"].as_str().unwrap().contains("cleat gc"));
    // The limit of a running process, which its service's file does not tell.
    let limit = |limit: &str| {
        let pid = rig.containerd_pid().to_string();
        assert!(
            Command::new("prlimit")
                .args(["--pid", &pid, &format!("--nofile={limit}")])
                .status()
                .unwrap()
                .success()
        );
    };
    limit("256:20000");
    doctor.is("files", "ok", "256");
    assert!(doctor.says("files")["remedy"].as_str().unwrap().contains("LimitNOFILE"));
    limit("256:256");
    doctor.is("files", "warning", "256");
    // A program that is there and does not run; containerd's PATH counts, not ours.
    let program = rig.dir.join("bin/containerd-shim-cleat-v2");
    std::fs::remove_file(&program).unwrap();
    support::script(&rig, "bin/containerd-shim-cleat-v2", "echo out of order >&2; exit 1");
    doctor.is("shim", "broken", "out of order");
    std::fs::remove_file(&program).unwrap();
    std::os::unix::fs::symlink(support::shim_binary(), &program).unwrap();
    doctor.is("shim", "ok", "bin/containerd-shim-cleat-v2");
    // Stopped is not dead: connect(2) succeeds.
    support::stop(rig.containerd_pid());
    doctor.is("socket", "broken", "no answer");
    kill(rig.containerd_pid(), libc::SIGCONT);
    until("it answers again", || doctor.says("socket")["state"] == "ok");
    rig.end_containerd(libc::SIGTERM);
    doctor.is("socket", "warning", "c.sock");
    until("shims are alone", || doctor.says("connection")["state"] == "warning");
    let config = rig.dir.join("config.toml");
    let kept = std::fs::read(&config).unwrap();
    std::fs::write(&config, "version = ").unwrap();
    assert_eq!(doctor.says("handler")["state"], "broken");
    std::fs::write(&config, kept).unwrap();
    // A container whose shim has died while containerd was away.
    kill(rig.shim(), libc::SIGKILL);
    until("the container is seen without a shim", || {
        doctor.says("containers")["state"] == "warning"
    });
    doctor.is("containers", "warning", &format!("{}/a", rig.namespace));
    rig.start_containerd();
    until("containerd has cleared up", || doctor.says("containers")["state"] == "ok");
    rig.ctr(["container", "delete", "a"]);
}

#[test]
fn doctor_asks_the_containerd_that_runs_for_its_handlers() {
    // With the CRI plugin.
    let mut rig = Rig::with_config(&containerd_binary(), None, |dir| {
        format!("[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{}/opt\"\n", dir.display())
    });
    let doctor = Doctor::of(&rig);
    let config = rig.dir.join("config.toml");
    let install = |more: &[&str]| {
        let words =
            ["install", "--containerd", &containerd_binary(), "--config", config.to_str().unwrap()];
        succeeds(&[&words, more].concat())
    };
    until("the CRI plugin answers", || {
        doctor.says("handler")["found"].as_str().unwrap().contains("cleat install makes one")
    });
    assert_eq!(doctor.says("handler")["state"], "ok", "who has no pods is well, too");
    install(&["--write"]);
    doctor.is("handler", "warning", "does not know it");
    assert!(doctor.says("handler")["remedy"].as_str().unwrap().contains("restart containerd"));
    rig.end_containerd(libc::SIGTERM);
    rig.start_containerd();
    until("it knows it", || doctor.says("handler")["state"] == "ok");
    doctor.is("handler", "ok", "cleat (io.containerd.cleat.v2); the default is runc");
    install(&["--write", "--as-default"]);
    doctor.is("handler", "warning", "default is \"runc\", the file's \"cleat\"");
    install(&["--undo"]);
    doctor.is("handler", "warning", "the file has not");
    if rig.is_older_than_2() {
        // As README.md told once.
        let text = std::fs::read_to_string(&config).unwrap();
        let alone = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.cleat]\nruntime_type = \"io.containerd.cleat.v2\"\n";
        std::fs::write(&config, format!("{text}{alone}")).unwrap();
        doctor.is("handler", "broken", "CRI plugin does not start");
        // As README.md tells for containerd 2; and above the line `version`, which is another
        // table's then.
        let newer = alone.replace("grpc.v1.cri", "cri.v1.runtime");
        for wrong in [format!("{text}{newer}"), format!("{alone}{text}")] {
            std::fs::write(&config, wrong).unwrap();
            doctor.is("handler", "warning", "does not look for it");
        }
        // It stands so still: nothing is added to it.
        let words = [
            "install",
            "--containerd",
            &containerd_binary(),
            "--config",
            config.to_str().unwrap(),
            "--write",
        ];
        let refused = output(&words);
        assert!(
            !refused.status.success() && super::stderr(&refused).contains("above all tables"),
            "{refused:?}"
        );
        std::fs::write(
            &config,
            format!("{text}# {newer}").replace("\nruntime_type", "\n# runtime_type"),
        )
        .unwrap();
        assert!(
            !doctor.says("handler")["found"].as_str().unwrap().contains("does not look for it")
        );
        std::fs::write(
            &config,
            format!("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n{text}"),
        )
        .unwrap();
        doctor.is("handler", "warning", "switches the CRI plugin off");
    }
}

#[test]
fn doctor_sees_what_hangs_and_what_waits() {
    let mut rig = Rig::new();
    let hold = rig.dir.join("hold");
    std::fs::write(&hold, "").unwrap();
    let flags = rig.runtime_script(&format!(
        "case \" $* \" in *' exec '*' slow'*|*slow*) while [ -e {} ]; do sleep 0.2; done;; esac",
        hold.display()
    ));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    rig.run_with(&flags, "a", &["sleep", "1000"]);
    let doctor = Doctor::of(&rig);
    for what in ["calls", "events", "spools", "shims"] {
        assert_eq!(doctor.says(what)["state"], "ok", "{}", doctor.says(what));
    }
    let mut direct = rig.direct("a");
    // Output that nobody reads.
    let fifo = rig.dir.join("unread");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _reader =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
    let mut loud = support::exec_request("a", "loud", &support::process_spec(&["seq", "100000"]));
    loud.stdout = fifo.to_string_lossy().into_owned();
    direct.call::<Empty>("Exec", &loud).unwrap();
    support::start(&mut direct, "loud");
    until("the spool is seen", || doctor.says("spools")["state"] == "warning");
    support::stop(rig.containerd_pid());
    // An exit that nobody takes, and a call that does not end.
    direct
        .call::<Empty>(
            "Exec",
            &support::exec_request("a", "slow", &support::process_spec(&["true"])),
        )
        .unwrap();
    direct.send("Start", &support::process("a", "slow"));
    let shim = rig.shim().to_string();
    until("an event waits", || doctor.says("events")["state"] == "warning");
    // From 30 s on.
    support::until_within(2 * support::LONG, "the call is seen", || {
        doctor.says("calls")["state"] == "warning"
    });
    doctor.is("calls", "warning", "Start of a");
    doctor.is("calls", "warning", &shim);
    kill(rig.containerd_pid(), libc::SIGCONT);
    support::stop(rig.shim());
    doctor.is("shims", "warning", &shim);
    kill(rig.shim(), libc::SIGCONT);
    std::fs::remove_file(&hold).unwrap();
    until("all is well again", || {
        ["calls", "events"].iter().all(|what| doctor.says(what)["state"] == "ok")
    });
    support::wait(&mut direct, "loud");
    rig.end_containerd(libc::SIGTERM);
    rig.start_containerd();
    rig.remove("a");
}

#[test]
fn doctor_counts_what_root_has_left_of_inotify() {
    let file = std::env::temp_dir().join(format!("cleat-test-{}-inotify", std::process::id()));
    std::fs::write(&file, "3\n").unwrap();
    let program = cleat(&[]);
    // An instance of ours; the figure of the kernel stays what it is for all others.
    let script = "mount --make-rprivate / && mount --bind \"$1\" /proc/sys/fs/inotify/max_user_instances && exec \"$0\" doctor -o json";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(program.get_program())
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let check = all.as_array().unwrap().iter().find(|check| check["what"] == "inotify").unwrap();
    assert!(
        check["state"] == "warning"
            && check["remedy"].as_str().unwrap().contains("max_user_instances"),
        "{check}"
    );
}
