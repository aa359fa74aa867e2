//! The second load: one pod that lives long. Containers are created, run, exec'd into, killed (also
//! for want of memory), paused and deleted in it, by the thousand; at the end all is as it was
//! after the first few.

use crate::{Column, Tally, bump};
use cleat::protocol::{Empty, task as api};
use cleat_bench::{Client, Driver, DriverError, Inventory, Pod, Verdict, measure};
use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
};

const WORKERS: u64 = 3;
/// Before the first count: each kind of life twice for each worker.
const WARM_UP: u64 = 2 * WORKERS * LIVES.len() as u64;
/// Until caches are given back and deferred work is done.
const REST: Duration = Duration::from_secs(4);
/// Until a container's output must have come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Until its events must have come.
const EVENT_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of memory: enough for runc and a shell.
const LIMIT: u64 = 24 << 20;
/// More private memory than this after the first few is growth, KiB: the heap's own coming and
/// going is less.
const MEMORY_SLACK: u64 = 160;

/// How one container lives.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    /// Runs execs, then ends by itself.
    Execs,
    Killed,
    OutOfMemory,
    Paused,
    KilledWhilePaused,
    /// Reads a line from its console and answers.
    Console,
    /// The same with fifos; an exec too.
    Fifos,
    NeverStarted,
    /// Its program is not there.
    Failing,
}

const LIVES: [Life; 9] = [
    Life::Execs,
    Life::Killed,
    Life::OutOfMemory,
    Life::Paused,
    Life::KilledWhilePaused,
    Life::Console,
    Life::Fifos,
    Life::NeverStarted,
    Life::Failing,
];

/// What the second load needs.
struct Load {
    driver: Rc<Driver>,
    tally: Rc<Tally>,
    pod: Pod,
    /// The next life; they end at this one.
    next: Cell<u64>,
    end: Cell<u64>,
    kills_untold: Cell<u64>,
    /// No memory controller, or a shim that leaves a paused container frozen when it is killed.
    omitted: Vec<Life>,
    before: RefCell<Inventory>,
}

/// Runs it. `lives` are those between the two counts.
pub(crate) async fn run(
    driver: &Rc<Driver>,
    tally: &Rc<Tally>,
    lives: u64,
) -> Result<Column, DriverError> {
    let id = driver.fresh("longpod");
    let (pod, mut client) = driver.running(&id, &["sleep", "1000000"]).await?;
    let shim = client.shim_pid(&id).await?;
    let is_ours = driver.shim().to_string_lossy().contains("cleat");
    let omitted =
        [(Life::OutOfMemory, !has_memory_controller()), (Life::KilledWhilePaused, !is_ours)];
    let omitted =
        omitted.into_iter().filter_map(|(life, is_omitted)| is_omitted.then_some(life)).collect();
    let load = Rc::new(Load {
        driver: Rc::clone(driver),
        tally: Rc::clone(tally),
        pod,
        next: Cell::new(0),
        end: Cell::new(0),
        kills_untold: Cell::new(0),
        omitted,
        before: RefCell::default(),
    });
    load.live(WARM_UP).await;
    let (before, memory_before) = load.count(shim, is_ours).await;
    let begun = Instant::now();
    load.live(lives).await;
    let seconds = begun.elapsed().as_secs_f64();
    let (after, memory_after) = load.count(shim, is_ours).await;
    load.before.replace(before);

    let deleted = driver.end(&mut client, &load.pod).await?;
    if deleted != 137 {
        bump(&tally.wrong);
    }
    crate::settle_life(driver, tally, &load.pod.id, 137).await;
    Ok(load.column(&after, [memory_before, memory_after], lives, seconds))
}

fn has_memory_controller() -> bool {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    v2.split_whitespace().any(|name| name == "memory")
        || Path::new("/sys/fs/cgroup/memory").exists()
}

impl Load {
    async fn live(self: &Rc<Self>, lives: u64) {
        self.end.set(self.end.get() + lives);
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..WORKERS {
            let load = Rc::clone(self);
            workers.spawn_local(async move { load.work().await });
        }
        while workers.join_next().await.is_some() {}
    }

    async fn work(&self) {
        let mut client = None;
        while self.next.get() < self.end.get() {
            let number = self.next.get();
            self.next.set(number + 1);
            let id = self.driver.fresh("c");
            if let Err(e) = self.one(&mut client, &id, number).await {
                self.tally.fail(&e);
                client = None;
                self.give_up(&id).await;
            }
        }
    }

