//! `-v` and `-info`: what this binary is, and what its runtime can do.

use crate::{
    options,
    protocol::{
        Any,
        info::{RuntimeInfo, RuntimeVersion},
    },
    sys::program::Program,
};
use prost::Message;
use std::{
    io::{self, Read},
    os::fd::OwnedFd,
};

/// Type URL under which containerd looks for the runtime's features.
const FEATURES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
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

/// The answer of `-info`; stdin carries an Any with runtime options, or nothing. Features are left out where the runtime has
/// none to tell. `program` is the name under which we are installed.
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

/// `BINARY features`: JSON, or nothing.
fn features(binary: &str) -> Option<Vec<u8>> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).ok()?;
    let streams = [None, Some(write), None];
    let pid = Program::new(binary).arg("features").start(&streams, &[]).ok()?;
    drop(streams);
    let json = read_all(read)?;
    let status = rustix::process::waitpid(
        rustix::process::Pid::from_raw(pid.cast_signed()),
        rustix::process::WaitOptions::empty(),
    );
    let succeeded = matches!(status, Ok(Some((_, status))) if status.exit_status() == Some(0));
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&json).ok().filter(|_| succeeded)?;
    Some(compact(&json))
}

/// JSON without the white space between its tokens, and otherwise as it was: Go's shim decodes and encodes it.
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

fn read_all(pipe: OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::from(pipe).take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
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
}
