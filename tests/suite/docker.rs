//! Docker's daemon on a private containerd, with cleat as its runtime. `./dev docker` installs what
//! they need and runs them.

use crate::support::{CLEAT, RUNC, Rig, image, kill, read_all, until};
use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Child, Command, Output, Stdio},
};

/// `dockerd`, or the one of CLEAT_TEST_DOCKERD.
fn dockerd() -> String {
    std::env::var("CLEAT_TEST_DOCKERD").unwrap_or_else(|_| "dockerd".to_owned())
}

/// Docker before 23 knows no shims by name but runc's; the rig has cleat under that name too.
fn runtime() -> &'static str {
    let output = Command::new(dockerd()).arg("--version").output().expect("dockerd is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = text
        .split_whitespace()
        .nth(2)
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if major.unwrap_or(0) < 23 { RUNC } else { CLEAT }
}

struct Docker {
    rig: Rig,
    daemon: Option<Child>,
}

impl Docker {
    fn new() -> Self {
        let rig = Rig::new();
        let mut docker = Self { rig, daemon: None };
        docker.start_daemon();
        docker.ok(&["load", "-q", "-i", image().to_str().unwrap()]);
        docker
    }

    /// dockerd in the place of the system's: nothing is shared with it.
    fn start_daemon(&mut self) {
        let dir = &self.rig.dir;
        let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
        fs::write(dir.join("daemon.json"), "{}").unwrap();
        let log =
            fs::File::options().create(true).append(true).open(dir.join("dockerd.log")).unwrap();
        let daemon = Command::new(dockerd())
            .args([
                "--containerd",
                &at("c.sock"),
                "--host",
                &format!("unix://{}", at("docker.sock")),
            ])
            .args(["--containerd-namespace", &self.rig.namespace])
            .args(["--containerd-plugins-namespace", &format!("{}-plugins", self.rig.namespace)])
            .args([
                "--data-root",
                &at("docker"),
                "--exec-root",
                &at("docker-exec"),
                "--pidfile",
                &at("docker.pid"),
            ])
            .args([
                "--bridge",
                "none",
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
            ])
            .args(["--cgroup-parent", &format!("/{}", self.rig.namespace), "--live-restore"])
            .args(["--config-file", &at("daemon.json"), "--storage-driver", "overlay2"])
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("dockerd is installed");
        self.daemon = Some(daemon);
        until("dockerd answers", || {
            if let Some(status) = self.daemon.as_mut().unwrap().try_wait().unwrap() {
                panic!("dockerd: {status}\n{}", read_all(self.rig.dir.join("dockerd.log")));
            }
            self.run(&["version"]).status.success()
        });
    }