    /// The kind of the life with this number; each comes to each worker.
    fn life(&self, number: u64) -> Life {
        let kinds: Vec<Life> =
            LIVES.into_iter().filter(|life| !self.omitted.contains(life)).collect();
        kinds[usize::try_from(number).unwrap_or(0) % kinds.len()]
    }

    async fn one(
        &self,
        client: &mut Option<Client>,
        id: &str,
        number: u64,
    ) -> Result<(), DriverError> {
        let client = match client {
            Some(client) => client,
            None => client.insert(Client::connect(&self.pod.socket).await?),
        };
        let life = self.life(number);
        let code = u32::try_from(number % 200).unwrap_or(0);
        let say = format!("read line; echo \"got $line\"; exit {code}");
        let run = format!("sleep 1000000 & wait; exit {code}");
        let (arguments, status): (&[&str], u32) = match life {
            Life::OutOfMemory => {
                (&["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"], 137)
            }
            Life::Console | Life::Fifos => (&["sh", "-c", &say], code),
            Life::Failing => (&["/nonesuch"], 0),
            Life::Execs => (&["sh", "-c", &format!("trap 'exit {code}' TERM; {run}")], code),
            _ => (&["sleep", "1000000"], 137),
        };
        let bundle = self.driver.bundle(id, &self.pod.id, arguments).await?;
        if life == Life::OutOfMemory {
            self.driver.edit(&bundle, |config| {
                config["linux"]["resources"]["memory"] = serde_json::json!({ "limit": LIMIT });
            })?;
        }
        if self.driver.start(id, &bundle).await? != self.pod.socket {
            return Err(DriverError(format!("{id} got a shim of its own")));
        }
        let mut request = self.driver.create_request(id, &bundle);
        let mut channels = None;
        if matches!(life, Life::Console | Life::Fifos) {
            request.terminal = life == Life::Console;
            if request.terminal {
                self.driver.with_terminal(&bundle)?;
            }
            channels = Some(self.channels(&bundle, "init")?);
            request.stdin = bundle.join("init-in").display().to_string();
            request.stdout = bundle.join("init-out").display().to_string();
            if !request.terminal {
                request.stderr = "/dev/null".to_owned();
            }
        }
        let created = client.call::<api::PidResponse>("Create", &request).await;
        if life == Life::Failing {
            if created.is_ok() {
                return Err(DriverError("a program that is not there was created".to_owned()));
            }
            self.driver.ledger.forget(id);
            return self.discard(id, &bundle).await;
        }
        created?;
        if life != Life::NeverStarted {
            client.process::<api::PidResponse>("Start", id, "").await?;
        }
        let events = self.act(client, life, id, &bundle, channels, code).await?;
        let waited: api::WaitResponse = client.process("Wait", id, "").await?;
        let deleted: api::DeleteResponse = client.process("Delete", id, "").await?;
        bump(&self.tally.lives);
        if waited.exit_status != status || deleted.exit_status != status {
            bump(&self.tally.wrong);
        }
        self.settle(id, life, events, status).await;
        self.discard(id, &bundle).await
    }

