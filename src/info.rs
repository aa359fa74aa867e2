//! `-v` and `-info`: what this binary is, and what its runtime can do.

use crate::{
    protocol::{
        Any,
        options::{OPTIONS_URL, Options},
    },
    sys,
};
use prost::Message;
use std::{
    io::{self, Read},
    os::fd::OwnedFd,
    process::Command,
};

/// Type URL under which containerd looks for the runtime's features.
const FEATURES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// Most bytes of options or of features.
const MAX_BYTES: u64 = 10 << 20;

/// `containerd.types.RuntimeInfo` (`api/types/introspection.proto`).
#[derive(Clone, PartialEq, Message)]
struct RuntimeInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    version: Option<RuntimeVersion>,
    #[prost(message, optional, tag = "3")]
    options: Option<Any>,
    #[prost(message, optional, tag = "4")]
    features: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeVersion {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    revision: String,
}

/// Why `-info` failed.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// stdin could not be read.
    #[error("read runtime options from stdin")]
    Stdin(#[source] io::Error),
    /// stdin is not what it should be.
    #[error("decode runtime options")]
    Options(#[source] prost::DecodeError),
    /// Another type of options.
    #[error("unknown options type {0:?}")]
    Type(String),
}

/// The text of `-v`, in the form of Go's shim.
pub fn version(name: &str) -> String {
    format!("{name}:\n  Version:  {}\n  Revision: {}\n\n", env!("CARGO_PKG_VERSION"), revision())
}

fn revision() -> &'static str {
    option_env!("CLEAT_REVISION").unwrap_or("unknown")
}

/// The answer of `-info`; stdin carries an Any with runtime options, or nothing. Features are left out where the runtime has
/// none to tell.
pub fn describe(stdin: impl Read) -> Result<Vec<u8>, InfoError> {
    let mut input = Vec::new();
    stdin.take(MAX_BYTES).read_to_end(&mut input).map_err(InfoError::Stdin)?;
    let any = Any::decode(input.as_slice()).map_err(InfoError::Options)?;
    let (options, packed) = match any.type_url.as_str() {
        "" => (Options::default(), None),
        OPTIONS_URL => (Options::decode(any.value.as_slice()).map_err(InfoError::Options)?, Some(any)),
        _ => return Err(InfoError::Type(any.type_url)),
    };
    let binary = if options.binary_name.is_empty() { "runc" } else { &options.binary_name };
    let info = RuntimeInfo {
        name: "io.containerd.cleat.v2".to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: revision().to_owned(),
        }),
        options: packed,
        features: features(binary).map(|value| Any { type_url: FEATURES_URL.to_owned(), value }),
    };
    Ok(info.encode_to_vec())
}

/// `BINARY features`: JSON, or nothing.
fn features(binary: &str) -> Option<Vec<u8>> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).ok()?;
    let mut command = Command::new(binary);
    command.arg("features").stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.stdout(write);
    let pid = sys::spawn::dependent(&mut command).ok()?;
    drop(command);
    let json = read_all(read)?;
    let status = rustix::process::waitpid(
        rustix::process::Pid::from_raw(pid.cast_signed()),
        rustix::process::WaitOptions::empty(),
    );
    let succeeded = matches!(status, Ok(Some((_, status))) if status.exit_status() == Some(0));
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&json).ok().filter(|_| succeeded)?;
    Some(json)
}

fn read_all(pipe: OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::from(pipe).take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