    fn end_daemon(&mut self, signal: i32) {
        if let Some(mut daemon) = self.daemon.take() {
            kill(daemon.id(), signal);
            daemon.wait().unwrap();
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        let host = format!("unix://{}/docker.sock", self.rig.dir.display());
        command.args(["-k1", "60", "docker", "-H", &host]).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("docker is installed")
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "docker {arguments:?}: {stderr}\n{}",
            read_all(self.rig.dir.join("dockerd.log"))
                .lines()
                .rev()
                .take(10)
                .collect::<Vec<_>>()
                .join("\n")
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `docker run` with flags, an image's name inserted.
    fn start(&self, name: &str, flags: &[&str], command: &[&str]) -> String {
        let run = ["run", "--runtime", runtime(), "--network", "none", "--name", name];
        self.ok(&[&run, flags, &["busybox"], command].concat())
    }

    fn inspect(&self, name: &str, field: &str) -> String {
        self.ok(&["inspect", "-f", &format!("{{{{{field}}}}}"), name]).trim().to_owned()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon
            && daemon.try_wait().unwrap().is_none()
        {
            let names = self.run(&["ps", "-aq"]);
            for name in String::from_utf8_lossy(&names.stdout).lines() {
                self.run(&["rm", "-f", name]);
            }
        }
        if std::thread::panicking() {
            eprintln!("dockerd: {}", read_all(self.rig.dir.join("dockerd.log")));
        }
        self.end_daemon(libc::SIGTERM);
    }
}

#[test]
#[ignore = "needs dockerd: ./dev docker"]
fn run_gives_output_and_exit_status() {
    let docker = Docker::new();
    let output = docker.run(&[
        "run",
        "--rm",
        "--runtime",
        runtime(),
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
    // Each life once more, from the inside.
    for code in [0, 1, 127, 255] {
        let script = format!("exit {code}");
        let output = docker.run(&[
            "run",
            "--rm",
            "--runtime",
            runtime(),
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            &script,
        ]);
        assert_eq!(output.status.code(), Some(code));
    }
}

#[test]
#[ignore = "needs dockerd: ./dev docker"]
fn exec_with_and_without_input() {
    let docker = Docker::new();
    docker.start("one", &["-d"], &["sleep", "1000"]);
    assert_eq!(docker.ok(&["exec", "one", "echo", "hello"]), "hello\n");
    assert_eq!(docker.run(&["exec", "one", "sh", "-c", "exit 9"]).status.code(), Some(9));
    assert!(!docker.run(&["exec", "one", "/nope"]).status.success());
    let mut child = docker
        .command(&["exec", "-i", "one", "wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &vec![b'x'; 1 << 20]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), (1 << 20).to_string());
    assert!(docker.ok(&["top", "one"]).contains("sleep 1000"));
}

#[test]
#[ignore = "needs dockerd: ./dev docker"]
fn logs_follow_and_attach() {
    let docker = Docker::new();
    docker.start(
        "one",
        &["-d"],
        &["sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done"],
    );
    assert_eq!(docker.ok(&["logs", "-f", "one"]), "line 1\nline 2\nline 3\nline 4\nline 5\n");
    docker.start("two", &["-d", "-i"], &["sh", "-c", "read x; echo got $x; exit 3"]);
    let mut child = docker
        .command(&["attach", "two"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Kept open: docker detaches when its stdin ends.
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"something\n").unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "got something\n");
    assert_eq!(docker.ok(&["wait", "two"]).trim(), "3");
}

#[test]
#[ignore = "needs dockerd: ./dev docker"]
fn stop_kill_pause_and_remove() {
    let docker = Docker::new();
    docker.start("one", &["-d"], &["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done"]);
    docker.ok(&["stop", "-t", "10", "one"]);
    assert_eq!(docker.inspect("one", ".State.ExitCode"), "5");
    docker.ok(&["start", "one"]);
    docker.ok(&["pause", "one"]);
    assert_eq!(docker.inspect("one", ".State.Status"), "paused");
    docker.ok(&["unpause", "one"]);
    docker.ok(&["kill", "one"]);
    until("it has exited", || docker.inspect("one", ".State.Status") == "exited");
    assert_eq!(docker.inspect("one", ".State.ExitCode"), "137");
    docker.ok(&["rm", "one"]);
}

#[test]
#[ignore = "needs dockerd: ./dev docker"]
fn restart_policy_and_healthcheck() {
    let docker = Docker::new();
    docker.start("one", &["-d", "--restart", "on-failure:3"], &["sh", "-c", "exit 4"]);
    until("it was restarted", || docker.inspect("one", ".RestartCount") == "3");
    until("it has exited", || docker.inspect("one", ".State.Status") == "exited");
    assert_eq!(docker.inspect("one", ".State.ExitCode"), "4");
    let check = [
        "-d",
        "--health-cmd",
        "test -e /healthy",
        "--health-interval",
        "200ms",
        "--health-retries",
        "2",
    ];
    docker.start("two", &check, &["sleep", "1000"]);
    until("it is unhealthy", || docker.inspect("two", ".State.Health.Status") == "unhealthy");
    docker.ok(&["exec", "two", "touch", "/healthy"]);
    until("it is healthy", || docker.inspect("two", ".State.Health.Status") == "healthy");
}

#[test]
#[ignore = "needs dockerd: ./dev docker"]
fn stats_and_the_oom_flag() {
    let docker = Docker::new();
    docker.start("one", &["-d", "-m", "64m"], &["sleep", "1000"]);
    let stats = docker.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "one"]);
    assert!(stats.contains("/ 64MiB") && stats.trim().ends_with(" 1"), "{stats}");
    docker.start(
        "two",
        &["-d", "-m", "16m", "--memory-swap", "16m"],
        &["sh", "-c", "tail /dev/zero"],
    );
    until("it has exited", || docker.inspect("two", ".State.Status") == "exited");
    assert_eq!(docker.inspect("two", ".State.OOMKilled"), "true");
}

#[test]
#[ignore = "needs dockerd: ./dev docker"]
fn live_restore_keeps_containers_over_a_restart_of_the_daemon() {
    let mut docker = Docker::new();
    docker.start(
        "one",
        &["-d"],
        &["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"],
    );
    let pid = docker.inspect("one", ".State.Pid");
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        docker.end_daemon(signal);
        let _ = fs::remove_file(docker.rig.dir.join("docker.pid"));
        docker.start_daemon();
        assert_eq!(docker.inspect("one", ".State.Pid"), pid);
        assert_eq!(docker.inspect("one", ".State.Status"), "running");
        assert_eq!(docker.ok(&["exec", "one", "echo", "alive"]), "alive\n");
    }
    let before = docker.ok(&["logs", "one"]).lines().count();
    until("its output goes on", || docker.ok(&["logs", "one"]).lines().count() > before);
    let lines: Vec<u64> =
        docker.ok(&["logs", "one"]).lines().map(|line| line.parse().unwrap()).collect();
    assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1), "no line is missing");
    docker.ok(&["kill", "one"]);
}
