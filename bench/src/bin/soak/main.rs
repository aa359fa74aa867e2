//! soak MINUTES LABEL=SHIM... [--lives N]: execs and whole container lives under load, on every
//! shim at once; each exit and each event is accounted for. Then N lives (120 a minute, unless
//! said) in one pod that goes on ([`pod`]), at whose end all must be as at its start. Prints a
//! table for each, one column a shim. Ends with status 1 if the first shim lost, mixed up or kept
//! anything. MINUTES may be 0.
//!
//! Each shim has eight workers: six run execs in two pods that live as long as the soak (exit
//! statuses 0-199, some killed), two run lives: start, Create, Start, exit or kill, Delete,
//! Shutdown, `delete`.

mod pod;

use cleat::protocol::task as api;
use cleat_bench::{Annotations, Client, Driver, DriverError, Pod, Verdict, measure};
use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

const EXEC_PODS: usize = 2;
const EXEC_WORKERS: usize = 6;
const LIFE_WORKERS: usize = 2;
/// Events that come later than this count as missing.
const EVENT_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Tally {
    execs: Cell<u64>,
    lives: Cell<u64>,
    wrong: Cell<u64>,
    failed: RefCell<Vec<String>>,
    failures: Cell<u64>,
    verdict: RefCell<Verdict>,
    left: RefCell<Vec<String>>,
    /// Private KiB, descriptors and CPU seconds of the exec pods' shims: after a tenth of the time,
    /// and at the end.
    early: RefCell<Vec<(u64, usize)>>,
    late: RefCell<Vec<(u64, usize)>>,
    cpu: Cell<f64>,
    execs_early: Cell<u64>,
    seconds: Cell<f64>,
}

fn bump(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

impl Tally {
    fn fail(&self, error: &DriverError) {
        bump(&self.failures);
        self.fail_with(error.to_string());
    }

    fn fail_with(&self, text: String) {
        let mut failed = self.failed.borrow_mut();
        if failed.len() < 5 {
            failed.push(text);
        }
    }

    /// What both loads tell.
    fn rows(&self, driver: &Driver, verdict: Verdict) -> Vec<(String, String)> {
        let rows = [
            ("wrong exit status", self.wrong.get()),
            ("calls failed or unanswered", self.failures.get()),
            ("events", driver.ledger.count()),
            ("events missing", verdict.missing),
            ("events twice or unknown", verdict.strange),
            ("events out of order", verdict.disordered),
            ("events with a wrong status", verdict.wrong_status),
        ];
        rows.map(|(name, number)| (name.to_owned(), number.to_string())).into()
    }

    fn is_clean(&self) -> bool {
        *self.verdict.borrow() == Verdict::default()
            && self.wrong.get() == 0
            && self.failures.get() == 0
    }
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let lives = arguments.iter().position(|word| word == "--lives").map(|at| {
        let number = arguments.get(at + 1).and_then(|text| text.parse::<u64>().ok());
        arguments.drain(at..(at + 2).min(arguments.len()));
        number
    });
    let minutes: Option<f64> = arguments.first().and_then(|text| text.parse().ok());
    let shims: Vec<(String, PathBuf)> = arguments
        .iter()
        .filter_map(|a| {
            a.split_once('=').map(|(label, path)| (label.to_owned(), PathBuf::from(path)))
        })
        .collect();
    let (Some(minutes), false, false) = (minutes, shims.is_empty(), lives == Some(None)) else {
        eprintln!("usage: soak MINUTES LABEL=SHIM... [--lives N]");
        std::process::exit(2);
    };
    let time = Duration::from_secs_f64(minutes * 60.0);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of minutes"
    )]
    let lives = lives.flatten().unwrap_or((minutes * 120.0) as u64);
    let mut is_clean = true;
    if !time.is_zero() {
        is_clean &= side_by_side(&shims, |label, path| run(label, path, time));
    }
    if lives > 0 {
        println!("\n{lives} lives in one pod");
        is_clean &= side_by_side(&shims, |label, path| run_pod(label, path, lives));
    }
    if !is_clean {
        std::process::exit(1);
    }
}

/// A load on each shim, at once: a thread a shim, each with a loop of its own. Whether the first
/// shim lost nothing.
fn side_by_side(shims: &[(String, PathBuf)], load: impl Fn(&str, &Path) -> Column + Sync) -> bool {
    let load = &load;
    let columns: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            shims.iter().map(|(label, path)| scope.spawn(move || load(label, path))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a soak panicked")).collect()
    });
    print_table(&columns);
    columns.first().is_some_and(|column| column.clean)
}

/// A shim's figures, to be printed.
struct Column {
    label: String,
    rows: Vec<(String, String)>,
    notes: Vec<String>,
    clean: bool,
}

fn run(label: &str, shim: &Path, time: Duration) -> Column {
    with_driver(label, shim, async |driver, tally| {
        if let Err(e) = soak(&driver, &tally, time).await {
            tally.fail(&e);
        }
        tally.left.replace(driver.leftovers_after(Duration::from_secs(15)).await);
        column(label, &driver, &tally)
    })
}

