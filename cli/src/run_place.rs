//! What `cleat run` keeps of a container while it runs: /run/cleat-run/ID. One whose `cleat run`
//! was killed is left, and may live on.

use crate::{client::Client, config, node::Shim, process::started};
use anyhow::{Context, Result, bail};
use cleat::{
    log::rfc3339,
    protocol::{
        Empty,
        events::{ForwardRequest, SERVICE},
        task as api,
    },
    rpc::{self, Call, Handler, Load, Reply},
};
use prost::Message;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    process::Command,
    rc::Rc,
    time::Duration,
};

/// containerd's namespace of such containers; a directory below /run as well.
pub(crate) const NAMESPACE: &str = "cleat-run";
/// How long the end of a container may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where they all are.
pub(crate) fn parent() -> PathBuf {
    Path::new("/run").join(NAMESPACE)
}

/// The bundle that the shim sees, which has the container's name: Go's `delete` looks for it beside
/// its working directory.
pub(crate) fn bundle(directory: &Path) -> PathBuf {
    directory.join(directory.file_name().unwrap_or_default())
}

/// Whose it is, in the file `owner` of its directory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) pid: u32,
    pub(crate) started: Option<u64>,
    /// The shim's program.
    pub(crate) shim: PathBuf,
}

impl Owner {
    fn read(directory: &Path) -> Option<Self> {
        let text = cleat::bundle::read_bounded(&directory.join("owner"), 64 << 10).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn lives(&self) -> bool {
        self.started.is_some() && started(self.pid) == self.started
    }
}

/// A container whose `cleat run` is no more.
pub(crate) struct Left {
    pub(crate) id: String,
    /// Its process runs, or a shim that does not answer may have it.
    pub(crate) lives: bool,
}

pub(crate) fn left(shims: &[Shim]) -> Vec<Left> {
    let entries = fs::read_dir(parent()).into_iter().flatten().flatten();
    let gone =
        entries.filter(|entry| Owner::read(&entry.path()).is_some_and(|owner| !owner.lives()));
    let ids = gone.filter_map(|entry| entry.file_name().into_string().ok());
    let mut left: Vec<Left> = ids.map(|id| Left { lives: lives(&id, shims), id }).collect();
    left.sort_by(|a, b| a.id.cmp(&b.id));
    left
}

fn lives(id: &str, shims: &[Shim]) -> bool {
    let of_it = shims.iter().filter(|shim| shim.namespace == NAMESPACE && shim.id == id);
    of_it.into_iter().any(|shim| {
        shim.problem.is_some()
            || shim
                .containers
                .iter()
                .any(|container| container.id == id && container.status != "stopped")
    })
}

/// Kills and removes a container that is left.
pub(crate) async fn remove(id: &str) -> Result<()> {
    let directory = parent().join(id);
    let owner = Owner::read(&directory)
        .with_context(|| format!("no container {id} in {}", parent().display()))?;
    if owner.lives() {
        bail!("its `cleat run` lives (pid {}): end that", owner.pid);
    }
    let shims = crate::node::shims().await;
    let socket = shims
        .iter()
        .find(|shim| shim.namespace == NAMESPACE && shim.id == id)
        .and_then(|shim| shim.socket.clone());
    // Its last events are taken, or it would wait for whoever takes them.
    let events = serve_events(&directory, false)?;
    if let Some(socket) = socket {
        let mut client = Client::connect(&socket).await?;
        end(&mut client, id).await;
        let gone = async {
            while cleat::start::is_alive(&socket) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, gone).await;
    }
    events.abort();
    let bundle = bundle(&directory);
    let mut command = Command::new(&owner.shim);
    command.args(["-namespace", NAMESPACE, "-id", id, "-address"]).arg(directory.join("c.sock"));
    command.arg("-bundle").arg(&bundle).arg("delete").current_dir(&bundle);
    let (status, _, stderr) = config::output(&mut command)?;
    if !status.success() {
        bail!("{} delete: {}", owner.shim.display(), stderr.trim());
    }
    fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))
}

/// Kill, Wait, Delete, Shutdown, whatever comes of each.
pub(crate) async fn end(client: &mut Client, id: &str) {
    let request = api::ProcessRequest { id: id.to_owned(), exec_id: String::new() };
    let kill = api::KillRequest { id: id.to_owned(), signal: 9, ..api::KillRequest::default() };
    let _: Result<Empty> = client.task("Kill", &kill, Some(PATIENCE)).await;
    let _: Result<api::WaitResponse> = client.task("Wait", &request, Some(PATIENCE)).await;
    let _: Result<api::DeleteResponse> = client.task("Delete", &request, Some(PATIENCE)).await;
    let shutdown = api::ShutdownRequest { id: id.to_owned(), now: false };
    let _: Result<Empty> = client.task("Shutdown", &shutdown, Some(PATIENCE)).await;
}

/// Takes the events of the shims of a directory, as containerd would.
pub(crate) fn serve_events(directory: &Path, print: bool) -> Result<tokio::task::JoinHandle<()>> {
    let path = directory.join("c.sock.ttrpc");
    // A former life's.
    let _ = fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(path)?;
    Ok(tokio::task::spawn_local(rpc::serve(
        listener,
        Rc::new(EventSink { print }),
        Rc::new(Load::default()),
    )))
}

struct EventSink {
    print: bool,
}

impl Handler for EventSink {
    fn handle(&self, call: Call) -> Pin<Box<dyn Future<Output = Reply>>> {
        if call.service != SERVICE {
            let status =
                rpc::Status::new(rpc::Code::Unimplemented, format!("service {}", call.service));
            return Box::pin(async { Err(status) });
        }
        if self.print
            && let Some(envelope) = ForwardRequest::decode(call.payload.as_slice())
                .ok()
                .and_then(|request| request.envelope)
        {
            eprint!(
                "{} {}\r\n",
                envelope.timestamp.map(rfc3339).unwrap_or_default(),
                envelope.topic
            );
        }
        Box::pin(async { Ok(Vec::new()) })
    }
}
