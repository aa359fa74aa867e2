//! `cleat`: what operators see of container shims, and do with them. A library too, so that the
//! benchmarks measure processes as `cleat ps` does.
//!
//! Reads /proc, bundles and containerd's directories; asks shims over their sockets; changes
//! nothing but in `gc`, `run` and `install`.

mod args;
mod client;
mod commands;
mod config;
mod grpc;
mod install;
mod node;
mod orphans;
mod output;
pub mod process;
mod run_place;

use clap::Parser;
use std::process::ExitCode;

/// Runs the command line.
pub fn main() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            let _ = e.print();
            // As docker run: other numbers are the container's.
            let is_run = std::env::args_os().nth(1).is_some_and(|word| word == "run");
            return ExitCode::from(match e.exit_code() {
                0 => 0,
                _ if is_run => 125,
                code => u8::try_from(code).unwrap_or(2),
            });
        }
    };
    match commands::run(arguments) {
        Ok(code) => code,
        // Whoever reads us has enough: `cleat ps | head -1`.
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cleat: {}", output::plain(&format!("{e:#}")));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
