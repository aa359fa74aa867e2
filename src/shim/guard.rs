//! A verb that has begun a transition ends it: by what it says, or by its failure if it says
//! nothing.
//!
//! Without that an early return or a panic between "pause asked for" and "paused" would leave the
//! container in between for ever.

use super::{Shim, ShimError, UNKNOWN_STATUS};
use crate::{
    container::{Event, Exit},
    id::Id,
    protocol::Timestamp,
};
use std::rc::Rc;

/// What goes on.
#[derive(Clone, Debug)]
pub(super) enum Verb {
    Start,
    StartExec(Id),
    Pause,
    Resume,
    Delete,
    DeleteExec(Id),
    /// Killing what is left of a container whose init has exited; its end is no failure.
    Clear,
}

impl Verb {
    /// What has happened if nobody says otherwise.
    fn failure(&self) -> Event {
        match self {
            Self::Start => Event::StartFailed,
            Self::StartExec(exec) => Event::ExecStartFailed {
                exec: exec.clone(),
                exit: Exit { status: UNKNOWN_STATUS, at: Timestamp::now() },
            },
            Self::Pause => Event::PauseFailed,
            Self::Resume => Event::ResumeFailed,
            Self::Delete => Event::DeleteFailed,
            Self::DeleteExec(exec) => Event::ExecDeleteFailed(exec.clone()),
            Self::Clear => Event::Cleared,
        }
    }
}

/// A transition under way.
pub(super) struct Transition {
    shim: Rc<Shim>,
    id: Id,
    /// Which container of that id.
    life: u64,
    /// `None`: it has been said how it ended.
    verb: Option<Verb>,
}

impl Shim {
    /// Asks the machine, and begins.
    pub(super) fn begin(
        self: &Rc<Self>,
        id: &Id,
        request: Event,
        verb: Verb,
    ) -> Result<Transition, ShimError> {
        self.apply(id, request)?;
        Ok(self.under_way(id, verb))
    }

    /// Of something that the machine itself has begun.
    pub(super) fn under_way(self: &Rc<Self>, id: &Id, verb: Verb) -> Transition {
        let life = self.with(id, |owned| owned.life).unwrap_or(u64::MAX);
        Transition { shim: Rc::clone(self), id: id.clone(), life, verb: Some(verb) }
    }
}

impl Transition {
    /// Whether its container is there still, and not another one of the same id.
    fn is_about_its_own(&self) -> bool {
        self.shim.with(&self.id, |owned| owned.life).is_ok_and(|life| life == self.life)
    }

    /// It went well.
    pub(super) fn succeed(mut self, event: Event) -> Result<(), ShimError> {
        if !self.is_about_its_own() {
            self.verb = None;
            return Err(ShimError::NotCreated);
        }
        self.shim.apply(&self.id, event)?;
        self.verb = None;
        Ok(())
    }
}

impl Drop for Transition {
    fn drop(&mut self) {
        let Some(verb) = self.verb.take().filter(|_| self.is_about_its_own()) else { return };
        match &verb {
            Verb::StartExec(exec) => self.shim.renew_exec_io(&self.id, exec),
            Verb::Start => self.shim.renew_io(&self.id),
            _ => {}
        }
        // The container may have gone.
        let _ = self.shim.apply(&self.id, verb.failure());
        if matches!(verb, Verb::Delete) {
            // Those who have joined try for themselves.
            let _ = self.shim.with(&self.id, |owned| owned.deleters.clear());
        }
    }
}
