//! One shim binary, its pods and their containers.

use crate::Ledger;
use cleat::{
    protocol::{
        Any, Empty, Mount,
        events::{ForwardRequest, SERVICE},
        options::{OPTIONS_URL, Options},
        task as api,
    },
    rpc::{self, Call, Connection, Handler, Load, Reply},
};
use prost::Message;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    rc::Rc,
    time::Duration,
};
use tokio::{io::AsyncReadExt, net::unix::pipe, process::Command, task::JoinHandle};

/// How long any call may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// What went wrong, as a sentence.
#[derive(Debug)]
pub struct DriverError(pub String);

impl std::fmt::Display for DriverError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DriverError {}

fn fail(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> DriverError {
    move |e| DriverError(format!("{what}: {e}"))
}

type Result<T> = std::result::Result<T, DriverError>;

/// A shim under test with a directory, a namespace and an event server of its own.
pub struct Driver {
    /// For tables.
    pub label: String,
    /// What the events say.
    pub ledger: Rc<Ledger>,
    shim: PathBuf,
    annotations: Annotations,
    directory: PathBuf,
    namespace: String,
    next: Cell<u64>,
    sockets: RefCell<Vec<PathBuf>>,
    sockets_of: RefCell<HashMap<String, PathBuf>>,
    /// Readers of the `log` fifos: a Go shim waits for one.
    logs: RefCell<HashMap<String, JoinHandle<()>>>,
    log_bytes: Rc<Cell<usize>>,
    /// The end of what they have logged.
    log_tail: Rc<RefCell<Vec<u8>>>,
}

/// Bytes of the shims' logs that are kept.
const LOG_TAIL: usize = 256 << 10;

/// Annotations of containers.
pub type Annotations = std::collections::BTreeMap<String, String>;

/// A running shim and the bundle of its first container.
pub struct Pod {
    /// The first container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The shim's socket.
    pub socket: PathBuf,
}

/// Takes events.
struct Events(Rc<Ledger>);

impl Handler for Events {
    fn handle(&self, call: Call) -> Pin<Box<dyn Future<Output = Reply>>> {
        if self.0.refuses() {
            return Box::pin(async { Err(rpc::Status::new(rpc::Code::Unknown, "not now")) });
        }
        if call.service == SERVICE
            && let Ok(request) = ForwardRequest::decode(call.payload.as_slice())
            && let Some(envelope) = request.envelope
        {
            self.0.event(&envelope);
        }
        Box::pin(async { Ok(Vec::new()) })
    }
}

impl Driver {
    /// Prepares directory, image and event server. All containers get the annotations. Call inside
    /// a tokio `LocalSet`.
    pub async fn new(label: &str, shim: &Path, annotations: &Annotations) -> Result<Rc<Self>> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let namespace = format!("cleat-bench-{}-{number}", std::process::id());
        let directory = Path::new("/run").join(&namespace);
        tokio::fs::create_dir_all(directory.join("image/bin"))
            .await
            .map_err(fail("make the directory"))?;
        for name in ["proc", "dev", "sys", "tmp", "etc", "run"] {
            tokio::fs::create_dir_all(directory.join("image").join(name))
                .await
                .map_err(fail(name))?;
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
        let busybox =
            busybox.ok_or_else(|| DriverError("busybox-static is not installed".to_owned()))?;
        tokio::fs::copy(busybox, directory.join("image/bin/busybox"))
            .await
            .map_err(fail("copy busybox"))?;
        for applet in ["sh", "sleep", "true", "cat", "head", "echo", "dd", "seq", "yes"] {
            tokio::fs::symlink("busybox", directory.join("image/bin").join(applet))
                .await
                .map_err(fail(applet))?;
        }
        let ledger = Rc::new(Ledger::default());
        let listener = tokio::net::UnixListener::bind(directory.join("c.sock.ttrpc"))
            .map_err(fail("listen"))?;
        let events = Rc::new(Events(Rc::clone(&ledger)));
        tokio::task::spawn_local(rpc::serve(listener, events, Rc::new(Load::default())));
        Ok(Rc::new(Self {
            label: label.to_owned(),
            ledger,
            shim: shim.to_owned(),
            annotations: annotations.clone(),
            directory,
            namespace,
            next: Cell::new(0),
            sockets: RefCell::default(),
            sockets_of: RefCell::default(),
            logs: RefCell::default(),
            log_bytes: Rc::default(),
            log_tail: Rc::default(),
        }))
    }

    /// A new id.
    pub fn fresh(&self, prefix: &str) -> String {
        self.next.set(self.next.get() + 1);
        format!("{prefix}{}", self.next.get())
    }

    /// The binary under test.
    pub fn shim(&self) -> &Path {
        &self.shim
    }

    /// The directory of this driver: everything of it lies below.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bytes that the shims have logged so far.
    pub fn log_bytes(&self) -> usize {
        self.log_bytes.get()
    }

    /// The end of what they have logged.
    pub fn log_tail(&self) -> String {
        String::from_utf8_lossy(&self.log_tail.borrow()).into_owned()
    }

    fn command(&self, id: &str, bundle: &Path) -> Command {
        let mut command = Command::new(&self.shim);
        command
            .args(["-namespace", &self.namespace, "-id", id, "-address"])
            .arg(self.directory.join("c.sock"))
            .env("TTRPC_ADDRESS", self.directory.join("c.sock.ttrpc"))
            .env("NAMESPACE", &self.namespace)
            .env("MAX_SHIM_VERSION", "2")
            .env("GOMAXPROCS", "4")
            .current_dir(bundle)
            .stdin(Stdio::null());
        command
    }

    /// Makes a bundle for a container that runs `arguments`, in the group of `group`.
    pub async fn bundle(&self, id: &str, group: &str, arguments: &[&str]) -> Result<PathBuf> {
        let bundle = self.directory.join("task").join(id);
        for name in ["rootfs", "upper", "work"] {
            tokio::fs::create_dir_all(bundle.join(name)).await.map_err(fail("make the bundle"))?;
        }
        let config = spec(&self.namespace, id, &self.annotations_of(group), arguments).to_string();
        tokio::fs::write(bundle.join("config.json"), config)
            .await
            .map_err(fail("write config.json"))?;
        let log = self.fifo(&bundle, "log")?;
        let log = pipe::OpenOptions::new().read_write(true).open_receiver(log);
        let mut log = log.map_err(fail("open the log fifo"))?;
        let (bytes, tail) = (Rc::clone(&self.log_bytes), Rc::clone(&self.log_tail));
        let reader = tokio::task::spawn_local(async move {
            let mut buffer = [0; 4096];
            while let Ok(read) = log.read(&mut buffer).await {
                bytes.set(bytes.get() + read);
                let mut tail = tail.borrow_mut();
                tail.extend_from_slice(&buffer[..read]);
                let excess = tail.len().saturating_sub(LOG_TAIL);
                tail.drain(..excess);
            }
        });
        self.logs.borrow_mut().insert(id.to_owned(), reader);
        Ok(bundle)
    }

    /// Runs `start` for a bundle; returns the socket that it answers.
    pub async fn start(&self, id: &str, bundle: &Path) -> Result<PathBuf> {
        let output = self.command(id, bundle).arg("start").output();
        let output = within("start", output).await?.map_err(fail("run start"))?;
        if !output.status.success() {
            return Err(DriverError(format!("start: {}", String::from_utf8_lossy(&output.stderr))));
        }
        // Plain, JSON or protobuf: the address stands in each as it is.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (_, rest) = text
            .split_once("unix://")
            .ok_or_else(|| DriverError(format!("start answered {text:?}")))?;
        let socket = PathBuf::from(
            rest.split(|c: char| c.is_control() || c == '"').next().unwrap_or_default(),
        );
        Ok(socket)
    }

    /// A new shim with one container, created and not started.
    pub async fn pod(self: &Rc<Self>, id: &str, arguments: &[&str]) -> Result<(Pod, Client)> {
        let bundle = self.bundle(id, id, arguments).await?;
        let socket = self.start(id, &bundle).await?;
        self.adopt(id, bundle, socket).await
    }

    /// Connects to the shim of a bundle that was started.
    pub async fn adopt(&self, id: &str, bundle: PathBuf, socket: PathBuf) -> Result<(Pod, Client)> {
        self.sockets.borrow_mut().push(socket.clone());
        self.sockets_of.borrow_mut().insert(id.to_owned(), socket.clone());
        let client = Client::connect(&socket).await?;
        Ok((Pod { id: id.to_owned(), bundle, socket }, client))
    }

    /// A new shim with one container that runs.
    pub async fn running(self: &Rc<Self>, id: &str, arguments: &[&str]) -> Result<(Pod, Client)> {
        let (pod, mut client) = self.pod(id, arguments).await?;
        client.call::<api::PidResponse>("Create", &self.create_request(id, &pod.bundle)).await?;
        client.process::<api::PidResponse>("Start", id, "").await?;
        Ok((pod, client))
    }

    /// Kills the container, then [`Driver::finish`].
    pub async fn end(&self, client: &mut Client, pod: &Pod) -> Result<u32> {
        client.kill(&pod.id, "", 9).await?;
        client.process::<api::WaitResponse>("Wait", &pod.id, "").await?;
        self.finish(client, pod).await
    }

    /// Deletes a container that has exited, ends its shim, cleans up. Returns the status that
    /// Delete answered.
    pub async fn finish(&self, client: &mut Client, pod: &Pod) -> Result<u32> {
        let deleted: api::DeleteResponse = client.process("Delete", &pod.id, "").await?;
        client.shutdown(&pod.id).await;
        self.clean_up(&pod.id, &pod.bundle).await?;
        Ok(deleted.exit_status)
    }

    /// Asks the shim of a container that came to nothing to end.
    pub async fn give_up(&self, id: &str) {
        let socket = self.sockets_of.borrow_mut().remove(id);
        if let Some(socket) = socket
            && let Ok(mut client) = Client::connect(&socket).await
        {
            let _ = client.process::<api::DeleteResponse>("Delete", id, "").await;
            client.shutdown(id).await;
        }
    }

    /// The Create request for a bundle, with an overlay as containerd would send it.
    pub fn create_request(&self, id: &str, bundle: &Path) -> api::CreateTaskRequest {
        let option = |name: &str, path: PathBuf| format!("{name}={}", path.display());
        api::CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.display().to_string(),
            rootfs: vec![Mount {
                r#type: "overlay".to_owned(),
                source: "overlay".to_owned(),
                target: String::new(),
                options: vec![
                    option("lowerdir", self.directory.join("image")),
                    option("upperdir", bundle.join("upper")),
                    option("workdir", bundle.join("work")),
                ],
            }],
            // Without that annotations of cleat mean nothing.
            options: (!self.annotations.is_empty()).then(|| {
                let annotations = "spool,direct,native-exec".to_owned();
                Any::pack(OPTIONS_URL, &Options { annotations, ..Options::default() })
            }),
            ..api::CreateTaskRequest::default()
        }
    }

    /// Makes a fifo in a bundle.
    pub fn fifo(&self, bundle: &Path, name: &str) -> Result<PathBuf> {
        let path = bundle.join(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
            .map_err(|e| DriverError(format!("make the fifo {name}: {e}")))?;
        Ok(path)
    }

    /// Gives the container of a bundle a console: config.json must say the same as the request.
    pub fn with_terminal(&self, bundle: &Path) -> Result<()> {
        self.edit(bundle, |config| config["process"]["terminal"] = true.into())
    }

    /// Changes a bundle's config.json.
    pub fn edit(&self, bundle: &Path, change: impl FnOnce(&mut serde_json::Value)) -> Result<()> {
        let path = bundle.join("config.json");
        let failed = |e: &dyn std::fmt::Display| DriverError(format!("config.json: {e}"));
        let text = std::fs::read_to_string(&path).map_err(|e| failed(&e))?;
        let mut config: serde_json::Value = serde_json::from_str(&text).map_err(|e| failed(&e))?;
        change(&mut config);
        std::fs::write(&path, config.to_string()).map_err(|e| failed(&e))
    }

    fn annotations_of(&self, group: &str) -> Annotations {
        let mut annotations = self.annotations.clone();
        annotations.insert("io.containerd.runc.v2.group".to_owned(), group.to_owned());
        annotations
    }

    /// Runs the `delete` action and removes the bundle.
    pub async fn clean_up(&self, id: &str, bundle: &Path) -> Result<()> {
        self.delete(id, bundle).await?;
        self.discard(id, bundle).await
    }

    /// The `delete` action alone.
    pub async fn delete(&self, id: &str, bundle: &Path) -> Result<()> {
        let output = self.command(id, bundle).arg("-bundle").arg(bundle).arg("delete").output();
        let output = within("delete", output).await?.map_err(fail("run delete"))?;
        if !output.status.success() {
            return Err(DriverError(format!(
                "delete: {}",
                String::from_utf8_lossy(&output.stderr)
            )));
        }
        Ok(())
    }

    /// Forgets a container that has been cleaned up after, and removes its bundle.
    pub async fn discard(&self, id: &str, bundle: &Path) -> Result<()> {
        self.sockets_of.borrow_mut().remove(id);
        if let Some(reader) = self.logs.borrow_mut().remove(id) {
            reader.abort();
        }
        tokio::fs::remove_dir_all(bundle).await.map_err(fail("remove the bundle"))
    }

    /// Pids of this driver's daemons.
    pub fn shims(&self) -> Vec<u32> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = bytes.split(|b| *b == 0);
            words
                .next()
                .is_some_and(|name| name.ends_with(self.shim.as_os_str().as_encoded_bytes()))
                && words.any(|word| word == self.namespace.as_bytes())
        })
        .collect()
    }

    /// What is left: daemons, mounts, sockets, runtime state, cgroups. Empty when all is well.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = self.shims().iter().map(|pid| format!("shim {pid}")).collect();
        found.extend(self.mounts().iter().map(|line| format!("mount {line}")));
        for directory in [self.directory.join("task"), self.runtime_state()] {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| format!("left {}", entry.path().display())));
        }
        let sockets = self.sockets.borrow();
        found.extend(
            sockets.iter().filter(|s| s.exists()).map(|s| format!("socket {}", s.display())),
        );
        found.extend(self.cgroups().iter().map(|path| format!("cgroup {}", path.display())));
        found
    }

    /// Cgroups of containers.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let entries =
            self.cgroup_parents().into_iter().filter_map(|parent| std::fs::read_dir(parent).ok());
        entries.flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    /// Where they are, in each hierarchy of v1, or in that of v2.
    fn cgroup_parents(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies =
            std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        hierarchies
            .chain([root.to_owned()])
            .map(|hierarchy| hierarchy.join(&self.namespace))
            .collect()
    }

    /// Mounts of containers.
    pub fn mounts(&self) -> Vec<String> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let task = self.directory.join("task").display().to_string();
        mounts.lines().filter(|line| line.contains(&task)).map(str::to_owned).collect()
    }

    /// The OCI runtime's records of containers.
    pub fn runtime_state(&self) -> PathBuf {
        Path::new("/run/containerd/runc").join(&self.namespace)
    }

    /// Waits until nothing is left, at most `limit`; returns what is left then.
    pub async fn leftovers_after(&self, limit: Duration) -> Vec<String> {
        let deadline = std::time::Instant::now() + limit;
        loop {
            let left = self.leftovers();
            if left.is_empty() || std::time::Instant::now() > deadline {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Removes whatever is left. Kills only this driver's daemons.
    pub fn tidy(&self) {
        for pid in self.shims() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let state = self.runtime_state();
        for entry in std::fs::read_dir(&state).into_iter().flatten().flatten() {
            let mut runc = std::process::Command::new("runc");
            let _ = runc
                .arg("--root")
                .arg(&state)
                .args(["delete", "--force"])
                .arg(entry.file_name())
                .status();
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = self.directory.display().to_string();
        for point in
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|p| p.starts_with(&own))
        {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        for socket in self.sockets.borrow().iter() {
            let _ = std::fs::remove_file(socket);
        }
        for parent in self.cgroup_parents() {
            for child in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(child.path());
            }
            let _ = std::fs::remove_dir(parent);
        }
        let _ = std::fs::remove_dir(&state);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .map_err(|_| DriverError(format!("{what}: no answer in {} s", PATIENCE.as_secs())))
}

/// A connection to a shim.
pub struct Client {
    connection: Connection,
    /// `containerd.task.v3.Task`, or `v2` for a shim that has nothing newer.
    service: &'static str,
}

impl Client {
    /// Connects.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let connection =
            within("connect", Connection::connect(socket)).await?.map_err(fail("connect"))?;
        let mut client = Self { connection, service: api::SERVICES[1] };
        if let Err(e) = client.process::<Empty>("Connect", "-", "").await
            && e.0.contains("service")
        {
            client.service = api::SERVICES[0];
        }
        Ok(client)
    }

    /// Sends a call; its answer comes later.
    pub async fn send(&mut self, method: &str, request: &impl Message) -> Result<u32> {
        let payload = request.encode_to_vec();
        self.connection.send(self.service, method, &payload, None).await.map_err(fail(method))
    }

    /// Waits for one answer.
    pub async fn answer<R: Message + Default>(&mut self, method: &str, stream: u32) -> Result<R> {
        loop {
            let (id, reply) =
                within(method, self.connection.receive()).await?.map_err(fail(method))?;
            if id == stream {
                let bytes = reply.map_err(|status| DriverError(format!("{method}: {status}")))?;
                return R::decode(bytes.as_slice())
                    .map_err(|e| DriverError(format!("{method}: {e}")));
            }
        }
    }

    /// A call and its answer.
    pub async fn call<R: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<R> {
        let stream = self.send(method, request).await?;
        self.answer(method, stream).await
    }

    /// A call about a process that answers nothing or something that is not looked at.
    pub async fn process<R: Message + Default>(
        &mut self,
        method: &str,
        id: &str,
        exec: &str,
    ) -> Result<R> {
        self.call(method, &api::ProcessRequest { id: id.to_owned(), exec_id: exec.to_owned() })
            .await
    }

    /// Adds an exec without channels, but perhaps an output.
    pub async fn exec(
        &mut self,
        id: &str,
        exec: &str,
        arguments: &[&str],
        stdout: &str,
    ) -> Result<()> {
        self.exec_with(id, exec, arguments, |request| request.stdout = stdout.to_owned()).await
    }

    /// An exec that says nothing, from Exec to Delete.
    pub async fn exec_to_end(&mut self, id: &str, exec: &str, arguments: &[&str]) -> Result<()> {
        self.exec(id, exec, arguments, "").await?;
        self.process::<api::PidResponse>("Start", id, exec).await?;
        self.process::<api::WaitResponse>("Wait", id, exec).await?;
        self.process::<api::DeleteResponse>("Delete", id, exec).await?;
        Ok(())
    }

    /// Adds an exec; `change` may give it channels.
    pub async fn exec_with(
        &mut self,
        id: &str,
        exec: &str,
        arguments: &[&str],
        change: impl FnOnce(&mut api::ExecProcessRequest),
    ) -> Result<()> {
        let mut request = api::ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
                value: process_spec(arguments).to_string().into_bytes(),
            }),
            ..api::ExecProcessRequest::default()
        };
        change(&mut request);
        self.call::<Empty>("Exec", &request).await.map(|_| ())
    }

    /// Sends a signal.
    pub async fn kill(&mut self, id: &str, exec: &str, signal: u32) -> Result<()> {
        let request =
            api::KillRequest { id: id.to_owned(), exec_id: exec.to_owned(), signal, all: false };
        self.call::<Empty>("Kill", &request).await.map(|_| ())
    }

    /// The shim's own pid, as it says.
    pub async fn shim_pid(&mut self, id: &str) -> Result<u32> {
        self.process::<api::ConnectResponse>("Connect", id, "").await.map(|answer| answer.shim_pid)
    }

    /// Asks the shim to end.
    pub async fn shutdown(&mut self, id: &str) {
        // It may end before the answer is out.
        let _ = self
            .call::<Empty>("Shutdown", &api::ShutdownRequest { id: id.to_owned(), now: false })
            .await;
    }
}

fn process_spec(arguments: &[&str]) -> serde_json::Value {
    let capabilities = ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"];
    serde_json::json!({
        "args": arguments,
        "cwd": "/",
        "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "noNewPrivileges": true,
    })
}

/// What containerd's default spec amounts to.
fn spec(
    namespace: &str,
    id: &str,
    annotations: &Annotations,
    arguments: &[&str],
) -> serde_json::Value {
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": process_spec(arguments),
        "root": {"path": "rootfs"},
        "hostname": id,
        "annotations": annotations,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{namespace}/{id}"),
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
