//! How long each action and call takes, one at a time, shim beside shim.

use super::{Measure, Report, Subject, milliseconds};
use crate::{Driver, DriverError};
use cleat::protocol::task as api;
use std::{
    rc::Rc,
    time::{Duration, Instant},
};

const START: Measure = Measure::less("latency", "start (the action)", "ms");
const CREATE: Measure = Measure::less("latency", "Create", "ms");
const RUN: Measure = Measure::less("latency", "Start", "ms");
const START_AGAIN: Measure = Measure::less("latency", "start in a pod that runs", "ms");
const CREATE_AGAIN: Measure = Measure::less("latency", "Create in a pod that runs", "ms");
const EXEC_STARTED: Measure = Measure::less("latency", "exec until started", "ms");
const EXEC_WHOLE: Measure = Measure::less("latency", "exec, whole", "ms");
const STATE: Measure = Measure::less("latency", "State", "ms");
const STATS: Measure = Measure::less("latency", "Stats", "ms");
const PAUSE: Measure = Measure::less("latency", "Pause", "ms");
const RESUME: Measure = Measure::less("latency", "Resume", "ms");
const KILL: Measure = Measure::less("latency", "Kill until the exit is seen", "ms");
const DELETE: Measure = Measure::less("latency", "Delete", "ms");
const CLEAN_UP: Measure = Measure::less("latency", "delete (the action)", "ms");
const WHOLE: Measure = Measure::less("latency", "a whole life", "ms");
/// State and Stats calls in a life.
const ASKED: usize = 5;

/// Before each life, so that all shims find the same machine: a cgroup v1 that was changed a moment
/// ago is changed more quickly the next time (the kernel's grace periods), which would make a
/// present of one shim's work to the other.
const REST: Duration = Duration::from_millis(100);

/// Rounds of one life each, the shims taking turns.
pub(super) async fn measure(subject: &Subject<'_>, report: &mut Report) -> Result<(), DriverError> {
    for round in 0..subject.rounds {
        for (shim, driver) in subject.turns(round) {
            tokio::time::sleep(REST).await;
            // The first lives warm up the page cache.
            life(driver, &mut |measure, value| {
                if round >= 2 {
                    report.add(measure, shim, value);
                }
            })
            .await?;
        }
    }
    Ok(())
}

async fn life(
    driver: &Rc<Driver>,
    sample: &mut impl FnMut(Measure, f64),
) -> Result<(), DriverError> {
    let mut whole = 0.0;
    let mut lap = |measure, begun: Instant| {
        let time = milliseconds(begun);
        if [START, CREATE, RUN, KILL, DELETE, CLEAN_UP].contains(&measure) {
            whole += time;
        }
        sample(measure, time);
    };
    let id = driver.fresh("latency");
    let bundle = driver.bundle(&id, &id, &["sleep", "1000"]).await?;
    let begun = Instant::now();
    let socket = driver.start(&id, &bundle).await?;
    lap(START, begun);
    let (pod, mut client) = driver.adopt(&id, bundle, socket).await?;
    let begun = Instant::now();
    client.call::<api::PidResponse>("Create", &driver.create_request(&id, &pod.bundle)).await?;
    lap(CREATE, begun);
    let begun = Instant::now();
    client.process::<api::PidResponse>("Start", &id, "").await?;
    lap(RUN, begun);

    let second = driver.fresh("latency");
    let bundle = driver.bundle(&second, &id, &["sleep", "1000"]).await?;
    let begun = Instant::now();
    driver.start(&second, &bundle).await?;
    lap(START_AGAIN, begun);
    let begun = Instant::now();
    client.call::<api::PidResponse>("Create", &driver.create_request(&second, &bundle)).await?;
    lap(CREATE_AGAIN, begun);
    client.process::<api::PidResponse>("Start", &second, "").await?;
    client.kill(&second, "", 9).await?;
    client.process::<api::WaitResponse>("Wait", &second, "").await?;
    client.process::<api::DeleteResponse>("Delete", &second, "").await?;
    driver.clean_up(&second, &bundle).await?;

    let begun = Instant::now();
    client.exec(&id, "e", &["true"], "").await?;
    client.process::<api::PidResponse>("Start", &id, "e").await?;
    lap(EXEC_STARTED, begun);
    client.process::<api::WaitResponse>("Wait", &id, "e").await?;
    client.process::<api::DeleteResponse>("Delete", &id, "e").await?;
    lap(EXEC_WHOLE, begun);
    // Clients ask these again and again: the first time is one of several.
    for _ in 0..ASKED {
        let begun = Instant::now();
        client.process::<api::StateResponse>("State", &id, "").await?;
        lap(STATE, begun);
        let begun = Instant::now();
        client.process::<cleat::protocol::Empty>("Stats", &id, "").await?;
        lap(STATS, begun);
    }

    for (measure, method) in [(PAUSE, "Pause"), (RESUME, "Resume")] {
        let begun = Instant::now();
        client.process::<cleat::protocol::Empty>(method, &id, "").await?;
        lap(measure, begun);
    }

    let begun = Instant::now();
    client.kill(&id, "", 9).await?;
    client.process::<api::WaitResponse>("Wait", &id, "").await?;
    lap(KILL, begun);
    let begun = Instant::now();
    client.process::<api::DeleteResponse>("Delete", &id, "").await?;
    lap(DELETE, begun);
    client.shutdown(&id).await;
    let begun = Instant::now();
    driver.delete(&id, &pod.bundle).await?;
    lap(CLEAN_UP, begun);
    driver.discard(&id, &pod.bundle).await?;
    sample(WHOLE, whole);
    Ok(())
}
