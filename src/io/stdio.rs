//! Three texts from the client → a plan.

use super::spool_policy::SpoolPolicy;
use crate::container::Stdio;
use std::{
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// Longest path or URI, bytes: PATH_MAX.
const MAX_LENGTH: usize = 4096;

/// Where the channels of a process lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// A fifo, or a file or device that is read to its end.
    pub stdin: Option<PathBuf>,
    /// A fifo, or a file or device that is there.
    pub stdout: Option<PathBuf>,
    /// The same; not used with a terminal.
    pub stderr: Option<PathBuf>,
    /// stdout was `file:`: created if missing, both outputs appended.
    pub create_file: bool,
    /// A program that takes both outputs.
    pub logger: Option<LoggerPlan>,
    /// The process gets a console instead of pipes.
    pub terminal: bool,
    /// What is kept of an output whose reader is away.
    pub spool: SpoolPolicy,
}

/// A logging program, from `binary:///path?key=value` or `binary-v2:…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggerPlan {
    /// Absolute; it is started by the shim itself.
    pub path: PathBuf,
    /// Keys and values of the query, one after the other.
    pub arguments: Vec<String>,
    /// `binary-v2`: it says a byte when it is ready; before that, closing its descriptor was
    /// enough.
    pub says_ready: bool,
    /// Its CONTAINER_ID: the container's id, or the exec's.
    pub id: String,
    /// Its CONTAINER_NAMESPACE: containerd's, not the kernel's.
    pub namespace: String,
}

/// Channels that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// Clients match on this sentence, which is upstream's.
    #[error("unknown STDIO scheme {0}")]
    Scheme(String),
    /// Too long, relative, or with a NUL.
    #[error("invalid {channel} path {path:?}")]
    Path {
        /// stdin, stdout or stderr.
        channel: &'static str,
        /// As the client sent it, its first 200 characters.
        path: String,
    },
    /// A system call failed.
    #[error("{verb} {}", path.display())]
    Io {
        /// What was tried, so that path and source may follow: `open`.
        verb: &'static str,
        /// A file, or the name of a channel.
        path: PathBuf,
        /// The kernel's error, or what a helper reported.
        #[source]
        source: io::Error,
    },
}

impl StdioError {
    /// Whether the request is to blame.
    pub(crate) fn is_bad_request(&self) -> bool {
        matches!(self, Self::Scheme(_) | Self::Path { .. })
    }
}

impl Plan {
    /// Reads what the client sent. `namespace` and `id` are what a logger is told.
    pub fn new(
        stdio: &Stdio,
        namespace: &str,
        id: &str,
        spool_policy: SpoolPolicy,
    ) -> Result<Self, StdioError> {
        let mut plan = Self { terminal: stdio.terminal, spool: spool_policy, ..Self::default() };
        plan.stdin = path("stdin", &stdio.stdin)?;
        let uri = Uri::parse(&stdio.stdout);
        match uri.scheme.as_str() {
            "" => {
                plan.stdout = path("stdout", &stdio.stdout)?;
                plan.stderr = path("stderr", &stdio.stderr)?;
            }
            "fifo" => {
                plan.stdout = path("stdout", &uri.path)?;
                plan.stderr = path("stderr", &stdio.stderr)?;
            }
            "file" => {
                plan.stdout = Some(required(&uri.path)?);
                plan.stderr = plan.stdout.clone();
                plan.create_file = true;
            }
            scheme @ ("binary" | "binary-v2") => {
                plan.logger = Some(LoggerPlan {
                    path: required(&uri.path)?,
                    arguments: arguments(uri.query)?,
                    says_ready: scheme == "binary-v2",
                    id: id.to_owned(),
                    namespace: namespace.to_owned(),
                });
            }
            scheme => return Err(StdioError::Scheme(scheme.to_owned())),
        }
        if plan.terminal {
            plan.stderr = None;
        }
        if plan.terminal || plan.create_file || plan.logger.is_some() {
            plan.spool = spool_policy.through_the_shim();
        }
        Ok(plan)
    }
}

/// A stdout as Go's `url.Parse` takes it apart (net/url): what begins like a scheme has one, in any
/// case; an authority does not matter; what has no slash after the scheme is no path.
struct Uri<'a> {
    /// Lower case; empty where there is none.
    scheme: String,
    /// Without percent signs.
    path: String,
    query: &'a str,
}

impl<'a> Uri<'a> {
    fn parse(text: &'a str) -> Self {
        let text = text.split('#').next().unwrap_or_default();
        let is_scheme = |scheme: &str| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        };
        let (scheme, rest) = match text.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => (String::new(), text),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = match rest.strip_prefix("//") {
            Some(authority) => authority.find('/').map_or("", |at| &authority[at..]),
            None if rest.starts_with('/') => rest,
            None => "",
        };
        Self { scheme, path: unescape(path), query }
    }
}

fn required(text: &str) -> Result<PathBuf, StdioError> {
    path("stdout", text)?.ok_or_else(|| StdioError::Path { channel: "stdout", path: String::new() })
}

