//! log.json and stderr → the sentence that clients know.

use serde::Deserialize;
use std::{
    fmt,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Most bytes of log.json that are searched for the error: the end counts.
const MAX_LOG: u64 = 256 << 10;
/// Most bytes of the runtime's output that go into an error.
const MAX_OUTPUT: usize = 4 << 10;

/// A runtime call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It answered with an error.
    Refused {
        /// The last `level=error` line of its log.
        message: String,
    },
    /// It failed and left no error in its log.
    Silent {
        /// `exit status 1`, `signal: killed` …
        how: String,
        /// What it printed.
        output: String,
    },
    /// It could not be started.
    NotStarted {
        /// Why.
        reason: String,
    },
    /// It was still starting something when the container's init was dead already, and was killed.
    CutShort,
    /// It did not end in time and was killed.
    DeadlineExceeded {
        /// The time it had.
        seconds: u64,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { message } => f.write_str(message),
            Self::Silent { how, output } if output.is_empty() => f.write_str(how),
            Self::Silent { how, output } => write!(f, "{how}: {output}"),
            Self::NotStarted { reason } => f.write_str(reason),
            Self::CutShort => f.write_str("container init process is not running"),
            Self::DeadlineExceeded { seconds } => write!(f, "no answer in {seconds} s, killed"),
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// Whether the runtime says that it does not know the container.
    pub fn is_unknown_container(&self) -> bool {
        self.to_string().contains("does not exist")
    }

    /// Whether it says that there is a container of that name.
    pub fn is_name_taken(&self) -> bool {
        self.to_string().contains("already exists")
    }

    /// Whether it says that the process has ended already.
    pub fn is_already_finished(&self) -> bool {
        let text = self.to_string().to_lowercase();
        ["process already finished", "container not running", "no such process"]
            .iter()
            .any(|known| text.contains(known))
    }

    /// With what the runtime has said where its output was the container's: if nothing else tells
    /// why it failed.
    pub fn with_words(self, words: impl FnOnce() -> Vec<u8>) -> Self {
        match self {
            Self::Silent { how, output } if output.is_empty() => {
                let words = words();
                let tail = &words[words.len().saturating_sub(MAX_OUTPUT)..];
                Self::Silent { how, output: String::from_utf8_lossy(tail).trim().to_owned() }
            }
            failure => failure,
        }
    }

    /// A call that ended with `how`: looks for the error in what `log` gained since `offset`.
    pub(super) fn of_call(how: String, log: &Path, offset: u64, output: &[u8]) -> Self {
        match last_error(log, offset) {
            Some(message) => Self::Refused { message },
            None => {
                let tail = &output[output.len().saturating_sub(MAX_OUTPUT)..];
                Self::Silent { how, output: String::from_utf8_lossy(tail).trim().to_owned() }
            }
        }
    }
}

#[derive(Deserialize)]
struct Line {
    level: String,
    msg: String,
}

fn last_error(log: &Path, offset: u64) -> Option<String> {
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(log)
        .ok()?;
    let length = file.metadata().ok()?.len();
    // A log that shrank was made anew.
    let offset = if offset > length { 0 } else { offset };
    file.seek(SeekFrom::Start(offset.max(length.saturating_sub(MAX_LOG)))).ok()?;
    let mut text = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut text).ok()?;
    last_error_in(&text)
}

/// The message of the last `level=error` line.
pub fn last_error_in(text: &[u8]) -> Option<String> {
    text.split(|b| *b == b'\n')
        .rev()
        .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
        .find(|line| line.level == "error")
        .map(|line| line.msg.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(log: &str, offset: u64, output: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        std::fs::write(&path, log).unwrap();
        Failure::of_call("exit status 1".into(), &path, offset, output.as_bytes()).to_string()
    }

    #[test]
    fn the_last_error_line_is_the_message() {
        let log = concat!(
            r#"{"level":"error","msg":"first","time":"t"}"#,
            "\n",
            r#"{"level":"error","msg":"  unable to start \n","time":"t"}"#,
            "\n",
            r#"{"level":"warning","msg":"later","time":"t"}"#,
            "\nnot json\n"
        );
        assert_eq!(failure(log, 0, "noise"), "unable to start");
    }

    #[test]
    fn errors_of_earlier_calls_are_not_ours() {
        let log = "{\"level\":\"error\",\"msg\":\"old\"}\n";
        assert_eq!(failure(log, log.len() as u64, "boom\n"), "exit status 1: boom");
        assert_eq!(failure(log, 1 << 20, ""), "old");
    }

    #[test]
    fn without_a_log_the_output_speaks() {
        assert_eq!(failure("", 0, ""), "exit status 1");
        assert!(failure("", 0, &"x".repeat(1 << 20)).len() < MAX_OUTPUT + 100);
    }
}
