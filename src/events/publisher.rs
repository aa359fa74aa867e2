//! Sends the head of the queue, again and again until containerd has it.

use super::EventQueue;
use crate::{
    protocol::events::{FORWARD, SERVICE},
    rpc::{self, Connection},
};
use std::{io, path::PathBuf, rc::Rc, time::Duration};

/// Pause before the first new attempt, doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between attempts: containerd is back within seconds, or away for long.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without an answer for this long, ask whether anybody is listening.
const PATIENCE: Duration = Duration::from_secs(10);
/// A method that no server has: its refusal is the sign of life.
const PROBE: &str = "Probe";

/// The one that talks to containerd's ttrpc socket.
pub struct Publisher {
    address: PathBuf,
    queue: Rc<EventQueue>,
}

impl Publisher {
    /// `address` is TTRPC_ADDRESS: a path, with or without `unix://`.
    pub fn new(address: &str, queue: Rc<EventQueue>) -> Self {
        Self { address: PathBuf::from(address.strip_prefix("unix://").unwrap_or(address)), queue }
    }

    /// Publishes for as long as the shim lives.
    pub async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut connection = None;
        let mut complained = false;
        loop {
            self.queue.wait_filled().await;
            match self.send_head(&mut connection).await {
                Ok(()) => {
                    if complained {
                        log::info!("containerd takes events again waiting={}", self.queue.len());
                    }
                    complained = false;
                    pause = FIRST_PAUSE;
                }
                Err(e) => {
                    connection = None;
                    if !complained {
                        log::warn!(
                            "forward event: {e}; waiting for containerd waiting={}",
                            self.queue.len()
                        );
                    }
                    complained = true;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn send_head(&self, connection: &mut Option<Connection>) -> io::Result<()> {
        let Some((number, request)) = self.queue.head() else { return Ok(()) };
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(
                tokio::time::timeout(CONNECT_TIMEOUT, Connection::connect(&self.address))
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??,
            ),
        };
        let stream = connection.send(SERVICE, FORWARD, &request, None).await?;
        let answer = self.answer(connection, stream).await?;
        match answer {
            // A refusal for good: sending it again would block all that follow.
            Err(status) if status.is_permanent() => {
                log::error!("containerd refuses an event: {status}");
            }
            Err(status) => return Err(io::Error::other(status.to_string())),
            Ok(_) => {}
        }
        self.queue.acknowledge(number);
        Ok(())
    }

    /// Waits for the answer as long as the connection may still bring one. A containerd that is
    /// stopped answers nobody: its request lies in the socket, and sending it again would publish
    /// it twice. One that answers a probe, but not us, has lost it.
    async fn answer(&self, connection: &mut Connection, stream: u32) -> io::Result<rpc::Reply> {
        let mut probe = None;
        loop {
            match tokio::time::timeout(PATIENCE, connection.receive()).await {
                Ok(received) => {
                    let (id, reply) = received?;
                    if id == stream {
                        return Ok(reply);
                    }
                    if Some(id) == probe {
                        // Answers may overtake each other: one more round of patience, then the
                        // request counts as lost.
                        return match tokio::time::timeout(PATIENCE, connection.receive()).await {
                            Ok(Ok((id, reply))) if id == stream => Ok(reply),
                            Ok(Err(e)) => Err(e),
                            _ => Err(io::Error::other("containerd answers, but not this request")),
                        };
                    }
                }
                Err(_) if probe.is_none() => {
                    probe = Some(connection.send(SERVICE, PROBE, &[], None).await?)
                }
                Err(_) => {}
            }
        }
    }
}
