//! An Any from a client or from containerd's configuration → the runtime's options.
//!
//! `containerd.runc.v1.Options` is what we understand; `runtimeoptions.v1.Options` is the envelope
//! that containerd uses for runtimes that it does not know by name: TOML, either in the message or
//! in a file (containerd v2.3.4 `internal/cri/config/config.go`,
//! `cmd/ctr/commands/commands_unix.go`).

use crate::{
    bundle::read_bounded,
    json::{BadJson, Found, Reader, is_name},
    protocol::{
        Any,
        options::{GENERIC_OPTIONS_URL, GenericOptions, OPTIONS_URL, Options, is_options},
    },
};
use prost::Message;
use std::{io, path::PathBuf};

/// Largest configuration, bytes.
const MAX_TOML: u64 = 1 << 20;

/// Options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadOptions {
    /// A type that we do not know.
    #[error("unknown options type {0:?}")]
    Type(String),
    /// Not the message that its URL says.
    #[error("decode {url}")]
    Decode {
        /// The type URL.
        url: &'static str,
        /// Where it went wrong.
        #[source]
        source: prost::DecodeError,
    },
    /// The file that it names.
    #[error("read runtime options from {}", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No TOML.
    #[error("runtime options are no TOML: {0}")]
    Toml(String),
    /// A value of the wrong type.
    #[error("runtime option {key} is no {expected} but a {value}")]
    Value {
        /// The key as it stands there.
        key: String,
        /// The type it has.
        value: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

/// Reads options; an empty message is the default. The type counts after its last slash: Go's
/// registry knows it with any prefix.
pub fn read(any: &Any) -> Result<Options, BadOptions> {
    match any.type_url.rsplit('/').next().unwrap_or_default() {
        OPTIONS_URL => Options::decode(any.value.as_slice())
            .map_err(|source| BadOptions::Decode { url: OPTIONS_URL, source }),
        GENERIC_OPTIONS_URL => {
            let generic = GenericOptions::decode(any.value.as_slice())
                .map_err(|source| BadOptions::Decode { url: GENERIC_OPTIONS_URL, source })?;
            from_generic(generic)
        }
        _ if any.value.is_empty() => Ok(Options::default()),
        _ => Err(BadOptions::Type(any.type_url.clone())),
    }
}

/// The body wins unless there is none: containerd sends it whenever no path is configured.
fn from_generic(generic: GenericOptions) -> Result<Options, BadOptions> {
    if !generic.type_url.is_empty() && !is_options(&generic.type_url) {
        return Err(BadOptions::Type(generic.type_url));
    }
    let bytes = if generic.config_body.is_empty() && !generic.config_path.is_empty() {
        let path = PathBuf::from(generic.config_path);
        let fail = |source| BadOptions::File { path: path.clone(), source };
        if !path.is_absolute() {
            return Err(fail(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path is not absolute",
            )));
        }
        read_bounded(&path, MAX_TOML).map_err(fail)?
    } else {
        generic.config_body
    };
    let text = std::str::from_utf8(&bytes).map_err(|e| BadOptions::Toml(e.to_string()))?;
    let table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| BadOptions::Toml(e.message().to_owned()))?;
    from_table(&table)
}

/// Keys as Go knows them (`SystemdCgroup`) or as the message does (`systemd_cgroup`), in any case.
/// Others are for newer versions.
fn from_table(table: &toml::Table) -> Result<Options, BadOptions> {
    let mut options = Options::default();
    for (key, value) in table {
        let plain: String =
            key.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect();
        let wrong =
            |expected| BadOptions::Value { key: key.clone(), value: value.type_str(), expected };
        let text = || value.as_str().map(str::to_owned).ok_or_else(|| wrong("string"));
        let truth = || value.as_bool().ok_or_else(|| wrong("boolean"));
        let number = || {
            value
                .as_integer()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| wrong("id or version"))
        };
        match plain.as_str() {
            "nopivotroot" => options.no_pivot_root = truth()?,
            "nonewkeyring" => options.no_new_keyring = truth()?,
            "shimcgroup" => options.shim_cgroup = text()?,
            "iouid" => options.io_uid = number()?,
            "iogid" => options.io_gid = number()?,
            "binaryname" => options.binary_name = text()?,
            "root" => options.root = text()?,
            "systemdcgroup" => options.systemd_cgroup = truth()?,
            "criuimagepath" => options.criu_image_path = text()?,
            "criuworkpath" => options.criu_work_path = text()?,
            "taskapiaddress" => options.task_api_address = text()?,
            "taskapiversion" => options.task_api_version = number()?,
            "spool" => options.spool = text()?,
            "spooltotal" => options.spool_total = text()?,
            "annotations" => {
                options.annotations = words(value).ok_or_else(|| wrong("list of strings"))?
            }
            "nativeexec" => options.native_exec = truth()?,
            _ => {}
        }
    }
    Ok(options)
}

