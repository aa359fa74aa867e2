//! One file a command.

mod doctor;
mod events;
mod gc;
mod generate;
mod inspect;
mod install;
mod metrics;
mod ps;
mod run;
mod top;

use crate::args::{Arguments, Command};
use anyhow::Result;
use std::{future::Future, process::ExitCode};

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Ps(command) => blocking(ps::run(command)),
        Command::Inspect(command) => blocking(inspect::run(command)),
        Command::Top(command) => blocking(top::run(command)),
        Command::Events(command) => blocking(events::run(command)),
        Command::Doctor(command) => blocking(doctor::run(command)),
        Command::Gc(command) => blocking(gc::run(command)),
        Command::Run(command) => blocking(run::run(command)),
        Command::Install(command) => install::run(command),
        Command::Metrics(command) => blocking(metrics::run(command)),
        Command::Generate(command) => generate::run(command),
    }
}

/// Runs a future to its end, on this thread.
fn blocking<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, future)
}
