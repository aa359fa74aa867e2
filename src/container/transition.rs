//! (state, event) → (state, effects) or the sentence of a refusal. Sentences are containerd's
//! (v2.3.4 `cmd/containerd-shim-runc-v2/process/{init,exec}_state.go`): clients match on them.

use super::{
    Container, Effect, Exec, ExecPhase, Exit, Notice, PidNamespace, Process, Status, Stdio,
};
use crate::id::Id;

/// What has happened, or is asked for (`…Requested`, the only ones that are refused).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Start of the init.
    StartRequested,
    /// `runtime restore` went well: the init of a container that is made from a checkpoint has been
    /// born.
    Restored {
        /// Its pid.
        pid: u32,
    },
    /// `runtime start` went well.
    Started,
    /// It did not.
    StartFailed,
    /// Exec: an id, its channels, its process spec.
    ExecRequested {
        /// Its id.
        exec: Id,
        /// Its channels.
        stdio: Stdio,
        /// The process spec, JSON.
        spec: Vec<u8>,
    },
    /// Start of an exec.
    ExecStartRequested(Id),
    /// `runtime exec` went well.
    ExecStarted {
        /// Which.
        exec: Id,
        /// Its pid.
        pid: u32,
    },
    /// It did not.
    ExecStartFailed {
        /// Which.
        exec: Id,
        /// What waiters hear.
        exit: Exit,
    },
    /// The init was reaped.
    InitExited(Exit),
    /// An exec was reaped.
    ExecExited {
        /// Which.
        exec: Id,
        /// How.
        exit: Exit,
    },
    /// What [`Effect::KillAll`] asked for is done, or was given up.
    Cleared,
    /// The kernel killed a process for want of memory.
    OomKilled,
    /// Pause.
    PauseRequested,
    /// `runtime pause` went well.
    Paused,
    /// It did not.
    PauseFailed,
    /// Resume.
    ResumeRequested,
    /// `runtime resume` went well.
    Resumed,
    /// It did not.
    ResumeFailed,
    /// Checkpoint.
    CheckpointRequested,
    /// `runtime checkpoint` went well.
    Checkpointed {
        /// The directory with the image.
        image: String,
    },
    /// Update.
    UpdateRequested,
    /// Delete of the container.
    DeleteRequested,
    /// `runtime delete` went well.
    Deleted,
    /// It did not.
    DeleteFailed,
    /// Delete of an exec.
    ExecDeleteRequested(Id),
    /// Its I/O is drained and closed.
    ExecDeleted(Id),
    /// It is not.
    ExecDeleteFailed(Id),
}

