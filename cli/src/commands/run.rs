//! `cleat run`: does what containerd does with a shim, for one bundle.

use crate::{
    args::Run,
    client::Client,
    config,
    run_place::{self, NAMESPACE, Owner},
};
use anyhow::{Context, Result, bail};
use cleat::{
    id::Id,
    protocol::{
        Any, Empty,
        options::{OPTIONS_URL, Options},
        task as api,
    },
};
use serde_json::Value;
use std::{
    fs::{self, File, OpenOptions},
    io::{IsTerminal, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long the shim's own work may take. Runtime calls have a minute there, ten where hooks run.
const PATIENCE: Duration = Duration::from_secs(630);
/// How long the end of the output may take to come.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Between the signal that tells the container that nobody reads it and the one that it cannot
/// ignore.
const GRACE: Duration = Duration::from_secs(1);
/// What a shell says of a process that nobody has read.
const NOBODY_READS: u32 = 128 + libc::SIGPIPE as u32;

/// As `docker run`: what fails here does not look like the container's own status.
pub(super) async fn run(command: Run) -> Result<ExitCode> {
    match attempt(command).await {
        Ok(code) => Ok(code),
        Err(e) => {
            eprintln!("cleat: {}", crate::output::plain(&format!("{e:#}")));
            Ok(ExitCode::from(code_of(&format!("{e:#}"))))
        }
    }
}

/// The runtime's words about the program itself, or anything else.
fn code_of(error: &str) -> u8 {
    match error {
        e if e.contains("install the OCI runtime") => 125,
        e if e.contains("exec: ") && e.contains("permission denied") => 126,
        e if e.contains("exec: ")
            && (e.contains("no such file") || e.contains("not found in $PATH")) =>
        {
            127
        }
        _ => 125,
    }
}

async fn attempt(command: Run) -> Result<ExitCode> {
    if command.remove {
        let id = command.id.clone().unwrap_or_default();
        let id = Id::new(&id).with_context(|| format!("--id {id:?}"))?;
        let is_there = run_place::parent().join(id.as_str()).exists();
        if is_there || command.bundle.is_none() {
            run_place::remove(id.as_str()).await?;
        }
        if command.bundle.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    // Before anything is made that would be left.
    let signals = Signals::watch()?;
    let name = command.id.clone().unwrap_or_else(|| format!("cleat-{}", std::process::id()));
    let id = Id::new(&name).with_context(|| format!("--id {name:?}"))?;
    let shim = config::find_program(&command.shim)
        .with_context(|| format!("{} is not in PATH; --shim names it", command.shim.display()))?;
    let shim = fs::canonicalize(shim)?;
    let place = Place::new(&id, &command, &shim)?;
    let events = run_place::serve_events(&place.directory, command.events)?;
    let outcome = place.live(&shim, &id, &command, signals).await;
    let cleared = place.clear(&shim, &id).await;
    events.abort();
    let status = outcome?;
    cleared?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(255)))
}

/// A directory of our own, with the bundle that the shim sees.
struct Place {
    directory: PathBuf,
    terminal: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Place {
    fn new(id: &Id, command: &Run, shim: &Path) -> Result<Self> {
        let bundle = command.bundle.clone().unwrap_or_default();
        let source =
            fs::canonicalize(&bundle).with_context(|| format!("bundle {}", bundle.display()))?;
        if !source.is_dir() {
            bail!("bundle {} is a file: name the directory that it lies in", bundle.display());
        }
        let path = source.join("config.json");
        let text = cleat::bundle::read_bounded(&path, 16 << 20)
            .with_context(|| format!("read {} (make one with `runc spec`)", path.display()))?;
        let mut config: Value =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
        let terminal = match (command.tty, command.no_tty) {
            (true, _) => true,
            (_, true) => false,
            _ => config.pointer("/process/terminal").and_then(Value::as_bool).unwrap_or(false),
        };
        if terminal && !std::io::stdin().is_terminal() {
            bail!("the bundle wants a terminal and stdin is none; --no-tty runs it without");
        }
        let process = config
            .get_mut("process")
            .and_then(Value::as_object_mut)
            .with_context(|| format!("{} has no process", path.display()))?;
        process.insert("terminal".to_owned(), terminal.into());
        if !command.arguments.is_empty() {
            process.insert("args".to_owned(), serde_json::to_value(&command.arguments)?);
        }
        let root = config.pointer("/root/path").and_then(Value::as_str).unwrap_or("rootfs");
        let root = fs::canonicalize(source.join(root))
            .with_context(|| format!("root.path {root:?} of {}", path.display()))?;
        config["root"]["path"] = root.to_string_lossy().into_owned().into();
        // A group's shim may be another container's.
        if let Some(annotations) = config.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|key, _| {
                !key.starts_with("io.kubernetes.cri.") && key != "io.containerd.runc.v2.group"
            });
        }
        let parent = run_place::parent();
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&parent)
            .with_context(|| format!("make {} (are you root?)", parent.display()))?;
        let directory = parent.join(id.as_str());
        fs::DirBuilder::new().mode(0o700).create(&directory).with_context(|| {
            format!(
                "make {}: is a container {id} there already? --remove removes it",
                directory.display()
            )
        })?;
        let place = Self { directory, terminal };
        let pid = std::process::id();
        let owner = Owner { pid, started: crate::process::started(pid), shim: shim.to_owned() };
        fs::write(place.directory.join("owner"), serde_json::to_string(&owner)?)?;
        fs::create_dir(place.bundle())?;
        fs::write(place.bundle().join("config.json"), config.to_string())?;
        for name in ["log", "stdin", "stdout", "stderr"] {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let path =
                if name == "log" { place.bundle().join(name) } else { place.directory.join(name) };
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)?;
        }
        Ok(place)
    }

    fn bundle(&self) -> PathBuf {
        run_place::bundle(&self.directory)
    }

    fn fifo(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// The shim's program with containerd's flags.
    async fn shim(&self, shim: &Path, id: &Id, action: &[&str]) -> Result<String> {
        let mut command = std::process::Command::new(shim);
        command
            .args(["-namespace", NAMESPACE, "-id", id.as_str(), "-address"])
            .arg(self.directory.join("c.sock"))
            .args(action)
            .env("TTRPC_ADDRESS", self.directory.join("c.sock.ttrpc"))
            .env("MAX_SHIM_VERSION", "2")
            .current_dir(self.bundle())
            .stdin(Stdio::null());
        // Both actions end in milliseconds; events of theirs wait so long.
        let output = command.output().with_context(|| format!("run {}", shim.display()))?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// From `start` to Delete. Returns the exit status.
    async fn live(&self, shim: &Path, id: &Id, command: &Run, signals: Signals) -> Result<u32> {
        let log = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(self.bundle().join("log"))?;
        let log = relay_log(log, command.debug)?;
        let flags: &[&str] = if command.debug { &["-debug", "start"] } else { &["start"] };
        let answer = self.shim(shim, id, flags).await?;
        // Plain or JSON: the address stands in both as it is.
        let socket = answer
            .split_once("unix://")
            .map(|(_, rest)| rest.split(['"', '\n']).next().unwrap_or_default());
        let socket = PathBuf::from(socket.with_context(|| format!("start answers {answer:?}"))?);
        let mut client = Client::connect(&socket).await?;
        let result = self.container(&mut client, &socket, id, command, signals).await;
        if result.is_ok() {
            let request = api::ProcessRequest { id: id.to_string(), exec_id: String::new() };
            let _: Result<api::DeleteResponse> =
                client.task("Delete", &request, Some(PATIENCE)).await;
            let shutdown = api::ShutdownRequest { id: id.to_string(), now: false };
            let _: Result<Empty> = client.task("Shutdown", &shutdown, Some(PATIENCE)).await;
        } else {
            run_place::end(&mut client, id.as_str()).await;
        }
        log.abort();
        result
    }

    async fn container(
        &self,
        client: &mut Client,
        socket: &Path,
        id: &Id,
        command: &Run,
        signals: Signals,
    ) -> Result<u32> {
        let options = Options { binary_name: command.runtime.clone(), ..Options::default() };
        let create = api::CreateTaskRequest {
            id: id.to_string(),
            bundle: self.bundle().to_string_lossy().into_owned(),
            terminal: self.terminal,
            stdin: self.fifo("stdin"),
            stdout: self.fifo("stdout"),
            stderr: if self.terminal { String::new() } else { self.fifo("stderr") },
            options: Some(Any::pack(OPTIONS_URL, &options)),
            ..api::CreateTaskRequest::default()
        };
        let outputs = if self.terminal { &["stdout"][..] } else { &["stdout", "stderr"][..] };
        // Go's shim waits in Create until somebody reads.
        let mut fifos: Vec<(&str, File)> = Vec::new();
        for name in outputs {
            fifos.push((
                name,
                OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(self.fifo(name))?,
            ));
        }
        let _: api::PidResponse = client.task("Create", &create, Some(PATIENCE)).await?;
        let raw = self.terminal.then(RawTerminal::enter).transpose()?;
        // The shim has its ends open, so none of these is at its end already, and none waits.
        let (done, mut all_read) = tokio::sync::mpsc::channel::<()>(1);
        let (deaf, mut nobody_reads) = tokio::sync::mpsc::unbounded_channel::<()>();
        for (name, fifo) in fifos {
            rustix::fs::fcntl_setfl(&fifo, rustix::fs::OFlags::empty())?;
            let (done, deaf) = (done.clone(), deaf.clone());
            let ended = move |end: End| {
                if end == End::Deaf {
                    let _ = deaf.send(());
                }
                drop(done);
            };
            match name {
                "stdout" => relay(fifo, std::io::stdout(), ended),
                _ => relay(fifo, std::io::stderr(), ended),
            }
        }
        drop(done);
        let stdin = OpenOptions::new().write(true).open(self.fifo("stdin"))?;
        let (ended, stdin_ended) = tokio::sync::oneshot::channel();
        relay(std::io::stdin(), stdin, move |_| {
            let _ = ended.send(());
        });
        let request = api::ProcessRequest { id: id.to_string(), exec_id: String::new() };
        // Before it can look.
        self.resize(client, id).await;
        let _: api::PidResponse = client.task("Start", &request, Some(PATIENCE)).await?;
        // Wait has a connection of its own; the other one sends what comes in between.
        let mut waiting = Client::connect(socket).await?;
        let wait = waiting.task::<api::WaitResponse>("Wait", &request, None);
        let mut is_unread = false;
        let exit = tokio::select! {
            exit = wait => exit?,
            never = self.pass_on(
                client, id, signals, stdin_ended, &mut nobody_reads, &mut is_unread,
            ) => match never {},
        };
        let _ = tokio::time::timeout(LAST_WORDS, all_read.recv()).await;
        drop(raw);
        Ok(if is_unread { NOBODY_READS } else { exit.exit_status })
    }

    /// Signals, sizes of the terminal, the end of stdin and of whoever reads, until the process has
    /// ended.
    async fn pass_on(
        &self,
        client: &mut Client,
        id: &Id,
        mut signals: Signals,
        mut stdin_ended: tokio::sync::oneshot::Receiver<()>,
        nobody_reads: &mut tokio::sync::mpsc::UnboundedReceiver<()>,
        is_unread: &mut bool,
    ) -> std::convert::Infallible {
        let mut has_input = true;
        loop {
            let number = tokio::select! {
                _ = signals.resized.recv() => {
                    self.resize(client, id).await;
                    continue;
                }
                _ = &mut stdin_ended, if has_input => {
                    has_input = false;
                    let id = id.to_string();
                    let request =
                        api::CloseIoRequest { id, stdin: true, ..Default::default() };
                    let _: Result<Empty> = client.task("CloseIO", &request, Some(PATIENCE)).await;
                    continue;
                }
                Some(()) = nobody_reads.recv() => {
                    *is_unread = true;
                    self.signal(client, id, libc::SIGPIPE).await;
                    // The first process of a pid namespace has no default actions.
                    tokio::time::sleep(GRACE).await;
                    libc::SIGKILL
                }
                Some(number) = signals.others.recv() => number,
            };
            self.signal(client, id, number).await;
        }
    }

    async fn signal(&self, client: &mut Client, id: &Id, number: i32) {
        let request = api::KillRequest {
            id: id.to_string(),
            signal: number.cast_unsigned(),
            ..api::KillRequest::default()
        };
        let _: Result<Empty> = client.task("Kill", &request, Some(PATIENCE)).await;
    }

    async fn resize(&self, client: &mut Client, id: &Id) {
        if !self.terminal {
            return;
        }
        let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) else { return };
        let request = api::ResizePtyRequest {
            id: id.to_string(),
            exec_id: String::new(),
            width: size.ws_col.into(),
            height: size.ws_row.into(),
        };
        let _: Result<Empty> = client.task("ResizePty", &request, Some(PATIENCE)).await;
    }

    /// As containerd does when a shim has gone: nothing of the container stays.
    async fn clear(&self, shim: &Path, id: &Id) -> Result<()> {
        let bundle = self.bundle().to_string_lossy().into_owned();
        self.shim(shim, id, &["-bundle", &bundle, "delete"]).await.map(drop).context("clean up")
    }
}

