//! Who is calling `start`, and the answer that this caller understands.
//!
//! containerd 1.6 to 2.2 send an `Any` with runtime options, or nothing; 2.3 and later send
//! `containerd.runtime.bootstrap.v1.BootstrapParams` (`api/runtime/bootstrap/v1/bootstrap.proto`).
//! Either parses as the other by accident (field 1 string, field 2 length-delimited), so content
//! decides: the instance id of the params is the `-id` of the command line, the first field of an
//! `Any` is a type URL.

use super::{Any, options::is_options};
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
    speaks: Language,
    /// Runtime options, if it sent any of a type that we know.
    pub options: Option<Any>,
    /// containerd's main socket as the params name it; part of the socket's hash.
    pub grpc_address: Option<String>,
    /// Directory for the socket, if it named one.
    pub socket_dir: Option<String>,
    /// It asked for debug logs.
    pub debug: bool,
    /// containerd's ttrpc address, if stdin names it.
    pub ttrpc_address: Option<String>,
}

/// What the caller reads from stdout of `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    /// 1.6: the address and nothing else.
    Plain,
    /// 1.7 to 2.2, which say so with MAX_SHIM_VERSION: JSON. Its version is 2, which all of them
    /// take; 1.7 refuses 3.
    Json,
    /// 2.3 and later: `BootstrapResult`.
    Bootstrap,
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
}

impl Caller {
    /// Reads stdin of `start`; `id` is the command line's, `max_shim_version` the environment's
    /// MAX_SHIM_VERSION.
    pub fn parse(input: &[u8], id: &str, max_shim_version: Option<&str>) -> Result<Self, BadInput> {
        if input.len() > MAX_INPUT {
            return Err(BadInput::TooLarge);
        }
        if let Ok(params) = Params::decode(input)
            && !input.is_empty()
            && params.instance_id == id
        {
            return Ok(Self::from_params(params));
        }
        let any = Any::decode(input).map_err(|_| BadInput::Malformed)?;
        let speaks = match max_shim_version {
            Some(version) if !version.is_empty() => Language::Json,
            _ => Language::Plain,
        };
        let options = is_options(&any.type_url).then_some(any);
        Ok(Self {
            speaks,
            options,
            grpc_address: None,
            socket_dir: None,
            debug: false,
            ttrpc_address: None,
        })
    }

    fn from_params(params: Params) -> Self {
        let named = |text: String| (!text.is_empty()).then_some(text);
        Self {
            speaks: Language::Bootstrap,
            options: params
                .extensions
                .into_iter()
                .filter_map(|extension| extension.value)
                .find(|any| is_options(&any.type_url)),
            grpc_address: Some(params.containerd_grpc_address),
            socket_dir: named(params.socket_dir),
            debug: params.log_level <= LOG_LEVEL_DEBUG,
            ttrpc_address: named(params.containerd_ttrpc_address),
        }
    }

    /// stdout of `start`, in the caller's language.
    pub fn answer(&self, address: &str) -> Vec<u8> {
        match self.speaks {
            Language::Plain => address.as_bytes().to_vec(),
            // In Go's order of fields; an address holds nothing that JSON would escape.
            Language::Json => {
                format!(r#"{{"version":2,"address":"{address}","protocol":"ttrpc"}}"#).into_bytes()
            }
            Language::Bootstrap => BootstrapResult {
                version: 3,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
            }
            .encode_to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::options::{OPTIONS_URL, Options},
        *,
    };

    fn options() -> Any {
        Any::pack(OPTIONS_URL, &Options { shim_cgroup: "/pods".into(), ..Options::default() })
    }

    #[test]
    fn old_callers_get_the_plain_address_or_json() {
        for input in [Vec::new(), options().encode_to_vec()] {
            let caller = Caller::parse(&input, "box", None).unwrap();
            assert_eq!(caller.answer("unix:///run/x"), b"unix:///run/x");
            let caller = Caller::parse(&input, "box", Some("2")).unwrap();
            let answer: serde_json::Value =
                serde_json::from_slice(&caller.answer("unix:///run/x")).unwrap();
            assert_eq!(
                answer,
                serde_json::json!({"version": 2, "address": "unix:///run/x", "protocol": "ttrpc"})
            );
        }
    }

    #[test]
    fn options_in_an_any_are_not_taken_for_bootstrap_params() {
        let caller = Caller::parse(&options().encode_to_vec(), "box", Some("2")).unwrap();
        assert_eq!(caller.options, Some(options()));
    }

    #[test]
    fn bootstrap_params_get_a_bootstrap_result() {
        let other = Extension {
            value: Some(Any { type_url: "example.org/x".into(), value: vec![1, 2, 3] }),
        };
        let params = Params {
            instance_id: "box".into(),
            log_level: LOG_LEVEL_DEBUG,
            socket_dir: "/run/s".into(),
            extensions: vec![other, Extension { value: Some(options()) }],
            ..Params::default()
        };
        let caller = Caller::parse(&params.encode_to_vec(), "box", Some("2")).unwrap();
        assert_eq!(caller.options, Some(options()));
        assert_eq!(caller.socket_dir.as_deref(), Some("/run/s"));
        assert!(caller.debug);
        let result = BootstrapResult::decode(caller.answer("unix:///run/x").as_slice()).unwrap();
        assert_eq!(
            (result.version, result.address.as_str(), result.protocol.as_str()),
            (3, "unix:///run/x", "ttrpc")
        );
    }

    #[test]
    fn fields_of_the_future_are_skipped() {
        let mut bytes = Params { instance_id: "box".into(), ..Params::default() }.encode_to_vec();
        // Field 99, a string; field 100, a number.
        bytes.extend_from_slice(&[0x9a, 0x06, 1, b'x', 0xa0, 0x06, 7]);
        let caller = Caller::parse(&bytes, "box", Some("5")).unwrap();
        assert_eq!((caller.speaks, caller.options), (Language::Bootstrap, None));
    }

    #[test]
    fn garbage_and_oversize_are_refused() {
        assert_eq!(Caller::parse(&[0xff; 64], "box", None), Err(BadInput::Malformed));
        assert_eq!(Caller::parse(&vec![0; MAX_INPUT + 1], "box", None), Err(BadInput::TooLarge));
    }
}
