//! `bench [SUBJECT...] [--rounds N] [--shims N] [--execs N] [--json FILE]
//! LABEL=SHIM[,ANNOTATION=VALUE...]...`: shim beside shim, taking turns. Subjects: latency, memory,
//! throughput, io, containerd; all of them if none is named. `bench --chart REPORT.json` prints an
//! SVG of a report. Annotations are those of the shim's containers:
//! `cleat-native=SHIM,io.containerd.cleat.native-exec=true`,
//! `cleat-direct=SHIM,io.containerd.cleat.spool=direct`.

use cleat_bench::{DriverError, bench};
use std::path::PathBuf;

fn main() {
    if let Err(e) = run() {
        eprintln!("bench: {e}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), DriverError> {
    let failed = |e: &dyn std::fmt::Display| DriverError(e.to_string());
    let mut plan = bench::Plan {
        subjects: Vec::new(),
        rounds: 20,
        shims: 20,
        execs: 1000,
        candidates: Vec::new(),
    };
    let mut json = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value =
            || arguments.next().ok_or_else(|| DriverError(format!("{argument} needs a value")));
        match argument.as_str() {
            "--rounds" => plan.rounds = value()?.parse().map_err(|e| failed(&e))?,
            "--shims" => plan.shims = value()?.parse().map_err(|e| failed(&e))?,
            "--execs" => plan.execs = value()?.parse().map_err(|e| failed(&e))?,
            "--json" => json = Some(PathBuf::from(value()?)),
            "--chart" => {
                let text = std::fs::read_to_string(value()?).map_err(|e| failed(&e))?;
                let report = serde_json::from_str(&text).map_err(|e| failed(&e))?;
                print!("{}", bench::chart(&report));
                return Ok(());
            }
            word if word.contains('=') => plan.candidates.push(word.parse()?),
            word => plan.subjects.push(word.to_owned()),
        }
    }
    if plan.subjects.is_empty() {
        plan.subjects = bench::SUBJECTS.map(str::to_owned).into();
    }
    if plan.candidates.is_empty() {
        return Err(DriverError("no shim: LABEL=SHIM...".to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| failed(&e))?;
    let report = tokio::task::LocalSet::new().block_on(&runtime, bench::run(&plan))?;
    if let Some(path) = json {
        std::fs::write(&path, format!("{:#}\n", report.json())).map_err(|e| failed(&e))?;
    }
    Ok(())
}
