//! What the whole machine spends: processor time of shim, runtime, containers and kernel together
//! (proc_stat(5)). Idle otherwise, or the others' work is counted.

use super::{Measure, Report, Subject, float, milliseconds};
use crate::{Driver, DriverError};
use cleat::protocol::task as api;
use std::{
    rc::Rc,
    time::{Duration, Instant},
};

const LIFE: Measure = Measure::less("machine", "CPU of a life", "ms");
const EXEC: Measure = Measure::less("machine", "CPU of an exec", "ms");
const COLD: Measure = Measure::less("machine", "a pod's cold start", "ms");
const PROBES: Measure = Measure::less("machine", "CPU of 50 pods, 20 with probes", "ms a second");

/// Lives and execs of one sample. /proc/stat counts in hundredths of a second.
const LIVES: usize = 20;
const EXECS: usize = 40;
const PODS: usize = 50;
const PROBED: usize = 20;
const PROBING: Duration = Duration::from_secs(10);

pub(super) async fn measure(subject: &Subject<'_>, report: &mut Report) -> Result<(), DriverError> {
    for round in 0..subject.rounds.clamp(1, 10) {
        for (shim, driver) in subject.turns(round) {
            let mut sample = |measure, value| report.add(measure, shim, value);
            sample(COLD, cold_start(driver).await?);
            let before = busy()?;
            for _ in 0..LIVES {
                let id = driver.fresh("machine");
                let (pod, mut client) = driver.running(&id, &["sleep", "1000"]).await?;
                driver.end(&mut client, &pod).await?;
            }
            sample(LIFE, (busy()? - before) / float(LIVES as u64));
            let id = driver.fresh("machine");
            let (pod, mut client) = driver.running(&id, &["sleep", "1000"]).await?;
            let before = busy()?;
            for number in 0..EXECS {
                client.exec_to_end(&id, &format!("e{number}"), &["true"]).await?;
            }
            sample(EXEC, (busy()? - before) / float(EXECS as u64));
            driver.end(&mut client, &pod).await?;
        }
    }
    for round in 0..subject.rounds.clamp(1, 3) {
        for (shim, driver) in subject.turns(round) {
            report.add(PROBES, shim, probes(driver).await?);
        }
    }
    Ok(())
}

/// Milliseconds that the processors have not been idle, since the machine's start.
fn busy() -> Result<f64, DriverError> {
    let failed = |e: &dyn std::fmt::Display| DriverError(format!("/proc/stat: {e}"));
    let text = std::fs::read_to_string("/proc/stat").map_err(|e| failed(&e))?;
    let line = text.lines().next().unwrap_or_default();
    let mut ticks = Vec::new();
    for word in line.split_whitespace().skip(1) {
        ticks.push(word.parse::<u64>().map_err(|e| failed(&e))?);
    }
    // user, nice, system, idle, iowait, irq, softirq
    let spent: u64 = ticks
        .iter()
        .enumerate()
        .filter(|(at, _)| [0, 1, 2, 5, 6].contains(at))
        .map(|(_, n)| n)
        .sum();
    Ok(float(spent) * 10.0)
}

/// From nothing until the program of the pod's first container has run: a sandbox, then it.
async fn cold_start(driver: &Rc<Driver>) -> Result<f64, DriverError> {
    let (sandbox, id) = (driver.fresh("sandbox"), driver.fresh("cold"));
    let bundle = driver.bundle(&sandbox, &sandbox, &["sleep", "1000"]).await?;
    let second = driver.bundle(&id, &sandbox, &["true"]).await?;
    let begun = Instant::now();
    let socket = driver.start(&sandbox, &bundle).await?;
    let (pod, mut client) = driver.adopt(&sandbox, bundle, socket).await?;
    client
        .call::<api::PidResponse>("Create", &driver.create_request(&sandbox, &pod.bundle))
        .await?;
    client.process::<api::PidResponse>("Start", &sandbox, "").await?;
    driver.start(&id, &second).await?;
    client.call::<api::PidResponse>("Create", &driver.create_request(&id, &second)).await?;
    client.process::<api::PidResponse>("Start", &id, "").await?;
    client.process::<api::WaitResponse>("Wait", &id, "").await?;
    let time = milliseconds(begun);
    client.process::<api::DeleteResponse>("Delete", &id, "").await?;
    driver.clean_up(&id, &second).await?;
    driver.end(&mut client, &pod).await?;
    Ok(time)
}

/// A node of pods of which some are probed each second, as kubelet does.
async fn probes(driver: &Rc<Driver>) -> Result<f64, DriverError> {
    let mut pods = Vec::new();
    for _ in 0..PODS {
        let id = driver.fresh("probed");
        pods.push(driver.running(&id, &["sleep", "100000"]).await?);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, begun) = (busy()?, Instant::now());
    let mut number = 0;
    while begun.elapsed() < PROBING {
        let round = Instant::now();
        for (pod, client) in pods.iter_mut().take(PROBED) {
            number += 1;
            client.exec_to_end(&pod.id, &format!("e{number}"), &["true"]).await?;
        }
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(round.elapsed())).await;
    }
    let spent = (busy()? - before) / begun.elapsed().as_secs_f64();
    for (pod, mut client) in pods {
        driver.end(&mut client, &pod).await?;
    }
    Ok(spent)
}
