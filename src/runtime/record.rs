//! Where a runtime keeps what it knows of a container, and whether it really is there.
//!
//! runc, crun and youki keep a directory ROOT/ID with a file that names the container's init. Of
//! such a runtime it is known that a missing directory means an unknown container, and that a
//! signal to the init's pid is a signal to the program. Of any other (gVisor's runsc, a script that
//! changes `--root`) neither is known: there the runtime is asked, and told to kill.

use super::Known;
use crate::{bundle::read_bounded, exits::is_running};
use std::path::Path;

/// Largest record, bytes: runc's holds the whole configuration.
const MAX_RECORD: u64 = 4 << 20;
/// As much of a record as holds the init's pid: runc has it in front, crun and youki have small
/// files.
const HEAD: u64 = 4096;

/// How the known runtimes name the init: file of the record, key of its JSON.
const RECORDS: [(&str, &str); 3] =
    [("state.json", "\"init_process_pid\":"), ("status", "\"pid\":"), ("state.json", "\"pid\":")];

/// How they name when it was started, in clock ticks since boot.
const STARTS: [&str; 2] = ["\"init_process_start\":", "\"process-start-time\":"];

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
    named::<u32>(&String::from_utf8_lossy(&head), key).is_some()
}

/// Whether a record is of an earlier container in this bundle, whose init is no more: one that its
/// shim's successor could not delete in time. Whatever is not certain is not so.
pub(super) fn is_left_behind(directory: &Path, bundle: &Path) -> bool {
    RECORDS.iter().any(|(file, key)| {
        let text = read_bounded(&directory.join(file), MAX_RECORD).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let Some(pid) = named::<u32>(&text, key).filter(|pid| *pid > 0) else { return false };
        let started = STARTS.iter().find_map(|key| named::<u64>(&text, key));
        names_bundle(&text, bundle) && !is_running(pid, started)
    })
}

/// Whether a record names this bundle: runc by a label, the others by a member. What JSON would
/// escape is in no path of containerd's.
fn names_bundle(record: &str, bundle: &Path) -> bool {
    // A runtime names its working directory, without links.
    let real = std::fs::canonicalize(bundle);
    [Some(bundle), real.as_deref().ok()].into_iter().flatten().any(|bundle| {
        let quoted = format!("{}\"", bundle.display());
        record.contains(&format!("\"bundle={quoted}"))
            || record.split("\"bundle\"").skip(1).any(|rest| {
                let value = rest.trim_start().strip_prefix(':').map(str::trim_start);
                value
                    .and_then(|value| value.strip_prefix('"'))
                    .is_some_and(|value| value.starts_with(&quoted))
            })
    })
}

/// The number behind the first `key`.
fn named<T: std::str::FromStr>(text: &str, key: &str) -> Option<T> {
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

    #[test]
    fn only_what_is_ours_and_dead_was_left_behind() {
        let own = std::process::id();
        let dead = u32::MAX >> 1;
        let runc = |pid: u32, started: &str, bundle: &str| {
            format!(
                r#"{{"id":"a","init_process_pid":{pid},{started}"config":{{"labels":["bundle={bundle}"]}}}}"#
            )
        };
        let crun = |pid: u32, bundle: &str| {
            format!(
                "{{\n \"pid\": {pid},\n \"process-start-time\": 7,\n \"bundle\": \"{bundle}\"\n}}"
            )
        };
        let cases = [
            ("state.json", runc(dead, "", "/b/a"), true),
            ("state.json", runc(own, "\"init_process_start\":1,", "/b/a"), true),
            ("status", crun(own, "/b/a"), true),
            ("status", crun(dead, "/b/a"), true),
            ("state.json", runc(dead, "", "/b/ab"), false),
            ("state.json", runc(dead, "", "/a/b/a"), false),
            ("status", crun(dead, "/c/a"), false),
            ("state.json", runc(0, "", "/b/a"), false),
            ("state.json", runc(own, "", "/b/a"), false),
            ("state.json", String::new(), false),
        ];
        for (file, text, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(file), &text).unwrap();
            assert_eq!(is_left_behind(dir.path(), Path::new("/b/a")), expected, "{text}");
        }
        assert!(!is_left_behind(Path::new("/nowhere"), Path::new("/b/a")));
    }
}
