//! (state, event) → (state, effects) or the sentence of a refusal. Sentences are containerd's
//! (v2.3.4 `cmd/containerd-shim-runc-v2/process/{init,exec}_state.go`): clients match on them.

use super::{Container, Effect, Exec, ExecPhase, Exit, Notice, PidNamespace, Process, Status, Stdio};
use crate::id::Id;

/// What has happened, or is asked for (`…Requested`, the only ones that are refused).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Start of the init.
    StartRequested,
    /// `runtime restore` went well: the init of a container that is made from a checkpoint has been born.
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
            Event::ExecRequested { exec, stdio, spec } => self.add_exec(exec, stdio, spec, &mut effects)?,
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
                if let Some(e) = self.execs.get_mut(&exec) {
                    e.phase = ExecPhase::Stopped;
                    e.process.exit = Some(exit);
                    e.spec = Vec::new();
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
                Status::Created | Status::Starting => return Err(Refusal::Created("checkpoint a task")),
                Status::Stopped => return Err(refused("checkpoint", "stopped", "container")),
                Status::Deleting | Status::Deleted => {
                    return Err(refused("checkpoint", "deleted", "process"));
                }
                Status::Running | Status::Pausing | Status::Paused | Status::Resuming => {}
            },
            Event::Checkpointed { image } => effects.push(Effect::Publish(Notice::Checkpointed { image })),
            Event::UpdateRequested => match self.status {
                Status::Stopped => return Err(refused("update", "stopped", "container")),
                Status::Deleting | Status::Deleted => return Err(refused("update", "deleted", "process")),
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
        }
        Ok(effects)
    }

    fn request_start(&mut self) -> Result<(), Refusal> {
        self.status = match self.status {
            Status::Created if !self.init_has_exited() => Status::Starting,
            Status::Created | Status::Stopped => return Err(refused("start", "stopped", "process")),
            Status::Starting | Status::Running | Status::Pausing | Status::Resuming => {
                return Err(refused("start", "running", "process"));
            }
            Status::Paused => return Err(refused("start", "paused", "process")),
            Status::Deleting | Status::Deleted => return Err(refused("start", "deleted", "process")),
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
            Status::Paused | Status::Pausing | Status::Resuming => return Err(Refusal::Exec("paused")),
            Status::Stopped => return Err(Refusal::Exec("stopped")),
            Status::Deleting | Status::Deleted => return Err(Refusal::Exec("deleted")),
            Status::Created | Status::Starting if self.init.pid == 0 => return Err(Refusal::Exec("created")),
            Status::Created | Status::Starting | Status::Running => {}
        }
        let process = Process { pid: 0, stdio, exit: None };
        self.execs.insert(exec.clone(), Exec { process, phase: ExecPhase::Added, spec });
        effects.push(Effect::Publish(Notice::ExecAdded(exec)));
        Ok(())
    }

    fn request_exec_start(&mut self, exec: &Id) -> Result<(), Refusal> {
        let entry = self.execs.get_mut(exec).ok_or_else(|| Refusal::NoExec(exec.clone()))?;
        match entry.phase {
            ExecPhase::Added => {}
            ExecPhase::Starting | ExecPhase::Running => return Err(refused("start", "running", "process")),
            ExecPhase::Stopped | ExecPhase::Deleting => return Err(refused("start", "stopped", "process")),
        }
        if self.held.is_some() || self.init.exit.is_some() {
            return Err(Refusal::InitGone(self.id.clone()));
        }
        entry.phase = ExecPhase::Starting;
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
            Status::Deleting | Status::Deleted => return Err(refused("pause", "deleted", "process")),
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
            Status::Deleting | Status::Deleted => return Err(refused("resume", "deleted", "process")),
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
        // Deleted before it ran: its end may not have been reaped yet, and the exit comes before the delete.
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
        effects.iter().filter_map(|e| if let Effect::Publish(n) = e { Some(n) } else { None }).collect()
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
        let mut c = Container::new(id("c"), "/b".into(), 0, Stdio::default(), PidNamespace::Private);
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

    /// A world that obeys the kernel and the runtime, and otherwise does what it likes. Checks what it is told.
    struct World {
        container: Container,
        init_alive: bool,
        live_execs: Vec<Id>,
        /// execs whose runtime call has not returned
        starting: Vec<Id>,
        told: Vec<Notice>,
        answered: Vec<Option<Id>>,
    }

    impl World {
        fn apply(&mut self, event: Event) -> bool {
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
                            Effect::AnswerWaiters(exec, _) => self.answered.push(exec),
                            Effect::KillAll | Effect::RecordExit(_) | Effect::CutStartsShort => {}
                        }
                    }
                    let json = serde_json::to_vec(&self.container).unwrap();
                    assert_eq!(self.container, serde_json::from_slice(&json).unwrap(), "state is plain data");
                    true
                }
            }
        }

        fn step(&mut self, choice: u8, which: u8) {
            let exec = id(["a", "b", "c"][usize::from(which) % 3]);
            match choice % 16 {
                0 => drop(self.apply(Event::StartRequested)),
                1 if self.container.status == Status::Starting => drop(self.apply(Event::Started)),
                2 if self.container.status == Status::Starting => drop(self.apply(Event::StartFailed)),
                3 | 4 => {
                    let _ = self.apply(Event::ExecRequested { exec, stdio: Stdio::default(), spec: vec![] });
                }
                5 | 6 if self.apply(Event::ExecStartRequested(exec.clone())) => self.starting.push(exec),
                7 | 8 => {
                    if let Some(exec) = self.starting.pop() {
                        self.live_execs.push(exec.clone());
                        self.apply(Event::ExecStarted { exec, pid: 20 });
                    }
                }
                9 => {
                    if let Some(exec) = self.starting.pop() {
                        self.apply(Event::ExecStartFailed { exec, exit: exit(255) });
                    }
                }
                10 | 11 => {
                    if let Some(exec) = self.live_execs.pop() {
                        self.apply(Event::ExecExited { exec, exit: exit(1) });
                    }
                }
                12 if self.init_alive => {
                    self.init_alive = false;
                    self.apply(Event::InitExited(exit(0)));
                }
                13 => {
                    if self.apply(Event::PauseRequested) {
                        self.apply(if which.is_multiple_of(2) { Event::Paused } else { Event::PauseFailed });
                    } else if self.apply(Event::ResumeRequested) {
                        self.apply(if which.is_multiple_of(2) {
                            Event::Resumed
                        } else {
                            Event::ResumeFailed
                        });
                    }
                }
                14 if self.container.clearing => drop(self.apply(Event::Cleared)),
                15 if self.apply(Event::ExecDeleteRequested(exec.clone())) => {
                    self.apply(Event::ExecDeleted(exec));
                }
                _ => {}
            }
        }

        /// Lets everything come to its end, then deletes.
        fn finish(&mut self) {
            while let Some(exec) = self.starting.pop() {
                self.live_execs.push(exec.clone());
                self.apply(Event::ExecStarted { exec, pid: 20 });
            }
            if self.container.status == Status::Starting {
                self.apply(Event::Started);
            }
            if self.init_alive {
                self.init_alive = false;
                self.apply(Event::InitExited(exit(0)));
            }
            if self.container.clearing {
                self.apply(Event::Cleared);
            }
            while let Some(exec) = self.live_execs.pop() {
                self.apply(Event::ExecExited { exec, exit: exit(137) });
            }
            assert_eq!(self.container.status, Status::Stopped);
            assert!(self.apply(Event::DeleteRequested));
            self.apply(Event::Deleted);
        }

        fn check(&self) {
            let position = |wanted: &dyn Fn(&Notice) -> bool| {
                self.told.iter().enumerate().filter(|(_, n)| wanted(n)).map(|(i, _)| i).collect::<Vec<_>>()
            };
            let init_exit = position(&|n| matches!(n, Notice::Exit { exec: None, .. }));
            assert_eq!(init_exit.len(), 1, "the init exits once");
            let starts = position(&|n| matches!(n, Notice::Start { .. }));
            assert!(starts.len() <= 1 && starts.iter().all(|s| *s < init_exit[0]), "start before exit");
            let exec_exits = position(&|n| matches!(n, Notice::Exit { exec: Some(_), .. }));
            assert!(exec_exits.iter().all(|e| *e < init_exit[0]), "the init's exit is the last");
            let exec_starts = position(&|n| matches!(n, Notice::ExecStarted { .. }));
            assert_eq!(exec_starts.len(), exec_exits.len(), "every exec that started has exited once");
            for (i, notice) in self.told.iter().enumerate() {
                if let Notice::Exit { exec: Some(exec), .. } = notice {
                    let started = |n: &Notice| matches!(n, Notice::ExecStarted { exec: e, .. } if e == exec);
                    assert!(self.told[..i].iter().any(started), "exec-started before its exit");
                }
            }
            assert!(matches!(self.told.last(), Some(Notice::Delete { .. })), "delete is last");
            assert_eq!(self.answered.iter().filter(|a| a.is_none()).count(), 1, "the init's waiters: once");
        }
    }

    /// Random histories that are tried; CLEAT_HISTORIES says another number.
    fn histories() -> u32 {
        std::env::var("CLEAT_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(histories()) })]

        #[test]
        fn events_keep_their_order_whatever_happens(
            shared in any::<bool>(),
            steps in prop::collection::vec(any::<(u8, u8)>(), 0..60),
        ) {
            let namespace = if shared { PidNamespace::Shared } else { PidNamespace::Private };
            let mut world = World {
                container: created(namespace),
                init_alive: true,
                live_execs: vec![],
                starting: vec![],
                told: vec![],
                answered: vec![],
            };
            for (choice, which) in steps {
                world.step(choice, which);
            }
            world.finish();
            world.check();
        }
    }
}
