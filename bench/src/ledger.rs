//! What was told against what must have been told: each event once, in order.

use cleat::protocol::events::{Envelope, TaskContainer, TaskDelete, TaskExec, TaskExit, TaskStart};
use prost::Message;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

/// Events of one container, as `topic` or `topic:exec`.
type Told = Vec<String>;

/// All events that have come and are not accounted for.
#[derive(Default)]
pub struct Ledger {
    told: RefCell<HashMap<String, Told>>,
    statuses: RefCell<HashMap<(String, String), u32>>,
    events: Cell<u64>,
    /// Every nth Forward is refused; 0: none.
    refuse: Cell<u64>,
    asked: Cell<u64>,
}

/// What a container's or an exec's events turned out to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Events that never came.
    pub missing: u64,
    /// Events that came twice, or that nobody expected.
    pub strange: u64,
    /// Events that came in the wrong order.
    pub disordered: u64,
    /// Exit events with another status than the true one.
    pub wrong_status: u64,
}

impl std::ops::AddAssign for Verdict {
    fn add_assign(&mut self, other: Self) {
        self.missing += other.missing;
        self.strange += other.strange;
        self.disordered += other.disordered;
        self.wrong_status += other.wrong_status;
    }
}

impl Ledger {
    /// How many events have come in all.
    pub fn count(&self) -> u64 {
        self.events.get()
    }

    /// From now on every nth event is refused, and must come again.
    pub fn refuse_every(&self, n: u64) {
        self.refuse.set(n);
    }

    /// Whether this one is refused.
    pub(crate) fn refuses(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.refuse.get() != 0 && self.asked.get().is_multiple_of(self.refuse.get())
    }

    /// Enters an event.
    pub(crate) fn event(&self, envelope: &Envelope) {
        self.events.set(self.events.get() + 1);
        let Some(any) = &envelope.event else { return };
        let bytes = any.value.as_slice();
        let topic = envelope.topic.trim_start_matches("/tasks/");
        let (container, process) = match topic {
            "exit" => {
                let Ok(exit) = TaskExit::decode(bytes) else { return };
                let process = if exit.id == exit.container_id { String::new() } else { exit.id };
                let key = (exit.container_id.clone(), process.clone());
                self.statuses.borrow_mut().insert(key, exit.exit_status);
                (exit.container_id, process)
            }
            "exec-added" | "exec-started" => {
                let Ok(exec) = TaskExec::decode(bytes) else { return };
                (exec.container_id, exec.exec_id)
            }
            "start" => {
                let Ok(start) = TaskStart::decode(bytes) else { return };
                (start.container_id, String::new())
            }
            "delete" => {
                let Ok(delete) = TaskDelete::decode(bytes) else { return };
                (delete.container_id, delete.id)
            }
            // All others begin with the container's id.
            _ => {
                let Ok(container) = TaskContainer::decode(bytes) else { return };
                (container.container_id, String::new())
            }
        };
        let line = if process.is_empty() { topic.to_owned() } else { format!("{topic}:{process}") };
        self.told.borrow_mut().entry(container).or_default().push(line);
    }

    /// Whether an event has come.
    pub fn has(&self, container: &str, line: &str) -> bool {
        self.told.borrow().get(container).is_some_and(|told| told.iter().any(|l| l == line))
    }

    /// Takes the events of one exec out and judges them.
    pub fn settle_exec(&self, container: &str, exec: &str, status: u32) -> Verdict {
        let expected =
            ["exec-added", "exec-started", "exit"].map(|topic| format!("{topic}:{exec}"));
        let mut told = self.told.borrow_mut();
        let lines = told.entry(container.to_owned()).or_default();
        let mut own = Vec::new();
        lines.retain(|line| {
            let is_own = line.split_once(':').is_some_and(|(_, process)| process == exec);
            if is_own {
                own.push(line.clone());
            }
            !is_own
        });
        let mut verdict = judge(&own, &expected);
        verdict.wrong_status += self.check_status(container, exec, status);
        verdict
    }

    /// Takes the events of a whole container out and judges them: create, start, exit, delete. Its
    /// execs have been settled before.
    pub fn settle(&self, container: &str, status: u32) -> Verdict {
        self.settle_as(container, &["create", "start", "exit", "delete"], status).0
    }

    /// The same for other events. Returns what was told, too.
    pub fn settle_as(
        &self,
        container: &str,
        expected: &[&str],
        status: u32,
    ) -> (Verdict, Vec<String>) {
        let told = self.forget(container);
        let expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
        let mut verdict = judge(&without_kills(&told), &expected);
        verdict.wrong_status += self.check_status(container, "", status);
        (verdict, told)
    }

    /// Takes the events of a container out, whatever they are.
    pub fn forget(&self, container: &str) -> Vec<String> {
        self.told.borrow_mut().remove(container).unwrap_or_default()
    }

    /// Containers whose events have not been taken out.
    pub fn open(&self) -> Vec<String> {
        self.told
            .borrow()
            .iter()
            .filter(|(_, told)| !told.is_empty())
            .map(|(id, told)| format!("{id}: {}", told.join(" ")))
            .collect()
    }

    fn check_status(&self, container: &str, exec: &str, status: u32) -> u64 {
        let told = self.statuses.borrow_mut().remove(&(container.to_owned(), exec.to_owned()));
        u64::from(told.is_some_and(|told| told != status))
    }
}

/// Without the kills for want of memory that are told where they may be: after the create (also
/// before the start has been told), before the exit.
fn without_kills(told: &[String]) -> Vec<String> {
    let exit = told.iter().position(|line| line == "exit").unwrap_or(told.len());
    let may_be = |at: usize| at > 0 && at < exit;
    let kept = told.iter().enumerate().filter(|(at, line)| *line != "oom" || !may_be(*at));
    kept.map(|(_, line)| line.clone()).collect()
}

fn judge(told: &[String], expected: &[String]) -> Verdict {
    if told == expected {
        return Verdict::default();
    }
    let count =
        |lines: &[String], wanted: &String| lines.iter().filter(|l| *l == wanted).count() as u64;
    let missing = expected.iter().filter(|line| count(told, line) == 0).count() as u64;
    let twice: u64 = expected.iter().map(|line| count(told, line).saturating_sub(1)).sum();
    let unknown = told.iter().filter(|line| !expected.contains(line)).count() as u64;
    let strange = twice + unknown;
    Verdict { missing, strange, disordered: u64::from(missing + strange == 0), wrong_status: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_fault_is_counted_as_such() {
        let lines = |text: &str| {
            text.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let expected = lines("create start exit delete");
        let verdict = |text: &str| judge(&lines(text), &expected);
        assert_eq!(verdict("create start exit delete"), Verdict::default());
        assert_eq!(verdict("create start exit").missing, 1);
        assert_eq!(verdict("create start exit exit delete").strange, 1);
        assert_eq!(verdict("create exit start delete").disordered, 1);
        assert_eq!(verdict("create start exit delete oom").strange, 1);
        assert_eq!(without_kills(&lines("create oom start oom exit delete")), expected);
        assert_eq!(
            without_kills(&lines("oom create start exit oom")),
            lines("oom create start exit oom")
        );
    }
}