/// A list of words, or one word, with commas between them.
fn words(value: &toml::Value) -> Option<String> {
    match value.as_array() {
        Some(list) => {
            Some(list.iter().map(toml::Value::as_str).collect::<Option<Vec<_>>>()?.join(","))
        }
        None => value.as_str().map(str::to_owned),
    }
}

/// Reads an `options.json`, as Go's shim does: null sets nothing, unknown members are for newer
/// versions.
pub fn from_json(text: &[u8]) -> Result<Options, BadOptionsFile> {
    let mut options = Options::default();
    let mut odd = None;
    let mut reader = Reader::new(text);
    let found = reader.object(|name, reader| {
        let is_odd = set(&mut options, name, reader)?;
        if is_odd {
            odd.get_or_insert_with(|| name.to_owned());
        }
        Ok(())
    })?;
    reader.end()?;
    match (odd, found) {
        (Some(name), _) => Err(BadOptionsFile::Type(name)),
        (None, Found::Other) => Err(BadOptionsFile::Type("all of it".to_owned())),
        _ => Ok(options),
    }
}

/// Whether the value is of another type than the member.
fn set(options: &mut Options, name: &str, reader: &mut Reader) -> Result<bool, BadJson> {
    let texts = [
        ("shim_cgroup", &mut options.shim_cgroup),
        ("binary_name", &mut options.binary_name),
        ("root", &mut options.root),
        ("criu_image_path", &mut options.criu_image_path),
        ("criu_work_path", &mut options.criu_work_path),
        ("task_api_address", &mut options.task_api_address),
        ("spool", &mut options.spool),
        ("spool_total", &mut options.spool_total),
        ("annotations", &mut options.annotations),
    ];
    let truths = [
        ("no_pivot_root", &mut options.no_pivot_root),
        ("no_new_keyring", &mut options.no_new_keyring),
        ("systemd_cgroup", &mut options.systemd_cgroup),
        ("native_exec", &mut options.native_exec),
    ];
    let numbers = [
        ("io_uid", &mut options.io_uid),
        ("io_gid", &mut options.io_gid),
        ("task_api_version", &mut options.task_api_version),
    ];
    if let Some((_, field)) = texts.into_iter().find(|(field, _)| is_name(name, field)) {
        reader.string().map(|found| assign(field, found))
    } else if let Some((_, field)) = truths.into_iter().find(|(field, _)| is_name(name, field)) {
        reader.boolean().map(|found| assign(field, found))
    } else if let Some((_, field)) = numbers.into_iter().find(|(field, _)| is_name(name, field)) {
        reader.number().map(|found| assign(field, found))
    } else {
        reader.skip().map(|()| false)
    }
}

/// An `options.json` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadOptionsFile {
    /// No JSON.
    #[error(transparent)]
    Json(#[from] BadJson),
    /// A member of another type.
    #[error("{0} is of another type")]
    Type(String),
}

