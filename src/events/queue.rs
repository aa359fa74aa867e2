//! The queue: order and bound.

use crate::protocol::{
    Any, Timestamp,
    events::{Envelope, ForwardRequest},
    inspect,
};
use prost::Message;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Envelopes that are kept while containerd is away. One is 200 to 300 bytes, so some 5 MiB. Beyond
/// it the oldest event that can be derived from others makes room (see [`Topic::can_be_derived`]);
/// an exit, an OOM kill or a delete is never dropped.
const BOUND: usize = 16_384;
/// Events that are kept for those who follow what happens. Who asks too seldom misses the oldest.
const KEPT: usize = 1024;
/// How long they are kept though nobody asks any more.
const INTEREST: Duration = Duration::from_secs(60);

/// What an event says; the name on the wire is `/tasks/…` (containerd v2.3.4
/// `core/runtime/events.go`).
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

    /// Whether whoever misses it still learns the outcome from the events that follow or from
    /// State.
    fn can_be_derived(self) -> bool {
        !matches!(self, Self::Exit | Self::Delete | Self::Oom)
    }
}

#[derive(Clone)]
struct Queued {
    topic: Topic,
    /// An encoded ForwardRequest.
    request: Rc<[u8]>,
    number: u64,
}

/// Events for those who follow them, acknowledged or not.
struct Followed {
    asked: Instant,
    events: VecDeque<Queued>,
}