fn run_pod(label: &str, shim: &Path, lives: u64) -> Column {
    with_driver(label, shim, async |driver, tally| {
        let mut column = pod::run(&driver, &tally, lives).await.unwrap_or_else(|e| Column {
            label: label.to_owned(),
            rows: Vec::new(),
            notes: vec![format!("{label}: {e}")],
            clean: false,
        });
        let left = driver.leftovers_after(Duration::from_secs(15)).await;
        column.clean &= left.is_empty();
        column.notes.extend(left.iter().take(5).map(|l| format!("{label}: left {l}")));
        column
    })
}

fn with_driver(
    label: &str,
    shim: &Path,
    load: impl AsyncFnOnce(Rc<Driver>, Rc<Tally>) -> Column,
) -> Column {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a loop");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let driver = Driver::new(label, shim, &Annotations::new()).await.expect("a driver");
        let column = load(Rc::clone(&driver), Rc::default()).await;
        driver.tidy();
        column
    })
}

async fn soak(driver: &Rc<Driver>, tally: &Rc<Tally>, time: Duration) -> Result<(), DriverError> {
    let begun = Instant::now();
    let end = begun + time;
    let mut pods = Vec::new();
    for _ in 0..EXEC_PODS {
        let id = driver.fresh("pod");
        let (pod, mut client) = driver.running(&id, &["sleep", "1000000"]).await?;
        let connect: api::ConnectResponse =
            client.call("Connect", &api::ContainerRequest { id }).await?;
        pods.push((Rc::new(pod), connect.shim_pid));
    }
    let mut workers = tokio::task::JoinSet::new();
    for number in 0..EXEC_WORKERS {
        let pod = Rc::clone(&pods[number % EXEC_PODS].0);
        workers.spawn_local(exec_worker(Rc::clone(driver), Rc::clone(tally), pod, end));
    }
    for number in 0..LIFE_WORKERS {
        workers.spawn_local(life_worker(Rc::clone(driver), Rc::clone(tally), number, end));
    }
    tokio::time::sleep(time / 10).await;
    tally.execs_early.set(tally.execs.get());
    tally.early.replace(
        pods.iter()
            .map(|(_, pid)| (measure::memory_kib(*pid).private, measure::descriptors(*pid)))
            .collect(),
    );
    while workers.join_next().await.is_some() {}
    tally.seconds.set(begun.elapsed().as_secs_f64());
    // Idle, as the operator of a node sees it.
    tokio::time::sleep(Duration::from_secs(4)).await;
    tally.late.replace(
        pods.iter()
            .map(|(_, pid)| (measure::memory_kib(*pid).private, measure::descriptors(*pid)))
            .collect(),
    );
    tally.cpu.set(pods.iter().map(|(_, pid)| measure::cpu_seconds(*pid)).sum());
    for (pod, _) in pods {
        let mut client = Client::connect(&pod.socket).await?;
        driver.end(&mut client, &pod).await?;
        settle_life(driver, tally, &pod.id, 137).await;
    }
    Ok(())
}

