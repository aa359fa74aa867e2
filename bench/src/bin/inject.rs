//! `inject SHIM [OPERATION [CALL]]`: lets each system call of the daemon fail that Create, Exec and
//! Delete make, one after the other (strace, in the daemon alone: the runtime is another matter).
//! After each failure the shim must live, a second container of it must answer, the call must be
//! repeatable, and nothing may be left. Prints a line for each operation; ends with status 1 if
//! anything was amiss.

use cleat::protocol::{Any, Empty, task as api};
use cleat_bench::{Annotations, Client, Driver, DriverError, Pod, measure};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
    time::{Duration, Instant},
};

type Result<T> = std::result::Result<T, DriverError>;

/// Calls that cannot fail, or whose failure ends any program: memory, the loop's own wait, signal
/// frames; and `recvfrom`, by which the loop reads its own signal pipe too (a connection that
/// breaks is what `./dev chaos` does all the time).
const SPARED: &[&str] = &[
    "brk",
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
    "mremap",
    "epoll_wait",
    "epoll_pwait",
    "rt_sigreturn",
    "rt_sigprocmask",
    "restart_syscall",
    "exit",
    "exit_group",
    "futex",
    "sched_yield",
    "getpid",
    "gettid",
    "getrandom",
    "setitimer",
    "timer_settime",
    "clock_gettime",
    "close",
    "alarm",
    "recvfrom",
];
/// A descriptor or two more than before may be a connection that is just being closed.
const SLACK: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    Create,
    CreateConsole,
    Exec,
    ExecConsole,
    Delete,
}

/// The error that the kernel would most likely give.
fn error_of(call: &str) -> &'static str {
    match call {
        "openat" | "openat2" | "open" | "socket" | "pipe2" | "pidfd_open" | "accept4" | "dup"
        | "dup3" | "fcntl" | "eventfd2" => "EMFILE",
        "clone" | "clone3" | "fork" | "vfork" => "EAGAIN",
        "write" | "writev" | "mkdir" | "mkdirat" | "mknod" | "mknodat" => "ENOSPC",
        "epoll_ctl" => "ENOMEM",
        _ => "EIO",
    }
}

struct Trial {
    driver: Rc<Driver>,
    pod: Pod,
    client: Client,
    shim: u32,
}

/// strace on a process; ends with its value.
struct Strace(Child);

