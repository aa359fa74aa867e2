//! `cleat.shim.v1.Shim`: answers operators' questions. Changes nothing, keeps nothing.

use crate::{
    protocol::inspect::{EventsRequest, InspectResponse},
    rpc::{Call, Code, Load, Reply, Status},
    serve::{OpenCalls, Service},
    shim::Shim,
};
use prost::Message;
use std::{future::Future, pin::Pin, rc::Rc, time::Duration};

/// Longest wait for an event, milliseconds.
const MAX_WAIT: u32 = 30_000;

/// Answers for a shim.
pub struct InspectService {
    /// Whom it speaks for.
    pub shim: Rc<Shim>,
    /// Connections and answers.
    pub load: Rc<Load>,
    /// Calls without an answer.
    pub calls: Rc<OpenCalls>,
}

impl InspectService {
    fn inspect(&self) -> InspectResponse {
        InspectResponse {
            calls: self.calls.list(),
            connections: self.load.connections.get() as u64,
            unread_bytes: self.load.unread.get() as u64,
            ..self.shim.inspect()
        }
    }
}

impl Service for InspectService {
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = Reply>>> {
        match call.method.as_str() {
            "Inspect" => {
                let answer = self.inspect().encode_to_vec();
                Box::pin(async { Ok(answer) })
            }
            "Events" => {
                let shim = Rc::clone(&self.shim);
                Box::pin(async move {
                    let request = EventsRequest::decode(call.payload.as_slice()).map_err(|e| {
                        Status::new(Code::InvalidArgument, format!("decode the request: {e}"))
                    })?;
                    let patience = Duration::from_millis(request.wait_ms.min(MAX_WAIT).into());
                    tokio::select! {
                        answer = shim.follow(request.from, patience) => Ok(answer.encode_to_vec()),
                        () = call.abandoned.wait() => Err(Status::new(Code::Unknown, "the caller has gone")),
                    }
                })
            }
            other => {
                let refusal = Status::new(Code::Unimplemented, format!("method {other}"));
                Box::pin(async { Err(refusal) })
            }
        }
    }
}
