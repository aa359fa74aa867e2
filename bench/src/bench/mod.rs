//! Shim against shim, taking turns in the same run: latency, memory, throughput, input and output;
//! and through a real containerd.

mod containerd;
mod io;
mod latency;
mod machine;
mod memory;
mod report;
mod throughput;

use crate::{Annotations, Driver, DriverError};
pub use report::{Measure, Report, chart};
use std::{path::PathBuf, rc::Rc, str::FromStr, time::Instant};

/// What can be measured.
pub const SUBJECTS: [&str; 6] = ["latency", "machine", "memory", "throughput", "io", "containerd"];

/// What to measure, and how.
pub struct Plan {
    /// Some of [`SUBJECTS`].
    pub subjects: Vec<String>,
    /// Rounds of each; throughput and io take 5 at most.
    pub rounds: usize,
    /// How many idle shims are looked at.
    pub shims: usize,
    /// Execs after which their memory is looked at again.
    pub execs: usize,
    /// What is measured.
    pub candidates: Vec<Candidate>,
}

/// A shim, and what its containers ask of it.
pub struct Candidate {
    /// Its name in the table.
    pub label: String,
    /// Its path.
    pub binary: PathBuf,
    /// The annotations of all its containers.
    pub annotations: Annotations,
}

impl FromStr for Candidate {
    type Err = DriverError;

    /// `LABEL=SHIM[,ANNOTATION=VALUE...]`.
    fn from_str(text: &str) -> Result<Self, DriverError> {
        let pair = |text: &str| {
            let bad = || DriverError(format!("{text:?} is not LABEL=SHIM[,ANNOTATION=VALUE...]"));
            text.split_once('=')
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .ok_or_else(bad)
        };
        let (first, rest) = text.split_once(',').unwrap_or((text, ""));
        let (label, binary) = pair(first)?;
        let annotations =
            rest.split(',').filter(|word| !word.is_empty()).map(pair).collect::<Result<_, _>>()?;
        Ok(Self { label, binary: binary.into(), annotations })
    }
}

struct Subject<'a> {
    drivers: &'a [Rc<Driver>],
    rounds: usize,
    shims: usize,
    execs: usize,
}

impl<'a> Subject<'a> {
    /// The shims in the order of this round, with their numbers. What one leaves behind (dying
    /// cgroups, cold caches) slows whoever is next: over the rounds each comes after each other,
    /// and after itself.
    fn turns(&self, round: usize) -> Vec<(usize, &'a Rc<Driver>)> {
        let mut turns: Vec<_> = self.drivers.iter().enumerate().collect();
        let count = turns.len().max(1);
        turns.rotate_left(round % count);
        if (round / count) % 2 == 1 {
            turns.reverse();
        }
        turns
    }
}

/// Measures; prints the table as it comes. Call inside a tokio `LocalSet`.
pub async fn run(plan: &Plan) -> Result<Report, DriverError> {
    let mut report =
        Report::new(plan.candidates.iter().map(|candidate| candidate.label.clone()).collect());
    report.print_head();
    let mut drivers = Vec::new();
    for Candidate { label, binary, annotations } in &plan.candidates {
        drivers.push(Driver::new(label, binary, annotations).await?);
    }
    let done = subjects(plan, &drivers, &mut report).await;
    drivers.iter().for_each(|driver| driver.tidy());
    done.map(|()| report)
}

async fn subjects(
    plan: &Plan,
    drivers: &[Rc<Driver>],
    report: &mut Report,
) -> Result<(), DriverError> {
    let subject = Subject { drivers, rounds: plan.rounds, shims: plan.shims, execs: plan.execs };
    for name in &plan.subjects {
        match name.as_str() {
            "latency" => latency::measure(&subject, report).await?,
            "machine" => machine::measure(&subject, report).await?,
            "memory" => memory::measure(&subject, report).await?,
            "throughput" => throughput::measure(&subject, report).await?,
            "io" => io::measure(&subject, report).await?,
            "containerd" => containerd::measure(&subject, report)?,
            other => return Err(DriverError(format!("{other} is none of {SUBJECTS:?}"))),
        }
        report.print_news();
    }
    Ok(())
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "figures for a table")]
fn float(n: u64) -> f64 {
    n as f64
}
