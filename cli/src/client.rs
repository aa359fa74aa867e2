//! Calls to a shim, each with a deadline.

use anyhow::{Context, Result, bail};
use cleat::{
    protocol::task as api,
    rpc::{Connection, Status},
};
use prost::Message;
use std::{path::Path, time::Duration};

/// How long a shim may take to answer a question: one that takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// A connection to a shim.
pub(crate) struct Client(Connection);

impl Client {
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let connection = tokio::time::timeout(PATIENCE, Connection::connect(socket)).await;
        let connection = connection.context("no answer")?;
        Ok(Self(connection.with_context(|| format!("connect to {}", socket.display()))?))
    }

    /// A call of any service. The outer error: nobody answers. The inner: the shim refuses.
    pub(crate) async fn ask<A: Message + Default>(
        &mut self,
        service: &str,
        method: &str,
        request: &impl Message,
        patience: Option<Duration>,
    ) -> Result<std::result::Result<A, Status>> {
        let payload = request.encode_to_vec();
        let exchange = async {
            let stream = self.0.send(service, method, &payload, None).await?;
            loop {
                let (answered, reply) = self.0.receive().await?;
                if answered == stream {
                    return std::io::Result::Ok(reply);
                }
            }
        };
        let reply = match patience {
            None => exchange.await,
            Some(patience) => match tokio::time::timeout(patience, exchange).await {
                Ok(reply) => reply,
                Err(_) => bail!("{method}: no answer within {} s", patience.as_secs()),
            },
        };
        match reply.with_context(|| method.to_owned())? {
            Ok(payload) => Ok(Ok(
                A::decode(payload.as_slice()).with_context(|| format!("answer of {method}"))?
            )),
            Err(status) => Ok(Err(status)),
        }
    }

    /// A call of the Task API, which is to succeed.
    pub(crate) async fn task<A: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
        patience: Option<Duration>,
    ) -> Result<A> {
        let answer = self.ask(api::SERVICES[0], method, request, patience).await?;
        answer.map_err(|status| anyhow::anyhow!("{}", status.message))
    }
}
