//! A client on the shim's own socket: for calls that `ctr` does not send.

use cleat::{
    protocol::{Any, task as api},
    rpc::{Connection, Status},
};
use prost::Message;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// One connection. Calls block; [`Direct::send`] and [`Direct::receive`] do not belong together.
pub struct Direct {
    runtime: tokio::runtime::Runtime,
    connection: Connection,
    timeout: Duration,
}

impl Direct {
    /// Connects.
    pub fn connect(path: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connection = runtime.block_on(Connection::connect(path)).unwrap();
        Self { runtime, connection, timeout: super::LONG }
    }

    /// Calls a method of the task service, version 3.
    pub fn call<R: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<R, Status> {
        self.call_service(service(), method, request)
    }

    /// Calls a method of any service.
    pub fn call_service<R: Message + Default>(
        &mut self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<R, Status> {
        let stream = self.send_to(service, method, request);
        loop {
            let (id, reply) = self.receive();
            if id == stream {
                return reply.map(|bytes| R::decode(bytes.as_slice()).unwrap());
            }
        }
    }

    /// A call that gives the shim a time.
    pub fn call_within(
        &mut self,
        method: &str,
        request: &impl Message,
        time: Duration,
    ) -> Result<Vec<u8>, Status> {
        let payload = request.encode_to_vec();
        let send = self.connection.send(service(), method, &payload, Some(time));
        let stream = self.runtime.block_on(send).unwrap();
        let (id, reply) = self.receive();
        assert_eq!(id, stream);
        reply
    }

    /// Sends a call of the task service and returns its stream number.
    pub fn send(&mut self, method: &str, request: &impl Message) -> u32 {
        self.send_to(service(), method, request)
    }

    fn send_to(&mut self, service: &str, method: &str, request: &impl Message) -> u32 {
        let payload = request.encode_to_vec();
        self.runtime.block_on(self.connection.send(service, method, &payload, None)).unwrap()
    }

    /// The next answer.
    pub fn receive(&mut self) -> (u32, Result<Vec<u8>, Status>) {
        let answer = async { tokio::time::timeout(self.timeout, self.connection.receive()).await };
        self.runtime.block_on(answer).expect("an answer in time").expect("a live connection")
    }

    /// Exec, Start, Wait, Delete of a shell command without I/O; its exit status.
    pub fn exec_to_end(&mut self, id: &str, exec: &str, script: &str) -> u32 {
        let spec = process_spec(&["sh", "-c", script]);
        self.call::<cleat::protocol::Empty>("Exec", &exec_request(id, exec, &spec)).unwrap();
        let process = api::ProcessRequest { id: id.into(), exec_id: exec.into() };
        self.call::<api::PidResponse>("Start", &process).unwrap();
        let waited: api::WaitResponse = self.call("Wait", &process).unwrap();
        let deleted: api::DeleteResponse = self.call("Delete", &process).unwrap();
        assert_eq!(waited.exit_status, deleted.exit_status);
        waited.exit_status
    }

    /// State of an init; `None` if the shim has hung up.
    pub fn try_state(&mut self, id: &str) -> Option<()> {
        let request = api::ProcessRequest { id: id.into(), exec_id: String::new() };
        let payload = request.encode_to_vec();
        let sent = self.runtime.block_on(self.connection.send(service(), "State", &payload, None));
        let received = sent.ok().map(|_| self.runtime.block_on(self.connection.receive()));
        received?.ok().map(|_| ())
    }

    /// State of the init, or of an exec.
    pub fn state(&mut self, id: &str, exec: &str) -> Result<api::StateResponse, Status> {
        self.call("State", &api::ProcessRequest { id: id.into(), exec_id: exec.into() })
    }
}

/// A process spec as `ctr` would send it.
pub fn process_spec(arguments: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "args": arguments,
        "cwd": "/",
        "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", "TERM=xterm"],
        "user": {"uid": 0, "gid": 0},
    })
}

/// An Exec without channels.
pub fn exec_request(id: &str, exec: &str, spec: &serde_json::Value) -> api::ExecProcessRequest {
    api::ExecProcessRequest {
        id: id.into(),
        exec_id: exec.into(),
        spec: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: serde_json::to_vec(spec).unwrap(),
        }),
        ..api::ExecProcessRequest::default()
    }
}

/// Makes a fifo.
pub fn fifo(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    path
}

/// The task service: Debian's Go shim has version 2 only.
fn service() -> &'static str {
    api::SERVICES[usize::from(!super::is_go())]
}
