//! What to do about an error, for whoever reads it in `kubectl describe`. docs/errors.md has the list; each has a test (tests/suite/errors.rs).
//!
//! The error's own sentence stays as it is and comes first: clients look for Go's words. Only what somebody can act on gets a hint.

use crate::{
    io::StdioError,
    options::BadOptions,
    runtime::Failure,
    shim::{ShimError, chain},
    start::{PlacementError, SocketError, StartError},
};
use std::error::Error;

/// An error and its causes in one line, with a hint where there is one.
pub fn told(error: &(dyn Error + 'static)) -> String {
    with_hint(chain(error), error)
}

/// Adds the hint that belongs to an error to its text.
pub fn with_hint(text: String, error: &(dyn Error + 'static)) -> String {
    match hint(error) {
        Some(hint) => format!("{text}; hint: {hint}"),
        None => text,
    }
}

fn hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(hint) = of_one(error) {
            return Some(hint);
        }
        cause = error.source();
    }
    None
}

fn of_one(error: &(dyn Error + 'static)) -> Option<&'static str> {
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
            BadOptions::Type(_) => "the handler's runtime_type and options do not belong together",
            BadOptions::File { .. } => "the handler's option ConfigPath names it",
            BadOptions::Decode { .. } | BadOptions::Toml(_) | BadOptions::Value { .. } => {
                "correct the handler's options in containerd's config.toml"
            }
        });
    }
    if let Some(PlacementError::Cgroup { .. }) = error.downcast_ref() {
        return Some("make that cgroup, or take ShimCgroup out of the handler's options");
    }
    if let Some(SocketError::TooLong(_)) = error.downcast_ref() {
        return Some("choose a shorter socket directory in containerd's configuration");
    }
    error.downcast_ref::<std::io::Error>().and_then(of_system)
}

fn of_shim(error: &ShimError) -> Option<&'static str> {
    match error {
        ShimError::Runtime { failure, .. } => of_runtime(failure),
        ShimError::Rootfs { reason, .. } => of_mount(reason),
        ShimError::TooMany(_, "execs") => Some("delete execs that have ended: whoever starts them does not"),
        ShimError::TooMany(..) => Some("the pod has more containers than any pod should"),
        ShimError::GivenUp(_) => Some("containerd was restarted meanwhile; it is tried again"),
        ShimError::Checkpoint { .. } => Some("criu's log is in the bundle, under the name above"),
        _ => None,
    }
}

/// The runtime's own sentences, and ours about it.
fn of_runtime(failure: &Failure) -> Option<&'static str> {
    if let Failure::DeadlineExceeded { .. } = failure {
        return Some("it hung, in a file system or a cgroup: look for processes in state D on the node");
    }
    let text = failure.to_string();
    if let Failure::NotStarted { .. } = failure {
        return text.contains("executable file not found").then_some(
            "install the OCI runtime on the node, or name another one with the handler's option BinaryName",
        );
    }
    let has = |words: &[&str]| words.iter().all(|word| text.contains(word));
    Some(match () {
        () if has(&["exec: ", "executable file not found"])
            || has(&["exec: ", "no such file or directory"]) =>
        {
            "the program is not in the image: see the container's command and args, and the image's PATH"
        }
        () if has(&["exec: ", "permission denied"]) => {
            "the program is not executable for the container's user: see its mode, runAsUser, and mounts with noexec"
        }
        () if has(&["error mounting"]) => {
            "see the container's volumeMounts: does the source exist, is the target of the same kind?"
        }
        () if has(&["no space left on device"]) => FULL,
        () if has(&["chdir to cwd"]) => "see the container's workingDir",
        () if has(&["unable to find user"]) || has(&["unable to find group"]) => {
            "see runAsUser, or USER of the image"
        }
        () => return None,
    })
}

/// Mounting happens in a child, which sends its error as text.
fn of_mount(reason: &str) -> Option<&'static str> {
    match () {
        () if reason.contains("mount helper") => {
            Some("it (of the package fuse3) and the file system's own program must be on the node")
        }
        () if reason.contains("No such file or directory") => {
            Some("the snapshot is not there: remove the container and the image, and pull it again")
        }
        () if reason.contains("No such device") => {
            Some("the kernel has no such file system: load its module")
        }
        () if reason.contains("No space left on device") => Some(FULL),
        () => None,
    }
}

fn of_stdio(error: &StdioError) -> Option<&'static str> {
    match error {
        StdioError::Scheme(_) => Some("known are fifo, file, binary and binary-v2"),
        StdioError::Path { .. } => Some("paths are absolute, without NUL, below 4096 bytes"),
        StdioError::Io { verb, .. } if verb.contains("logger") => {
            Some("the logging program must say that it is ready by closing descriptor 5; run it by hand")
        }
        StdioError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Some("whoever asked has gone and taken the fifo along; it may be tried again")
        }
        StdioError::Io { .. } => None,
    }
}

const FULL: &str = "a file system is full: df -h /run /var/lib/containerd";

/// What the node has run out of.
fn of_system(error: &std::io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::ENOSPC | libc::EDQUOT => Some(FULL),
        libc::EMFILE | libc::ENFILE => {
            Some("out of descriptors: raise LimitNOFILE of containerd's service, or fs.file-max")
        }
        libc::EAGAIN | libc::ENOMEM => {
            Some("out of processes or memory: see pids.max of the cgroup, kernel.pid_max, and free memory")
        }
        libc::EROFS => Some("a file system is mounted read-only: see the kernel's log for disk errors"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(failure: Failure) -> String {
        told(&ShimError::Runtime { context: "OCI runtime create failed", failure })
    }

    #[test]
    fn a_runtime_that_hangs() {
        let text = runtime(Failure::DeadlineExceeded { seconds: 120 });
        assert_eq!(
            text,
            "OCI runtime create failed: no answer in 120 s, killed; hint: it hung, in a file system or a cgroup: look for processes in state D on the node"
        );
    }

    #[test]
    fn too_many_execs() {
        assert!(
            told(&ShimError::TooMany(8192, "execs")).starts_with("more than 8192 execs; hint: delete execs")
        );
    }

    #[test]
    fn a_bundle_that_is_taken_away() {
        assert!(
            told(&ShimError::GivenUp("/run/b".into()))
                .ends_with("hint: containerd was restarted meanwhile; it is tried again")
        );
    }

    #[test]
    fn out_of_descriptors() {
        let source = std::io::Error::from_raw_os_error(libc::EMFILE);
        let text = told(&ShimError::Io { verb: "make a pipe", source });
        assert!(text.contains("Too many open files") && text.contains("LimitNOFILE"), "{text}");
    }

    #[test]
    fn what_only_programs_see_has_no_hint() {
        for error in [ShimError::NotCreated, ShimError::Finished, ShimError::NotStarted] {
            assert!(!told(&error).contains("hint"));
        }
        let text = runtime(Failure::Refused { message: "something new".into() });
        assert_eq!(text, "OCI runtime create failed: something new");
    }
}
