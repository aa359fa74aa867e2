//! Where a runtime keeps what it knows of a container, and whether it really is there.
//!
//! runc, crun and youki keep a directory ROOT/ID with a file that names the container's init. Of such
//! a runtime it is known that a missing directory means an unknown container, and that a signal to
//! the init's pid is a signal to the program. Of any other (gVisor's runsc, a script that changes
//! `--root`) neither is known: there the runtime is asked, and told to kill.

use super::Known;
use crate::bundle::read_bounded;
use std::path::Path;

/// As much of a record as holds the init's pid: runc has it in front, crun and youki have small files.
const HEAD: u64 = 4096;

/// How the known runtimes name the init: file of the record, key of its JSON.
const RECORDS: [(&str, &str); 3] =
    [("state.json", "\"init_process_pid\":"), ("status", "\"pid\":"), ("state.json", "\"pid\":")];

/// Whether the record in this directory is of a known kind and names `pid` as the init.
pub(super) fn names(directory: &Path, pid: u32) -> bool {
    RECORDS.iter().any(|(file, key)| {
        let head = read_bounded(&directory.join(file), HEAD).unwrap_or_default();
        named(&String::from_utf8_lossy(&head), key) == Some(pid)
    })
}

/// Whether runc keeps this record.
pub(super) fn is_runcs(directory: &Path) -> bool {
    is_of(directory, Known::Runc)
}

/// Whether this program keeps it.
pub(super) fn is_of(directory: &Path, program: Known) -> bool {
    let (file, key) = match program {
        Known::Runc => RECORDS[0],
        Known::Crun => RECORDS[1],
    };
    let head = read_bounded(&directory.join(file), HEAD).unwrap_or_default();
    named(&String::from_utf8_lossy(&head), key).is_some()
}

/// The number behind the first `key`.
fn named(text: &str, key: &str) -> Option<u32> {
    let rest = text[text.find(key)? + key.len()..].trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_known_runtimes_name_the_init() {
        let cases = [
            ("state.json", r#"{"id":"a","init_process_pid":42,"init_process_start":7}"#),
            ("status", "{\n    \"pid\": 42,\n    \"process-start-time\": 7\n}"),
            ("state.json", r#"{"ociVersion":"v1.0.2","id":"a","status":"created","pid":42}"#),
        ];
        for (file, text) in cases {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(file), text).unwrap();
            assert!(names(dir.path(), 42), "{text}");
            assert!(!names(dir.path(), 4), "{text}");
            assert_eq!(is_runcs(dir.path()), text.contains("init_process_pid"));
        }
        assert!(!names(Path::new("/nowhere"), 42));
    }
}
