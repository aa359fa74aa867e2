//! The Task API: parses the request, asks the shim, shapes the answer. No state of its own.

mod request;
pub use request::check as check_request;
mod status;

use crate::{
    cgroups,
    container::Exit,
    id::Id,
    protocol::{Any, Empty, Timestamp, options, task as api},
    rpc::{Call, Code, Reply, Status},
    serve::Service,
    shim::{Shim, ShimError},
};
use prost::Message;
use request::{container, decode, exec_of, signal};
use std::{future::Future, pin::Pin, rc::Rc};

/// Answers the methods of `containerd.task.v2.Task` and `containerd.task.v3.Task`.
pub struct TaskService {
    shim: Rc<Shim>,
}

impl TaskService {
    /// Speaks for a shim.
    pub fn new(shim: Rc<Shim>) -> Self {
        Self { shim }
    }

    async fn answer(shim: Rc<Shim>, call: Call) -> Reply {
        let payload = call.payload.as_slice();
        match call.method.as_str() {
            "Create" => {
                let create = request::create(decode(payload)?)?;
                // The largest future by far lives on the heap only while it runs.
                let pid = Box::pin(shim.create(create)).await?;
                if call.abandoned.is_set() {
                    shim.doubt();
                }
                encode(&api::PidResponse { pid })
            }
            "Start" => {
                let (id, exec) = process(payload)?;
                let pid = match exec {
                    None => shim.start(&id).await?,
                    Some(exec) => Box::pin(shim.start_exec(&id, &exec)).await?,
                };
                encode(&api::PidResponse { pid })
            }
            "Delete" => {
                let (id, exec) = process(payload)?;
                let deleted = match exec {
                    None => {
                        let deleted = Box::pin(shim.delete(&id)).await?;
                        if call.abandoned.is_set() {
                            shim.keep_unheard(&id, deleted);
                        }
                        deleted
                    }
                    Some(exec) => shim.delete_exec(&id, &exec).await?,
                };
                let (exit_status, exited_at) = exit_fields(deleted.exit);
                encode(&api::DeleteResponse { pid: deleted.pid, exit_status, exited_at })
            }
            "Exec" => {
                let exec = request::exec(decode(payload)?)?;
                shim.exec(&exec.id, exec.exec, exec.stdio, exec.spec)?;
                encode(&Empty {})
            }
            "ResizePty" => {
                let r: api::ResizePtyRequest = decode(payload)?;
                let size = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
                shim.resize(
                    &container(&r.id)?,
                    exec_of(&r.exec_id)?.as_ref(),
                    size(r.width),
                    size(r.height),
                )?;
                encode(&Empty {})
            }
            "State" => {
                let (id, exec) = process(payload)?;
                encode(&state(&shim, &id, exec.as_ref())?)
            }
            "Pause" => {
                shim.pause(&only_container(payload)?).await?;
                encode(&Empty {})
            }
            "Resume" => {
                shim.resume(&only_container(payload)?).await?;
                encode(&Empty {})
            }
            "Kill" => {
                let r: api::KillRequest = decode(payload)?;
                let exec = exec_of(&r.exec_id)?;
                shim.kill(&container(&r.id)?, exec.as_ref(), signal(r.signal)?, r.all).await?;
                encode(&Empty {})
            }
            "Pids" => {
                let pids = shim.pids(&only_container(payload)?).await?;
                let processes = pids.into_iter().map(process_info).collect();
                encode(&api::PidsResponse { processes })
            }
            "CloseIO" => {
                let r: api::CloseIoRequest = decode(payload)?;
                shim.close_stdin(&container(&r.id)?, exec_of(&r.exec_id)?.as_ref())?;
                encode(&Empty {})
            }
            "Update" => {
                let r: api::UpdateTaskRequest = decode(payload)?;
                let id = container(&r.id)?;
                shim.state(&id, None)?;
                shim.update(&id, &request::resources(r.resources)?).await?;
                encode(&Empty {})
            }
            "Wait" => {
                let (id, exec) = process(payload)?;
                let exit = shim.wait(&id, exec.as_ref(), &call.abandoned).await?;
                let (exit_status, exited_at) = exit_fields(Some(exit));
                encode(&api::WaitResponse { exit_status, exited_at })
            }
            "Stats" => {
                let cgroup = shim.cgroup(&only_container(payload)?)?;
                let stats = Some(cgroups::metrics(&cgroup));
                encode(&api::StatsResponse { stats })
            }
            "Connect" => {
                let r: api::ContainerRequest = decode(payload)?;
                // An unknown container is no error here: containerd asks before it has any.
                let task_pid = Id::new(&r.id).map_or(0, |id| shim.pid(&id));
                let version = String::new();
                encode(&api::ConnectResponse { shim_pid: std::process::id(), task_pid, version })
            }
            "Shutdown" => {
                let _: api::ShutdownRequest = decode(payload)?;
                shim.shutdown();
                encode(&Empty {})
            }
            "Checkpoint" => {
                let (id, save) = request::checkpoint(decode(payload)?)?;
                shim.checkpoint(&id, save).await?;
                encode(&Empty {})
            }
            other => Err(Status::new(Code::Unimplemented, format!("method {other}"))),
        }
    }
}

impl Service for TaskService {
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = Reply>>> {
        Box::pin(Self::answer(Rc::clone(&self.shim), call))
    }
}

fn process(payload: &[u8]) -> Result<(Id, Option<Id>), Status> {
    let r: api::ProcessRequest = decode(payload)?;
    Ok((container(&r.id)?, exec_of(&r.exec_id)?))
}

fn only_container(payload: &[u8]) -> Result<Id, Status> {
    let r: api::ContainerRequest = decode(payload)?;
    container(&r.id)
}

fn encode(message: &impl Message) -> Reply {
    Ok(message.encode_to_vec())
}

/// Status and time as Go sends them: zero and its zero time before the exit.
fn exit_fields(exit: Option<Exit>) -> (u32, Option<Timestamp>) {
    exit.map_or((0, Some(Timestamp::GO_ZERO)), |exit| (exit.status, Some(exit.at)))
}

fn state(shim: &Shim, id: &Id, exec: Option<&Id>) -> Result<api::StateResponse, ShimError> {
    let state = shim.state(id, exec)?;
    let (exit_status, exited_at) = exit_fields(state.exit);
    Ok(api::StateResponse {
        id: exec.unwrap_or(id).to_string(),
        bundle: state.bundle,
        pid: state.pid,
        status: state.status as i32,
        stdin: state.stdio.stdin,
        stdout: state.stdio.stdout,
        stderr: state.stdio.stderr,
        terminal: state.stdio.terminal,
        exit_status,
        exited_at,
        exec_id: String::new(),
    })
}

fn process_info((pid, exec): (u32, Option<Id>)) -> api::ProcessInfo {
    let info = exec.map(|exec| {
        Any::pack(
            options::PROCESS_DETAILS_URL,
            &options::ProcessDetails { exec_id: exec.to_string() },
        )
    });
    api::ProcessInfo { pid, info }
}
