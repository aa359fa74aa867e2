//! Who is calling `start`, and the answer that this caller understands.
//!
//! containerd 1.6 to 2.2 send an `Any` with runtime options, or nothing; 2.3 and later send
//! `containerd.runtime.bootstrap.v1.BootstrapParams` (`api/runtime/bootstrap/v1/bootstrap.proto`). Either parses as
//! the other by accident (field 1 string, field 2 length-delimited), so content decides: the instance id of the
//! params is the `-id` of the command line, the first field of an `Any` is a type URL.

use super::{
    Any,
    options::{OPTIONS_URL, Options},
};
use prost::Message;

/// Largest stdin that `start` takes, bytes: what upstream reads at most. More is refused.
pub const MAX_INPUT: usize = 10 << 20;

/// `LOG_LEVEL_DEBUG`; more verbose levels are smaller.
const LOG_LEVEL_DEBUG: i32 = -4;

/// `BootstrapParams`.
#[derive(Clone, PartialEq, Message)]
pub struct Params {
    /// Container or sandbox id: equals `-id`.
    #[prost(string, tag = "1")]
    pub instance_id: String,
    /// containerd namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// INFO is 0, DEBUG -4, ERROR 8.
    #[prost(int32, tag = "3")]
    pub log_level: i32,
    /// Version of the calling containerd.
    #[prost(string, tag = "4")]
    pub containerd_version: String,
    /// Where events go.
    #[prost(string, tag = "5")]
    pub containerd_ttrpc_address: String,
    /// containerd's main socket.
    #[prost(string, tag = "6")]
    pub containerd_grpc_address: String,
    /// containerd's own binary.
    #[prost(string, tag = "7")]
    pub containerd_binary: String,
    /// Anys, among them the runtime options.
    #[prost(message, repeated, tag = "8")]
    pub extensions: Vec<Extension>,
    /// Directory for the shim's socket.
    #[prost(string, tag = "9")]
    pub socket_dir: String,
}

/// `Extension`: wraps an Any.
#[derive(Clone, PartialEq, Message)]
pub struct Extension {
    /// The configuration and its type.
    #[prost(message, optional, tag = "1")]
    pub value: Option<Any>,
}

/// `BootstrapResult`.
#[derive(Clone, PartialEq, Message)]
pub struct BootstrapResult {
    /// Task API version.
    #[prost(int32, tag = "1")]
    pub version: i32,
    /// `unix://…`.
    #[prost(string, tag = "2")]
    pub address: String,
    /// `ttrpc`.
    #[prost(string, tag = "3")]
    pub protocol: String,
}

/// What the caller of `start` is, and what it asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller {
    speaks_bootstrap: bool,
    /// Runtime options, if it sent any that we know.
    pub options: Options,
    /// Directory for the socket, if it named one.
    pub socket_dir: Option<String>,
    /// It asked for debug logs.
    pub debug: bool,
    /// containerd's ttrpc address, if stdin names it.
    pub ttrpc_address: Option<String>,
}

/// stdin that no containerd sends.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum BadInput {
    /// Over [`MAX_INPUT`].
    #[error("stdin is larger than {MAX_INPUT} bytes")]
    TooLarge,
    /// Neither message.
    #[error("stdin is neither BootstrapParams nor an Any with runtime options")]
    Malformed,
    /// Options of the right type that do not decode.
    #[error("decode {OPTIONS_URL}")]
    Options(#[source] prost::DecodeError),
}

impl Caller {
    /// Reads stdin of `start`; `id` is the command line's.
    pub fn parse(input: &[u8], id: &str) -> Result<Self, BadInput> {
        if input.len() > MAX_INPUT {
            return Err(BadInput::TooLarge);
        }
        if let Ok(params) = Params::decode(input)
            && !input.is_empty()
            && params.instance_id == id
        {
            return Self::from_params(params);
        }
        let any = Any::decode(input).map_err(|_| BadInput::Malformed)?;
        Ok(Self {
            speaks_bootstrap: false,
            options: options_in(&any)?.unwrap_or_default(),
            socket_dir: None,
            debug: false,
            ttrpc_address: None,
        })
    }

