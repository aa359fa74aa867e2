//! What a shim gets done in a second, and at which cost.

use super::{Measure, Report, Subject, float};
use crate::{Client, Driver, DriverError, measure as kernel};
use cleat::protocol::{Empty, task as api};
use std::{
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const EXECS: Measure = Measure::more("throughput", "execs, 8 at a time", "a second");
const EXEC_CPU: Measure = Measure::less("throughput", "shim CPU of an exec", "ms");
const LIVES: Measure = Measure::more("throughput", "lives, 8 at a time", "a second");
const STATE: Measure = Measure::more("throughput", "State, 8 at a time", "a second");
const STATS: Measure = Measure::more("throughput", "Stats, 8 at a time", "a second");
const PIDS: Measure = Measure::more("throughput", "Pids, 8 at a time", "a second");

const AT_A_TIME: usize = 8;
const LAP: Duration = Duration::from_secs(3);
const SHORT_LAP: Duration = Duration::from_millis(700);

pub(super) async fn measure(subject: &Subject<'_>, report: &mut Report) -> Result<(), DriverError> {
    for round in 0..subject.rounds.clamp(1, 5) {
        for (shim, driver) in subject.turns(round) {
            let mut sample = |measure, value| report.add(measure, shim, value);
            let id = driver.fresh("throughput");
            let (pod, mut client) = driver.running(&id, &["sleep", "100000"]).await?;
            let daemon = client.shim_pid(&id).await?;
            for (measure, method) in [(STATE, "State"), (STATS, "Stats"), (PIDS, "Pids")] {
                let begun = Instant::now();
                let done =
                    at_a_time(|_| calls(pod.socket.clone(), method, id.clone(), begun)).await?;
                sample(measure, float(done) / begun.elapsed().as_secs_f64());
            }
            let before = kernel::work(daemon).0;
            let begun = Instant::now();
            let done =
                at_a_time(|number| execs(pod.socket.clone(), id.clone(), number, begun)).await?;
            sample(EXECS, float(done) / begun.elapsed().as_secs_f64());
            sample(EXEC_CPU, (kernel::work(daemon).0 - before) * 1000.0 / float(done.max(1)));
            driver.end(&mut client, &pod).await?;
            let begun = Instant::now();
            let done = at_a_time(|_| lives(Rc::clone(driver), begun)).await?;
            sample(LIVES, float(done) / begun.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// One client's calls, one after the other; how many.
async fn calls(
    socket: PathBuf,
    method: &'static str,
    id: String,
    begun: Instant,
) -> Result<u64, DriverError> {
    let mut client = Client::connect(&socket).await?;
    let mut done = 0;
    while begun.elapsed() < SHORT_LAP {
        client.process::<Empty>(method, &id, "").await?;
        done += 1;
    }
    Ok(done)
}

/// Eight workers; how much they did together.
async fn at_a_time<W>(work: impl Fn(usize) -> W) -> Result<u64, DriverError>
where
    W: Future<Output = Result<u64, DriverError>> + 'static,
{
    let mut workers = JoinSet::new();
    for number in 0..AT_A_TIME {
        workers.spawn_local(work(number));
    }
    let mut total = 0;
    while let Some(done) = workers.join_next().await {
        total += done.map_err(|e| DriverError(e.to_string()))??;
    }
    Ok(total)
}

async fn execs(
    socket: PathBuf,
    id: String,
    worker: usize,
    begun: Instant,
) -> Result<u64, DriverError> {
    let mut client = Client::connect(&socket).await?;
    let mut done = 0;
    while begun.elapsed() < LAP {
        let exec = format!("w{worker}-{done}");
        client.exec_to_end(&id, &exec, &["true"]).await?;
        done += 1;
    }
    Ok(done)
}

async fn lives(driver: Rc<Driver>, begun: Instant) -> Result<u64, DriverError> {
    let mut done = 0;
    while begun.elapsed() < LAP {
        let id = driver.fresh("life");
        let (pod, mut client) = driver.running(&id, &["true"]).await?;
        client.process::<api::WaitResponse>("Wait", &id, "").await?;
        driver.finish(&mut client, &pod).await?;
        done += 1;
    }
    Ok(done)
}
