//! What is known of containers, for people (`cleat.shim.v1.Shim/Inspect`).

use super::{Owned, Shim, Slot};
use crate::{
    id::Id,
    io::ProcessIo,
    protocol::inspect::{Container, EventsResponse, Exit, InspectResponse, Process},
};
use std::time::Duration;

impl Shim {
    /// All that the shim knows; what only the daemon knows is left out.
    pub fn inspect(&self) -> InspectResponse {
        let ids = self.ids();
        InspectResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: crate::info::revision().to_owned(),
            pid: std::process::id(),
            namespace: self.namespace.to_string(),
            containers: ids.iter().map(|id| self.inspect_container(id)).collect(),
            events: Some(self.events.figures()),
            problems: crate::log::problems(),
            transitions: self.ring.borrow().lines().map(|line| line.into_owned()).collect(),
            orphans_reaped: self.reaper.orphans(),
            ..InspectResponse::default()
        }
    }

    /// What happens, see [`crate::events::EventQueue::follow`].
    pub async fn follow(&self, from: u64, patience: Duration) -> EventsResponse {
        self.events.follow(from, patience).await
    }

    fn inspect_container(&self, id: &Id) -> Container {
        let (execs, mut container) = match self.slots.borrow().get(id) {
            Some(Slot::There(owned)) => {
                (owned.state.execs.keys().cloned().collect(), describe(owned))
            }
            _ => (Vec::<Id>::new(), Container::default()),
        };
        container.id = id.to_string();
        container.init = self.inspect_process(id, None);
        container.status = container.init.as_ref().map_or(0, |init| init.status);
        container.execs =
            execs.iter().filter_map(|exec| self.inspect_process(id, Some(exec))).collect();
        container
    }

    fn inspect_process(&self, id: &Id, exec: Option<&Id>) -> Option<Process> {
        let state = self.state(id, exec).ok()?;
        let figures = |owned: &mut Owned| match exec {
            None => owned.io.figures(),
            Some(exec) => {
                owned.exec_io.get(exec).map(|io| ProcessIo::figures(io)).unwrap_or_default()
            }
        };
        let (streams, logger) = self.with(id, figures).ok()?;
        Some(Process {
            exec_id: exec.map(Id::to_string).unwrap_or_default(),
            pid: state.pid,
            status: state.status as i32,
            terminal: state.stdio.terminal,
            exit: state.exit.map(|exit| Exit { status: exit.status, at: Some(exit.at) }),
            streams,
            logger,
        })
    }
}

fn describe(owned: &Owned) -> Container {
    Container {
        bundle: owned.state.bundle.to_string_lossy().into_owned(),
        runtime: owned.runtime.binary().to_owned(),
        native_exec: owned.native_exec,
        ..Container::default()
    }
}
