//! The runtime's options (`api/types/runc/options/oci.proto`), as protobuf and as the bundle's
//! `options.json`.

use serde::Serialize;

/// Type URL of [`Options`].
pub const OPTIONS_URL: &str = "containerd.runc.v1.Options";
/// Type URL of [`GenericOptions`].
pub const GENERIC_OPTIONS_URL: &str = "runtimeoptions.v1.Options";
/// Type URL of [`ProcessDetails`].
pub const PROCESS_DETAILS_URL: &str = "containerd.runc.v1.ProcessDetails";

/// Type URL of [`CheckpointOptions`].
pub const CHECKPOINT_OPTIONS_URL: &str = "containerd.runc.v1.CheckpointOptions";

/// Whether a type URL names options that we understand.
pub fn is_options(type_url: &str) -> bool {
    matches!(type_url, OPTIONS_URL | GENERIC_OPTIONS_URL)
}

/// `containerd.runc.v1.Options`. The JSON names are those of the Go shim's `options.json`,
/// so that either shim can delete the other's bundle.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize)]
pub struct Options {
    /// Do not pivot_root (rootfs on a ramdisk).
    #[prost(bool, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub no_pivot_root: bool,
    /// Do not create a new session keyring.
    #[prost(bool, tag = "2")]
    #[serde(skip_serializing_if = "is_default")]
    pub no_new_keyring: bool,
    /// cgroup for the shim itself.
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "is_default")]
    pub shim_cgroup: String,
    /// Owner of the I/O pipes.
    #[prost(uint32, tag = "4")]
    #[serde(skip_serializing_if = "is_default")]
    pub io_uid: u32,
    /// Group of the I/O pipes.
    #[prost(uint32, tag = "5")]
    #[serde(skip_serializing_if = "is_default")]
    pub io_gid: u32,
    /// OCI runtime: a name to find in PATH, or a path.
    #[prost(string, tag = "6")]
    #[serde(skip_serializing_if = "is_default")]
    pub binary_name: String,
    /// State directory of the OCI runtime.
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    pub root: String,
    /// Let systemd manage the cgroups.
    #[prost(bool, tag = "9")]
    #[serde(skip_serializing_if = "is_default")]
    pub systemd_cgroup: bool,
    /// Where criu's images lie.
    #[prost(string, tag = "10")]
    #[serde(skip_serializing_if = "is_default")]
    pub criu_image_path: String,
    /// criu's work directory.
    #[prost(string, tag = "11")]
    #[serde(skip_serializing_if = "is_default")]
    pub criu_work_path: String,
    /// Address of an existing shim; read by containerd, not by us.
    #[prost(string, tag = "12")]
    #[serde(skip_serializing_if = "is_default")]
    pub task_api_address: String,
    /// Task API version of that shim.
    #[prost(uint32, tag = "13")]
    #[serde(skip_serializing_if = "is_default")]
    pub task_api_version: u32,
    /// What is kept of an output whose reader is away. Ours alone: it comes from TOML, nobody sends
    /// it as protobuf.
    #[prost(string, tag = "15000")]
    #[serde(skip_serializing_if = "is_default")]
    pub spool: String,
    /// Execs without the runtime, where that is possible. Ours alone, as above.
    #[prost(bool, tag = "15001")]
    #[serde(skip_serializing_if = "is_default")]
    pub native_exec: bool,
    /// What is kept of all outputs of a shim whose readers are away. Ours alone, as above.
    #[prost(string, tag = "15002")]
    #[serde(skip_serializing_if = "is_default")]
    pub spool_total: String,
    /// The annotations of ours that containers may set, with commas between them. Ours alone, as
    /// above.
    #[prost(string, tag = "15003")]
    #[serde(skip_serializing_if = "is_default")]
    pub annotations: String,
}

impl Options {
    /// Whether containers may set this annotation of ours.
    fn lists(&self, annotation: &str) -> bool {
        self.annotations.split(',').any(|word| word.trim() == annotation)
    }

    /// Whether execs need no runtime: the operator's word, or the container's annotation if he
    /// lists it.
    pub fn wants_native_exec(&self, annotation: Option<&str>) -> bool {
        let annotation = annotation.filter(|_| self.lists("native-exec"));
        annotation.map_or(self.native_exec, |text| text == "true")
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `containerd.runc.v1.CheckpointOptions`: what criu may save, and what becomes of the container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CheckpointOptions {
    /// The container ends with the checkpoint.
    #[prost(bool, tag = "1")]
    pub exit: bool,
    /// Save open TCP connections.
    #[prost(bool, tag = "2")]
    pub open_tcp: bool,
    /// Save unix sockets whose other end is outside.
    #[prost(bool, tag = "3")]
    pub external_unix_sockets: bool,
    /// Save consoles.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    /// Save file locks.
    #[prost(bool, tag = "5")]
    pub file_locks: bool,
    /// Namespaces that are made empty at the restore.
    #[prost(string, repeated, tag = "6")]
    pub empty_namespaces: Vec<String>,
    /// soft, full, strict: what becomes of the cgroups.
    #[prost(string, tag = "7")]
    pub cgroups_mode: String,
    /// Read by containerd; the shim goes by the request's path.
    #[prost(string, tag = "8")]
    pub image_path: String,
    /// criu's work directory.
    #[prost(string, tag = "9")]
    pub work_path: String,
}

/// `containerd.runc.v1.ProcessDetails`: names the exec behind a pid.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessDetails {
    /// The exec's id.
    #[prost(string, tag = "1")]
    pub exec_id: String,
}

/// `runtimeoptions.v1.Options` (`api/types/runtimeoptions/v1/api.proto`): options for runtimes that
/// containerd does not know.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GenericOptions {
    /// What the configuration is.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// A file with it, TOML.
    #[prost(string, tag = "2")]
    pub config_path: String,
    /// The configuration itself, TOML.
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}
