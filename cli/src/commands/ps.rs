//! `cleat ps`.

use crate::{
    args::{Format, Ps},
    node::{self, Kind, Shim},
    output::{self, Table},
};
use anyhow::Result;
use std::process::ExitCode;

pub(super) async fn run(command: Ps) -> Result<ExitCode> {
    node::check_sight()?;
    let shims = node::shims().await;
    match command.output {
        Format::Json => output::print_json(&shims)?,
        Format::Table => {
            let (table, less_wanted): (Table, &[&str]) = match command.containers {
                true => (containers(&shims), &["SHIM PID", "EXECS", "NAMESPACE", "SHIM"]),
                false => (table(&shims), &["FDS", "THREADS", "PSS", "NAMESPACE", "AGE"]),
            };
            let screen = if command.wide { usize::MAX } else { output::screen() };
            output::print(&table.fit(screen, less_wanted).lines())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(shims: &[Shim]) -> Table {
    let head = [
        "PID",
        "SHIM",
        "NAMESPACE",
        "POD OR ID",
        "CONTAINERS",
        "PSS",
        "PRIVATE",
        "THREADS",
        "FDS",
        "AGE",
        "CONTAINERD",
    ];
    let mut table = Table::new(&head);
    for shim in shims {
        table.row([
            shim.pid.to_string(),
            name(shim),
            shim.namespace.clone(),
            pod(shim),
            states(shim),
            output::bytes(shim.memory_kib.pss * 1024),
            output::bytes(shim.memory_kib.private * 1024),
            shim.threads.to_string(),
            shim.descriptors.to_string(),
            output::age(shim.age_seconds),
            containerd(shim).to_owned(),
        ]);
    }
    table
}

fn containers(shims: &[Shim]) -> Table {
    let mut table = Table::new(&[
        "CONTAINER",
        "NAME",
        "POD OR ID",
        "NAMESPACE",
        "STATUS",
        "PID",
        "EXECS",
        "MEMORY",
        "SHIM",
        "SHIM PID",
    ]);
    for shim in shims {
        for container in &shim.containers {
            table.row([
                short(&container.id),
                container.name.clone().unwrap_or_else(|| "-".to_owned()),
                pod(shim),
                shim.namespace.clone(),
                match container.exit_status {
                    Some(status) => format!("{} ({status})", container.status),
                    None => container.status.to_owned(),
                },
                container.pid.to_string(),
                container.execs.to_string(),
                output::bytes(container.usage.memory_bytes),
                name(shim),
                shim.pid.to_string(),
            ]);
        }
    }
    table
}

/// `cleat 0.1.0`, or the program's name.
pub(super) fn name(shim: &Shim) -> String {
    match (shim.kind, &shim.version) {
        (Kind::Cleat, Some(version)) => format!("cleat {version}"),
        _ => {
            let name = shim.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.strip_prefix("containerd-shim-").map_or(name.clone(), str::to_owned)
        }
    }
}

/// `NAMESPACE/POD`, or the id.
pub(super) fn pod(shim: &Shim) -> String {
    shim.pod
        .as_ref()
        .map_or_else(|| short(&shim.id), |pod| format!("{}/{}", pod.namespace, pod.name))
}

/// containerd's ids have 64 digits, of which 13 are shown, as crictl does.
pub(super) fn short(id: &str) -> String {
    let is_long = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    id.chars().take(if is_long { 13 } else { usize::MAX }).collect()
}

/// `2 running, 1 stopped`.
fn states(shim: &Shim) -> String {
    if shim.problem.is_some() {
        return "does not answer".to_owned();
    }
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for container in &shim.containers {
        match counts.iter_mut().find(|(status, _)| *status == container.status) {
            Some((_, count)) => *count += 1,
            None => counts.push((container.status, 1)),
        }
    }
    match counts.is_empty() {
        true => "none".to_owned(),
        false => counts
            .iter()
            .map(|(status, count)| format!("{count} {status}"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

pub(super) fn containerd(shim: &Shim) -> &'static str {
    if shim.containerd { "connected" } else { "away" }
}
