//! `cleat inspect`.

use super::ps;
use crate::{
    args::{Format, Inspect},
    node::{self, Shim, status_name},
    output::{self, Table},
};
use anyhow::{Result, bail};
use cleat::protocol::{Timestamp, inspect};
use serde_json::{Value, json};
use std::process::ExitCode;

pub(super) async fn run(command: Inspect) -> Result<ExitCode> {
    node::check_sight()?;
    let shims = node::shims().await;
    let shim = find(&shims, &command.id)?;
    match command.output {
        Format::Json => output::print_json(&as_json(shim)?)?,
        Format::Table => output::print(&describe(shim))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The one shim that is meant: an exact match, else the only beginning.
fn find<'a>(shims: &'a [Shim], wanted: &str) -> Result<&'a Shim> {
    let names = |shim: &'a Shim| {
        let ids = shim.containers.iter().map(|container| container.id.clone());
        let pod = shim
            .pod
            .iter()
            .flat_map(|pod| [pod.name.clone(), format!("{}/{}", pod.namespace, pod.name)]);
        ids.chain(pod).chain([shim.pid.to_string(), shim.id.clone()]).collect::<Vec<_>>()
    };
    let matching = |test: &dyn Fn(&String) -> bool| {
        shims.iter().filter(|shim| names(shim).iter().any(test)).collect::<Vec<_>>()
    };
    let exact = matching(&|name| name == wanted);
    let found = if exact.is_empty() { matching(&|name| name.starts_with(wanted)) } else { exact };
    match found.as_slice() {
        [shim] => Ok(shim),
        [] => bail!(
            "no shim of this node has a pid, container or pod {wanted:?}; `cleat ps -c` lists them"
        ),
        several => {
            let pids: Vec<String> = several.iter().map(|shim| shim.pid.to_string()).collect();
            bail!(
                "{wanted:?} is the beginning of several; name one by its pid: {}",
                pids.join(", ")
            )
        }
    }
}

fn describe(shim: &Shim) -> Vec<String> {
    let mut lines = Vec::new();
    let mut head = |name: &str, text: String| {
        lines.push(format!("{:<12}{}", format!("{name}:"), output::plain(&text)))
    };
    head(
        "Shim",
        format!("{}, pid {}, up {}", ps::name(shim), shim.pid, output::age(shim.age_seconds)),
    );
    head(
        "Program",
        format!(
            "{}{}",
            shim.program.display(),
            if shim.program_replaced { " (replaced since: new pods get another)" } else { "" }
        ),
    );
    head("Namespace", shim.namespace.clone());
    head("Pod or id", ps::pod(shim));
    head(
        "Bundle",
        format!("{}{}", shim.bundle.display(), if shim.bundle_gone { " (gone)" } else { "" }),
    );
    let socket = shim
        .socket
        .as_ref()
        .map_or_else(|| "none".to_owned(), |socket| socket.display().to_string());
    head("Socket", format!("{socket}, {} clients", shim.connections));
    let memory = shim.memory_kib;
    head(
        "Memory",
        format!("private {} KiB, PSS {} KiB, RSS {} KiB", memory.private, memory.pss, memory.rss),
    );
    head(
        "Use",
        format!(
            "{} threads, {} descriptors, {:.2} s of CPU time",
            shim.threads, shim.descriptors, shim.cpu_seconds
        ),
    );
    if let Some(problem) = &shim.problem {
        head("Problem", format!("{problem}; {}", crate::process::standing(shim.pid)));
    }
    let Some(own) = &shim.own else {
        let mut table = Table::new(&["CONTAINER", "NAME", "STATUS", "PID"]);
        for container in &shim.containers {
            let name = container.name.clone().unwrap_or_else(|| "-".to_owned());
            table.row([
                container.id.clone(),
                name,
                container.status.to_owned(),
                container.pid.to_string(),
            ]);
        }
        lines.push(String::new());
        lines.extend(table.lines());
        return lines;
    };
    let events = own.events.unwrap_or_default();
    head(
        "Events",
        format!(
            "{} waiting for containerd{}, {} acknowledged, {} dropped",
            events.waiting,
            if events.waiting > 0 {
                format!(" (oldest {} ms)", events.oldest_ms)
            } else {
                String::new()
            },
            events.acknowledged,
            events.dropped
        ),
    );
    head("Orphans", format!("{} reaped", own.orphans_reaped));
    section(&mut lines, "Processes", processes(own));
    section(&mut lines, "I/O", streams(own));
    section(&mut lines, "Open calls", calls(own));
    section(&mut lines, "Last warnings and errors", problems(own));
    if !own.transitions.is_empty() {
        lines.extend([String::new(), "Last transitions".to_owned()]);
        let last = own.transitions.len().saturating_sub(10);
        lines.extend(
            own.transitions[last..].iter().map(|line| format!("  {}", output::plain(line))),
        );
    }
    lines
}

fn section(lines: &mut Vec<String>, name: &str, table: Table) {
    let rows = table.lines();
    if rows.len() > 1 {
        lines.extend([String::new(), name.to_owned()]);
        lines.extend(rows.into_iter().map(|row| format!("  {row}")));
    }
}

