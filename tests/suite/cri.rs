//! Kubernetes' side: pods through the CRI plugin, by crictl. `./dev cri PEERS` runs them, one after
//! the other.

use crate::{
    streams,
    support::{Rig, alive, containerd_binary, image, kill, read_all, shim_binary, until},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const IMAGE: &str = "docker.io/library/busybox:latest";
const PAUSE: &str = "localhost/pause:1";

struct Cri {
    rig: Rig,
    crictl: PathBuf,
}

/// The pods' cgroup.
const CGROUP: &str = "cleat-test-cri";

impl Drop for Cri {
    fn drop(&mut self) {
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(CGROUP));
        }
    }
}

/// A pod's parts: host's or pod's namespaces and the like.
#[derive(Default)]
struct Pod<'a> {
    handler: &'a str,
    linux: Value,
}

fn config(dir: &Path) -> String {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    format!(
        "[{cri}]\nsandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\ndisable_apparmor = true\n\
         [{cri}.cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{0}/cni\"\n\
         [{cri}.containerd]\ndefault_runtime_name = \"runc\"\n\
         [{cri}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\nruntime_path = \"{1}\"\n\
         [{cri}.containerd.runtimes.cleat]\nruntime_type = \"io.containerd.cleat.v2\"\n\
         [{cri}.containerd.runtimes.cleat.options]\nConfigPath = \"{0}/options.toml\"\n\
         [{cri}.containerd.runtimes.direct]\nruntime_type = \"io.containerd.cleat.v2\"\n\
         [{cri}.containerd.runtimes.direct.options]\nConfigPath = \"{0}/direct.toml\"\n\
         [{cri}.containerd.runtimes.body]\nruntime_type = \"io.containerd.cleat.v2\"\n\
         [{cri}.containerd.runtimes.body.options]\nBinaryName = \"{0}/oci\"\n",
        dir.display(),
        dir.join("bin/containerd-shim-cleat-v2").display(),
    )
}

