//! `cleat generate`: completions and man pages, from the same definitions as the command line.

use crate::args::{Arguments, Generate, Generated};
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::process::ExitCode;

pub(super) fn run(command: Generate) -> Result<ExitCode> {
    let mut cleat = Arguments::command().disable_help_subcommand(true);
    match command.what {
        Generated::Completion { shell } => {
            clap_complete::generate(shell, &mut cleat, "cleat", &mut std::io::stdout())
        }
        Generated::Man { directory } => {
            clap_mangen::generate_to(cleat, &directory)
                .with_context(|| format!("write man pages into {}", directory.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
