//! What shims that do nothing cost: memory, threads, wake-ups.

use super::{Measure, Report, Subject, float};
use crate::{Client, Driver, DriverError, measure as kernel};
use cleat::protocol::task as api;
use std::{
    path::PathBuf,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

const PRIVATE: Measure = Measure::less("memory", "private, idle shim", "KiB");
const PSS: Measure = Measure::less("memory", "PSS, idle shim", "KiB");
const RSS: Measure = Measure::less("memory", "RSS, idle shim", "KiB");
const THREADS: Measure = Measure::less("memory", "threads", "");
const DESCRIPTORS: Measure = Measure::less("memory", "descriptors", "");
const WAKE_UPS: Measure = Measure::less("memory", "wake-ups in the first minute", "");
const TOTAL: Measure = Measure::less("memory", "all idle shims, private", "MiB");
const PRIVATE_AFTER: Measure = Measure::less("memory", "private, after 20 execs", "KiB");
const PSS_AFTER: Measure = Measure::less("memory", "PSS, after 20 execs", "KiB");
const GROWTH: Measure = Measure::less("memory", "private, growth by many execs", "%");
const FURTHER: Measure = Measure::less("memory", "each further container of a pod", "KiB");

/// As long as shims take to give back what they do not need.
const REST: Duration = Duration::from_secs(4);

pub(super) async fn measure(subject: &Subject<'_>, report: &mut Report) -> Result<(), DriverError> {
    for (shim, driver) in subject.drivers.iter().enumerate() {
        let mut sample = |measure, value| report.add(measure, shim, value);
        let mut pods = Vec::new();
        for _ in 0..subject.shims {
            let id = driver.fresh("memory");
            pods.push(driver.running(&id, &["sleep", "100000"]).await?);
        }
        tokio::time::sleep(REST).await;
        let mut daemons = Vec::new();
        for (pod, client) in &mut pods {
            daemons.push(client.shim_pid(&pod.id).await?);
        }
        for pid in &daemons {
            sample(PRIVATE, float(kernel::memory_kib(*pid).private));
            sample(PSS, float(kernel::memory_kib(*pid).pss));
            sample(RSS, float(kernel::memory_kib(*pid).rss));
            sample(THREADS, float(kernel::threads(*pid) as u64));
            sample(DESCRIPTORS, float(kernel::descriptors(*pid) as u64));
        }
        let private = || daemons.iter().map(|pid| kernel::memory_kib(*pid).private).sum::<u64>();
        sample(TOTAL, float(private()) / 1024.0);
        let before: Vec<u64> = daemons.iter().map(|pid| kernel::work(*pid).1).collect();
        tokio::time::sleep(Duration::from_secs(60)).await;
        for (pid, before) in daemons.iter().zip(before) {
            sample(WAKE_UPS, float(kernel::work(*pid).1.saturating_sub(before)));
        }
        for (pod, client) in &mut pods {
            execs(&pod.id, client, 20).await?;
        }
        tokio::time::sleep(REST).await;
        for pid in &daemons {
            sample(PRIVATE_AFTER, float(kernel::memory_kib(*pid).private));
            sample(PSS_AFTER, float(kernel::memory_kib(*pid).pss));
        }
        for (pod, mut client) in pods {
            driver.end(&mut client, &pod).await?;
        }
        sample(FURTHER, further(driver).await?);
        sample(GROWTH, growth(driver, subject.execs).await?);
    }
    Ok(())
}

async fn execs(id: &str, client: &mut Client, count: usize) -> Result<(), DriverError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    for _ in 0..count {
        let exec = format!("e{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        client.exec_to_end(id, &exec, &["true"]).await?;
    }
    Ok(())
}

/// Private KiB that each of 20 further containers of a pod adds.
async fn further(driver: &Rc<Driver>) -> Result<f64, DriverError> {
    const COUNT: u32 = 20;
    let first = driver.fresh("memory");
    let (pod, mut client) = driver.running(&first, &["sleep", "100000"]).await?;
    let daemon = client.shim_pid(&first).await?;
    let private = || kernel::memory_kib(daemon).private;
    tokio::time::sleep(REST).await;
    let alone = private();
    let mut others: Vec<(String, PathBuf)> = Vec::new();
    for _ in 0..COUNT {
        let id = driver.fresh("memory");
        let bundle = driver.bundle(&id, &first, &["sleep", "100000"]).await?;
        driver.start(&id, &bundle).await?;
        client.call::<api::PidResponse>("Create", &driver.create_request(&id, &bundle)).await?;
        client.process::<api::PidResponse>("Start", &id, "").await?;
        others.push((id, bundle));
    }
    tokio::time::sleep(REST).await;
    let together = private();
    for (id, bundle) in others {
        client.kill(&id, "", 9).await?;
        client.process::<api::WaitResponse>("Wait", &id, "").await?;
        client.process::<api::DeleteResponse>("Delete", &id, "").await?;
        driver.clean_up(&id, &bundle).await?;
    }
    driver.end(&mut client, &pod).await?;
    Ok(float(together.saturating_sub(alone)) / f64::from(COUNT))
}

/// By how many percent the private memory of a shim at rest has grown after so many execs, 8 at a
/// time. The first hundred are warm-up.
async fn growth(driver: &Rc<Driver>, count: usize) -> Result<f64, DriverError> {
    let id = driver.fresh("memory");
    let (pod, mut client) = driver.running(&id, &["sleep", "100000"]).await?;
    let daemon = client.shim_pid(&id).await?;
    let mut sizes = Vec::new();
    for count in [100, count] {
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (id, socket) = (pod.id.clone(), pod.socket.clone());
            workers.spawn_local(async move {
                let mut client = Client::connect(&socket).await?;
                execs(&id, &mut client, count / 8).await
            });
        }
        while let Some(done) = workers.join_next().await {
            done.map_err(|e| DriverError(e.to_string()))??;
        }
        tokio::time::sleep(REST).await;
        sizes.push(float(kernel::memory_kib(daemon).private));
    }
    driver.end(&mut client, &pod).await?;
    Ok((sizes[1] / sizes[0] - 1.0) * 100.0)
}
