//! The answer of `-info` (`api/types/introspection.proto`).

use super::Any;

/// `containerd.types.RuntimeInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeInfo {
    /// `io.containerd.NAME.VERSION`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The shim's.
    #[prost(message, optional, tag = "2")]
    pub version: Option<RuntimeVersion>,
    /// The options that were sent.
    #[prost(message, optional, tag = "3")]
    pub options: Option<Any>,
    /// What the OCI runtime can do, JSON.
    #[prost(message, optional, tag = "4")]
    pub features: Option<Any>,
}

/// `containerd.types.RuntimeVersion`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeVersion {
    /// Version.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Revision of the source.
    #[prost(string, tag = "2")]
    pub revision: String,
}