/// Events that containerd has not acknowledged.
pub struct EventQueue {
    namespace: String,
    queued: RefCell<VecDeque<Queued>>,
    followed: RefCell<Option<Followed>>,
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
            followed: RefCell::default(),
            next: Cell::new(1),
            dropped: Cell::new(0),
            acknowledged: Cell::new(0),
            changed: Notify::new(),
        }
    }

    /// Puts an event at the end, with the time of now. Returns its number.
    pub fn push(&self, topic: Topic, event: &impl Message) -> u64 {
        let envelope = Envelope {
            timestamp: Some(Timestamp::now()),
            namespace: self.namespace.clone(),
            topic: topic.name().to_owned(),
            event: Some(Any::pack(topic.type_url(), event)),
        };
        let request = ForwardRequest { envelope: Some(envelope) }.encode_to_vec().into();
        let number = self.next.replace(self.next.get() + 1);
        let mut queued = self.queued.borrow_mut();
        let event = Queued { topic, request, number };
        self.keep_for_followers(&event);
        queued.push_back(event);
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
        number
    }

    /// Whether this event waits, and not as the first, which may be under way.
    pub fn is_waiting(&self, number: u64) -> bool {
        self.queued.borrow().front().is_some_and(|first| first.number < number)
            && self.queued.borrow().back().is_some_and(|last| last.number >= number)
    }

    fn keep_for_followers(&self, event: &Queued) {
        let mut followed = self.followed.borrow_mut();
        if let Some(Followed { events, .. }) =
            followed.as_mut().filter(|f| f.asked.elapsed() < INTEREST)
        {
            if events.len() == KEPT {
                events.pop_front();
            }
            events.push_back(event.clone());
        } else {
            *followed = None;
        }
    }

    /// Events from number `from` on (0: those that are not acknowledged), what to ask for next, and
    /// how many are missing. Waits at most `patience` for the first one. From the first question on
    /// events are kept, acknowledged or not, as long as the questions do not stop for a minute.
    pub async fn follow(&self, from: u64, patience: Duration) -> inspect::EventsResponse {
        let deadline = Instant::now() + patience;
        let followed = Followed { asked: Instant::now(), events: VecDeque::new() };
        self.followed.borrow_mut().get_or_insert(followed).asked = Instant::now();
        loop {
            let changed = self.changed.notified();
            let answer = self.since(from);
            let left = deadline.saturating_duration_since(Instant::now());
            if !answer.events.is_empty() || left.is_zero() {
                return answer;
            }
            // Acknowledgements wake us too: then we look again.
            let _ = tokio::time::timeout(left, changed).await;
        }
    }

    fn since(&self, from: u64) -> inspect::EventsResponse {
        let followed = self.followed.borrow();
        let queued = self.queued.borrow();
        // What is not acknowledged is kept anyway.
        let is_queued = from == 0 || queued.front().is_some_and(|first| first.number <= from);
        let kept =
            followed.as_ref().filter(|_| !is_queued).map_or(&*queued, |followed| &followed.events);
        let wanted: Vec<&Queued> =
            kept.iter().filter(|event| event.number >= from).take(KEPT).collect();
        let first = wanted.first().map_or(self.next.get(), |event| event.number);
        inspect::EventsResponse {
            next: wanted.last().map_or(self.next.get(), |event| event.number + 1),
            missed: if from == 0 { 0 } else { first.saturating_sub(from) },
            events: wanted.into_iter().filter_map(unpack).collect(),
        }
    }

    /// Figures for people.
    pub fn figures(&self) -> inspect::EventQueue {
        let oldest =
            self.queued.borrow().front().and_then(unpack).and_then(|event| event.timestamp);
        inspect::EventQueue {
            waiting: self.len() as u64,
            acknowledged: self.acknowledged.get(),
            dropped: self.dropped.get(),
            oldest_ms: oldest.map_or(0, |at| at.age_ms()),
        }
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

fn unpack(queued: &Queued) -> Option<inspect::Event> {
    let envelope = ForwardRequest::decode(&*queued.request).ok()?.envelope?;
    let Envelope { timestamp, topic, event, .. } = envelope;
    Some(inspect::Event { number: queued.number, timestamp, topic, event })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::events::TaskContainer;

    fn now<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn followers_see_each_event_once_acknowledged_or_not() {
        let queue = EventQueue::new("ns");
        queue.push(Topic::Create, &event());
        let first = now(queue.follow(0, Duration::ZERO));
        assert_eq!(
            (first.events.len(), first.events[0].topic.as_str(), first.next),
            (1, "/tasks/create", 2)
        );
        queue.acknowledge(1);
        queue.push(Topic::Start, &event());
        queue.acknowledge(2);
        let then = now(queue.follow(first.next, Duration::from_secs(5)));
        assert_eq!(
            (then.events.len(), then.events[0].number, then.next, then.missed),
            (1, 2, 3, 0)
        );
        assert_eq!(now(queue.follow(then.next, Duration::from_millis(1))).events, []);
        for number in 0..KEPT + 10 {
            queue.push(Topic::Exit, &event());
            queue.acknowledge(then.next + number as u64);
        }
        let late = now(queue.follow(then.next, Duration::ZERO));
        assert_eq!((late.events.len(), late.missed), (KEPT, 10));
    }

    #[test]
    fn followers_of_a_long_queue_miss_nothing_and_keep_no_second_one() {
        let queue = EventQueue::new("ns");
        for _ in 0..3 * KEPT {
            queue.push(Topic::Exit, &event());
        }
        let (mut from, mut seen) = (0, 0);
        for _ in 0..3 {
            let answer = now(queue.follow(from, Duration::ZERO));
            assert_eq!(answer.missed, 0);
            (from, seen) = (answer.next, seen + answer.events.len());
        }
        assert_eq!(seen, 3 * KEPT);
        for _ in 0..2 * KEPT {
            queue.push(Topic::Exit, &event());
        }
        assert_eq!(queue.followed.borrow().as_ref().unwrap().events.len(), KEPT);
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let queue = EventQueue::new("ns");
        queue.push(Topic::Create, &event());
        queue.acknowledge(1);
        assert!(queue.followed.borrow().is_none());
        now(queue.follow(0, Duration::ZERO));
        queue.followed.borrow_mut().as_mut().unwrap().asked -= INTEREST;
        queue.push(Topic::Start, &event());
        assert!(queue.followed.borrow().is_none());
    }

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
    fn what_is_first_may_be_under_way() {
        let queue = EventQueue::new("ns");
        let (first, second) = (queue.push(Topic::Oom, &event()), queue.push(Topic::Oom, &event()));
        assert_eq!((queue.is_waiting(first), queue.is_waiting(second)), (false, true));
        queue.acknowledge(first);
        assert_eq!((queue.is_waiting(second), queue.is_waiting(second + 1)), (false, false));
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