async fn exec_worker(driver: Rc<Driver>, tally: Rc<Tally>, pod: Rc<Pod>, end: Instant) {
    let mut client = None;
    while Instant::now() < end {
        let result = one_exec(&driver, &tally, &pod, &mut client).await;
        if let Err(e) = result {
            tally.fail(&e);
            client = None;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn one_exec(
    driver: &Rc<Driver>,
    tally: &Rc<Tally>,
    pod: &Pod,
    client: &mut Option<Client>,
) -> Result<(), DriverError> {
    if client.is_none() {
        *client = Some(Client::connect(&pod.socket).await?);
    }
    let Some(client) = client else { return Ok(()) };
    let exec = driver.fresh("e");
    let number = tally.execs.get();
    let code = u32::try_from(number % 200).unwrap_or(0);
    let killed = number % 16 == 7;
    let status = if killed { 137 } else { code };
    let script = if killed { "sleep 1000".to_owned() } else { format!("exit {code}") };
    client.exec(&pod.id, &exec, &["sh", "-c", &script], "").await?;
    client.process::<api::PidResponse>("Start", &pod.id, &exec).await?;
    if killed {
        client.kill(&pod.id, &exec, 9).await?;
    }
    let waited: api::WaitResponse = client.process("Wait", &pod.id, &exec).await?;
    let deleted: api::DeleteResponse = client.process("Delete", &pod.id, &exec).await?;
    bump(&tally.execs);
    if waited.exit_status != status || deleted.exit_status != status {
        bump(&tally.wrong);
    }
    let (driver, tally, id) = (Rc::clone(driver), Rc::clone(tally), pod.id.clone());
    tokio::task::spawn_local(async move {
        let deadline = Instant::now() + EVENT_PATIENCE;
        while !driver.ledger.has(&id, &format!("exit:{exec}")) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        *tally.verdict.borrow_mut() += driver.ledger.settle_exec(&id, &exec, status);
    });
    Ok(())
}

/// How a life ends.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    Exit,
    Kill,
}

async fn life_worker(driver: Rc<Driver>, tally: Rc<Tally>, number: usize, end: Instant) {
    let mut turn = number;
    while Instant::now() < end {
        turn += 1;
        let ending = if turn.is_multiple_of(2) { Ending::Kill } else { Ending::Exit };
        let id = driver.fresh("life");
        if let Err(e) = one_life(&driver, &tally, &id, ending).await {
            tally.fail(&e);
            driver.give_up(&id).await;
            let _ = driver.clean_up(&id, &driver.directory().join("task").join(&id)).await;
        }
    }
}

async fn one_life(
    driver: &Rc<Driver>,
    tally: &Rc<Tally>,
    id: &str,
    ending: Ending,
) -> Result<(), DriverError> {
    let code = u32::try_from(tally.lives.get() % 200).unwrap_or(0);
    let (script, status) = match ending {
        Ending::Exit => (format!("exit {code}"), code),
        Ending::Kill => ("sleep 1000".to_owned(), 137),
    };
    let (pod, mut client) = driver.pod(id, &["sh", "-c", &script]).await?;
    client.call::<api::PidResponse>("Create", &driver.create_request(id, &pod.bundle)).await?;
    let mut waiter = Client::connect(&pod.socket).await?;
    let wait = waiter
        .send("Wait", &api::ProcessRequest { id: id.to_owned(), exec_id: String::new() })
        .await?;
    client.process::<api::PidResponse>("Start", id, "").await?;
    if ending == Ending::Kill {
        client.kill(id, "", 9).await?;
    }
    let waited: api::WaitResponse = waiter.answer("Wait", wait).await?;
    drop(waiter);
    let deleted = driver.finish(&mut client, &pod).await?;
    bump(&tally.lives);
    if waited.exit_status != status || deleted != status {
        bump(&tally.wrong);
    }
    let (driver, tally, id) = (Rc::clone(driver), Rc::clone(tally), id.to_owned());
    tokio::task::spawn_local(async move { settle_life(&driver, &tally, &id, status).await });
    Ok(())
}

async fn settle_life(driver: &Driver, tally: &Tally, id: &str, status: u32) {
    let deadline = Instant::now() + EVENT_PATIENCE;
    while !driver.ledger.has(id, "delete") && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    *tally.verdict.borrow_mut() += driver.ledger.settle(id, status);
}

fn column(label: &str, driver: &Driver, tally: &Tally) -> Column {
    let verdict = *tally.verdict.borrow();
    let pairs = |values: &[(u64, usize)]| {
        let kib: Vec<String> = values.iter().map(|(kib, _)| kib.to_string()).collect();
        let fds: Vec<String> = values.iter().map(|(_, fds)| fds.to_string()).collect();
        (kib.join(" "), fds.join(" "))
    };
    let (early, late) = (pairs(&tally.early.borrow()), pairs(&tally.late.borrow()));
    let left = tally.left.borrow();
    let seconds = tally.seconds.get().max(0.001);
    #[allow(clippy::cast_precision_loss, reason = "counts for people")]
    let rate = |n: u64| format!("{:.1}", n as f64 / seconds);
    #[allow(clippy::cast_precision_loss, reason = "counts for people")]
    let cpu = format!("{:.3}", tally.cpu.get() * 1000.0 / tally.execs.get().max(1) as f64);
    let clean = tally.is_clean() && left.is_empty();
    let mut notes: Vec<String> =
        tally.failed.borrow().iter().map(|e| format!("{label}: {e}")).collect();
    notes.extend(left.iter().take(5).map(|l| format!("{label}: left {l}")));
    let named = |(name, text): (&str, String)| (name.to_owned(), text);
    let before = [
        ("execs", tally.execs.get().to_string()),
        ("container lives", tally.lives.get().to_string()),
        ("execs a second", rate(tally.execs.get())),
        ("lives a second", rate(tally.lives.get())),
    ];
    let after = [
        ("left behind", left.len().to_string()),
        ("private KiB after a tenth", early.0),
        ("private KiB at the end, idle", late.0),
        ("descriptors after a tenth", early.1),
        ("descriptors at the end, idle", late.1),
        ("shim CPU ms an exec", cpu),
    ];
    let rows =
        before.map(named).into_iter().chain(tally.rows(driver, verdict)).chain(after.map(named));
    Column { label: label.to_owned(), rows: rows.collect(), notes, clean }
}

fn print_table(columns: &[Column]) {
    print!("{:32}", "");
    columns.iter().for_each(|column| print!("{:>16}", column.label));
    println!();
    let longest = columns.iter().max_by_key(|column| column.rows.len());
    for (name, _) in longest.map(|column| &column.rows).into_iter().flatten() {
        print!("{name:32}");
        for column in columns {
            let text =
                column.rows.iter().find(|(known, _)| known == name).map_or("-", |(_, text)| text);
            print!("{text:>16}");
        }
        println!();
    }
    columns.iter().flat_map(|column| &column.notes).for_each(|note| println!("{note}"));
}
