//! `cleat events`.

use crate::{
    args::{Events, Format},
    client::Client,
    node::{self, Kind},
    output,
};
use anyhow::{Context, Result};
use cleat::{
    log::rfc3339,
    protocol::{events as messages, inspect},
};
use prost::Message;
use serde_json::{Value, json};
use std::{
    cell::RefCell, collections::HashSet, path::PathBuf, process::ExitCode, rc::Rc, time::Duration,
};

/// How long a shim is asked to wait for an event.
const WAIT: Duration = Duration::from_secs(20);
/// Where shims' sockets are made.
const SOCKETS: &str = "/run/containerd/s";
/// Between two looks for new shims where the kernel tells of new sockets, and where it does not.
const SELDOM: Duration = Duration::from_secs(5);
const OFTEN: Duration = Duration::from_secs(1);
/// Shims that are born together are looked for once.
const TOGETHER: Duration = Duration::from_millis(20);

pub(super) async fn run(command: Events) -> Result<ExitCode> {
    node::check_sight()?;
    let format = command.output;
    let known: Rc<RefCell<HashSet<u32>>> = Rc::default();
    let mut others = HashSet::new();
    let births = command.follow.then(Births::watch).flatten();
    let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel::<Result<()>>();
    loop {
        for shim in node::shims().await {
            let Some(socket) = shim.socket.clone().filter(|_| shim.kind == Kind::Cleat) else {
                if shim.problem.is_none() && others.insert(shim.pid) {
                    eprintln!(
                        "cleat: the shim {} (pid {}) does not tell its events",
                        shim.program.display(),
                        shim.pid
                    );
                }
                continue;
            };
            if !known.borrow_mut().insert(shim.pid) {
                continue;
            }
            if !command.follow {
                match follow(socket, shim.namespace, format, false).await {
                    Ok(()) => {}
                    Err(End::Shim(e)) => eprintln!("cleat: shim {}: {e:#}", shim.pid),
                    Err(End::Output(e)) => return Err(e),
                }
                continue;
            }
            let (known, sender) = (Rc::clone(&known), sender.clone());
            tokio::task::spawn_local(async move {
                let result = follow(socket, shim.namespace, format, true).await;
                known.borrow_mut().remove(&shim.pid);
                if let Err(End::Output(e)) = result {
                    let _ = sender.send(Err(e));
                }
            });
        }
        if !command.follow {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            Some(result) = ended.recv() => result?,
            () = next(births.as_ref()) => {}
        }
    }
}

/// Told by the kernel of sockets that are made (inotify(7)).
struct Births(tokio::io::unix::AsyncFd<Rc<std::os::fd::OwnedFd>>);

impl Births {
    fn watch() -> Option<Self> {
        use rustix::fs::inotify;
        let fd =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        inotify::add_watch(&fd, SOCKETS, inotify::WatchFlags::CREATE).ok()?;
        cleat::sys::fd::watch(Rc::new(fd), tokio::io::Interest::READABLE).ok().map(Self)
    }
}

/// Until there may be a new shim.
async fn next(births: Option<&Births>) {
    let Some(Births(fd)) = births else { return tokio::time::sleep(OFTEN).await };
    let told = async {
        let Ok(mut ready) = fd.readable().await else { return std::future::pending().await };
        tokio::time::sleep(TOGETHER).await;
        let mut buffer = [0; 4096];
        while rustix::io::read(fd.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
    };
    let _ = tokio::time::timeout(SELDOM, told).await;
}

/// Why following one shim came to its end.
enum End {
    /// It has gone: shims come and go.
    Shim(anyhow::Error),
    /// Nobody reads us.
    Output(anyhow::Error),
}

async fn follow(socket: PathBuf, namespace: String, format: Format, on: bool) -> Result<(), End> {
    let mut client = Client::connect(&socket).await.map_err(End::Shim)?;
    let mut from = 0;
    loop {
        let wait = if on && from > 0 { WAIT } else { Duration::ZERO };
        let request =
            inspect::EventsRequest { from, wait_ms: u32::try_from(wait.as_millis()).unwrap_or(0) };
        let patience = Some(wait + crate::client::PATIENCE);
        let answer: inspect::EventsResponse = client
            .ask(inspect::SERVICE, "Events", &request, patience)
            .await
            .and_then(|answer| answer.map_err(|status| anyhow::anyhow!("{}", status.message)))
            .context("ask for events")
            .map_err(End::Shim)?;
        if answer.missed > 0 {
            eprintln!(
                "cleat: {} events of {} came too fast and are missing here",
                answer.missed,
                socket.display()
            );
        }
        for event in &answer.events {
            print(&namespace, event, format).map_err(End::Output)?;
        }
        if !on {
            return Ok(());
        }
        from = answer.next;
    }
}

fn print(namespace: &str, event: &inspect::Event, format: Format) -> Result<()> {
    let at = event.timestamp.map(rfc3339).unwrap_or_default();
    let body = body(event);
    let line = match format {
        Format::Table => format!("{at} {namespace} {} {body}", event.topic),
        Format::Json => {
            json!({ "time": at, "namespace": namespace, "topic": event.topic, "event": body })
                .to_string()
        }
    };
    output::print(&[output::plain(&line)])
}

/// An event's fields, under the names of containerd's `api/events/task.proto`.
fn body(event: &inspect::Event) -> Value {
    let Some(any) = &event.event else { return Value::Null };
    let value = any.value.as_slice();
    let decoded = match any.type_url.as_str() {
        "containerd.events.TaskCreate" => messages::TaskCreate::decode(value)
            .map(|e| json!({ "container_id": e.container_id, "bundle": e.bundle, "pid": e.pid, "checkpoint": e.checkpoint })),
        "containerd.events.TaskStart" => {
            messages::TaskStart::decode(value).map(|e| json!({ "container_id": e.container_id, "pid": e.pid }))
        }
        "containerd.events.TaskExit" => messages::TaskExit::decode(value).map(|e| {
            json!({ "container_id": e.container_id, "id": e.id, "pid": e.pid, "exit_status": e.exit_status, "exited_at": e.exited_at.map(rfc3339) })
        }),
        "containerd.events.TaskDelete" => messages::TaskDelete::decode(value)
            .map(|e| json!({ "container_id": e.container_id, "id": e.id, "pid": e.pid, "exit_status": e.exit_status })),
        "containerd.events.TaskExecAdded" | "containerd.events.TaskExecStarted" => messages::TaskExec::decode(value)
            .map(|e| json!({ "container_id": e.container_id, "exec_id": e.exec_id, "pid": e.pid })),
        "containerd.events.TaskCheckpointed" => messages::TaskCheckpointed::decode(value)
            .map(|e| json!({ "container_id": e.container_id, "checkpoint": e.checkpoint })),
        _ => messages::TaskContainer::decode(value).map(|e| json!({ "container_id": e.container_id })),
    };
    decoded.unwrap_or_else(|_| json!({ "type_url": any.type_url }))
}