impl Cri {
    fn new() -> Self {
        let crictl =
            std::env::var_os("CLEAT_TEST_CRICTL").expect("CLEAT_TEST_CRICTL names crictl").into();
        let rig = Rig::with_config(&containerd_binary(), Some("k8s.io"), |dir| {
            // A pod's network: a pair of interfaces, nothing that outlives it.
            let network = json!({
                "cniVersion": "0.4.0", "name": "cleat",
                "plugins": [{"type": "ptp", "ipMasq": false, "ipam": {
                    "type": "host-local", "dataDir": dir.join("ipam"), "ranges": [[{"subnet": "10.88.77.0/24"}]]}}],
            });
            fs::create_dir_all(dir.join("cni")).unwrap();
            fs::write(dir.join("cni/10-cleat.conflist"), network.to_string()).unwrap();
            // Seen to be called: containerd hands the options over as TOML.
            fs::write(
                dir.join("options.toml"),
                format!("BinaryName = '{}/oci'\nSpool = '256Mi'\n", dir.display()),
            )
            .unwrap();
            fs::write(dir.join("direct.toml"), "Spool = 'direct'\n").unwrap();
            fs::write(
                dir.join("oci"),
                format!("#!/bin/sh\ntouch {}/oci-called\nexec runc \"$@\"\n", dir.display()),
            )
            .unwrap();
            fs::set_permissions(dir.join("oci"), fs::Permissions::from_mode(0o755)).unwrap();
            config(dir)
        });
        assert!(shim_binary().exists());
        let pause = rig.dir.join("pause.tar");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/image");
        let made = Command::new(script)
            .arg(&pause)
            .args([PAUSE, r#"["sleep","1000000"]"#])
            .status()
            .unwrap();
        assert!(made.success());
        for tar in [pause, image()] {
            rig.ctr(["image", "import", "--no-unpack", tar.to_str().unwrap()]);
        }
        let cri = Self { rig, crictl };
        until("the CRI plugin and its network are ready", || {
            let info = cri.run(&["info"]);
            info.status.success()
                && String::from_utf8_lossy(&info.stdout).matches("\"status\": true").count() >= 2
        });
        cri
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let endpoint = format!("unix://{}/c.sock", self.rig.dir.display());
        let mut command = Command::new("timeout");
        command.args(["-k1", "60"]).arg(&self.crictl).args([
            "-c",
            "/dev/null",
            "-r",
            &endpoint,
            "-i",
            &endpoint,
        ]);
        command.args(["-t", "30s"]).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "crictl {arguments:?}: {stderr}\n{}", self.log_tail());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn log_tail(&self) -> String {
        let log = self.rig.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn file(&self, name: &str, content: &Value) -> String {
        let path = self.rig.dir.join(name);
        fs::write(&path, content.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn pod_config(&self, name: &str, pod: &Pod<'_>) -> String {
        let logs = self.rig.dir.join("logs").join(name);
        fs::create_dir_all(&logs).unwrap();
        let mut linux = if pod.linux.is_null() { json!({}) } else { pod.linux.clone() };
        linux["cgroup_parent"] = json!(format!("/{CGROUP}"));
        let content = json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "default", "attempt": 0},
            "log_directory": logs, "hostname": name, "linux": linux,
        });
        self.file(&format!("{name}.pod.json"), &content)
    }

    fn pod(&self, name: &str, pod: &Pod<'_>) -> String {
        let config = self.pod_config(name, pod);
        let handler = if pod.handler.is_empty() { "runc" } else { pod.handler };
        self.ok(&["runp", "--runtime", handler, &config])
    }

    /// Creates and starts a container of a pod; `more` is laid over its configuration.
    fn container(
        &self,
        pod: &str,
        pod_name: &str,
        name: &str,
        script: &str,
        more: Value,
    ) -> String {
        let mut content = json!({
            "metadata": {"name": name, "attempt": 0}, "image": {"image": IMAGE},
            "command": ["sh", "-c", script], "log_path": format!("{name}.log"), "linux": {},
        });
        if let Value::Object(more) = more {
            for (key, value) in more {
                content[key] = value;
            }
        }
        let config = self.file(&format!("{name}.container.json"), &content);
        let pod_config = self.rig.dir.join(format!("{pod_name}.pod.json"));
        let id = self.ok(&["create", "--no-pull", pod, &config, pod_config.to_str().unwrap()]);
        self.ok(&["start", &id]);
        id
    }

    fn status(&self, id: &str) -> Value {
        serde_json::from_str::<Value>(&self.ok(&["inspect", id])).unwrap()["status"].clone()
    }

    fn until_exited(&self, id: &str) -> Value {
        until("the container exits", || self.status(id)["state"] == "CONTAINER_EXITED");
        self.status(id)
    }

    fn remove(&self, pod: &str) {
        self.ok(&["stopp", pod]);
        self.ok(&["rmp", pod]);
    }
}

#[test]
#[ignore = "needs crictl: ./dev cri"]
fn a_pod_by_each_handler_logs_exec_and_removal() {
    let cri = Cri::new();
    // By runtime_path; by a handler of its own with options in a file, and in containerd's
    // configuration.
    for handler in ["runc", "cleat", "body"] {
        let _ = fs::remove_file(cri.rig.dir.join("oci-called"));
        let pod = cri.pod(handler, &Pod { handler, ..Pod::default() });
        let id = cri.container(
            &pod,
            handler,
            "app",
            "echo started; trap 'exit 3' TERM; while :; do sleep 0.1; done",
            json!({}),
        );
        assert_eq!(cri.rig.shims().len(), 1, "one shim a pod");
        until("it logs", || cri.ok(&["logs", &id]) == "started");
        assert_eq!(cri.ok(&["exec", "-s", &id, "echo", "sync"]), "sync");
        assert_eq!(cri.ok(&["exec", &id, "echo", "streamed"]), "streamed");
        assert!(!cri.run(&["exec", "-s", &id, "sh", "-c", "exit 4"]).status.success());
        let slow = cri.run(&["exec", "-s", "--timeout", "1", &id, "sleep", "100"]);
        assert!(!slow.status.success());
        assert!(String::from_utf8_lossy(&slow.stderr).contains("timeout"), "{slow:?}");
        cri.ok(&["stop", "-t", "10", &id]);
        assert_eq!(cri.until_exited(&id)["exitCode"], 3);
        cri.ok(&["rm", &id]);
        let shim = cri.rig.shim();
        cri.remove(&pod);
        until("the shim ends", || !alive(shim));
        // Before 2.0, containerd sends nothing but a path.
        let expected = handler == "cleat" || handler == "body" && !cri.rig.is_older_than_2();
        assert_eq!(cri.rig.dir.join("oci-called").exists(), expected, "BinaryName of {handler}");
    }
}

#[test]
#[ignore = "needs crictl: ./dev cri"]
fn attach_and_port_forward() {
    let cri = Cri::new();
    let pod = cri.pod("web", &Pod::default());
    let listening = json!({"stdin": true});
    let id = cri.container(&pod, "web", "talk", "while read x; do echo got $x; done", listening);
    let mut attached = cri
        .command(&["attach", "-i", &id])
        .stdin(Stdio::piped())
        .stdout(fs::File::create(cri.rig.dir.join("attached")).unwrap())
        .spawn()
        .unwrap();
    let mut stdin = attached.stdin.take().unwrap();
    until("what was typed comes back", || {
        stdin.write_all(b"hello\n").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        read_all(cri.rig.dir.join("attached")).contains("got hello")
    });
    drop(stdin);
    kill(attached.id(), libc::SIGTERM);
    attached.wait().unwrap();

    cri.container(
        &pod,
        "web",
        "httpd",
        "mkdir /www; echo page > /www/index.html; exec httpd -f -h /www -p 8080",
        json!({}),
    );
    let mut forward =
        cri.command(&["port-forward", &pod, "18977:8080"]).stdout(Stdio::null()).spawn().unwrap();
    until("the page comes through the forwarded port", || {
        let page = Command::new("curl").args(["-s", "http://127.0.0.1:18977/"]).output().unwrap();
        page.stdout == b"page\n"
    });
    kill(forward.id(), libc::SIGTERM);
    forward.wait().unwrap();
    cri.remove(&pod);
}

#[test]
#[ignore = "needs crictl: ./dev cri"]
fn logs_are_rotated_without_a_gap() {
    let cri = Cri::new();
    let pod = cri.pod("log", &Pod::default());
    let id = cri.container(
        &pod,
        "log",
        "count",
        "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done",
        json!({}),
    );
    let log = cri.rig.dir.join("logs/log/count.log");
    let mut texts = Vec::new();
    for round in 0..3 {
        until("it has written", || read_all(&log).lines().count() > 20);
        let aside = log.with_extension(format!("log.{round}"));
        fs::rename(&log, &aside).unwrap();
        cri.ok(&["logs", "-r", &id]);
        until("the new file grows", || read_all(&log).lines().count() > 5);
        texts.push(read_all(&aside));
    }
    cri.ok(&["stop", "-t", "0", &id]);
    texts.push(read_all(&log));
    let numbers: Vec<u64> = texts
        .concat()
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no line is missing");
    cri.remove(&pod);
}

#[test]
#[ignore = "needs crictl: ./dev cri"]
fn stats_oom_reason_and_termination_message() {
    let cri = Cri::new();
    let pod = cri.pod("res", &Pod::default());
    let message = cri.rig.dir.join("termination");
    fs::write(&message, "").unwrap();
    let mounts = json!([{"container_path": "/dev/termination-log", "host_path": message}]);
    let id = cri.container(
        &pod,
        "res",
        "say",
        "echo -n why it ended > /dev/termination-log; exit 6",
        json!({"mounts": mounts}),
    );
    assert_eq!(cri.until_exited(&id)["exitCode"], 6);
    assert_eq!(read_all(&message), "why it ended");
    assert_eq!(cri.status(&id)["reason"], "Error");

    let limit = json!({"resources": {"memory_limit_in_bytes": 16 << 20, "memory_swap_limit_in_bytes": 16 << 20}});
    let id = cri.container(&pod, "res", "eat", "tail /dev/zero", json!({"linux": limit}));
    let status = cri.until_exited(&id);
    assert_eq!((&status["exitCode"], &status["reason"]), (&json!(137), &json!("OOMKilled")));

    let id = cri.container(&pod, "res", "idle", "sleep 1000", json!({}));
    let stats: Value =
        serde_json::from_str(&cri.ok(&["stats", "-o", "json", "--id", &id])).unwrap();
    let memory = &stats["stats"][0]["memory"]["workingSetBytes"]["value"];
    assert!(memory.as_str().is_some_and(|bytes| bytes.parse::<u64>().unwrap() > 0), "{stats}");
    cri.remove(&pod);
}

// containerd #9342, #11511. Defence: `io/copy/spool.rs`; its size comes from the handler's options.
// CLEAT_AWAY_SECONDS: for how long (4).
#[test]
#[ignore = "needs crictl: ./dev cri"]
fn scar_16_a_pod_that_logs_does_not_feel_that_containerd_stands_still() {
    let cri = Cri::new();
    let lines = streams::away().as_secs() * 100 + 200;
    let pod = cri.pod("talks", &Pod { handler: "cleat", ..Pod::default() });
    let id = cri.container(&pod, "talks", "app", &streams::megabyte_a_second(lines), json!({}));
    let root = format!("/proc/{}/root", cri.rig.init(&id));
    std::thread::sleep(std::time::Duration::from_millis(500));
    crate::support::stop(cri.rig.containerd_pid());
    std::thread::sleep(streams::away());
    kill(cri.rig.containerd_pid(), libc::SIGCONT);
    until("the container has written all", || !read_all(format!("{root}/slowest")).is_empty());
    let slowest: u64 = read_all(format!("{root}/slowest")).trim().parse().unwrap();
    fs::write(format!("{root}/leave"), "").unwrap();
    cri.until_exited(&id);
    let log = read_all(cri.rig.dir.join("logs/talks/app.log"));
    assert_eq!(
        streams::complaint(log.lines().map(|line| line.rsplit(' ').next().unwrap()), lines),
        None
    );
    assert!(slowest <= 5, "a write took {slowest} hundredths of a second");
    cri.remove(&pod);
}

#[test]
#[ignore = "needs crictl: ./dev cri"]
fn containerd_restarts_under_a_pod() {
    let mut cri = Cri::new();
    let count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";
    // A pid namespace for each container, as kubelet has it unless a pod shares one.
    let own_pids = json!({"security_context": {"namespace_options": {"pid": 1}}});
    let direct_pod = cri.pod("direct", &Pod { handler: "direct", linux: own_pids.clone() });
    let direct = cri.container(&direct_pod, "direct", "count", count, json!({"linux": own_pids}));
    let stdout = fs::read_link(format!("/proc/{}/fd/1", cri.rig.init(&direct))).unwrap();
    assert!(stdout.starts_with(&cri.rig.dir), "{stdout:?} is the fifo itself");
    let pod = cri.pod("stay", &Pod::default());
    let id = cri.container(&pod, "stay", "count", count, json!({}));
    let ends = cri.container(&pod, "stay", "ends", "sleep 1.5; exit 8", json!({}));
    let (shims, pid) = (cri.rig.shims(), cri.rig.init(&id));
    assert_eq!(shims.len(), 2);
    cri.rig.end_containerd(libc::SIGKILL);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(shims.iter().all(|shim| alive(*shim)) && alive(pid));
    cri.rig.start_containerd();
    until("the CRI plugin is back", || cri.run(&["ps"]).status.success());
    assert_eq!(cri.status(&id)["state"], "CONTAINER_RUNNING");
    let ended = cri.until_exited(&ends);
    assert_eq!(ended["exitCode"], 8, "{ended}");
    assert_eq!(cri.ok(&["exec", "-s", &id, "echo", "alive"]), "alive");
    for pod in ["stay", "direct"] {
        let log = cri.rig.dir.join("logs").join(pod).join("count.log");
        let before = read_all(&log).lines().count();
        until("the log goes on", || read_all(&log).lines().count() > before + 5);
        let numbers: Vec<u64> = read_all(&log)
            .lines()
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert!(
            numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "no line of {pod} is missing"
        );
    }
    cri.remove(&direct_pod);
    cri.remove(&pod);
}

#[test]
#[ignore = "needs crictl: ./dev cri"]
fn namespaces_read_only_root_and_mount_propagation() {
    let cri = Cri::new();
    // hostPID: the host's processes are seen, and all of the container's are gone when its init has
    // ended.
    let host = json!({"security_context": {"namespace_options": {"pid": 2}}});
    let pod = cri.pod("host", &Pod { linux: host.clone(), ..Pod::default() });
    let id = cri.container(
        &pod,
        "host",
        "hostpid",
        "sleep 1001 & sleep 1001 & sleep 1; exit 2",
        json!({"linux": host}),
    );
    let own = std::process::id().to_string();
    cri.ok(&["exec", "-s", &id, "test", "-e", &format!("/proc/{own}")]);
    assert_eq!(cri.until_exited(&id)["exitCode"], 2);
    until("its other processes are gone", || {
        !crate::support::all_pids()
            .iter()
            .any(|pid| crate::support::cmdline(*pid) == ["sleep", "1001"])
    });
    cri.remove(&pod);

    // shareProcessNamespace: one container sees the other's processes.
    let shared = json!({"security_context": {"namespace_options": {"pid": 0}}});
    let pod = cri.pod("share", &Pod { linux: shared.clone(), ..Pod::default() });
    cri.container(&pod, "share", "first", "sleep 1002", json!({"linux": shared.clone()}));
    let second = cri.container(&pod, "share", "second", "sleep 1003", json!({"linux": shared}));
    assert!(cri.ok(&["exec", "-s", &second, "ps"]).contains("sleep 1002"));
    cri.ok(&["stop", "-t", "0", &second]);
    assert_eq!(cri.until_exited(&second)["exitCode"], 137);
    cri.remove(&pod);

    let pod = cri.pod("mounts", &Pod::default());
    let read_only = json!({"security_context": {"readonly_rootfs": true}});
    let id = cri.container(
        &pod,
        "mounts",
        "readonly",
        "touch /x 2>/dev/null && exit 1; exit 0",
        json!({"linux": read_only}),
    );
    assert_eq!(cri.until_exited(&id)["exitCode"], 0);

    // HostToContainer: what is mounted on the host later appears inside.
    let volume = cri.rig.dir.join("volume");
    fs::create_dir_all(volume.join("sub")).unwrap();
    let mount = |arguments: &[&str]| {
        assert!(Command::new("mount").args(arguments).status().unwrap().success())
    };
    let path = volume.to_str().unwrap();
    mount(&["--bind", path, path]);
    mount(&["--make-rshared", path]);
    let mounts = json!([{"container_path": "/volume", "host_path": path, "propagation": 1}]);
    let id = cri.container(&pod, "mounts", "propagated", "sleep 1000", json!({"mounts": mounts}));
    mount(&["-t", "tmpfs", "none", &format!("{path}/sub")]);
    fs::write(volume.join("sub/file"), "seen").unwrap();
    assert_eq!(cri.ok(&["exec", "-s", &id, "cat", "/volume/sub/file"]), "seen");
    cri.remove(&pod);
    for point in [format!("{path}/sub"), path.to_owned()] {
        assert!(Command::new("umount").arg(point).status().unwrap().success());
    }
}

#[test]
#[ignore = "needs crictl: ./dev cri"]
fn user_namespaces() {
    let cri = Cri::new();
    let ids = json!([{"container_id": 0, "host_id": 100_000, "length": 65536}]);
    let options = json!({"mode": 0, "uids": ids, "gids": ids});
    let linux = json!({"security_context": {"namespace_options": {"userns_options": options}}});
    let pod = cri.pod("user", &Pod { linux: linux.clone(), ..Pod::default() });
    let map = read_all(format!("/proc/{}/uid_map", cri.rig.init(&pod)));
    // containerd 1.6 does not know the field and leaves it out of config.json.
    let host = if cri.rig.is_older_than_2() { 0 } else { 100_000 };
    assert_eq!(map.split_whitespace().nth(1), Some(host.to_string().as_str()), "{map}");
    // The layers are mapped, not changed.
    let program = format!("/proc/{}/root/bin/busybox", cri.rig.init(&pod));
    assert_eq!(fs::metadata(program).unwrap().uid(), host);
    let mut content =
        json!({"metadata": {"name": "app"}, "image": {"image": IMAGE}, "linux": linux});
    content["command"] = json!(["sleep", "1000"]);
    let config = cri.file("app.container.json", &content);
    let pod_config = cri.rig.dir.join("user.pod.json");
    let id = cri.ok(&["create", "--no-pull", &pod, &config, pod_config.to_str().unwrap()]);
    let started = cri.run(&["start", &id]);
    if started.status.success() {
        assert_eq!(cri.ok(&["exec", "-s", &id, "id", "-u"]), "0");
        assert_eq!(read_all(format!("/proc/{}/uid_map", cri.rig.init(&id))), map);
    } else {
        // containerd maps a container's volumes only if the OCI runtime says that it can: runc from
        // 1.2, crun from 1.9.
        let message = String::from_utf8_lossy(&started.stderr).into_owned();
        assert!(message.contains("idmap mounts not supported"), "{message}");
    }
    cri.remove(&pod);
}