fn assign<T>(field: &mut T, found: Found<T>) -> bool {
    match found {
        Found::Value(value) => *field = value,
        Found::Null => {}
        Found::Other => return true,
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(body: &str, path: &str) -> Result<Options, String> {
        let message = GenericOptions {
            type_url: String::new(),
            config_path: path.into(),
            config_body: body.as_bytes().to_vec(),
        };
        read(&Any::pack(GENERIC_OPTIONS_URL, &message)).map_err(|e| crate::shim::chain(&e))
    }

    #[test]
    fn toml_as_containerd_writes_it() {
        let body = "BinaryName = \"/usr/bin/crun\"\nSystemdCgroup = true\nIoUid = 7\nCriuPath = \"\"\nConfigPath = \"\"\n";
        let expected = Options {
            binary_name: "/usr/bin/crun".into(),
            systemd_cgroup: true,
            io_uid: 7,
            ..Options::default()
        };
        assert_eq!(generic(body, "").unwrap(), expected);
        assert_eq!(
            generic("binary_name = '/usr/bin/crun'\nsystemd_cgroup = true\nio_uid = 7", "")
                .unwrap(),
            expected
        );
        assert_eq!(generic("", "").unwrap(), Options::default());
    }

    #[test]
    fn toml_says_what_is_kept_and_what_containers_may_set() {
        let options =
            generic("Spool = '1Mi'\nSpoolTotal = '4Mi'\nAnnotations = ['spool', 'direct']", "")
                .unwrap();
        assert_eq!((options.spool.as_str(), options.spool_total.as_str()), ("1Mi", "4Mi"));
        assert_eq!(options.annotations, "spool,direct");
        assert_eq!(generic("annotations = 'spool'", "").unwrap().annotations, "spool");
        assert!(generic("Annotations = [3]", "").unwrap_err().contains("Annotations"));
    }

    #[test]
    fn toml_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.toml");
        std::fs::write(&path, "Root = '/run/r'\n").unwrap();
        assert_eq!(generic("", path.to_str().unwrap()).unwrap().root, "/run/r");
        assert!(
            generic("", "/nope/o.toml")
                .unwrap_err()
                .contains("read runtime options from /nope/o.toml")
        );
        assert!(generic("", "o.toml").unwrap_err().contains("not absolute"));
    }

    #[test]
    fn a_file_of_options_as_go_reads_it() {
        let read = |text: &[u8]| from_json(text).map_err(|e| e.to_string());
        let expected =
            Options { root: "/r".into(), systemd_cgroup: true, io_uid: 7, ..Options::default() };
        let texts: [&[u8]; 3] = [
            br#"{"root":"/r","systemd_cgroup":true,"io_uid":7}"#,
            br#"{"root":"/x","Root":"/r","root":null,"SYSTEMD_CGROUP":true,"io_uid":7,"io_uid":null,"new":[{}]}"#,
            br#"{"root":"\/r","systemd_cgroup":true,"io_uid":7,"no_pivot_root":null,"criu_path":"\ud800"}"#,
        ];
        for text in texts {
            assert_eq!(read(text), Ok(expected.clone()));
        }
        assert_eq!(read(b"null"), Ok(Options::default()));
        assert_eq!(read(b"{\"root\":\"\xff\"}").unwrap().root, "\u{fffd}");
        for text in
            ["", "[]", "{} x", r#"{"root":1}"#, r#"{"io_uid":-1}"#, r#"{"systemd_cgroup":"true"}"#]
        {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_type_may_have_a_prefix() {
        let options = Options { root: "/r".into(), ..Options::default() };
        let any = Any {
            type_url: format!("type.googleapis.com/{OPTIONS_URL}"),
            value: options.encode_to_vec(),
        };
        assert_eq!(read(&any).unwrap(), options);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(generic("BinaryName = 3", "").unwrap_err().contains("BinaryName"));
        assert!(generic("IoUid = -1", "").unwrap_err().contains("IoUid"));
        assert!(generic("= = =", "").unwrap_err().contains("no TOML"));
        let other = Any { type_url: "example.org/Other".into(), value: vec![1] };
        assert_eq!(
            read(&other).unwrap_err().to_string(),
            "unknown options type \"example.org/Other\""
        );
        let broken = Any { type_url: OPTIONS_URL.into(), value: vec![0xff] };
        assert!(matches!(read(&broken), Err(BadOptions::Decode { .. })));
    }
}
