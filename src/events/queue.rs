//! The queue: order and bound.

use crate::protocol::{
    Any, Timestamp,
    events::{Envelope, ForwardRequest},
};
use prost::Message;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};
use tokio::sync::Notify;

/// Envelopes that are kept while containerd is away. One is 200 to 300 bytes, so some 5 MiB. Beyond it the oldest event that can
/// be derived from others makes room (see [`Topic::can_be_derived`]); an exit, an OOM kill or a delete is never dropped.
const BOUND: usize = 16_384;

/// What an event says; the name on the wire is `/tasks/…` (containerd v2.3.4 `core/runtime/events.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Created.
    Create,
    /// Started.
    Start,
    /// Exited: init or exec.
    Exit,
    /// Deleted.
    Delete,
    /// Out of memory.
    Oom,
    /// Exec added.
    ExecAdded,
    /// Exec started.
    ExecStarted,
    /// State written out.
    Checkpointed,
    /// Frozen.
    Paused,
    /// Thawed.
    Resumed,
}

impl Topic {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "/tasks/create",
            Self::Start => "/tasks/start",
            Self::Exit => "/tasks/exit",
            Self::Delete => "/tasks/delete",
            Self::Oom => "/tasks/oom",
            Self::ExecAdded => "/tasks/exec-added",
            Self::ExecStarted => "/tasks/exec-started",
            Self::Checkpointed => "/tasks/checkpointed",
            Self::Paused => "/tasks/paused",
            Self::Resumed => "/tasks/resumed",
        }
    }

    fn type_url(self) -> &'static str {
        match self {
            Self::Create => "containerd.events.TaskCreate",
            Self::Start => "containerd.events.TaskStart",
            Self::Exit => "containerd.events.TaskExit",
            Self::Delete => "containerd.events.TaskDelete",
            Self::Oom => "containerd.events.TaskOOM",
            Self::ExecAdded => "containerd.events.TaskExecAdded",
            Self::ExecStarted => "containerd.events.TaskExecStarted",
            Self::Checkpointed => "containerd.events.TaskCheckpointed",
            Self::Paused => "containerd.events.TaskPaused",
            Self::Resumed => "containerd.events.TaskResumed",
        }
    }

    /// Whether whoever misses it still learns the outcome from the events that follow or from State.
    fn can_be_derived(self) -> bool {
        !matches!(self, Self::Exit | Self::Delete | Self::Oom)
    }
}

struct Queued {
    topic: Topic,
    /// An encoded ForwardRequest.
    request: Rc<[u8]>,
    number: u64,
}

/// Events that containerd has not acknowledged.
pub struct EventQueue {
    namespace: String,
    queued: RefCell<VecDeque<Queued>>,
    next: Cell<u64>,
    dropped: Cell<u64>,
    acknowledged: Cell<u64>,
    changed: Notify,
}

impl EventQueue {
    /// An empty queue for one namespace.
    pub fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            queued: RefCell::default(),
            next: Cell::new(0),
            dropped: Cell::new(0),
            acknowledged: Cell::new(0),
            changed: Notify::new(),
        }
    }

    /// Puts an event at the end, with the time of now.
    pub fn push(&self, topic: Topic, event: &impl Message) {
        let envelope = Envelope {
            timestamp: Some(Timestamp::now()),
            namespace: self.namespace.clone(),
            topic: topic.name().to_owned(),
            event: Some(Any::pack(topic.type_url(), event)),
        };
        let request = ForwardRequest { envelope: Some(envelope) }.encode_to_vec().into();
        let number = self.next.replace(self.next.get() + 1);
        let mut queued = self.queued.borrow_mut();
        queued.push_back(Queued { topic, request, number });
        if queued.len() > BOUND
            && let Some(index) = queued.iter().position(|q| q.topic.can_be_derived())
        {
            if self.dropped.get() == 0 {
                log::error!(
                    "more than {BOUND} events wait for containerd; starts and the like make room for exits"
                );
            }
            self.dropped.set(self.dropped.get() + 1);
            queued.remove(index);
        }
        self.changed.notify_waiters();
    }

    /// The event to send next: its number and the encoded ForwardRequest. It stays in the queue.
    pub(super) fn head(&self) -> Option<(u64, Rc<[u8]>)> {
        self.queued.borrow().front().map(|q| (q.number, Rc::clone(&q.request)))
    }

    /// containerd has this one.
    pub(super) fn acknowledge(&self, number: u64) {
        let mut queued = self.queued.borrow_mut();
        if queued.front().is_some_and(|q| q.number == number) {
            queued.pop_front();
            self.acknowledged.set(self.acknowledged.get() + 1);
        }
        if queued.is_empty() {
            queued.shrink_to(0);
        }
        self.changed.notify_waiters();
    }

    /// Waits until there is something to send.
    pub(super) async fn wait_filled(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.queued.borrow().is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until everything is acknowledged.
    pub async fn wait_empty(&self) {
        loop {
            let changed = self.changed.notified();
            if self.queued.borrow().is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.queued.borrow().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For the dump.
    pub fn describe(&self) -> String {
        let head = self.queued.borrow().front().map(|q| q.topic.name());
        format!(
            "events waiting={} acknowledged={} dropped={} next={}",
            self.len(),
            self.acknowledged.get(),
            self.dropped.get(),
            head.unwrap_or("none")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::events::TaskContainer;

    fn event() -> TaskContainer {
        TaskContainer { container_id: "c".into() }
    }

    #[test]
    fn first_in_first_out_and_only_the_head_is_acknowledged() {
        let queue = EventQueue::new("ns");
        queue.push(Topic::Create, &event());
        queue.push(Topic::Exit, &event());
        let (first, request) = queue.head().unwrap();
        let envelope = ForwardRequest::decode(&*request).unwrap().envelope.unwrap();
        assert_eq!((envelope.topic.as_str(), envelope.namespace.as_str()), ("/tasks/create", "ns"));
        assert_eq!(envelope.event.unwrap().type_url, "containerd.events.TaskCreate");
        queue.acknowledge(first + 1);
        assert_eq!(queue.len(), 2);
        queue.acknowledge(first);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn exits_are_never_dropped() {
        let queue = EventQueue::new("ns");
        for _ in 0..BOUND / 2 {
            queue.push(Topic::ExecStarted, &event());
            queue.push(Topic::Exit, &event());
        }
        for _ in 0..BOUND {
            queue.push(Topic::Exit, &event());
        }
        let exits = queue.queued.borrow().iter().filter(|q| q.topic == Topic::Exit).count();
        assert_eq!(exits, BOUND / 2 + BOUND);
        assert_eq!(queue.dropped.get(), (BOUND / 2) as u64);
    }
}