fn path(channel: &'static str, text: &str) -> Result<Option<PathBuf>, StdioError> {
    if text.is_empty() {
        return Ok(None);
    }
    let path = Path::new(text);
    if text.len() >= MAX_LENGTH || text.contains('\0') || !path.is_absolute() {
        return Err(StdioError::Path { channel, path: text.chars().take(200).collect() });
    }
    Ok(Some(path.to_owned()))
}

/// `key=value&flag` → key, value, flag. A key counts once, its first value.
fn arguments(query: &str) -> Result<Vec<String>, StdioError> {
    if query.len() >= MAX_LENGTH || query.contains('\0') || query.contains("%00") {
        return Err(StdioError::Path {
            channel: "stdout",
            path: query.chars().take(200).collect(),
        });
    }
    let decode = |text: &str| unescape(&text.replace('+', " "));
    let (mut keys, mut words) = (Vec::new(), Vec::new());
    // Go passes over a pair with a semicolon, too.
    for pair in query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode(key);
        if !keys.contains(&key) {
            words.extend([key.clone(), decode(value)]);
            keys.push(key);
        }
    }
    Ok(words)
}

/// Percent-decoding (RFC 3986); what is no escape stays as it is.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.first_chunk::<2>().and_then(|two| std::str::from_utf8(two).ok());
        match (first, hex.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Result<Plan, String> {
        let [stdin, stdout, stderr] = [stdin, stdout, stderr].map(str::to_owned);
        let stdio = Stdio { stdin, stdout, stderr, terminal };
        Plan::new(&stdio, "ns", "c", SpoolPolicy::default()).map_err(|e| e.to_string())
    }

    #[test]
    fn fifos_files_and_nothing() {
        assert_eq!(plan("", "", "", false).unwrap(), Plan::default());
        let p = plan("/f/in", "/f/out", "/f/err", false).unwrap();
        assert_eq!(
            (p.stdin, p.stdout, p.stderr),
            (Some("/f/in".into()), Some("/f/out".into()), Some("/f/err".into()))
        );
        let p = plan("", "file:///var/log/a%20b.log", "", false).unwrap();
        assert_eq!(p.stdout, Some("/var/log/a b.log".into()));
        assert_eq!(p.stderr, p.stdout);
        assert!(p.create_file);
        assert_eq!(plan("", "/f/out", "/f/err", true).unwrap().stderr, None);
    }

    #[test]
    fn a_stdout_is_taken_apart_as_go_does_it() {
        // What url.Parse makes of them.
        for (text, scheme, path, query) in [
            ("/run/a://b", "", "/run/a://b", ""),
            ("/run/file:///b", "", "/run/file:///b", ""),
            ("file:/var/log/a", "file", "/var/log/a", ""),
            ("FILE:///var/log/a", "file", "/var/log/a", ""),
            ("file://host/var/log/a?b=c#d", "file", "/var/log/a", "b=c"),
            ("file:////a", "file", "//a", ""),
            ("file:a", "file", "", ""),
            ("file://a", "file", "", ""),
            ("file:/a://b", "file", "/a://b", ""),
            ("file:/a?/b://c", "file", "/a", "/b://c"),
            ("Binary-V2:/l?a=b", "binary-v2", "/l", "a=b"),
            ("1file:/a", "", "", ""),
            ("fi_le:/a", "", "", ""),
            ("", "", "", ""),
        ] {
            let uri = Uri::parse(text);
            let found = (uri.scheme.as_str(), uri.path.as_str(), uri.query);
            assert_eq!(found, (scheme, path, query), "{text}");
        }
        assert_eq!(plan("", "/f/a://b", "", false).unwrap().stdout, Some("/f/a://b".into()));
        assert_eq!(plan("", "/f/a%41?b#c", "", false).unwrap().stdout, Some("/f/a%41?b#c".into()));
        assert!(plan("", "file:a", "", false).is_err());
        assert_eq!(plan("", "gopher:x", "", false).unwrap_err(), "unknown STDIO scheme gopher");
    }

    #[test]
    fn loggers() {
        let logger = |uri: &str| plan("", uri, "", false).unwrap().logger.unwrap();
        let l = logger("binary:///bin/log%20ger?path=%2Ftmp%2Fa&debug&path=b&text=a+b");
        assert_eq!(l.path, PathBuf::from("/bin/log ger"));
        assert_eq!(l.arguments, ["path", "/tmp/a", "debug", "", "text", "a b"]);
        assert_eq!((l.says_ready, l.id.as_str(), l.namespace.as_str()), (false, "c", "ns"));
        assert!(logger("binary-v2:///l").says_ready);
        assert!(plan("", "binary://", "", false).is_err());
        assert!(plan("", "binary://l", "", false).is_err());
    }

    #[test]
    fn unknown_schemes_and_bad_paths_are_refused() {
        assert_eq!(plan("", "gopher://x", "", false).unwrap_err(), "unknown STDIO scheme gopher");
        assert!(plan("", "out", "", false).is_err());
        assert!(plan("", "/a\0b", "", false).is_err());
        assert!(plan("", &format!("/{}", "x".repeat(5000)), "", false).is_err());
    }
}
