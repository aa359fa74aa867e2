//! ttrpc: the protocol between containerd and its shims (containerd/ttrpc `PROTOCOL.md`,
//! `channel.go`).
//!
//! Unary calls only: neither the task API nor the event service streams. Enters: a listening
//! socket. Leaves: [`Call`]s, whose replies go back in any order. A caller who hangs up or whose
//! time is over cancels nothing: the handler runs on. Never here: what a call means.

mod client;
mod frame;
mod server;

pub use client::Connection;
pub use frame::{Header, Kind, MAX_MESSAGE, Request, Response, RpcStatus, request_frame};
pub use server::{Call, Handler, Load, serve, serve_connection};

/// google.rpc.Code, as far as we answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// No class of its own: what Go's shim answers for plain errors.
    Unknown = 2,
    /// The request is wrong.
    InvalidArgument = 3,
    /// It took longer than the caller allows.
    DeadlineExceeded = 4,
    /// No such container or process.
    NotFound = 5,
    /// The id is taken.
    AlreadyExists = 6,
    /// A bound of ours.
    ResourceExhausted = 8,
    /// Not in this state.
    FailedPrecondition = 9,
    /// No such service or method.
    Unimplemented = 12,
    /// A fault of ours.
    Internal = 13,
    /// Not now, or not any more.
    Unavailable = 14,
}

/// An error as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct Status {
    /// google.rpc.Code.
    pub code: i32,
    /// For people, and for clients that match on it.
    pub message: String,
}

impl Status {
    /// An error of a class.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code as i32, message: message.into() }
    }

    /// Whether asking again gives the same answer.
    pub fn is_permanent(&self) -> bool {
        [Code::InvalidArgument as i32, Code::Unimplemented as i32].contains(&self.code)
    }
}

/// What a call comes back with: an encoded message, or an error.
pub type Reply = Result<Vec<u8>, Status>;