/// Signals that the process is to get, from now on.
struct Signals {
    resized: Signal,
    others: tokio::sync::mpsc::UnboundedReceiver<i32>,
}

impl Signals {
    /// All but those of job control, which are the shell's business with us, those that tell of our
    /// own faults, and SIGCHLD and SIGPIPE.
    fn watch() -> Result<Self> {
        let kept = [
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGABRT,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGALRM,
            libc::SIGTERM,
            libc::SIGSTKFLT,
            libc::SIGURG,
            libc::SIGXCPU,
            libc::SIGXFSZ,
            libc::SIGVTALRM,
            libc::SIGPROF,
            libc::SIGIO,
            libc::SIGPWR,
        ];
        let (sender, others) = tokio::sync::mpsc::unbounded_channel();
        for number in kept.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
            let mut came = signal(SignalKind::from_raw(number))?;
            let sender = sender.clone();
            tokio::task::spawn_local(async move {
                while came.recv().await.is_some() && sender.send(number).is_ok() {}
            });
        }
        Ok(Self { resized: signal(SignalKind::window_change())?, others })
    }
}

/// How a copy came to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing more comes.
    Source,
    /// Nobody takes it.
    Deaf,
}

/// Copies on a thread of its own, to the end; stdin can be read in no other way that always works.
fn relay(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    done: impl FnOnce(End) + Send + 'static,
) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        let mut end = End::Source;
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..read]).and_then(|()| to.flush()).is_err() {
                end = End::Deaf;
                break;
            }
        }
        drop(to);
        done(end);
        // What is still written goes nowhere, and holds nobody up.
        while end == End::Deaf && matches!(from.read(&mut buffer), Ok(1..)) {}
    });
}

/// The shim's log, on stderr if it is wanted.
fn relay_log(log: File, print: bool) -> Result<tokio::task::JoinHandle<()>> {
    use tokio::io::AsyncReadExt;
    let mut log = tokio::net::unix::pipe::Receiver::from_file_unchecked(log)?;
    Ok(tokio::task::spawn_local(async move {
        let mut buffer = vec![0; 4096];
        while let Ok(read @ 1..) = log.read(&mut buffer).await {
            if print {
                let _ = std::io::stderr().write_all(&buffer[..read]);
            }
        }
    }))
}

/// Our terminal in raw mode, until this is dropped.
struct RawTerminal(rustix::termios::Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let before = rustix::termios::tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(
            std::io::stdin(),
            rustix::termios::OptionalActions::Now,
            &self.0,
        );
    }
}
