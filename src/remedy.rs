//! What to do about an error, for whoever reads it in `kubectl describe`. [`Hint`] is the whole
//! table; docs/errors.md shows it, and each line has a test that provokes the error itself
//! (tests/suite/errors.rs).
//!
//! The error's own sentence stays as it is and comes first: clients look for Go's words. Only what
//! somebody can act on gets a hint.

use crate::{
    io::StdioError,
    options::BadOptions,
    runtime::Failure,
    shim::{Bound, ShimError, chain},
    start::{PlacementError, SocketError, StartError},
};
use std::{error::Error, io::ErrorKind};

/// An error and its causes in one line, with a hint where there is one.
pub fn told(error: &(dyn Error + 'static)) -> String {
    with_hint(chain(error), error)
}

/// Adds the hint that belongs to an error to its text.
pub fn with_hint(text: String, error: &(dyn Error + 'static)) -> String {
    match Hint::of(error) {
        Some(hint) => format!("{text}; hint: {}", hint.text()),
        None => text,
    }
}

macro_rules! hints {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Each thing that somebody can do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Hint { $($(#[$doc])* $name,)* }

        impl Hint {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As people read it.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

hints! {
    /// The OCI runtime cannot be found.
    NoRuntime = "install the OCI runtime on the node, or name another one with the handler's option BinaryName",
    /// The container's program cannot be found.
    NoProgram = "the program is not in the image: see the container's command and args, and the image's PATH",
    /// It is there, and may not be executed.
    NotExecutable = "the program is not executable for the container's user: see its mode, runAsUser, and mounts with noexec",
    /// A volume's source or target.
    Volume = "see the container's volumeMounts: does the source exist, is the target of the same kind?",
    /// process.cwd.
    WorkingDirectory = "see the container's workingDir: it must be a directory that the container's user may enter",
    /// A layer of the rootfs.
    NoSnapshot = "the snapshot is not there: remove the container and the image, and pull it again",
    /// ENODEV of mount(2).
    NoFileSystem = "the kernel has no such file system: load its module",
    /// mount.fuse3 and the like.
    MountHelper = "it (of the package fuse3) and the file system's own program must be on the node",
    /// A runtime call's deadline.
    Hung = "it hung, in a file system or a cgroup: look for processes in state D on the node",
    /// ENOSPC, EDQUOT.
    Full = "a file system is full: df -h /run /var/lib/containerd",
    /// A scheme of an output.
    Scheme = "known are fifo, file, binary and binary-v2",
    /// A path of an output.
    OutputPath = "paths are absolute, without NUL, below 4096 bytes",
    /// A logging program that cannot be started.
    NoLogger = "the logging program cannot be started: does the path of the log URI lead to an executable file on the node?",
    /// One that does not say that it is ready.
    LoggerNotReady = "the logging program must say that it is ready by closing descriptor 5; run it by hand",
    /// A fifo of a client.
    FifoGone = "whoever asked has gone and taken the fifo along; it may be tried again",
    /// Options with wrong values.
    Options = "correct the handler's options in containerd's config.toml",
    /// Options for another shim.
    OptionsType = "the handler's runtime_type and options do not belong together",
    /// Options in a file.
    OptionsFile = "the handler's option ConfigPath names it",
    /// ShimCgroup.
    ShimCgroup = "make that cgroup, or take ShimCgroup out of the handler's options",
    /// sun_path.
    SocketPath = "choose a shorter socket directory in containerd's configuration",
    /// Bound of execs.
    Execs = "delete execs that have ended: whoever starts them does not",
    /// Bound of containers.
    Containers = "the pod has more containers than any pod should: delete those that have ended",
    /// A bundle that went during Create.
    TriedAgain = "containerd was restarted meanwhile; it is tried again",
    /// criu.
    Checkpoint = "criu's log is in the bundle, under the name above",
    /// EMFILE, ENFILE.
    Descriptors = "out of descriptors: raise LimitNOFILE of containerd's service, or fs.file-max",
    /// EAGAIN, ENOMEM.
    Processes = "out of processes or memory: see pids.max of the cgroup, kernel.pid_max, and free memory",
    /// EROFS.
    ReadOnly = "a file system is mounted read-only: see the kernel's log for disk errors",
}

impl Hint {
    /// The hint for the first cause that has one.
    fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(hint) = of_one(error) {
                return Some(hint);
            }
            cause = error.source();
        }
        None
    }
}

fn of_one(error: &(dyn Error + 'static)) -> Option<Hint> {
    if let Some(error) = error.downcast_ref::<ShimError>() {
        return of_shim(error);
    }
    // It shows what it wraps as itself, and so must we.
    match error.downcast_ref::<StartError>() {
        Some(StartError::Options(inner)) => return of_one(inner),
        Some(StartError::Socket(inner)) => return of_one(inner),
        Some(StartError::Placement(inner)) => return of_one(inner),
        _ => {}
    }
    if let Some(error) = error.downcast_ref::<StdioError>() {
        return of_stdio(error);
    }
    if let Some(error) = error.downcast_ref::<BadOptions>() {
        return Some(match error {
            BadOptions::Type(_) => Hint::OptionsType,
            BadOptions::File { .. } => Hint::OptionsFile,
            BadOptions::Decode { .. } | BadOptions::Toml(_) | BadOptions::Value { .. } => {
                Hint::Options
            }
        });
    }
    if let Some(PlacementError::Cgroup { .. }) = error.downcast_ref() {
        return Some(Hint::ShimCgroup);
    }
    if let Some(SocketError::TooLong(_)) = error.downcast_ref() {
        return Some(Hint::SocketPath);
    }
    error.downcast_ref::<std::io::Error>().and_then(of_system)
}

fn of_shim(error: &ShimError) -> Option<Hint> {
    match error {
        ShimError::Runtime { failure, .. } => of_runtime(failure),
        ShimError::Rootfs { reason, .. } => of_mount(reason),
        ShimError::TooMany(_, Bound::Execs) => Some(Hint::Execs),
        ShimError::TooMany(_, Bound::Containers) => Some(Hint::Containers),
        ShimError::GivenUp(_) => Some(Hint::TriedAgain),
        ShimError::Checkpoint { .. } => Some(Hint::Checkpoint),
        _ => None,
    }
}

/// The runtime's own sentences, and ours about it.
fn of_runtime(failure: &Failure) -> Option<Hint> {
    let text = failure.to_string();
    let has = |words: &[&str]| words.iter().all(|word| text.contains(word));
    let system = || {
        [libc::EMFILE, libc::EAGAIN, libc::ENOMEM]
            .into_iter()
            .find(|code| text.contains(&words_of(*code)))
    };
    match failure {
        Failure::DeadlineExceeded { .. } => return Some(Hint::Hung),
        Failure::NotStarted { .. } if has(&["executable file not found"]) => {
            return Some(Hint::NoRuntime);
        }
        Failure::NotStarted { .. } => return system().and_then(of_code),
        Failure::Refused { .. } | Failure::Silent { .. } | Failure::CutShort => {}
    }
    Some(match () {
        () if has(&["exec: ", "executable file not found"])
            || has(&["exec: ", "no such file or directory"]) =>
        {
            Hint::NoProgram
        }
        () if has(&["exec: ", "permission denied"]) => Hint::NotExecutable,
        () if has(&["error mounting"]) => Hint::Volume,
        () if has(&["no space left on device"]) => Hint::Full,
        () if has(&["chdir to cwd"]) => Hint::WorkingDirectory,
        () => return None,
    })
}

/// The kernel's words for an error, which is all that a text has of it.
fn words_of(code: i32) -> String {
    let text = std::io::Error::from_raw_os_error(code).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Mounting happens in a child, which sends its error as text.
fn of_mount(reason: &str) -> Option<Hint> {
    match () {
        () if reason.contains("mount helper") => Some(Hint::MountHelper),
        () if reason.contains("No such file or directory") => Some(Hint::NoSnapshot),
        () if reason.contains("No such device") => Some(Hint::NoFileSystem),
        () if reason.contains("No space left on device") => Some(Hint::Full),
        () => None,
    }
}

fn of_stdio(error: &StdioError) -> Option<Hint> {
    match error {
        StdioError::Scheme(_) => Some(Hint::Scheme),
        StdioError::Path { .. } => Some(Hint::OutputPath),
        StdioError::Io { verb, source, .. }
            if verb.contains("start logger") && of_system(source).is_none() =>
        {
            Some(Hint::NoLogger)
        }
        StdioError::Io { verb, .. } if verb.contains("ready: logger") => Some(Hint::LoggerNotReady),
        StdioError::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
            Some(Hint::FifoGone)
        }
        // Its cause may have one.
        StdioError::Io { .. } => None,
    }
}

/// What the node has run out of.
fn of_system(error: &std::io::Error) -> Option<Hint> {
    of_code(error.raw_os_error()?)
}

fn of_code(code: i32) -> Option<Hint> {
    match code {
        libc::ENOSPC | libc::EDQUOT => Some(Hint::Full),
        libc::EMFILE | libc::ENFILE => Some(Hint::Descriptors),
        libc::EAGAIN | libc::ENOMEM => Some(Hint::Processes),
        libc::EROFS => Some(Hint::ReadOnly),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // docs/errors.md is this table, with the error that each hint belongs to, and its test.
    #[test]
    fn the_document_has_each_hint_and_no_other() {
        let table = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md"))
            .unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| `"));
        let told: Vec<&str> = rows.filter_map(|row| row.split(" | ").nth(1)).collect();
        for hint in Hint::ALL {
            assert!(told.contains(&hint.text()), "docs/errors.md lacks {hint:?}: {}", hint.text());
        }
        for text in told {
            assert!(
                Hint::ALL.iter().any(|hint| hint.text() == text) || text.starts_with("(none)"),
                "no hint says {text:?}"
            );
        }
    }

    #[test]
    fn what_only_programs_see_has_no_hint() {
        for error in [ShimError::NotCreated, ShimError::Finished, ShimError::NotStarted] {
            assert!(!told(&error).contains("hint"));
        }
        let failure = Failure::Refused { message: "something new".into() };
        let text = told(&ShimError::Runtime { context: "OCI runtime create failed", failure });
        assert_eq!(text, "OCI runtime create failed: something new");
    }

    // Both bounds are reached by clients only with thousands of containers; the type leaves no
    // third.
    #[test]
    fn too_many_containers() {
        let text = told(&ShimError::TooMany(4096, Bound::Containers));
        assert!(text.starts_with("more than 4096 containers; hint: the pod has more"), "{text}");
    }

    // It takes a restart of containerd within the milliseconds of a Create.
    #[test]
    fn a_bundle_that_is_taken_away() {
        let text = told(&ShimError::GivenUp("/run/b".into()));
        assert!(
            text.ends_with("hint: containerd was restarted meanwhile; it is tried again"),
            "{text}"
        );
    }
}
