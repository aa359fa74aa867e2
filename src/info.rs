//! `-v` and `-info`: what this binary is, and what its runtime can do.

use crate::{
    options,
    protocol::{
        Any,
        info::{RuntimeInfo, RuntimeVersion},
    },
    sys::{self, program::Program},
};
use prost::Message;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::Errno,
    pipe::PipeFlags,
};
use std::{
    io::{self, Read},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

/// Type URL under which containerd looks for the runtime's features.
const FEATURES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// How long the runtime may take to name its features. containerd waits 10 s for the whole answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// Most bytes of options or of features.
const MAX_BYTES: u64 = 10 << 20;

/// Why `-info` failed.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// stdin could not be read.
    #[error("read runtime options from stdin")]
    Stdin(#[source] io::Error),
    /// stdin is no Any.
    #[error("decode runtime options")]
    Input(#[source] prost::DecodeError),
    /// Its options cannot be used.
    #[error(transparent)]
    Options(#[from] options::BadOptions),
    /// The runtime is not installed.
    #[error("find the runtime {0:?}")]
    NoRuntime(String),
}

/// The text of `-v`, in the form of Go's shim.
pub fn version(name: &str) -> String {
    format!("{name}:\n  Version:  {}\n  Revision: {}\n\n", env!("CARGO_PKG_VERSION"), revision())
}

/// The source's revision, where the build was told.
pub fn revision() -> &'static str {
    option_env!("CLEAT_REVISION").unwrap_or("unknown")
}

/// The answer of `-info`; stdin carries an Any with runtime options, or nothing. Features are left
/// out where the runtime has none to tell. `program` is the name under which we are installed.
pub fn describe(program: &str, stdin: impl Read) -> Result<Vec<u8>, InfoError> {
    let mut input = Vec::new();
    stdin.take(MAX_BYTES).read_to_end(&mut input).map_err(InfoError::Stdin)?;
    let any = Any::decode(input.as_slice()).map_err(InfoError::Input)?;
    let options = options::read(&any)?;
    let binary = if options.binary_name.is_empty() { "runc" } else { &options.binary_name };
    if !Program::new(binary).is_installed() {
        return Err(InfoError::NoRuntime(binary.to_owned()));
    }
    let info = RuntimeInfo {
        name: runtime_name(program),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: revision().to_owned(),
        }),
        options: (!any.type_url.is_empty()).then_some(any),
        features: features(binary).map(|value| Any { type_url: FEATURES_URL.to_owned(), value }),
    };
    Ok(info.encode_to_vec())
}

/// `containerd-shim-NAME-VERSION` → `io.containerd.NAME.VERSION`, as containerd names runtimes.
fn runtime_name(program: &str) -> String {
    match program.strip_prefix("containerd-shim-").and_then(|rest| rest.rsplit_once('-')) {
        Some((name, version)) => format!("io.containerd.{name}.{version}"),
        None => "io.containerd.cleat.v2".to_owned(),
    }
}

/// `BINARY features`: JSON, or nothing. A runtime that does not answer in [`PATIENCE`] has none to
/// tell.
fn features(binary: &str) -> Option<Vec<u8>> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
    // The runtime's end waits as programs expect it; both ends are files of their own.
    rustix::fs::fcntl_setfl(&write, OFlags::empty()).ok()?;
    let streams = [None, Some(write), None];
    let pid = Program::new(binary).arg("features").start(&streams, &[]).ok()?;
    drop(streams);
    let deadline = Instant::now() + PATIENCE;
    let json = read_all(&read, deadline);
    let status = json.is_some().then(|| sys::process::reap_until(pid, deadline)).flatten();
    if status.is_none() {
        // Our own child, unreaped: the number is its own.
        let _ = sys::process::signal_child(pid, libc::SIGKILL);
    }
    let json = json.filter(|_| status == Some(0))?;
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&json).ok()?;
    Some(compact(&json))
}

/// JSON without the white space between its tokens, and otherwise as it was: Go's shim decodes and
/// encodes it.
fn compact(json: &[u8]) -> Vec<u8> {
    let (mut in_text, mut escaped) = (false, false);
    json.iter()
        .copied()
        .filter(|byte| {
            let keep = in_text || !byte.is_ascii_whitespace();
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                _ => {}
            }
            keep
        })
        .collect()
}

/// All that is written until the other end closes; `None` if it does not in time, or is too much.
fn read_all(pipe: &OwnedFd, deadline: Instant) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok()?;
        if poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&left)).is_ok_and(|ready| ready == 0)
        {
            return None;
        }
        match rustix::io::read(pipe, &mut chunk) {
            Ok(0) => return Some(bytes),
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return None,
        }
        if bytes.len() as u64 > MAX_BYTES {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_keeps_what_is_in_texts() {
        let json = b"{\n  \"a b\": [ 1, \"x \\\" y\", \"\\\\\" ] }\n";
        assert_eq!(compact(json), b"{\"a b\":[1,\"x \\\" y\",\"\\\\\"]}");
    }

    #[test]
    fn the_runtime_is_named_after_the_program() {
        assert_eq!(runtime_name("containerd-shim-runc-v2"), "io.containerd.runc.v2");
        assert_eq!(runtime_name("containerd-shim-a-b-v2"), "io.containerd.a-b.v2");
        assert_eq!(runtime_name("cleat"), "io.containerd.cleat.v2");
    }

    #[test]
    fn features_are_json_of_a_runtime_that_answers() {
        let runtime = |script: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("runtime");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .unwrap();
            features(path.to_str().unwrap())
        };
        assert_eq!(runtime("echo '{ }'"), Some(b"{}".to_vec()));
        assert_eq!(runtime("echo '{}'; exit 1"), None);
        assert_eq!(runtime("echo x"), None);
        // It keeps the pipe open, or closes it and stays.
        assert_eq!(runtime("echo '{}'; exec sleep 60"), None);
        assert_eq!(runtime("exec sleep 60 >/dev/null"), None);
    }
}
