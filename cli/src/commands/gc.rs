//! `cleat gc`.

use crate::{
    args::{Format, Gc},
    node, orphans, output,
};
use anyhow::Result;
use serde_json::json;
use std::process::ExitCode;

pub(super) async fn run(command: Gc) -> Result<ExitCode> {
    node::check_sight()?;
    orphans::check_places(&command.places)?;
    let found = orphans::find(&command.places, &node::shims().await);
    let mut failed = false;
    let mut report = Vec::new();
    let mut lines = Vec::new();
    for orphan in &found {
        let outcome =
            if command.dry_run { None } else { Some(orphan.remove(&command.places).await) };
        let (word, problem) = match outcome {
            None => ("would remove", None),
            Some(Ok(())) => ("removed", None),
            Some(Err(e)) => ("kept", Some(format!("{e:#}"))),
        };
        failed |= problem.is_some();
        let reason = problem.as_ref().map(|problem| format!(" ({problem})")).unwrap_or_default();
        lines.push(output::plain(&format!("{word} {orphan}{reason}")));
        report.push(json!({ "orphan": orphan, "removed": word == "removed", "problem": problem }));
    }
    match command.output {
        Format::Json => output::print_json(&report)?,
        Format::Table if found.is_empty() => output::print(&["nothing is orphaned".to_owned()])?,
        Format::Table => output::print(&lines)?,
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
