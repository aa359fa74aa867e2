//! A room's error → ttrpc code and text: the only place. Where Go's shim has no class for an error
//! it answers Unknown, and so do we.

use crate::{
    container::Refusal,
    remedy,
    rpc::{Code, Status},
    runtime::Failure,
    shim::{ShimError, chain},
};

impl From<ShimError> for Status {
    fn from(error: ShimError) -> Self {
        let code = match &error {
            ShimError::NotCreated
            | ShimError::Finished
            | ShimError::NoSuchContainer
            | ShimError::NoCgroup
            | ShimError::GivenUp(_)
            | ShimError::Refused(Refusal::NoExec(_) | Refusal::DeleteLive("deleted")) => {
                Code::NotFound
            }
            ShimError::Exists(_) | ShimError::Refused(Refusal::ExecExists(_)) => {
                Code::AlreadyExists
            }
            ShimError::TooMany(..) => Code::ResourceExhausted,
            ShimError::Ending => Code::Unavailable,
            ShimError::Refused(Refusal::DeleteLive(_) | Refusal::InitGone(_))
            | ShimError::NotStarted => Code::FailedPrecondition,
            ShimError::Runtime { failure: Failure::DeadlineExceeded { .. }, .. }
            | ShimError::Abandoned => Code::DeadlineExceeded,
            ShimError::Stdio(e) if e.is_bad_request() => Code::InvalidArgument,
            ShimError::Spool(_) => Code::InvalidArgument,
            ShimError::Refused(_)
            | ShimError::Runtime { .. }
            | ShimError::Stdio(_)
            | ShimError::Bundle(_)
            | ShimError::Checkpoint { .. }
            | ShimError::Rootfs { .. }
            | ShimError::Io { .. } => Code::Unknown,
        };
        let mut text = chain(&error);
        text.push_str(sentinel(&error));
        Self::new(code, remedy::with_hint(text, &error))
    }
}

/// What Go's `%w` of an error class (containerd/errdefs) adds to the text. Clients of old look for
/// it.
fn sentinel(error: &ShimError) -> &'static str {
    match error {
        ShimError::NotCreated
        | ShimError::Finished
        | ShimError::NoSuchContainer
        | ShimError::NoCgroup
        | ShimError::Refused(Refusal::NoExec(_)) => ": not found",
        ShimError::Refused(Refusal::ExecExists(_)) => ": already exists",
        ShimError::NotStarted | ShimError::Refused(Refusal::InitGone(_)) => ": failed precondition",
        _ => "",
    }
}
