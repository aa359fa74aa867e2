//! Calls that are not answered yet, for people who ask what the shim is doing.

use crate::{
    protocol::{
        inspect::{self, Call as Described},
        task::ContainerRequest,
    },
    rpc::Call,
    sys::watchdog,
};
use prost::Message;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Instant};

/// Characters of a container's id that are kept.
const MAX_ID: usize = 128;

/// All calls without an answer.
#[derive(Default)]
pub struct OpenCalls {
    open: RefCell<BTreeMap<u64, Open>>,
    next: std::cell::Cell<u64>,
}

struct Open {
    method: Box<str>,
    id: Box<str>,
    begun: Instant,
}

impl OpenCalls {
    /// Notes a call; it counts as open until the guard is dropped. Those of `inspect::SERVICE` are
    /// not noted.
    pub(super) fn begin(self: &Rc<Self>, call: &Call) -> Option<Guard> {
        if call.service == inspect::SERVICE {
            return None;
        }
        // Each request about a container has its id in the first field.
        let request = ContainerRequest::decode(call.payload.as_slice()).unwrap_or_default();
        let id = request.id.chars().take(MAX_ID).collect();
        let number = self.next.replace(self.next.get() + 1);
        let open = Open { method: call.method.as_str().into(), id, begun: Instant::now() };
        watchdog::note(&["call ", &open.method, " ", &open.id]);
        self.open.borrow_mut().insert(number, open);
        Some(Guard { calls: Rc::clone(self), number })
    }

    /// The oldest first.
    pub fn list(&self) -> Vec<Described> {
        let describe = |open: &Open| Described {
            method: open.method.to_string(),
            id: open.id.to_string(),
            age_ms: u64::try_from(open.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.open.borrow().values().map(describe).collect()
    }
}

/// A call that goes on.
pub(super) struct Guard {
    calls: Rc<OpenCalls>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(open) = self.calls.open.borrow_mut().remove(&self.number) {
            watchdog::note(&["answered ", &open.method, " ", &open.id]);
        }
    }
}
