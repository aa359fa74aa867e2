//! A private containerd, what one does with it, and the check that nothing is left behind.

mod calls;
mod direct;
mod events;
mod hung;
mod place;
mod process;
mod terminal;

pub use calls::{
    add, bundle_beside, delete, ends, process, reader, remove_second_container, script,
    second_container, signal, start, text, wait,
};
pub use direct::{Direct, exec_request, fifo, process_spec};
pub use events::EventLog;
pub use hung::{Disk, Mute};
pub use place::{Place, feed};
pub use process::{
    alive, all as all_pids, children, cmdline, fd_count, kill, process_state, read_all, stop,
    until, until_within,
};
pub use terminal::Terminal;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::{fs::symlink, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// The image that `scripts/image` makes.
pub const IMAGE: &str = "docker.io/library/busybox:latest";
/// Under this name `ctr` sends no runc options.
pub const CLEAT: &str = "io.containerd.cleat.v2";
/// Under this name it does; the rig's PATH has cleat under that name too.
pub const RUNC: &str = "io.containerd.runc.v2";
/// The annotation that groups containers into one shim.
pub const GROUP: &str = "io.containerd.runc.v2.group";
/// Nothing that a test waits for takes longer on a slow machine.
pub const LONG: Duration = Duration::from_secs(30);

const SOCKETS: &str = "/run/containerd/s";

/// A containerd of its own, with its own root, state, socket and namespace.
pub struct Rig {
    pub dir: PathBuf,
    pub namespace: String,
    binary: String,
    /// Variables for containerd, and so for the shims.
    environment: Vec<(String, String)>,
    /// What containerd is started by: words before its own.
    wrapper: Vec<String>,
    containerd: Option<Child>,
}

impl Rig {
    /// Starts containerd and imports the image.
    pub fn new() -> Self {
        Self::with_containerd(&containerd_binary())
    }

    /// The same with this containerd.
    pub fn with_containerd(binary: &str) -> Self {
        let no_cri = "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
             \"io.containerd.cri.v1.runtime\", \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.devmapper\"]\n";
        let rig = Self::with_config(binary, None, |_| no_cri.to_owned());
        rig.ctr(["image", "import", "--no-unpack", image().to_str().unwrap()]);
        rig
    }

    /// containerd with a configuration of its own, and no image yet. `config` gets the rig's
    /// directory. The namespace is the rig's name unless one is given.
    pub fn with_config(
        binary: &str,
        namespace: Option<&str>,
        config: impl FnOnce(&Path) -> String,
    ) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("cleat-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new("/run").join(&name);
        fs::create_dir_all(dir.join("bin")).unwrap();
        for shim in ["containerd-shim-cleat-v2", "containerd-shim-runc-v2"] {
            symlink(shim_binary(), dir.join("bin").join(shim)).unwrap();
        }
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n{1}\
             [grpc]\naddress = \"{0}/c.sock\"\n[ttrpc]\naddress = \"{0}/c.sock.ttrpc\"\n[debug]\nlevel = \"debug\"\n",
            dir.display(),
            config(&dir),
        );
        fs::write(dir.join("config.toml"), config).unwrap();
        let mut rig = Self {
            dir,
            namespace: namespace.map_or(name, str::to_owned),
            binary: binary.to_owned(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            containerd: None,
        };
        rig.start_containerd();
        rig
    }

    /// Starts containerd and waits until it answers.
    pub fn start_containerd(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let path = format!("{}/bin:{}", self.dir.display(), std::env::var("PATH").unwrap());
        let mut words = self.wrapper.iter().chain([&self.binary]);
        let child = Command::new(words.next().unwrap())
            .args(words)
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .env("PATH", path)
            .env_remove("NOTIFY_SOCKET")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("containerd is installed");
        self.containerd = Some(child);
        until("containerd answers", || {
            UnixStream::connect(self.dir.join("c.sock")).is_ok()
                && self.try_ctr(["version"]).status.success()
        });
    }

    /// A variable of the environment for the next containerd, and for the shims that it starts.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// By which words the next containerd is started.
    pub fn set_wrapper(&mut self, words: &[&str]) {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Which containerd is started next.
    pub fn set_containerd(&mut self, binary: &str) {
        binary.clone_into(&mut self.binary);
    }

    /// Ends containerd with a signal and waits for its end.
    pub fn end_containerd(&mut self, signal: i32) {
        if self.containerd.is_some() {
            kill(self.containerd_pid(), signal);
        }
        if let Some(mut child) = self.containerd.take() {
            child.wait().unwrap();
        }
    }

    /// containerd's pid. A wrapper may be its parent, and stay.
    pub fn containerd_pid(&self) -> u32 {
        let pid = self.containerd.as_ref().unwrap().id();
        let stays = cmdline(pid).first().is_some_and(|word| word == "unshare");
        if stays { children(pid).first().map_or(pid, |(child, _)| *child) } else { pid }
    }

    /// Whether containerd is of the 1.x line.
    pub fn is_older_than_2(&self) -> bool {
        let output = Command::new(&self.binary).arg("--version").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace()
            .nth(2)
            .is_some_and(|version| version.trim_start_matches('v').starts_with("1."))
    }

    /// All that containerd and the shims wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }

    /// `ctr` in our namespace, to be run.
    pub fn ctr_command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        self.ctr_within("120", arguments)
    }

    /// The same with a limit of its own.
    pub fn ctr_within<S: AsRef<OsStr>>(
        &self,
        seconds: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        // Nothing may hang for ever.
        let mut command = Command::new("timeout");
        command.arg("-k1").arg(seconds).arg(ctr_binary()).arg("-a").arg(self.dir.join("c.sock"));
        command.args(["-n", &self.namespace]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `ctr`, whatever comes of it.
    pub fn try_ctr<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.ctr_command(arguments).output().expect("ctr is installed")
    }

    /// Runs `ctr`, which must succeed; returns its stdout.
    pub fn ctr<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let mut command = self.ctr_command(arguments);
        let output = command.output().expect("ctr is installed");
        assert!(
            output.status.success(),
            "{command:?}: {} {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.log_tail()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// A rig whose shims end a second after nobody needs them any more.
    pub fn with_impatient_shims() -> Self {
        let mut rig = Self::new();
        rig.set_variable("CLEAT_UNNEEDED_SECONDS", "1");
        rig.end_containerd(libc::SIGKILL);
        rig.start_containerd();
        rig
    }

    /// `ctr run -d` of a command.
    pub fn run(&self, id: &str, command: &[&str]) {
        self.run_with(&["--runtime", CLEAT], id, command);
    }

    /// `ctr run -d` with further flags.
    pub fn run_with(&self, flags: &[&str], id: &str, command: &[&str]) {
        self.ctr([&["run", "-d", "--null-io"], flags, &[IMAGE, id], command].concat());
    }

    /// `ctr run --rm` with further flags, to be run; it has the container's outputs and exit
    /// status.
    pub fn foreground(&self, flags: &[&str], id: &str, command: &[&str]) -> Command {
        self.ctr_command([&["run", "--rm"], flags, &[IMAGE, id], command].concat())
    }

    /// `ctr run -d` into a group.
    pub fn run_in_group(&self, group: &str, id: &str, command: &[&str]) {
        let annotation = format!("{GROUP}={group}");
        self.run_with(&["--runtime", CLEAT, "--annotation", &annotation], id, command);
    }

    /// Flags that pass these options of cleat, TOML, to `ctr run`.
    pub fn runtime_options(&self, name: &str, toml: &str) -> [String; 4] {
        let path = self.dir.join(name);
        fs::write(&path, toml).unwrap();
        ["--runtime", CLEAT, "--runtime-config-path", path.to_str().unwrap()].map(str::to_owned)
    }

    /// A runtime that misbehaves: a shell script that runs `before` and then becomes runc. The
    /// flags pass it to `ctr run`.
    pub fn runtime_script(&self, before: &str) -> [String; 4] {
        let path = self.dir.join("runtime");
        fs::write(&path, format!("#!/bin/sh\n{before}\nexec runc \"$@\"\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        ["--runtime", RUNC, "--runc-binary", path.to_str().unwrap()].map(str::to_owned)
    }

    /// Bundle of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join("state/io.containerd.runtime.v2.task").join(&self.namespace).join(id)
    }

    /// Address of a container's shim, as its bundle names it.
    pub fn address(&self, id: &str) -> String {
        fs::read_to_string(self.bundle(id).join("address")).unwrap_or_else(|_| {
            // Other shims leave that to containerd, since 2.0.
            let json: serde_json::Value =
                serde_json::from_slice(&fs::read(self.bundle(id).join("bootstrap.json")).unwrap())
                    .unwrap();
            json["address"].as_str().unwrap().to_owned()
        })
    }

    /// A client that speaks to a container's shim without containerd.
    pub fn direct(&self, id: &str) -> Direct {
        Direct::connect(Path::new(self.address(id).strip_prefix("unix://").unwrap()))
    }

    /// Pids of all daemons of this rig.
    pub fn shims(&self) -> Vec<u32> {
        let found: Vec<u32> = process::all()
            .into_iter()
            .filter(|pid| {
                let words = cmdline(*pid);
                words.first().is_some_and(|name| name.contains("containerd-shim-"))
                    && words.contains(&self.dir.join("c.sock").to_string_lossy().into_owned())
                    && !words.iter().any(|word| word == "start" || word == "delete")
            })
            .collect();
        // A helper, or a child that has not become its program yet, bears the shim's name; who has
        // ended meanwhile was one.
        let young: Vec<u32> =
            found.iter().flat_map(|pid| children(*pid)).map(|(pid, _)| pid).collect();
        found.into_iter().filter(|pid| !young.contains(pid) && !cmdline(*pid).is_empty()).collect()
    }

    /// The only shim there is.
    pub fn shim(&self) -> u32 {
        let shims = self.shims();
        assert_eq!(shims.len(), 1, "{shims:?}");
        shims[0]
    }

    /// Pid of a container's init.
    pub fn init(&self, id: &str) -> u32 {
        fs::read_to_string(self.bundle(id).join("init.pid")).unwrap().trim().parse().unwrap()
    }

    /// `ctr task ls`: the status of a container's task.
    pub fn status(&self, id: &str) -> Option<String> {
        let list = self.ctr(["task", "ls"]);
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id))?;
        line.split_whitespace().nth(2).map(str::to_owned)
    }

    /// Kills a container's init, waits until the task has stopped, and deletes task and container.
    pub fn remove(&self, id: &str) {
        let _ = self.try_ctr(["task", "kill", "-s", "9", id]);
        until("the task stops", || self.status(id).is_none_or(|status| status == "STOPPED"));
        if self.status(id).is_some() {
            self.ctr(["task", "delete", id]);
        }
        self.ctr(["container", "delete", id]);
    }

    /// A second terminal that shows events.
    pub fn events(&self) -> EventLog {
        EventLog::follow(self.ctr_within("3600", ["events"]), &self.dir.join("events"))
    }

    /// Whatever a test should not leave behind.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for pid in process::all() {
            let words = cmdline(pid);
            let ours = words.iter().any(|word| word.contains(&*self.dir.to_string_lossy()));
            let is_containerd = self.containerd.as_ref().is_some_and(|child| child.id() == pid)
                || words.first().is_some_and(|word| word.rsplit('/').next() == Some("containerd"));
            if ours && !is_containerd {
                found.push(format!("process {pid}: {words:?}"));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let state = self.dir.join("state");
        found.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&*state.to_string_lossy()))
                .map(|line| format!("mount {line}")),
        );
        let ours = self.sockets();
        found.extend(dead_sockets().intersection(&ours).map(|s| format!("socket {}", s.display())));
        for directory in [
            self.dir.join("state/io.containerd.runtime.v2.task").join(&self.namespace),
            Path::new("/run/containerd/runc").join(&self.namespace),
        ] {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                found.push(format!("left {}", entry.path().display()));
            }
        }
        found.extend(self.cgroups().into_iter().map(|path| format!("cgroup {}", path.display())));
        found
    }

    /// Where the shims of all containers and groups listen that containerd's log tells of.
    pub fn sockets(&self) -> BTreeSet<PathBuf> {
        let log = self.log();
        let quoted = |c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c));
        let names = log
            .split("id=")
            .skip(1)
            .filter_map(|rest| rest.split(quoted).next())
            .filter(|id| !id.is_empty());
        let names: BTreeSet<&str> = names.collect();
        let containerd = self.dir.join("c.sock").to_string_lossy().into_owned();
        let namespace = cleat::id::Id::new(&self.namespace).unwrap();
        let address = |group: &str| {
            let address =
                cleat::start::Address::of_group(Path::new(SOCKETS), &containerd, &namespace, group);
            address.unwrap().path().to_owned()
        };
        names.into_iter().map(address).collect()
    }

    /// Cgroups of our containers, in every hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|hierarchy| hierarchy.path())
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .flat_map(|hierarchy| {
                fs::read_dir(hierarchy.join(&self.namespace)).into_iter().flatten().flatten()
            })
            // Real ones, v1 or v2: crun makes plain directories where it expects a hierarchy.
            .filter(|entry| {
                let is_cgroup =
                    |fs: rustix::fs::StatFs| [0x0027_e0eb, 0x6367_7270].contains(&fs.f_type);
                entry.path().is_dir() && rustix::fs::statfs(entry.path()).is_ok_and(is_cgroup)
            })
            .map(|entry| entry.path())
            .collect()
    }

    fn tidy(&mut self) {
        // A test that failed may have left somebody stopped.
        for pid in self.containerd.iter().map(std::process::Child::id).chain(self.shims()) {
            kill(pid, libc::SIGCONT);
        }
        let ids: Vec<String> = self.ids();
        for id in &ids {
            let _ = self.try_ctr(["task", "rm", "-f", id]);
            let _ = self.try_ctr(["container", "rm", id]);
        }
        self.end_containerd(libc::SIGTERM);
        for bundle in fs::read_dir(self.bundle("")).into_iter().flatten().flatten() {
            let address = fs::read_to_string(bundle.path().join("address")).unwrap_or_default();
            let _ = fs::remove_file(address.trim_start_matches("unix://"));
        }
        for pid in self.shims() {
            kill(pid, libc::SIGKILL);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().rev() {
            let point = line.split(' ').nth(4).unwrap_or_default();
            if point.starts_with(&*self.dir.to_string_lossy()) {
                let _ = Command::new("umount").args(["-l", point]).status();
            }
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let parent = hierarchy.path().join(&self.namespace);
            for child in fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(child.path());
            }
            let _ = fs::remove_dir(parent);
        }
        let _ = fs::remove_dir(Path::new("/run/containerd/runc").join(&self.namespace));
        let _ = fs::remove_dir_all(&self.dir);
    }

    fn ids(&self) -> Vec<String> {
        if self.containerd.is_none() {
            return Vec::new();
        }
        let output = self.try_ctr(["container", "ls", "-q"]);
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let mut left = Vec::new();
        if !failed {
            // The last delete answers before the shim has gone.
            let deadline = std::time::Instant::now() + Duration::from_secs(15);
            loop {
                left = self.leftovers();
                if left.is_empty() || std::time::Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if failed || !left.is_empty() {
            eprintln!("end of containerd's log:\n{}", self.log_tail());
        }
        self.tidy();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

/// The OCI runtime that the name `runc` leads to: its messages and abilities differ.
pub fn oci_runtime() -> String {
    std::env::var("CLEAT_TEST_RUNTIME").unwrap_or_else(|_| "runc".to_owned())
}

/// For `ctr run --with-ns`: the pid namespace that the tests and the shim are in.
pub fn host_pid_namespace() -> String {
    format!("pid:/proc/{}/ns/pid", std::process::id())
}

pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Whether the binary under test is Go's shim, for which some tests are written as well.
pub fn is_go() -> bool {
    shim_binary().file_name().is_some_and(|name| name == "containerd-shim-runc-v2")
}

/// Shims of this rig are the debug build, which has points to fail at.
pub fn use_debug_build(rig: &Rig) {
    let link = rig.dir.join("bin/containerd-shim-cleat-v2");
    fs::remove_file(&link).unwrap();
    symlink(env!("CARGO_BIN_EXE_containerd-shim-cleat-v2"), &link).unwrap();
}

/// The binary under test.
pub fn shim_binary() -> PathBuf {
    std::env::var_os("CLEAT_TEST_SHIM")
        .map_or_else(|| env!("CARGO_BIN_EXE_containerd-shim-cleat-v2").into(), PathBuf::from)
}

/// `cleat`, the command for operators: beside the binary under test.
pub fn cli_binary() -> PathBuf {
    let path = shim_binary().with_file_name("cleat");
    assert!(path.exists(), "{} is not there: ./dev build makes it", path.display());
    path
}

/// `containerd`, or the one of CLEAT_TEST_CONTAINERD.
pub fn containerd_binary() -> String {
    std::env::var("CLEAT_TEST_CONTAINERD").unwrap_or_else(|_| "containerd".to_owned())
}

/// `ctr`, or the one of CLEAT_TEST_CTR.
pub fn ctr_binary() -> String {
    std::env::var("CLEAT_TEST_CTR").unwrap_or_else(|_| "ctr".to_owned())
}

/// The image, made once.
pub fn image() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image.tar");
    if !path.exists() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/image");
        assert!(Command::new(script).arg(&path).status().unwrap().success());
    }
    path
}

/// Sockets in containerd's directory on which nobody listens.
fn dead_sockets() -> BTreeSet<PathBuf> {
    fs::read_dir(SOCKETS)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        // One that is busy may have no room for us: it is not dead.
        .filter(|path| !cleat::start::is_alive(path))
        .collect()
}
