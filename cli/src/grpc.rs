//! Questions to containerd's own API: as much of gRPC (HTTP/2, RFC 9113 and 7541) as one unary call
//! on a connection of its own needs.
//!
//! Nothing of the answer's headers is decoded: a call that is refused has no message, and that is
//! all that is told.

use anyhow::{Context, Result, bail};
use prost::Message;
use std::{collections::HashMap, path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// How long containerd may take: one that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// A containerd behind a socket.
pub(crate) struct Containerd<'a> {
    pub(crate) address: &'a Path,
}

impl Containerd<'_> {
    /// Pid of whoever listens there.
    pub(crate) async fn pid(&self) -> Result<Option<u32>> {
        let stream = connect(self.address).await?;
        Ok(stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok()))
    }

    /// `None`: it answers, and refuses.
    pub(crate) async fn ask<A: Message + Default>(
        &self,
        method: &str,
        namespace: &str,
        request: &impl Message,
    ) -> Result<Option<A>> {
        let exchange = exchange(self.address, method, namespace, request.encode_to_vec());
        let answer = match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer?,
            Err(_) => bail!("no answer within {} s", PATIENCE.as_secs()),
        };
        answer
            .map(|answer| {
                A::decode(answer.as_slice()).with_context(|| format!("answer of {method}"))
            })
            .transpose()
    }
}

async fn connect(address: &Path) -> Result<UnixStream> {
    match tokio::time::timeout(PATIENCE, UnixStream::connect(address)).await {
        Ok(stream) => Ok(stream?),
        Err(_) => bail!("it takes no connection"),
    }
}

async fn exchange(
    address: &Path,
    method: &str,
    namespace: &str,
    request: Vec<u8>,
) -> Result<Option<Vec<u8>>> {
    let mut stream = connect(address).await?;
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // As large a window as there is: nothing has to be said while an answer comes.
    frame(&mut out, SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    frame(&mut out, WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes());
    let mut head = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("containerd-namespace", namespace),
    ] {
        if value.is_empty() {
            continue;
        }
        // A literal without index, neither part Huffman-coded.
        head.push(0);
        for text in [name, value] {
            head.push(
                u8::try_from(text.len())
                    .ok()
                    .filter(|length| *length < 127)
                    .context("too long a header")?,
            );
            head.extend_from_slice(text.as_bytes());
        }
    }
    frame(&mut out, HEADERS, END_HEADERS, 1, &head);
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(request.len())?.to_be_bytes());
    body.extend_from_slice(&request);
    frame(&mut out, DATA, END_STREAM, 1, &body);
    stream.write_all(&out).await?;
    let mut answer = Vec::new();
    loop {
        let mut start = [0; 9];
        stream.read_exact(&mut start).await.context("it hung up")?;
        let length =
            usize::from(start[0]) << 16 | usize::from(start[1]) << 8 | usize::from(start[2]);
        let (kind, flags) = (start[3], start[4]);
        let stream_number = u32::from_be_bytes([start[5] & 0x7f, start[6], start[7], start[8]]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.context("it hung up")?;
        let mut reply = Vec::new();
        match kind {
            DATA if stream_number == 1 => {
                let padding =
                    if flags & PADDED != 0 { payload.first().copied().unwrap_or(0) } else { 0 };
                let begin = usize::from(flags & PADDED != 0);
                let end = payload.len().saturating_sub(usize::from(padding));
                answer.extend_from_slice(payload.get(begin..end).unwrap_or_default());
                if answer.len() > MAX_ANSWER {
                    bail!("an answer of more than {MAX_ANSWER} bytes");
                }
            }
            SETTINGS if flags & ACK == 0 => frame(&mut reply, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(&mut reply, PING, ACK, 0, &payload),
            RESET if stream_number == 1 => return Ok(None),
            GOAWAY => bail!("it ends the connection"),
            _ => {}
        }
        if !reply.is_empty() {
            stream.write_all(&reply).await?;
        }
        if stream_number == 1 && [DATA, HEADERS].contains(&kind) && flags & END_STREAM != 0 {
            // Five bytes, not compressed and the length, stand before the message.
            return Ok(answer.get(5..).map(<[u8]>::to_vec));
        }
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    // Requests are small: the length fits three bytes.
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Answer of `containerd.services.version.v1.Version/Version`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct VersionResponse {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
}

/// `containerd.services.introspection.v1.Introspection/Plugins`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PluginsRequest {
    #[prost(string, repeated, tag = "1")]
    pub(crate) filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PluginsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) plugins: Vec<Plugin>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Plugin {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) failure: Option<Failure>,
}

/// google.rpc.Status.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Failure {
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

/// `runtime.v1.RuntimeService/Status`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusRequest {
    #[prost(bool, tag = "1")]
    pub(crate) verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusResponse {
    #[prost(map = "string, string", tag = "2")]
    pub(crate) info: HashMap<String, String>,
}
