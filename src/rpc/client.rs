//! The calling side: for the publisher, and for tests.

use super::{
    Reply,
    frame::{HEADER, Header, Kind, MAX_MESSAGE, Request, Response, request_frame},
};
use prost::Message;
use std::{io, path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// One connection; the caller matches answers to calls by stream number.
pub struct Connection {
    stream: UnixStream,
    next: u32,
    inbox: Vec<u8>,
}

impl Connection {
    /// Connects to a unix socket.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(path).await?, next: 1, inbox: Vec::new() })
    }

    /// Sends a call; returns its stream number.
    pub async fn send(
        &mut self,
        service: &str,
        method: &str,
        payload: &[u8],
        timeout: Option<Duration>,
    ) -> io::Result<u32> {
        let stream = self.next;
        self.next += 2;
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: payload.to_vec(),
            timeout_nano: timeout.and_then(|t| i64::try_from(t.as_nanos()).ok()).unwrap_or(0),
        };
        self.stream.write_all(&request_frame(stream, &request)).await?;
        Ok(stream)
    }

    /// The next answer: whose, and what. May be dropped and called again: what was read is kept.
    pub async fn receive(&mut self) -> io::Result<(u32, Reply)> {
        loop {
            if let Some(header) = Header::parse(&self.inbox) {
                if header.length > MAX_MESSAGE || header.kind != Kind::Response {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("unexpected {header:?}"),
                    ));
                }
                let end = HEADER + header.length;
                if let Some(body) = self.inbox.get(HEADER..end) {
                    let response = Response::decode(body)
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                    self.inbox.drain(..end);
                    if self.inbox.is_empty() {
                        self.inbox = Vec::new();
                    }
                    return Ok((header.stream, response.into_reply()));
                }
            }
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The socket itself, for tests that send what no client would.
    #[cfg(test)]
    pub(super) fn raw(&mut self) -> &mut UnixStream {
        &mut self.stream
    }
}
