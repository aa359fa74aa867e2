//! Frames: ten bytes of header, then a `Request` or a `Response`.

use super::{Code, Reply, Status};
use prost::Message;
use std::time::Duration;

/// Length of a header, bytes.
pub(super) const HEADER: usize = 10;
/// Largest message, bytes (ttrpc `channel.go`, messageLengthMax).
pub const MAX_MESSAGE: usize = 4 << 20;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 1
    Request,
    /// 2
    Response,
    /// 3: part of a stream, which we have none of.
    Data,
    /// Anything else.
    Unknown(u8),
}

/// A frame's header. Integers are big-endian on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that follow.
    pub length: usize,
    /// Odd, and rising, for calls of the client.
    pub stream: u32,
    /// Type of the message.
    pub kind: Kind,
}

impl Header {
    /// Reads the first ten bytes; `None` if there are fewer.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let [a, b, c, d, e, f, g, h, kind, _flags] = *header;
        Some(Self {
            length: usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?,
            stream: u32::from_be_bytes([e, f, g, h]),
            kind: match kind {
                1 => Kind::Request,
                2 => Kind::Response,
                3 => Kind::Data,
                other => Kind::Unknown(other),
            },
        })
    }
}

/// `ttrpc.Request`.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Full service name.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Method name.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The encoded request message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// The caller's timeout, nanoseconds; 0: none.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
}

impl Request {
    /// The caller's timeout.
    pub fn timeout(&self) -> Option<Duration> {
        u64::try_from(self.timeout_nano).ok().filter(|n| *n > 0).map(Duration::from_nanos)
    }
}

/// `ttrpc.Response`.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// Set if the call failed.
    #[prost(message, optional, tag = "1")]
    pub status: Option<RpcStatus>,
    /// The encoded response message.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub struct RpcStatus {
    /// google.rpc.Code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The error's text.
    #[prost(string, tag = "2")]
    pub message: String,
}

impl Response {
    /// As the caller sees it.
    pub fn into_reply(self) -> Reply {
        match self.status {
            Some(RpcStatus { code, message }) if code != 0 => Err(Status { code, message }),
            _ => Ok(self.payload),
        }
    }
}

/// A request as a frame.
pub fn request_frame(stream: u32, request: &Request) -> Vec<u8> {
    frame(stream, 1, request)
}

/// A reply as a frame.
pub(super) fn response_frame(stream: u32, reply: Reply) -> Vec<u8> {
    let response = match reply {
        Ok(payload) if payload.len() + 64 > MAX_MESSAGE => {
            let message =
                format!("response of {} bytes is larger than {MAX_MESSAGE}", payload.len());
            return response_frame(stream, Err(Status::new(Code::ResourceExhausted, message)));
        }
        Ok(payload) => Response { status: None, payload },
        Err(Status { code, message }) => {
            Response { status: Some(RpcStatus { code, message }), payload: Vec::new() }
        }
    };
    frame(stream, 2, &response)
}

fn frame(stream: u32, kind: u8, message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(HEADER + length);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(&[kind, 0]);
    message.encode_raw(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive() {
        let request = Request {
            service: "s".into(),
            method: "m".into(),
            payload: vec![1, 2],
            timeout_nano: 5,
        };
        let bytes = request_frame(7, &request);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header, Header { length: bytes.len() - HEADER, stream: 7, kind: Kind::Request });
        assert_eq!(Request::decode(&bytes[HEADER..]).unwrap(), request);
        assert_eq!(request.timeout(), Some(Duration::from_nanos(5)));
        assert_eq!(Header::parse(&bytes[..9]), None);
    }

    #[test]
    fn too_large_a_response_becomes_an_error() {
        let bytes = response_frame(1, Ok(vec![0; MAX_MESSAGE]));
        let reply = Response::decode(&bytes[HEADER..]).unwrap().into_reply();
        assert_eq!(reply.unwrap_err().code, Code::ResourceExhausted as i32);
    }
}