    /// What is done to a container that runs, until it ends. Returns the events to be expected.
    async fn act(
        &self,
        client: &mut Client,
        life: Life,
        id: &str,
        bundle: &Path,
        channels: Option<Channels>,
        code: u32,
    ) -> Result<&'static [&'static str], DriverError> {
        let container = api::ContainerRequest { id: id.to_owned() };
        match life {
            Life::Execs => {
                self.exec(client, id, &format!("exit {code}"), code, None).await?;
                self.exec(client, id, "kill -9 $$", 137, None).await?;
                self.exec(client, id, "", 0, None).await?;
                client.kill(id, "", 15).await?;
            }
            Life::Paused | Life::KilledWhilePaused => {
                client
                    .process::<api::StateResponse>("Stats", id, "")
                    .await
                    .map(drop)
                    .or_else(ignore_body)?;
                client.call::<Empty>("Pause", &container).await?;
                client.process::<api::StateResponse>("State", id, "").await?;
                if life == Life::Paused {
                    client.call::<Empty>("Resume", &container).await?;
                    client.kill(id, "", 9).await?;
                    return Ok(&["create", "start", "paused", "resumed", "exit", "delete"]);
                }
                client.kill(id, "", 9).await?;
                return Ok(&["create", "start", "paused", "exit", "delete"]);
            }
            Life::Killed => client.kill(id, "", 9).await?,
            Life::NeverStarted => {
                client.kill(id, "", 9).await?;
                return Ok(&["create", "exit", "delete"]);
            }
            Life::Console | Life::Fifos => {
                if life == Life::Fifos {
                    self.exec(client, id, "read line; echo \"got $line\"; exit 3", 3, Some(bundle))
                        .await?;
                }
                channels.ok_or_else(|| DriverError("no channels".to_owned()))?.talk().await?;
            }
            Life::OutOfMemory | Life::Failing => {}
        }
        Ok(&["create", "start", "exit", "delete"])
    }

    /// An exec to its end; without a script one that cannot be started.
    async fn exec(
        &self,
        client: &mut Client,
        id: &str,
        script: &str,
        status: u32,
        channels: Option<&Path>,
    ) -> Result<(), DriverError> {
        let exec = self.driver.fresh("e");
        let arguments: &[&str] =
            if script.is_empty() { &["/nonesuch"] } else { &["sh", "-c", script] };
        let mut talks = None;
        match channels {
            Some(bundle) => {
                talks = Some(self.channels(bundle, &exec)?);
                let path = |end: &str| bundle.join(format!("{exec}-{end}")).display().to_string();
                client
                    .exec_with(id, &exec, arguments, |request| {
                        request.stdin = path("in");
                        request.stdout = path("out");
                        request.stderr = "/dev/null".to_owned();
                    })
                    .await?;
            }
            None => client.exec(id, &exec, arguments, "").await?,
        }
        let started = client.process::<api::PidResponse>("Start", id, &exec).await;
        if script.is_empty() {
            client.process::<api::DeleteResponse>("Delete", id, &exec).await?;
            self.driver.ledger.settle_exec(id, &exec, 0);
            return if started.is_err() {
                Ok(())
            } else {
                Err(DriverError("what is not there was started".to_owned()))
            };
        }
        started?;
        if let Some(talks) = talks {
            talks.talk().await?;
        }
        let waited: api::WaitResponse = client.process("Wait", id, &exec).await?;
        let deleted: api::DeleteResponse = client.process("Delete", id, &exec).await?;
        bump(&self.tally.execs);
        if waited.exit_status != status || deleted.exit_status != status {
            bump(&self.tally.wrong);
        }
        let deadline = Instant::now() + EVENT_PATIENCE;
        while !self.driver.ledger.has(id, &format!("exit:{exec}")) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        *self.tally.verdict.borrow_mut() += self.driver.ledger.settle_exec(id, &exec, status);
        Ok(())
    }

    async fn settle(&self, id: &str, life: Life, events: &[&str], status: u32) {
        let deadline = Instant::now() + EVENT_PATIENCE;
        while !self.driver.ledger.has(id, "delete") && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (verdict, told) = self.driver.ledger.settle_as(id, events, status);
        if verdict != Verdict::default() {
            self.tally.fail_with(format!(
                "{id}: told {}, expected {}",
                told.join(" "),
                events.join(" ")
            ));
        }
        let kills = told.iter().filter(|line| *line == "oom").count();
        if life == Life::OutOfMemory && kills == 0 {
            bump(&self.kills_untold);
            self.tally
                .fail_with(format!("{id}: killed for want of memory, told {}", told.join(" ")));
        }
        *self.tally.verdict.borrow_mut() += verdict;
    }

    fn channels(&self, bundle: &Path, name: &str) -> Result<Channels, DriverError> {
        let failed = |e: std::io::Error| DriverError(format!("open a fifo: {e}"));
        let fifo = |end: &str| self.driver.fifo(bundle, &format!("{name}-{end}"));
        let mut open = pipe::OpenOptions::new();
        let both = open.read_write(true);
        Ok(Channels {
            input: both.open_sender(fifo("in")?).map_err(failed)?,
            output: both.open_receiver(fifo("out")?).map_err(failed)?,
        })
    }

    /// Removes the bundle of a container that has gone. What is mounted there would go with it.
    async fn discard(&self, id: &str, bundle: &Path) -> Result<(), DriverError> {
        let rootfs = bundle.join("rootfs").display().to_string();
        if self.driver.mounts().iter().any(|line| line.contains(&rootfs)) {
            return Err(DriverError(format!("the rootfs of {id} is still mounted")));
        }
        self.driver.discard(id, bundle).await
    }

    /// After an error: what can be done to get rid of a container.
    async fn give_up(&self, id: &str) {
        if let Ok(mut client) = Client::connect(&self.pod.socket).await {
            let _ = client.kill(id, "", 9).await;
            let _ = client.process::<api::WaitResponse>("Wait", id, "").await;
            let _ = client.process::<api::DeleteResponse>("Delete", id, "").await;
        }
        let bundle: PathBuf = self.driver.directory().join("task").join(id);
        let _ = self.discard(id, &bundle).await;
        self.driver.ledger.forget(id);
    }

    /// What there is when the pod rests, and the shim's private memory in KiB.
    async fn count(&self, shim: u32, is_ours: bool) -> (Inventory, u64) {
        tokio::time::sleep(REST).await;
        let mut counts = Inventory::take(&self.driver, shim);
        if is_ours && let Some(tasks) = self.tasks(shim).await {
            counts.add("tasks of the loop".to_owned(), tasks);
        }
        (counts, measure::memory_kib(shim).private)
    }

    /// As the shim says in its dump; `None` if it does not.
    async fn tasks(&self, shim: u32) -> Option<u64> {
        let seen = self.driver.log_tail().matches("END state dump").count();
        let pid = rustix::process::Pid::from_raw(i32::try_from(shim).ok()?)?;
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).ok()?;
        let deadline = Instant::now() + EVENT_PATIENCE;
        while self.driver.log_tail().matches("END state dump").count() == seen
            && Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = self.driver.log_tail();
        let (_, rest) = log.rsplit_once(" tasks=")?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }

    fn column(&self, after: &Inventory, memory: [u64; 2], lives: u64, seconds: f64) -> Column {
        let before = self.before.borrow();
        let mut rows = vec![
            ("lives in the pod".to_owned(), self.tally.lives.get().to_string()),
            ("counted between the looks".to_owned(), lives.to_string()),
            #[allow(clippy::cast_precision_loss, reason = "for people")]
            ("lives a second".to_owned(), format!("{:.1}", lives as f64 / seconds.max(0.001))),
            ("kills for want of memory untold".to_owned(), self.kills_untold.get().to_string()),
        ];
        let verdict = *self.tally.verdict.borrow();
        rows.extend(self.tally.rows(&self.driver, verdict));
        let change = |before: u64, after: u64| match before == after {
            true => before.to_string(),
            false => format!("{before} -> {after}"),
        };
        rows.push(("private KiB".to_owned(), change(memory[0], memory[1])));
        rows.extend(
            before
                .beside(after)
                .map(|(kind, before, after)| (kind.to_owned(), change(before, after))),
        );
        let mut grown = before.grown(after);
        if memory[1] > memory[0] + MEMORY_SLACK {
            grown.push(format!("private KiB: {} before, {} after", memory[0], memory[1]));
        }
        grown.extend(
            self.driver.ledger.open().into_iter().map(|told| format!("events of nobody: {told}")),
        );
        let label = &self.driver.label;
        let mut notes: Vec<String> =
            self.tally.failed.borrow().iter().map(|e| format!("{label}: {e}")).collect();
        notes.extend(grown.iter().map(|line| format!("{label}: {line}")));
        notes.extend(
            self.omitted.iter().map(|life| format!("{label}: without lives of the kind {life:?}")),
        );
        Column {
            label: label.clone(),
            rows,
            notes,
            clean: grown.is_empty() && self.kills_untold.get() == 0 && self.tally.is_clean(),
        }
    }
}

/// An answer that is of another type than the one looked for.
fn ignore_body(error: DriverError) -> Result<(), DriverError> {
    if error.0.contains("decode") { Ok(()) } else { Err(error) }
}

/// Our ends of a process's channels.
struct Channels {
    input: pipe::Sender,
    output: pipe::Receiver,
}

impl Channels {
    /// Says a line and waits for the answer to it.
    async fn talk(mut self) -> Result<(), DriverError> {
        let failed = |e: std::io::Error| DriverError(format!("talk to a process: {e}"));
        let heard = async {
            self.input.write_all(b"hello\n").await.map_err(failed)?;
            let (mut heard, mut buffer) = (Vec::new(), [0; 256]);
            while !String::from_utf8_lossy(&heard).contains("got hello") {
                let read = self.output.read(&mut buffer).await.map_err(failed)?;
                heard.extend_from_slice(&buffer[..read]);
            }
            Ok(())
        };
        let answer = tokio::time::timeout(PATIENCE, heard).await;
        answer.map_err(|_| DriverError("a process does not answer on its channels".to_owned()))?
    }
}
