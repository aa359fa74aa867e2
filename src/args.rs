//! Go's flag syntax → [`Invocation`]: typed and checked; nothing else reads argv.
//!
//! `-flag value`, `-flag=value`, one dash or two, booleans alone or `-flag=false`, the action after
//! the last flag (Go package `flag`; the flags are those of containerd v2.3.4 `pkg/shim/shim.go`).

use crate::id::{Id, InvalidId};
use std::path::PathBuf;

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Invocation {
    /// `-v`: print the version.
    Version,
    /// `-info`: describe the runtime.
    Info,
    /// `start`: find or make the shim of a group.
    Start(Common),
    /// `delete`: clean up after a dead shim.
    Delete(Common),
    /// No action: be the shim.
    Serve(Common),
}

/// The flags that the three lives share.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// containerd's namespace.
    pub namespace: Id,
    /// Task id.
    pub id: Id,
    /// containerd's gRPC socket.
    pub address: String,
    /// Bundle, given to `delete` only.
    pub bundle: Option<PathBuf>,
    /// Serve on this path, not on descriptor 3.
    pub socket: Option<PathBuf>,
    /// Debug logs.
    pub debug: bool,
}

/// A command line that nobody should send.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum BadArguments {
    /// Not in the table.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// The value is missing.
    #[error("flag needs an argument: -{0}")]
    MissingValue(String),
    /// A boolean with something else than true or false.
    #[error("invalid boolean value {value:?} for -{flag}")]
    NotBoolean {
        /// The flag's name.
        flag: String,
        /// What stood there.
        value: String,
    },
    /// argv is not UTF-8.
    #[error("argument {0} is not UTF-8")]
    NotText(usize),
    /// Upstream's sentence.
    #[error("shim namespace cannot be empty")]
    NoNamespace,
    /// `-id` is missing.
    #[error("task id cannot be empty")]
    NoId,
    /// `-namespace` or `-id` is no identifier.
    #[error("-{flag}")]
    Id {
        /// The flag's name.
        flag: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidId,
    },
    /// A word that is no action.
    #[error("unknown action {0:?}")]
    Action(String),
}

#[derive(Default)]
struct Typed {
    namespace: String,
    id: String,
    address: String,
    bundle: String,
    socket: String,
    debug: bool,
    version: bool,
    info: bool,
    action: String,
}

/// Reads argv without the program's name.
pub fn parse(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
) -> Result<Invocation, BadArguments> {
    let words: Vec<String> = arguments
        .into_iter()
        .enumerate()
        .map(|(i, word)| word.into_string().map_err(|_| BadArguments::NotText(i + 1)))
        .collect::<Result<_, _>>()?;
    let typed = read(words)?;
    if typed.version {
        return Ok(Invocation::Version);
    }
    if typed.info {
        return Ok(Invocation::Info);
    }
    if typed.namespace.is_empty() {
        return Err(BadArguments::NoNamespace);
    }
    if typed.id.is_empty() {
        return Err(BadArguments::NoId);
    }
    let named = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
    let common = Common {
        namespace: Id::new(&typed.namespace)
            .map_err(|source| BadArguments::Id { flag: "namespace", source })?,
        id: Id::new(&typed.id).map_err(|source| BadArguments::Id { flag: "id", source })?,
        address: typed.address,
        bundle: named(typed.bundle),
        socket: named(typed.socket),
        debug: typed.debug,
    };
    match typed.action.as_str() {
        "start" => Ok(Invocation::Start(common)),
        "delete" => Ok(Invocation::Delete(common)),
        "" => Ok(Invocation::Serve(common)),
        other => Err(BadArguments::Action(other.to_owned())),
    }
}

fn read(words: Vec<String>) -> Result<Typed, BadArguments> {
    let mut typed = Typed::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let Some(flag) =
            word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|f| !f.is_empty())
        else {
            if word != "--" {
                typed.action = word;
            } else {
                typed.action = words.next().unwrap_or_default();
            }
            break;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (flag.to_owned(), None),
        };
        if let Some(target) = boolean(&mut typed, &name) {
            *target = match value.as_deref() {
                None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
                Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
                Some(other) => {
                    return Err(BadArguments::NotBoolean { flag: name, value: other.to_owned() });
                }
            };
            continue;
        }
        let mut ignored = String::new();
        let target = match name.as_str() {
            "namespace" => &mut typed.namespace,
            "id" => &mut typed.id,
            "address" => &mut typed.address,
            "bundle" => &mut typed.bundle,
            "socket" => &mut typed.socket,
            "publish-binary" | "debug-socket" => &mut ignored,
            _ => return Err(BadArguments::Unknown(name)),
        };
        *target = value.or_else(|| words.next()).ok_or(BadArguments::MissingValue(name))?;
    }
    Ok(typed)
}

fn boolean<'a>(typed: &'a mut Typed, name: &str) -> Option<&'a mut bool> {
    match name {
        "debug" => Some(&mut typed.debug),
        "v" | "version" => Some(&mut typed.version),
        "info" => Some(&mut typed.info),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, BadArguments> {
        parse(line.split_whitespace().map(Into::into))
    }

    #[test]
    fn go_flag_syntax() {
        let Ok(Invocation::Start(common)) = parsed(
            "-namespace k8s.io --address=/run/c.sock -publish-binary /usr/bin/containerd -id box -debug start",
        ) else {
            panic!("not a start")
        };
        assert_eq!(common.namespace.as_str(), "k8s.io");
        assert_eq!(common.address, "/run/c.sock");
        assert_eq!(common.id.as_str(), "box");
        assert!(common.debug);
        assert!(
            matches!(parsed("-namespace a -id b -debug=false"), Ok(Invocation::Serve(c)) if !c.debug)
        );
        assert!(
            matches!(parsed("-namespace a -id b -bundle /x delete"), Ok(Invocation::Delete(c)) if c.bundle == Some("/x".into()))
        );
        assert_eq!(parsed("-v"), Ok(Invocation::Version));
        assert_eq!(parsed("--version"), Ok(Invocation::Version));
        assert_eq!(parsed("-info"), Ok(Invocation::Info));
    }

    #[test]
    fn refusals() {
        assert_eq!(parsed(""), Err(BadArguments::NoNamespace));
        assert_eq!(parsed("-id x start"), Err(BadArguments::NoNamespace));
        assert_eq!(parsed("-namespace x start"), Err(BadArguments::NoId));
        assert_eq!(parsed("-namespace"), Err(BadArguments::MissingValue("namespace".into())));
        assert_eq!(parsed("-nope"), Err(BadArguments::Unknown("nope".into())));
        assert_eq!(parsed("-namespace a -id b dance"), Err(BadArguments::Action("dance".into())));
        assert!(matches!(
            parsed("-namespace a -id ../../x start"),
            Err(BadArguments::Id { flag: "id", .. })
        ));
        assert!(matches!(
            parsed("-namespace a/b -id x"),
            Err(BadArguments::Id { flag: "namespace", .. })
        ));
        assert!(matches!(parsed("-debug=maybe"), Err(BadArguments::NotBoolean { .. })));
    }
}