    fn from_params(params: Params) -> Result<Self, BadInput> {
        let mut options = Options::default();
        for any in params.extensions.iter().filter_map(|extension| extension.value.as_ref()) {
            if let Some(found) = options_in(any)? {
                options = found;
            }
        }
        let named = |text: String| (!text.is_empty()).then_some(text);
        Ok(Self {
            speaks_bootstrap: true,
            options,
            socket_dir: named(params.socket_dir),
            debug: params.log_level <= LOG_LEVEL_DEBUG,
            ttrpc_address: named(params.containerd_ttrpc_address),
        })
    }

    /// stdout of `start`: `BootstrapResult` for those who know it, else the plain address,
    /// which every containerd since 1.3 understands.
    pub fn answer(&self, address: &str) -> Vec<u8> {
        if !self.speaks_bootstrap {
            return address.as_bytes().to_vec();
        }
        BootstrapResult { version: 3, address: address.to_owned(), protocol: "ttrpc".to_owned() }
            .encode_to_vec()
    }
}

fn options_in(any: &Any) -> Result<Option<Options>, BadInput> {
    if any.type_url != OPTIONS_URL {
        return Ok(None);
    }
    Options::decode(any.value.as_slice()).map(Some).map_err(BadInput::Options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { shim_cgroup: "/pods".into(), binary_name: "crun".into(), ..Options::default() }
    }

    #[test]
    fn old_callers_get_the_plain_address() {
        for input in [Vec::new(), Any::pack(OPTIONS_URL, &options()).encode_to_vec()] {
            let caller = Caller::parse(&input, "box").unwrap();
            assert_eq!(caller.answer("unix:///run/x"), b"unix:///run/x");
        }
    }

    #[test]
    fn options_in_an_any_are_not_taken_for_bootstrap_params() {
        let caller = Caller::parse(&Any::pack(OPTIONS_URL, &options()).encode_to_vec(), "box").unwrap();
        assert_eq!(caller.options, options());
    }

    #[test]
    fn bootstrap_params_get_a_bootstrap_result() {
        let params = Params {
            instance_id: "box".into(),
            log_level: LOG_LEVEL_DEBUG,
            socket_dir: "/run/s".into(),
            extensions: vec![Extension { value: Some(Any::pack(OPTIONS_URL, &options())) }],
            ..Params::default()
        };
        let caller = Caller::parse(&params.encode_to_vec(), "box").unwrap();
        assert_eq!(caller.options, options());
        assert_eq!(caller.socket_dir.as_deref(), Some("/run/s"));
        assert!(caller.debug);
        let result = BootstrapResult::decode(caller.answer("unix:///run/x").as_slice()).unwrap();
        assert_eq!(
            (result.version, result.address.as_str(), result.protocol.as_str()),
            (3, "unix:///run/x", "ttrpc")
        );
    }

    #[test]
    fn garbage_and_oversize_are_refused() {
        assert_eq!(Caller::parse(&[0xff; 64], "box"), Err(BadInput::Malformed));
        assert_eq!(Caller::parse(&vec![0; MAX_INPUT + 1], "box"), Err(BadInput::TooLarge));
        let broken = Any { type_url: OPTIONS_URL.into(), value: vec![0xff] };
        assert!(matches!(Caller::parse(&broken.encode_to_vec(), "box"), Err(BadInput::Options(_))));
    }

    #[test]
    fn unknown_extensions_are_skipped() {
        let other = Extension { value: Some(Any { type_url: "example.org/x".into(), value: vec![1, 2, 3] }) };
        let params = Params { instance_id: "box".into(), extensions: vec![other], ..Params::default() };
        assert_eq!(Caller::parse(&params.encode_to_vec(), "box").unwrap().options, Options::default());
    }
}