fn each_process(
    own: &inspect::InspectResponse,
) -> impl Iterator<Item = (&inspect::Container, &inspect::Process)> {
    own.containers.iter().flat_map(|container| {
        container.init.iter().chain(&container.execs).map(move |process| (container, process))
    })
}

fn label(container: &inspect::Container, process: &inspect::Process) -> String {
    match process.exec_id.as_str() {
        "" => ps::short(&container.id),
        exec => format!("{} exec {}", ps::short(&container.id), ps::short(exec)),
    }
}

fn processes(own: &inspect::InspectResponse) -> Table {
    let mut table = Table::new(&["PROCESS", "PID", "STATUS", "EXIT", "EXITED", "TTY", "RUNTIME"]);
    for (container, process) in each_process(own) {
        let exit = process.exit.as_ref();
        table.row([
            label(container, process),
            process.pid.to_string(),
            status_name(process.status).to_owned(),
            exit.map_or_else(|| "-".to_owned(), |exit| exit.status.to_string()),
            exit.and_then(|exit| exit.at).map_or_else(|| "-".to_owned(), ago),
            if process.terminal { "yes" } else { "no" }.to_owned(),
            format!(
                "{}{}",
                container.runtime,
                if container.native_exec { ", native exec" } else { "" }
            ),
        ]);
    }
    table
}

fn streams(own: &inspect::InspectResponse) -> Table {
    let mut table = Table::new(&["PROCESS", "STREAM", "BYTES", "SPOOLED", "DROPPED", "STATE"]);
    for (container, process) in each_process(own) {
        for stream in &process.streams {
            table.row([
                label(container, process),
                stream.name.clone(),
                if stream.direct { "-".to_owned() } else { output::bytes(stream.bytes) },
                output::bytes(stream.spooled_bytes),
                output::bytes(stream.dropped_bytes),
                format!(
                    "{}{}",
                    if stream.ended { "ended" } else { "open" },
                    if stream.direct { ", direct" } else { "" }
                ),
            ]);
        }
        if let Some(logger) = &process.logger {
            let state =
                if logger.pid > 0 { format!("pid {}", logger.pid) } else { "ended".to_owned() };
            let state = format!("{state}, ended {} times", logger.deaths);
            table.row([
                label(container, process),
                logger.path.clone(),
                "-".into(),
                "-".into(),
                "-".into(),
                state,
            ]);
        }
    }
    table
}

fn calls(own: &inspect::InspectResponse) -> Table {
    let mut table = Table::new(&["METHOD", "CONTAINER", "AGE"]);
    for call in &own.calls {
        let age = if call.age_ms < 1000 {
            format!("{} ms", call.age_ms)
        } else {
            output::age(call.age_ms / 1000)
        };
        table.row([call.method.clone(), ps::short(&call.id), age]);
    }
    table
}

fn problems(own: &inspect::InspectResponse) -> Table {
    let mut table = Table::new(&["WHEN", "LEVEL", "TEXT"]);
    for problem in &own.problems {
        table.row([
            problem.at.map_or_else(String::new, ago),
            problem.level.clone(),
            problem.text.clone(),
        ]);
    }
    table
}

fn ago(at: Timestamp) -> String {
    format!("{} ago", output::age(at.age_ms() / 1000))
}

fn as_json(shim: &Shim) -> Result<Value> {
    let mut value = serde_json::to_value(shim)?;
    let Some(own) = &shim.own else { return Ok(value) };
    let process = |process: &inspect::Process| {
        json!({
            "exec_id": process.exec_id,
            "pid": process.pid,
            "status": status_name(process.status),
            "terminal": process.terminal,
            "exit_status": process.exit.as_ref().map(|exit| exit.status),
            "exited_at": process.exit.and_then(|exit| exit.at).map(cleat::log::rfc3339),
            "streams": process.streams.iter().map(|stream| json!({
                "name": stream.name, "bytes": stream.bytes, "spooled_bytes": stream.spooled_bytes,
                "dropped_bytes": stream.dropped_bytes, "ended": stream.ended, "direct": stream.direct,
            })).collect::<Vec<_>>(),
            "logger": process.logger.as_ref().map(|logger| json!({ "path": logger.path, "pid": logger.pid, "deaths": logger.deaths })),
        })
    };
    let events = own.events.unwrap_or_default();
    value["processes"] = own
        .containers
        .iter()
        .map(|container| {
            json!({
                "container": container.id,
                "bundle": container.bundle,
                "runtime": container.runtime,
                "native_exec": container.native_exec,
                "init": container.init.as_ref().map(process),
                "execs": container.execs.iter().map(process).collect::<Vec<_>>(),
            })
        })
        .collect();
    value["events"] = json!({
        "waiting": events.waiting, "acknowledged": events.acknowledged, "dropped": events.dropped, "oldest_ms": events.oldest_ms,
    });
    value["calls"] = own
        .calls
        .iter()
        .map(|call| json!({ "method": call.method, "id": call.id, "age_ms": call.age_ms }))
        .collect();
    value["problems"] = own
        .problems
        .iter()
        .map(|problem| json!({ "at": problem.at.map(cleat::log::rfc3339), "level": problem.level, "text": problem.text }))
        .collect();
    value["transitions"] = json!(own.transitions);
    value["orphans_reaped"] = json!(own.orphans_reaped);
    value["unread_bytes"] = json!(own.unread_bytes);
    Ok(value)
}
