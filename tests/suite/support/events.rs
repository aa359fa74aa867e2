//! What `ctr events` prints, as it comes.

use super::until;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `/tasks/…`, without the prefix.
    pub topic: String,
    /// The container.
    pub container: String,
    /// The exec; the container for its init.
    pub process: String,
    /// Of an exit or delete.
    pub status: u64,
}

/// A running `ctr events`.
pub struct EventLog {
    child: Child,
    path: PathBuf,
}

impl EventLog {
    pub(super) fn follow(mut command: Command, path: &Path) -> Self {
        let file = fs::File::create(path).unwrap();
        let child = command.stdout(file).spawn().unwrap();
        // It prints nothing when it is connected. containerd answers `ctr` in far less.
        std::thread::sleep(Duration::from_millis(500));
        Self { child, path: path.to_owned() }
    }

    /// All events of tasks until now, in the order of their arrival.
    pub fn all(&self) -> Vec<Event> {
        let text = fs::read_to_string(&self.path).unwrap();
        text.lines().filter_map(parse).collect()
    }

    /// Topics of one container: `start`, `exit:EXEC` …
    pub fn of(&self, container: &str) -> Vec<String> {
        let of_container = |event: &Event| event.container == container;
        let name = |event: Event| {
            if event.process == event.container {
                event.topic
            } else {
                format!("{}:{}", event.topic, event.process)
            }
        };
        self.all().into_iter().filter(of_container).map(name).collect()
    }

    /// Waits until `count` events of a topic are there.
    pub fn wait_for(&self, topic: &str, count: usize) {
        until(&format!("{count} events {topic}"), || {
            self.all().iter().filter(|event| event.topic == topic).count() >= count
        });
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        // The child is `timeout`, which hands the signal on.
        super::kill(self.child.id(), libc::SIGTERM);
        let _ = self.child.wait();
    }
}

/// `2026-11-24 12:00:00.0 +0000 UTC NAMESPACE /tasks/exit {"container_id":…}`
fn parse(line: &str) -> Option<Event> {
    let (head, json) = line.split_once(" {")?;
    let topic = head.split(' ').next_back()?.strip_prefix("/tasks/")?.to_owned();
    let fields: serde_json::Value = serde_json::from_str(&format!("{{{json}")).ok()?;
    let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
    let container = text("container_id");
    let process = match (text("exec_id"), text("id")) {
        (exec, _) if !exec.is_empty() => exec,
        (_, id) if !id.is_empty() => id,
        _ => container.clone(),
    };
    Some(Event { topic, container, process, status: fields["exit_status"].as_u64().unwrap_or(0) })
}
