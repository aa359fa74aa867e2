//! argv → one of start, delete, serve, info, version → exit code. Under the name of a helper: that
//! helper.
#![cfg_attr(target_env = "gnu", no_main)]

use cleat::{
    args, args::Invocation, cleanup, info, io::file, native, remedy::told, serve, start, sys,
};
use std::{
    io::{self, Write},
    process::ExitCode,
};

#[cfg(target_env = "gnu")]
cleat::entry!(begin);

/// Elsewhere only the standard library's `main` knows the arguments.
#[cfg(not(target_env = "gnu"))]
fn main() -> ExitCode {
    begin()
}

fn begin() -> ExitCode {
    if program_name() == native::NAME {
        native::run();
    }
    if program_name() == file::NAME {
        return file::run();
    }
    sys::signals::expect_children();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // stderr may be gone; then nobody can be told.
            let _ = writeln!(io::stderr(), "{}: {}", program_name(), told(&*e));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    match args::parse(std::env::args_os().skip(1))? {
        Invocation::Version => print(info::version(&program_name()).as_bytes())?,
        Invocation::Info => print(&info::describe(&program_name(), io::stdin().lock())?)?,
        Invocation::Start(common) => start::run(&common, print)?,
        Invocation::Delete(common) => print(&cleanup::run(&common))?,
        Invocation::Serve(common) => serve::run(&common)?,
    }
    Ok(())
}

fn print(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// The name under which we were called: we may be installed as another shim.
fn program_name() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    std::path::Path::new(&path).file_name().map_or_else(
        || "containerd-shim-cleat-v2".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}
