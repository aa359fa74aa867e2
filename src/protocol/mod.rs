//! All that containerd defines, named once: messages, service names, type URLs, topics.
//!
//! Enters: bytes from stdin, ttrpc frames and files. Leaves: bytes for stdout and frames.
//! Never here: state, I/O, decisions. Unknown fields are skipped, so newer callers are understood.
//!
//! The messages are written down by hand from the `.proto` files under `api/` of
//! containerd v2.3.4; field numbers never change there.

pub mod bootstrap;
pub mod events;
pub mod info;
pub mod inspect;
pub mod options;
pub mod stats_v1;
pub mod stats_v2;
pub mod task;

/// `google.protobuf.Any`: a message and the URL of its type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Any {
    /// Type URL; containerd writes it without a host prefix.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message, or JSON for OCI types.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl Any {
    /// Packs a message under its type URL.
    pub fn pack(type_url: &str, message: &impl prost::Message) -> Self {
        Self { type_url: type_url.to_owned(), value: message.encode_to_vec() }
    }
}

/// `google.protobuf.Timestamp`: UTC time since the epoch.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    prost::Message,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// The wall clock's time.
    pub fn now() -> Self {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        }
    }

    /// Milliseconds since then; 0 for a time to come.
    pub fn age_ms(self) -> u64 {
        let ms = |at: Self| i128::from(at.seconds) * 1000 + i128::from(at.nanos) / 1_000_000;
        u64::try_from(ms(Self::now()) - ms(self)).unwrap_or(0)
    }

    /// What Go sends for a time that was never set: 0001-01-01T00:00:00Z.
    pub const GO_ZERO: Self = Self { seconds: -62_135_596_800, nanos: 0 };
}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

/// `containerd.types.Mount`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Mount {
    /// File system type: overlay, bind …
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// Device or directory.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Directory below the rootfs; empty for the rootfs itself.
    #[prost(string, tag = "3")]
    pub target: String,
    /// fstab-style options.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}
