//! `cleat.shim.v1.Shim`: what a shim tells about itself. Fields are documented in
//! proto/cleat/shim/v1/shim.proto.
#![allow(missing_docs, reason = "fields are named and documented in shim.proto")]

use super::{Any, Timestamp};

/// The service's name.
pub const SERVICE: &str = "cleat.shim.v1.Shim";

#[derive(Clone, PartialEq, prost::Message)]
pub struct InspectResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub revision: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    #[prost(string, tag = "4")]
    pub namespace: String,
    #[prost(message, repeated, tag = "5")]
    pub containers: Vec<Container>,
    #[prost(message, optional, tag = "6")]
    pub events: Option<EventQueue>,
    #[prost(message, repeated, tag = "7")]
    pub calls: Vec<Call>,
    #[prost(uint64, tag = "8")]
    pub connections: u64,
    #[prost(uint64, tag = "9")]
    pub unread_bytes: u64,
    #[prost(message, repeated, tag = "10")]
    pub problems: Vec<Problem>,
    #[prost(string, repeated, tag = "11")]
    pub transitions: Vec<String>,
    #[prost(uint64, tag = "12")]
    pub orphans_reaped: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Container {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub bundle: String,
    #[prost(int32, tag = "3")]
    pub status: i32,
    #[prost(message, optional, tag = "4")]
    pub init: Option<Process>,
    #[prost(message, repeated, tag = "5")]
    pub execs: Vec<Process>,
    #[prost(string, tag = "6")]
    pub runtime: String,
    #[prost(bool, tag = "7")]
    pub native_exec: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    #[prost(string, tag = "1")]
    pub exec_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    #[prost(int32, tag = "3")]
    pub status: i32,
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    #[prost(message, optional, tag = "5")]
    pub exit: Option<Exit>,
    #[prost(message, repeated, tag = "6")]
    pub streams: Vec<Stream>,
    #[prost(message, optional, tag = "7")]
    pub logger: Option<Logger>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Exit {
    #[prost(uint32, tag = "1")]
    pub status: u32,
    #[prost(message, optional, tag = "2")]
    pub at: Option<Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Stream {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    #[prost(uint64, tag = "3")]
    pub spooled_bytes: u64,
    #[prost(uint64, tag = "4")]
    pub dropped_bytes: u64,
    #[prost(bool, tag = "5")]
    pub ended: bool,
    #[prost(bool, tag = "6")]
    pub direct: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Logger {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    #[prost(uint32, tag = "3")]
    pub deaths: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct EventQueue {
    #[prost(uint64, tag = "1")]
    pub waiting: u64,
    #[prost(uint64, tag = "2")]
    pub acknowledged: u64,
    #[prost(uint64, tag = "3")]
    pub dropped: u64,
    #[prost(uint64, tag = "4")]
    pub oldest_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Call {
    #[prost(string, tag = "1")]
    pub method: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(uint64, tag = "3")]
    pub age_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Problem {
    #[prost(message, optional, tag = "1")]
    pub at: Option<Timestamp>,
    #[prost(string, tag = "2")]
    pub level: String,
    #[prost(string, tag = "3")]
    pub text: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct EventsRequest {
    #[prost(uint64, tag = "1")]
    pub from: u64,
    #[prost(uint32, tag = "2")]
    pub wait_ms: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct EventsResponse {
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<Event>,
    #[prost(uint64, tag = "2")]
    pub next: u64,
    #[prost(uint64, tag = "3")]
    pub missed: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(message, optional, tag = "2")]
    pub timestamp: Option<Timestamp>,
    #[prost(string, tag = "3")]
    pub topic: String,
    #[prost(message, optional, tag = "4")]
    pub event: Option<Any>,
}