/// A request that the state does not allow. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An illegal transition, in containerd's words.
    #[error("cannot {verb} a {state} {noun}")]
    State {
        /// What was asked.
        verb: &'static str,
        /// What the process is.
        state: &'static str,
        /// container or process.
        noun: &'static str,
    },
    /// Pause, resume or checkpoint before the start.
    #[error("cannot {0} in created state")]
    Created(&'static str),
    /// Exec, in containerd's words.
    #[error("cannot exec in a {0} state")]
    Exec(&'static str),
    /// Delete of a live process.
    #[error("cannot delete a {0} process")]
    DeleteLive(&'static str),
    /// The exec's container has lost its init.
    #[error("container {0} init process is not running")]
    InitGone(Id),
    /// The exec id is taken.
    #[error("id {0}")]
    ExecExists(Id),
    /// No such exec.
    #[error("process does not exist {0}")]
    NoExec(Id),
}

type Effects = Vec<Effect>;

impl Container {
    /// Applies an event. A refusal changes nothing.
    pub fn apply(&mut self, event: Event) -> Result<Effects, Refusal> {
        let mut effects = Effects::new();
        match event {
            Event::StartRequested => self.request_start()?,
            Event::Restored { pid } => self.init.pid = pid,
            Event::Started => {
                if self.status == Status::Starting {
                    self.status = Status::Running;
                }
                effects.push(Effect::Publish(Notice::Start { pid: self.init.pid }));
                self.release(&mut effects);
            }
            Event::StartFailed => {
                if self.status == Status::Starting {
                    self.status = Status::Created;
                }
                self.release(&mut effects);
            }
            Event::ExecRequested { exec, stdio, spec } => {
                self.add_exec(exec, stdio, spec, &mut effects)?
            }
            Event::ExecStartRequested(exec) => self.request_exec_start(&exec)?,
            Event::ExecStarted { exec, pid } => {
                if let Some(e) = self.execs.get_mut(&exec) {
                    e.phase = ExecPhase::Running;
                    e.process.pid = pid;
                    e.spec = Vec::new();
                }
                effects.push(Effect::Publish(Notice::ExecStarted { exec, pid }));
            }
            Event::ExecStartFailed { exec, exit } => {
                // As with Go's shim it is what it was before. Who waits for its end is answered all
                // the same.
                if let Some(e) = self.execs.get_mut(&exec)
                    && e.phase == ExecPhase::Starting
                {
                    e.phase = ExecPhase::Added;
                    e.failed = Some(exit);
                }
                effects.push(Effect::AnswerWaiters(Some(exec), exit));
                self.release(&mut effects);
            }
            Event::InitExited(exit) => self.hold(exit, &mut effects),
            Event::ExecExited { exec, exit } => self.end_exec(exec, exit, &mut effects),
            Event::Cleared => {
                self.clearing = false;
                self.release(&mut effects);
            }
            Event::OomKilled => effects.push(Effect::Publish(Notice::Oom)),
            Event::PauseRequested => self.request_pause()?,
            Event::Paused => {
                if self.status == Status::Pausing {
                    self.status = Status::Paused;
                    effects.push(Effect::Publish(Notice::Paused));
                }
            }
            Event::PauseFailed | Event::Resumed
                if matches!(self.status, Status::Pausing | Status::Resuming) =>
            {
                if self.status == Status::Resuming {
                    effects.push(Effect::Publish(Notice::Resumed));
                }
                self.status = Status::Running;
            }
            Event::ResumeRequested => self.request_resume()?,
            Event::ResumeFailed => {
                if self.status == Status::Resuming {
                    self.status = Status::Paused;
                }
            }
            // The container stopped while the call was under way.
            Event::PauseFailed | Event::Resumed => {}
            Event::CheckpointRequested => match self.status {
                Status::Created | Status::Starting => {
                    return Err(Refusal::Created("checkpoint a task"));
                }
                Status::Stopped => return Err(refused("checkpoint", "stopped", "container")),
                Status::Deleting | Status::Deleted => {
                    return Err(refused("checkpoint", "deleted", "process"));
                }
                Status::Running | Status::Pausing | Status::Paused | Status::Resuming => {}
            },
            Event::Checkpointed { image } => {
                effects.push(Effect::Publish(Notice::Checkpointed { image }))
            }
            Event::UpdateRequested => match self.status {
                Status::Stopped => return Err(refused("update", "stopped", "container")),
                Status::Deleting | Status::Deleted => {
                    return Err(refused("update", "deleted", "process"));
                }
                _ => {}
            },
            Event::DeleteRequested => self.request_delete()?,
            Event::Deleted => self.finish_delete(&mut effects),
            Event::DeleteFailed => {
                if self.status == Status::Deleting {
                    self.status = match self.init.exit {
                        Some(_) => Status::Stopped,
                        None => self.before_delete,
                    };
                }
            }
            Event::ExecDeleteRequested(exec) => self.request_exec_delete(&exec)?,
            Event::ExecDeleted(exec) => {
                self.execs.remove(&exec);
            }
            Event::ExecDeleteFailed(exec) => {
                if let Some(e) = self.execs.get_mut(&exec)
                    && e.phase == ExecPhase::Deleting
                {
                    e.phase = if e.process.exit.is_some() {
                        ExecPhase::Stopped
                    } else {
                        ExecPhase::Added
                    };
                }
            }
        }
        Ok(effects)
    }

    fn request_start(&mut self) -> Result<(), Refusal> {
        self.status = match self.status {
            Status::Created if !self.init_has_exited() => Status::Starting,
            Status::Created | Status::Stopped => {
                return Err(refused("start", "stopped", "process"));
            }
            Status::Starting | Status::Running | Status::Pausing | Status::Resuming => {
                return Err(refused("start", "running", "process"));
            }
            Status::Paused => return Err(refused("start", "paused", "process")),
            Status::Deleting | Status::Deleted => {
                return Err(refused("start", "deleted", "process"));
            }
        };
        Ok(())
    }

    fn add_exec(
        &mut self,
        exec: Id,
        stdio: Stdio,
        spec: Vec<u8>,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        if self.execs.contains_key(&exec) {
            return Err(Refusal::ExecExists(exec));
        }
        match self.status {
            Status::Paused | Status::Pausing | Status::Resuming => {
                return Err(Refusal::Exec("paused"));
            }
            Status::Stopped => return Err(Refusal::Exec("stopped")),
            Status::Deleting | Status::Deleted => return Err(Refusal::Exec("deleted")),
            Status::Created | Status::Starting if self.init.pid == 0 => {
                return Err(Refusal::Exec("created"));
            }
            Status::Created | Status::Starting | Status::Running => {}
        }
        let process = Process { pid: 0, stdio, exit: None };
        self.execs
            .insert(exec.clone(), Exec { process, phase: ExecPhase::Added, spec, failed: None });
        effects.push(Effect::Publish(Notice::ExecAdded(exec)));
        Ok(())
    }

    fn request_exec_start(&mut self, exec: &Id) -> Result<(), Refusal> {
        let entry = self.execs.get_mut(exec).ok_or_else(|| Refusal::NoExec(exec.clone()))?;
        match entry.phase {
            ExecPhase::Added => {}
            ExecPhase::Starting | ExecPhase::Running => {
                return Err(refused("start", "running", "process"));
            }
            ExecPhase::Stopped | ExecPhase::Deleting => {
                return Err(refused("start", "stopped", "process"));
            }
        }
        if self.held.is_some() || self.init.exit.is_some() {
            return Err(Refusal::InitGone(self.id.clone()));
        }
        entry.phase = ExecPhase::Starting;
        entry.failed = None;
        Ok(())
    }

    fn request_pause(&mut self) -> Result<(), Refusal> {
        self.status = match self.status {
            Status::Running => Status::Pausing,
            Status::Created | Status::Starting => return Err(Refusal::Created("pause task")),
            Status::Pausing | Status::Paused | Status::Resuming => {
                return Err(refused("pause", "paused", "container"));
            }
            Status::Stopped => return Err(refused("pause", "stopped", "container")),
            Status::Deleting | Status::Deleted => {
                return Err(refused("pause", "deleted", "process"));
            }
        };
        Ok(())
    }

    fn request_resume(&mut self) -> Result<(), Refusal> {
        self.status = match self.status {
            Status::Paused => Status::Resuming,
            Status::Created | Status::Starting => return Err(Refusal::Created("resume task")),
            Status::Running | Status::Pausing | Status::Resuming => {
                return Err(refused("resume", "running", "process"));
            }
            Status::Stopped => return Err(refused("resume", "stopped", "container")),
            Status::Deleting | Status::Deleted => {
                return Err(refused("resume", "deleted", "process"));
            }
        };
        Ok(())
    }

    fn request_delete(&mut self) -> Result<(), Refusal> {
        match self.status {
            Status::Created | Status::Stopped => {}
            Status::Starting | Status::Running | Status::Pausing | Status::Resuming => {
                return Err(Refusal::DeleteLive("running"));
            }
            Status::Paused => return Err(Refusal::DeleteLive("paused")),
            Status::Deleting | Status::Deleted => return Err(Refusal::DeleteLive("deleted")),
        }
        self.before_delete = self.status;
        self.status = Status::Deleting;
        Ok(())
    }

    fn finish_delete(&mut self, effects: &mut Effects) {
        // Deleted before it ran: its end may not have been reaped yet, and the exit comes before
        // the delete.
        if let Some(exit) = self.held.take() {
            self.publish_init_exit(exit, effects);
        }
        self.status = Status::Deleted;
        effects.push(Effect::Publish(Notice::Delete { pid: self.init.pid, exit: self.init.exit }));
    }

    fn request_exec_delete(&mut self, exec: &Id) -> Result<(), Refusal> {
        let entry = self.execs.get_mut(exec).ok_or_else(|| Refusal::NoExec(exec.clone()))?;
        match entry.phase {
            ExecPhase::Added | ExecPhase::Stopped => entry.phase = ExecPhase::Deleting,
            ExecPhase::Starting | ExecPhase::Running => return Err(Refusal::DeleteLive("running")),
            ExecPhase::Deleting => return Err(Refusal::DeleteLive("deleted")),
        }
        Ok(())
    }

    fn end_exec(&mut self, exec: Id, exit: Exit, effects: &mut Effects) {
        let Some(entry) = self.execs.get_mut(&exec) else { return };
        if entry.process.exit.is_some() {
            return;
        }
        entry.process.exit = Some(exit);
        entry.phase = ExecPhase::Stopped;
        let pid = entry.process.pid;
        effects.push(Effect::Publish(Notice::Exit { exec: Some(exec.clone()), pid, exit }));
        effects.push(Effect::AnswerWaiters(Some(exec), exit));
        self.release(effects);
    }

    /// The init has exited: its exit is the container's last, so it waits for the others.
    fn hold(&mut self, exit: Exit, effects: &mut Effects) {
        if self.init_has_exited() {
            return;
        }
        self.held = Some(exit);
        if self.pid_namespace == PidNamespace::Shared {
            self.clearing = true;
            effects.push(Effect::KillAll);
        }
        let starting = |e: &Exec| e.phase == ExecPhase::Starting;
        if self.status == Status::Starting || self.execs.values().any(starting) {
            effects.push(Effect::CutStartsShort);
        }
        self.release(effects);
    }

    /// Publishes the init's exit as soon as nothing holds it back.
    fn release(&mut self, effects: &mut Effects) {
        let live = |e: &Exec| matches!(e.phase, ExecPhase::Starting | ExecPhase::Running);
        if self.clearing || self.status == Status::Starting || self.execs.values().any(live) {
            return;
        }
        if let Some(exit) = self.held.take() {
            self.publish_init_exit(exit, effects);
        }
    }

    fn publish_init_exit(&mut self, exit: Exit, effects: &mut Effects) {
        self.init.exit = Some(exit);
        if self.status != Status::Deleting {
            self.status = Status::Stopped;
        }
        effects.push(Effect::RecordExit(exit));
        effects.push(Effect::Publish(Notice::Exit { exec: None, pid: self.init.pid, exit }));
        effects.push(Effect::AnswerWaiters(None, exit));
    }
}

fn refused(verb: &'static str, state: &'static str, noun: &'static str) -> Refusal {
    Refusal::State { verb, state, noun }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Timestamp;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn id(text: &str) -> Id {
        Id::new(text).unwrap()
    }

    fn exit(status: u32) -> Exit {
        Exit { status, at: Timestamp { seconds: 1, nanos: 2 } }
    }

    fn created(pid_namespace: PidNamespace) -> Container {
        Container::new(id("c"), "/b".into(), 10, Stdio::default(), pid_namespace)
    }

    fn added(exec: &str) -> Event {
        Event::ExecRequested { exec: id(exec), stdio: Stdio::default(), spec: vec![1] }
    }

    fn published(effects: &[Effect]) -> Vec<&Notice> {
        effects
            .iter()
            .filter_map(|e| if let Effect::Publish(n) = e { Some(n) } else { None })
            .collect()
    }

    #[test]
    fn exit_before_start_returns_is_published_after_start() {
        let mut c = created(PidNamespace::Private);
        c.apply(Event::StartRequested).unwrap();
        assert_eq!(c.apply(Event::InitExited(exit(7))).unwrap(), vec![Effect::CutStartsShort]);
        let effects = c.apply(Event::Started).unwrap();
        assert_eq!(
            published(&effects),
            [&Notice::Start { pid: 10 }, &Notice::Exit { exec: None, pid: 10, exit: exit(7) }]
        );
        assert_eq!(c.status, Status::Stopped);
    }

    #[test]
    fn exit_of_init_waits_for_its_execs_and_late_starts_are_refused() {
        let mut c = created(PidNamespace::Private);
        c.apply(Event::StartRequested).unwrap();
        c.apply(Event::Started).unwrap();
        c.apply(added("a")).unwrap();
        c.apply(added("b")).unwrap();
        c.apply(Event::ExecStartRequested(id("a"))).unwrap();
        c.apply(Event::ExecStarted { exec: id("a"), pid: 11 }).unwrap();
        assert!(published(&c.apply(Event::InitExited(exit(137))).unwrap()).is_empty());
        assert_eq!(
            c.apply(Event::ExecStartRequested(id("b"))).unwrap_err().to_string(),
            "container c init process is not running"
        );
        let effects = c.apply(Event::ExecExited { exec: id("a"), exit: exit(137) }).unwrap();
        assert_eq!(
            published(&effects),
            [
                &Notice::Exit { exec: Some(id("a")), pid: 11, exit: exit(137) },
                &Notice::Exit { exec: None, pid: 10, exit: exit(137) }
            ]
        );
    }

    #[test]
    fn shared_pid_namespace_is_cleared_before_the_exit() {
        let mut c = created(PidNamespace::Shared);
        c.apply(Event::StartRequested).unwrap();
        c.apply(Event::Started).unwrap();
        assert_eq!(c.apply(Event::InitExited(exit(3))).unwrap(), vec![Effect::KillAll]);
        assert_eq!(published(&c.apply(Event::Cleared).unwrap()).len(), 1);
    }

    #[test]
    fn sentences_of_refusals_are_containerds() {
        let mut c = created(PidNamespace::Private);
        let mut says = |event: Event| c.apply(event).unwrap_err().to_string();
        assert_eq!(says(Event::PauseRequested), "cannot pause task in created state");
        assert_eq!(says(Event::ResumeRequested), "cannot resume task in created state");
        assert_eq!(says(Event::CheckpointRequested), "cannot checkpoint a task in created state");
        assert_eq!(says(Event::ExecStartRequested(id("x"))), "process does not exist x");
        c.apply(Event::StartRequested).unwrap();
        c.apply(Event::Started).unwrap();
        let mut says = |event: Event| c.apply(event).unwrap_err().to_string();
        assert_eq!(says(Event::StartRequested), "cannot start a running process");
        assert_eq!(says(Event::DeleteRequested), "cannot delete a running process");
        assert_eq!(says(Event::ResumeRequested), "cannot resume a running process");
        c.apply(Event::PauseRequested).unwrap();
        c.apply(Event::Paused).unwrap();
        let mut says = |event: Event| c.apply(event).unwrap_err().to_string();
        assert_eq!(says(Event::PauseRequested), "cannot pause a paused container");
        assert_eq!(says(added("x")), "cannot exec in a paused state");
        assert_eq!(says(Event::StartRequested), "cannot start a paused process");
        assert_eq!(says(Event::DeleteRequested), "cannot delete a paused process");
        c.apply(Event::InitExited(exit(0))).unwrap();
        let mut says = |event: Event| c.apply(event).unwrap_err().to_string();
        assert_eq!(says(Event::PauseRequested), "cannot pause a stopped container");
        assert_eq!(says(Event::ResumeRequested), "cannot resume a stopped container");
        assert_eq!(says(Event::UpdateRequested), "cannot update a stopped container");
        assert_eq!(says(Event::CheckpointRequested), "cannot checkpoint a stopped container");
        assert_eq!(says(Event::StartRequested), "cannot start a stopped process");
        assert_eq!(says(added("x")), "cannot exec in a stopped state");
    }

    #[test]
    fn a_checkpoint_is_born_at_its_start() {
        let mut c =
            Container::new(id("c"), "/b".into(), 0, Stdio::default(), PidNamespace::Private);
        assert_eq!(c.apply(added("x")).unwrap_err().to_string(), "cannot exec in a created state");
        c.apply(Event::StartRequested).unwrap();
        c.apply(Event::StartFailed).unwrap();
        c.apply(Event::StartRequested).unwrap();
        c.apply(Event::Restored { pid: 12 }).unwrap();
        assert!(published(&c.apply(Event::InitExited(exit(1))).unwrap()).is_empty());
        let effects = c.apply(Event::Started).unwrap();
        assert_eq!(
            published(&effects),
            [&Notice::Start { pid: 12 }, &Notice::Exit { exec: None, pid: 12, exit: exit(1) }]
        );
    }

    #[test]
    fn pausing_is_visible_and_a_container_may_stop_meanwhile() {
        let mut c = created(PidNamespace::Private);
        c.apply(Event::StartRequested).unwrap();
        c.apply(Event::Started).unwrap();
        c.apply(Event::PauseRequested).unwrap();
        assert_eq!(c.status, Status::Pausing);
        c.apply(Event::InitExited(exit(9))).unwrap();
        assert_eq!(c.apply(Event::Paused).unwrap(), vec![]);
        assert_eq!(c.status, Status::Stopped);
    }

    /// A call that goes on, with what it says when it ends well or badly.
    #[derive(Clone, Debug)]
    enum Call {
        Start,
        StartExec(Id),
        Pause,
        Resume,
        Checkpoint,
        Delete,
        DeleteExec(Id),
    }

    /// A world that obeys the kernel and the runtime, and otherwise does what it likes: any number
    /// of calls at a time, ended in any order, well or badly, before or after the death of who they
    /// were about. Checks what it is told.
    struct World {
        container: Container,
        init_alive: bool,
        live_execs: Vec<(Id, u32)>,
        next_pid: u32,
        calls: Vec<Call>,
        told: Vec<Notice>,
        /// Waiters by process: how many wait.
        waiting: BTreeMap<Option<Id>, u32>,
        init_answers: u32,
        records: u32,
        kill_alls: u32,
        cleared: u32,
        is_deleted: bool,
    }

    impl World {
        fn new(namespace: PidNamespace, from_checkpoint: bool) -> Self {
            let pid = if from_checkpoint { 0 } else { 10 };
            Self {
                container: Container::new(id("c"), "/b".into(), pid, Stdio::default(), namespace),
                init_alive: !from_checkpoint,
                live_execs: vec![],
                next_pid: 20,
                calls: vec![],
                told: vec![],
                waiting: BTreeMap::new(),
                init_answers: 0,
                records: 0,
                kill_alls: 0,
                cleared: 0,
                is_deleted: false,
            }
        }

        fn apply(&mut self, event: Event) -> bool {
            if self.is_deleted {
                // The shim knows it no more.
                return false;
            }
            let before = self.container.clone();
            match self.container.apply(event) {
                Err(_) => {
                    assert_eq!(before, self.container, "a refusal changes nothing");
                    false
                }
                Ok(effects) => {
                    for effect in effects {
                        match effect {
                            Effect::Publish(notice) => self.told.push(notice),
                            Effect::AnswerWaiters(process, _) => {
                                self.init_answers += u32::from(process.is_none());
                                self.waiting.remove(&process);
                            }
                            Effect::KillAll => self.kill_alls += 1,
                            Effect::RecordExit(_) => self.records += 1,
                            Effect::CutStartsShort => {
                                assert!(!self.init_alive, "only for a dead init")
                            }
                        }
                    }
                    let json = serde_json::to_vec(&self.container).unwrap();
                    assert_eq!(
                        self.container,
                        serde_json::from_slice(&json).unwrap(),
                        "state is plain data"
                    );
                    true
                }
            }
        }

        /// Someone waits for a process, unless its exit is known.
        fn wait(&mut self, process: Option<Id>) {
            let is_known = self.container.process(process.as_ref()).is_some();
            if is_known && self.container.outcome(process.as_ref()).is_none() {
                *self.waiting.entry(process).or_default() += 1;
            }
        }

        fn step(&mut self, choice: u8, which: u8) {
            let exec = id(["a", "b", "c"][usize::from(which) % 3]);
            match choice % 18 {
                0 => self.request(Event::StartRequested, Call::Start),
                1 | 2 => {
                    self.apply(Event::ExecRequested {
                        exec,
                        stdio: Stdio::default(),
                        spec: vec![1],
                    });
                }
                3 | 4 => {
                    self.request(Event::ExecStartRequested(exec.clone()), Call::StartExec(exec))
                }
                5 => self.request(Event::PauseRequested, Call::Pause),
                6 => self.request(Event::ResumeRequested, Call::Resume),
                7 => self.request(Event::CheckpointRequested, Call::Checkpoint),
                8 => self.request(Event::DeleteRequested, Call::Delete),
                9 => self.request(Event::ExecDeleteRequested(exec.clone()), Call::DeleteExec(exec)),
                10 => drop(self.apply(Event::UpdateRequested)),
                11..=13 if !self.calls.is_empty() => {
                    let call = self.calls.remove(usize::from(which) % self.calls.len());
                    self.end(call, choice % 18 != 13);
                }
                14 => self.end_exec(usize::from(which)),
                15 => self.end_init(),
                16 if self.container.clearing => self.clear(),
                17 if which.is_multiple_of(2) => self.wait(None),
                17 => self.wait(Some(exec)),
                _ if self.init_alive || !self.live_execs.is_empty() => {
                    self.apply(Event::OomKilled);
                }
                _ => {}
            }
        }

        fn request(&mut self, event: Event, call: Call) {
            if self.apply(event) {
                self.calls.push(call);
            }
        }

        /// A runtime call returns.
        fn end(&mut self, call: Call, well: bool) {
            match call {
                Call::Start if well => {
                    if self.container.init.pid == 0 {
                        self.init_alive = true;
                        self.apply(Event::Restored { pid: 10 });
                    }
                    self.apply(Event::Started);
                }
                Call::Start => drop(self.apply(Event::StartFailed)),
                // A dead init's pid namespace takes nobody in.
                Call::StartExec(exec)
                    if well
                        && (self.init_alive
                            || self.container.pid_namespace == PidNamespace::Shared) =>
                {
                    let pid = self.next_pid;
                    self.next_pid += 1;
                    self.live_execs.push((exec.clone(), pid));
                    self.apply(Event::ExecStarted { exec, pid });
                }
                Call::StartExec(exec) => {
                    self.apply(Event::ExecStartFailed { exec: exec.clone(), exit: exit(255) });
                    let answered = self.is_deleted || !self.waiting.contains_key(&Some(exec));
                    assert!(answered, "who waits for it is answered");
                }
                Call::Pause => {
                    self.apply(if well { Event::Paused } else { Event::PauseFailed });
                }
                Call::Resume => {
                    self.apply(if well { Event::Resumed } else { Event::ResumeFailed });
                }
                Call::Checkpoint if well => {
                    self.apply(Event::Checkpointed { image: String::new() });
                }
                Call::Checkpoint => {}
                Call::Delete if well => {
                    // The runtime has killed an init that never ran; its end is reaped before or
                    // after.
                    self.end_init();
                    if self.container.clearing {
                        self.clear();
                    }
                    // Whoever was with it is killed with it.
                    while !self.live_execs.is_empty() {
                        self.end_exec(0);
                    }
                    self.apply(Event::Deleted);
                    self.is_deleted = true;
                }
                Call::Delete => {
                    self.apply(Event::DeleteFailed);
                    assert!(self.container.status != Status::Deleting);
                }
                Call::DeleteExec(exec) if well => {
                    self.apply(Event::ExecDeleted(exec.clone()));
                    self.waiting.remove(&Some(exec));
                }
                Call::DeleteExec(exec) => drop(self.apply(Event::ExecDeleteFailed(exec))),
            }
        }

        fn end_exec(&mut self, which: usize) {
            if !self.live_execs.is_empty() {
                let (exec, _) = self.live_execs.remove(which % self.live_execs.len());
                self.apply(Event::ExecExited { exec, exit: exit(1) });
            }
        }

        fn end_init(&mut self) {
            if std::mem::take(&mut self.init_alive) {
                self.apply(Event::InitExited(exit(0)));
            }
        }

        fn clear(&mut self) {
            self.cleared += 1;
            self.apply(Event::Cleared);
        }

        /// Lets everything come to its end, then deletes.
        fn finish(&mut self) {
            while let Some(call) = self.calls.pop() {
                self.end(call, true);
            }
            if self.is_deleted {
                return;
            }
            self.end_init();
            if self.container.clearing {
                self.clear();
            }
            while !self.live_execs.is_empty() {
                self.end_exec(0);
            }
            let never_ran = self.container.init.pid == 0;
            assert!(never_ran || self.container.status == Status::Stopped, "{:?}", self.container);
            self.request(Event::DeleteRequested, Call::Delete);
            let call = self.calls.pop().expect("a stopped container can be deleted");
            self.end(call, true);
        }

        fn check(&self) {
            let position = |wanted: &dyn Fn(&Notice) -> bool| {
                self.told
                    .iter()
                    .enumerate()
                    .filter(|(_, n)| wanted(n))
                    .map(|(i, _)| i)
                    .collect::<Vec<_>>()
            };
            let ran = u32::from(self.container.init.pid != 0);
            let init_exit = position(&|n| matches!(n, Notice::Exit { exec: None, .. }));
            assert_eq!(init_exit.len(), ran as usize, "the init exits once");
            assert_eq!(
                (self.init_answers, self.records),
                (ran, ran),
                "once recorded, its waiters once answered"
            );
            assert_eq!(self.kill_alls, self.cleared, "what was to be cleared was");
            let last = init_exit.first().copied().unwrap_or(self.told.len());
            let starts = position(&|n| matches!(n, Notice::Start { .. }));
            assert!(starts.len() <= 1 && starts.iter().all(|s| *s < last), "start before exit");
            let exec_exits = position(&|n| matches!(n, Notice::Exit { exec: Some(_), .. }));
            assert!(exec_exits.iter().all(|e| *e < last), "the init's exit is the last");
            let exec_starts = position(&|n| matches!(n, Notice::ExecStarted { .. }));
            assert_eq!(
                exec_starts.len(),
                exec_exits.len(),
                "every exec that started has exited once"
            );
            for (i, notice) in self.told.iter().enumerate() {
                if let Notice::Exit { exec: Some(exec), pid, .. } = notice {
                    let started = |n: &Notice| match n {
                        Notice::ExecStarted { exec: e, pid: p } => (e, p) == (exec, pid),
                        _ => false,
                    };
                    assert!(self.told[..i].iter().any(started), "exec-started before its exit");
                }
            }
            let deletes = position(&|n| matches!(n, Notice::Delete { .. }));
            assert_eq!(
                deletes,
                [self.told.len() - 1],
                "one delete, and it is the last: {:?}",
                self.told
            );
            // What never ran has no end; who waits hears that it is gone.
            assert!(
                ran == 0 || !self.waiting.contains_key(&None),
                "who waits for the init is answered"
            );
        }
    }

    /// Random histories that are tried; CLEAT_HISTORIES says another number.
    fn histories() -> u32 {
        std::env::var("CLEAT_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(histories())
        })]

        #[test]
        fn events_keep_their_order_whatever_happens(
            shared in any::<bool>(),
            from_checkpoint in any::<bool>(),
            steps in prop::collection::vec(any::<(u8, u8)>(), 0..60),
        ) {
            let namespace = if shared { PidNamespace::Shared } else { PidNamespace::Private };
            let mut world = World::new(namespace, from_checkpoint);
            for (choice, which) in steps {
                if !world.is_deleted {
                    world.step(choice, which);
                }
            }
            world.finish();
            world.check();
        }
    }
}