impl Strace {
    async fn attach(pid: u32, output: &Path, expressions: &[String]) -> Result<Self> {
        let mut command = Command::new("strace");
        command.args(["-qq", "-p", &pid.to_string(), "-o"]).arg(output);
        for expression in expressions {
            command.args(["-e", expression]);
        }
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        let strace = Self(child.map_err(|e| DriverError(format!("strace: {e}")))?);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            if status.lines().any(|line| line == format!("TracerPid:\t{}", strace.0.id())) {
                return Ok(strace);
            }
            if Instant::now() > deadline {
                return Err(DriverError("strace does not attach".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        let _ = self.0.wait();
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(shim) = arguments.next().map(PathBuf::from) else {
        eprintln!("usage: inject SHIM [OPERATION [CALL]]");
        std::process::exit(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("an event loop");
    let amiss = tokio::task::LocalSet::new()
        .block_on(&runtime, run(&shim, arguments.next(), arguments.next()));
    match amiss {
        Ok(0) => {}
        Ok(_) => std::process::exit(1),
        Err(e) => {
            eprintln!("inject: {e}");
            std::process::exit(1);
        }
    }
}

async fn run(shim: &Path, operation: Option<String>, call: Option<String>) -> Result<usize> {
    let driver = Driver::new("inject", shim, &Annotations::new()).await?;
    let result = all(&driver, operation.as_deref(), call.as_deref()).await;
    let left = driver.leftovers_after(Duration::from_secs(10)).await;
    driver.tidy();
    let amiss = result?;
    left.iter().for_each(|what| println!("left: {what}"));
    Ok(amiss + left.len())
}

async fn all(driver: &Rc<Driver>, only: Option<&str>, call: Option<&str>) -> Result<usize> {
    let id = driver.fresh("survivor");
    let (pod, client) = driver.running(&id, &["sleep", "10000"]).await?;
    let shim = *driver.shims().first().ok_or_else(|| DriverError("no shim".to_owned()))?;
    let mut trial = Trial { driver: Rc::clone(driver), pod, client, shim };
    let mut amiss = 0;
    println!("{:15} {:>9} {:>9} {:>9}", "operation", "failures", "answered", "amiss");
    for operation in [
        Operation::Create,
        Operation::CreateConsole,
        Operation::Exec,
        Operation::ExecConsole,
        Operation::Delete,
    ] {
        if only.is_none_or(|only| only == format!("{operation:?}")) {
            amiss += trial.each_call(operation, call).await?;
        }
    }
    let Trial { pod, mut client, .. } = trial;
    driver.end(&mut client, &pod).await?;
    Ok(amiss)
}

impl Trial {
    async fn each_call(&mut self, operation: Operation, call: Option<&str>) -> Result<usize> {
        let trace = self.driver.directory().join("trace");
        let (outcome, _) = self.once(operation, &trace, &["trace=all".to_owned()]).await?;
        outcome?;
        let mut counts = BTreeMap::<String, usize>::new();
        for line in std::fs::read_to_string(&trace).unwrap_or_default().lines() {
            let name: String =
                line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if !name.is_empty()
                && !SPARED.contains(&name.as_str())
                && call.is_none_or(|call| call == name)
            {
                *counts.entry(name).or_default() += 1;
            }
        }
        let (mut failures, mut errors, mut amiss) = (0, 0, 0);
        for (name, count) in &counts {
            for when in 1..=*count {
                let inject = format!("inject={name}:error={}:when={when}", error_of(name));
                let expressions = [format!("trace={name}"), inject.clone()];
                let (outcome, complaints) =
                    self.once(operation, Path::new("/dev/null"), &expressions).await?;
                failures += 1;
                errors += usize::from(outcome.is_err());
                if !complaints.is_empty() {
                    amiss += 1;
                    println!(
                        "{operation:?} {inject}: {complaints:?}; the call: {:?}",
                        outcome.err().map(|e| e.0)
                    );
                }
            }
        }
        println!("{:15} {failures:>9} {errors:>9} {amiss:>9}", format!("{operation:?}"));
        Ok(amiss)
    }

    /// One operation under strace on a fresh container, then the check. The outer error: the trial
    /// cannot go on.
    async fn once(
        &mut self,
        operation: Operation,
        trace: &Path,
        expressions: &[String],
    ) -> Result<(Result<()>, Vec<String>)> {
        let id = self.driver.fresh("c");
        let bundle = self.driver.bundle(&id, &self.pod.id, &["sleep", "1000"]).await?;
        self.driver.start(&id, &bundle).await?;
        let before = measure::descriptors(self.shim);
        let mut create = self.driver.create_request(&id, &bundle);
        if operation == Operation::CreateConsole {
            create.terminal = true;
            self.driver.with_terminal(&bundle)?;
            create.stdout = self.fifo(&bundle, "out")?;
        }
        if operation == Operation::Create {
            create.stdout = self.fifo(&bundle, "out")?;
            create.stderr = self.fifo(&bundle, "err")?;
            create.stdin = self.fifo(&bundle, "in")?;
        }
        let creates = matches!(operation, Operation::Create | Operation::CreateConsole);
        if !creates {
            self.client.call::<api::PidResponse>("Create", &create).await?;
            self.client.process::<api::PidResponse>("Start", &id, "").await?;
        }
        if operation == Operation::Delete {
            self.client.kill(&id, "", 9).await?;
            self.client.process::<api::WaitResponse>("Wait", &id, "").await?;
        }
        let strace = Strace::attach(self.shim, trace, expressions).await?;
        // Over a connection of its own: that may be what fails.
        let outcome = self.attempt(operation, &id, &bundle, &create).await;
        drop(strace);
        let mut complaints = Vec::new();
        if let Err(e) = self.clear(&id, &bundle).await {
            complaints.push(e.0);
        }
        let alive: Result<api::StateResponse> = match Client::connect(&self.pod.socket).await {
            Ok(client) => {
                self.client = client;
                self.client.process("State", &self.pod.id, "").await
            }
            Err(e) => Err(e),
        };
        let alive = alive
            .map_err(|e| DriverError(format!("the shim is lost after {expressions:?}: {e}")))?;
        if alive.status != 2 {
            complaints.push(format!("the survivor's status is {}", alive.status));
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut left = self.driver.leftovers();
            left.retain(|what| what.contains(&format!("/{id}")) || what.ends_with(&id));
            let descriptors = measure::descriptors(self.shim);
            if left.is_empty() && descriptors <= before + SLACK {
                break;
            }
            if Instant::now() > deadline {
                left.push(format!("descriptors {before} → {descriptors}"));
                complaints.extend(left);
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok((outcome, complaints))
    }

    async fn attempt(
        &self,
        operation: Operation,
        id: &str,
        bundle: &Path,
        create: &api::CreateTaskRequest,
    ) -> Result<()> {
        let mut client = Client::connect(&self.pod.socket).await?;
        match operation {
            Operation::Create | Operation::CreateConsole => {
                client.call::<api::PidResponse>("Create", create).await.map(|_| ())
            }
            Operation::Exec | Operation::ExecConsole => {
                let request = api::ExecProcessRequest {
                    id: id.to_owned(),
                    exec_id: "e".to_owned(),
                    terminal: operation == Operation::ExecConsole,
                    stdout: self.fifo(bundle, "exec-out")?,
                    spec: Some(Any {
                        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process"
                            .to_owned(),
                        value: exec_spec(operation == Operation::ExecConsole)
                            .to_string()
                            .into_bytes(),
                    }),
                    ..api::ExecProcessRequest::default()
                };
                client.call::<Empty>("Exec", &request).await?;
                client.process::<api::PidResponse>("Start", id, "e").await?;
                let waited: api::WaitResponse = client.process("Wait", id, "e").await?;
                if waited.exit_status != 7 {
                    return Err(DriverError(format!("exit status {}", waited.exit_status)));
                }
                client.process::<api::DeleteResponse>("Delete", id, "e").await.map(|_| ())
            }
            Operation::Delete => {
                client.process::<api::DeleteResponse>("Delete", id, "").await.map(|_| ())
            }
        }
    }

    fn fifo(&self, bundle: &Path, name: &str) -> Result<String> {
        Ok(self.driver.fifo(bundle, name)?.display().to_string())
    }

    /// Brings the container to its end as containerd would, wherever it stands.
    async fn clear(&self, id: &str, bundle: &Path) -> Result<()> {
        let mut client = Client::connect(&self.pod.socket).await?;
        if let Ok(state) = client.process::<api::StateResponse>("State", id, "").await {
            let exec = client.process::<api::StateResponse>("State", id, "e").await;
            if state.status != 3 {
                let _ = client.kill(id, "", 9).await;
                client.process::<api::WaitResponse>("Wait", id, "").await?;
            }
            if exec.is_ok() {
                client.process::<api::DeleteResponse>("Delete", id, "e").await?;
            }
            client.process::<api::DeleteResponse>("Delete", id, "").await?;
        }
        self.driver.clean_up(id, bundle).await
    }
}

fn exec_spec(terminal: bool) -> serde_json::Value {
    serde_json::json!({
        "args": ["sh", "-c", "echo hello; exit 7"], "cwd": "/", "terminal": terminal,
        "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"], "user": {"uid": 0, "gid": 0},
    })
}
