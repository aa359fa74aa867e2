//! SIGUSR1: all that the shim knows, as text in the log.

use crate::{rpc::Load, shim::Shim, tasks};
use std::{io, rc::Rc};
use tokio::signal::unix::{SignalKind, signal};

/// Writes the dump whenever the signal comes.
pub(super) fn on_signal(shim: &Rc<Shim>, load: &Rc<Load>) -> io::Result<()> {
    let mut asked = signal(SignalKind::user_defined1())?;
    let (shim, load) = (Rc::clone(shim), Rc::clone(load));
    tasks::spawn("dump", async move {
        while asked.recv().await.is_some() {
            log::info!("=== BEGIN state dump ===");
            for line in lines(&shim, &load) {
                log::info!("{line}");
            }
            log::info!("=== END state dump ===");
        }
    });
    Ok(())
}

fn lines(shim: &Shim, load: &Load) -> Vec<String> {
    let mut lines = vec![format!(
        "pid={} version={} tasks={} connections={} calls={} unread_bytes={}",
        std::process::id(),
        env!("CARGO_PKG_VERSION"),
        tasks::alive(),
        load.connections.get(),
        load.calls.get(),
        load.unread.get()
    )];
    if let Some((used, free)) = crate::sys::malloc::heap() {
        lines.push(format!("heap used={used} free={free}"));
    }
    lines.extend(shim.describe());
    lines.extend(descriptors());
    lines
}

fn descriptors() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let mut open: Vec<(u32, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = std::fs::read_link(entry.path()).ok()?;
            Some((number, target.display().to_string()))
        })
        .collect();
    open.sort();
    open.into_iter().map(|(number, target)| format!("fd {number} {target}")).collect()
}
