//! Hostile message → typed command: ids, paths, signals, JSON.

use crate::{
    bundle::Bundle,
    container::Stdio,
    id::Id,
    options,
    protocol::{
        Any,
        options::{CHECKPOINT_OPTIONS_URL, CheckpointOptions, Options},
        task::{CheckpointTaskRequest, CreateTaskRequest, ExecProcessRequest},
    },
    remedy::told,
    rpc::{Code, Status},
    shim::{Checkpoint, Create, SaveState},
    spec,
    sys::process::is_signal,
};
use prost::Message;
use std::path::{Component, PathBuf};

/// Exec, checked.
pub(super) struct Exec {
    pub(super) id: Id,
    pub(super) exec: Id,
    pub(super) stdio: Stdio,
    pub(super) spec: Vec<u8>,
}

fn invalid(message: String) -> Status {
    Status::new(Code::InvalidArgument, message)
}

/// Decodes a request message.
pub(super) fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Status> {
    M::decode(payload).map_err(|e| invalid(format!("unmarshal request: {e}")))
}

/// A container's id. One that cannot exist is unknown, as any other that does not.
pub(super) fn container(text: &str) -> Result<Id, Status> {
    Id::new(text).map_err(|_| Status::from(crate::shim::ShimError::NotCreated))
}

/// An exec's id; empty is the init.
pub(super) fn exec_of(text: &str) -> Result<Option<Id>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    Id::new(text).map(Some).map_err(|e| invalid(format!("exec id: {e}")))
}

/// Create.
pub(super) fn create(r: CreateTaskRequest) -> Result<Create, Status> {
    let id = Id::new(&r.id).map_err(|e| invalid(format!("container id: {e}")))?;
    let checkpoint = match r.checkpoint.as_str() {
        "" => None,
        image => Some(Checkpoint {
            image: clean("checkpoint", image)?,
            parent: match r.parent_checkpoint.as_str() {
                "" => None,
                parent => Some(clean("parent checkpoint", parent)?),
            },
        }),
    };
    Ok(Create {
        id,
        bundle: Bundle::new(clean("bundle", &r.bundle)?),
        checkpoint,
        rootfs: r.rootfs,
        stdio: Stdio { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr, terminal: r.terminal },
        options: options(r.options)?,
    })
}

/// A path that the runtime may be given.
fn clean(what: &str, text: &str) -> Result<PathBuf, Status> {
    let path = PathBuf::from(text);
    let straight =
        path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !straight || text.contains('\0') {
        return Err(invalid(format!("{what} {text:?} is not an absolute, clean path")));
    }
    Ok(path)
}

/// Checkpoint.
pub(super) fn checkpoint(r: CheckpointTaskRequest) -> Result<(Id, SaveState), Status> {
    /// runc's and crun's.
    const CGROUPS_MODES: [&str; 5] = ["", "soft", "full", "strict", "ignore"];
    let options = match r.options {
        None => CheckpointOptions::default(),
        Some(any) if any.type_url == CHECKPOINT_OPTIONS_URL || any.value.is_empty() => {
            CheckpointOptions::decode(any.value.as_slice())
                .map_err(|e| invalid(format!("checkpoint options: {e}")))?
        }
        Some(any) => return Err(invalid(format!("unknown options type {:?}", any.type_url))),
    };
    if !CGROUPS_MODES.contains(&options.cgroups_mode.as_str()) {
        return Err(invalid(format!(
            "cgroups mode {:?} is none of soft, full, strict, ignore",
            options.cgroups_mode
        )));
    }
    if let Some(odd) =
        options.empty_namespaces.iter().find(|name| !name.bytes().all(|b| b.is_ascii_lowercase()))
    {
        return Err(invalid(format!("{odd:?} is no namespace")));
    }
    if !options.work_path.is_empty() {
        clean("criu's work path", &options.work_path)?;
    }
    Ok((container(&r.id)?, SaveState { image: clean("checkpoint", &r.path)?, options }))
}

/// Runtime options; none is the default.
fn options(any: Option<Any>) -> Result<Options, Status> {
    any.as_ref()
        .map_or_else(|| Ok(Options::default()), options::read)
        .map_err(|e| invalid(told(&e)))
}

/// Exec: the spec is a JSON object, or null; its `terminal` is the request's.
pub(super) fn exec(r: ExecProcessRequest) -> Result<Exec, Status> {
    let exec = Id::new(&r.exec_id).map_err(|e| invalid(format!("exec id: {e}")))?;
    let spec = r.spec.map(|any| any.value).unwrap_or_default();
    let spec = spec::process(&spec, r.terminal)
        .map_err(|e| invalid(format!("process spec: {e}")))?
        .ok_or_else(|| invalid("process spec: no object".to_owned()))?;
    Ok(Exec {
        id: container(&r.id)?,
        exec,
        stdio: Stdio { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr, terminal: r.terminal },
        spec,
    })
}

/// LinuxResources as JSON.
pub(super) fn resources(any: Option<Any>) -> Result<Vec<u8>, Status> {
    let json = any.map(|any| any.value).unwrap_or_default();
    spec::resources(&json)
        .map_err(|e| invalid(format!("resources: {e}")))?
        .ok_or_else(|| invalid("resources: no object".to_owned()))
}

/// A signal's number.
pub(super) fn signal(number: u32) -> Result<i32, Status> {
    match i32::try_from(number) {
        Ok(signal) if is_signal(number) => Ok(signal),
        _ => Err(invalid(format!("invalid signal {number}"))),
    }
}

/// Whether a request would be understood; does nothing else. For the fuzzer.
pub fn check(method: &str, payload: &[u8]) -> bool {
    let done = match method {
        "Create" => decode(payload).and_then(create).map(|_| ()),
        "Exec" => decode(payload).and_then(exec).map(|_| ()),
        "Checkpoint" => decode(payload).and_then(checkpoint).map(|_| ()),
        "Update" => decode(payload)
            .and_then(|r: crate::protocol::task::UpdateTaskRequest| resources(r.resources))
            .map(|_| ()),
        "Kill" => decode(payload).and_then(|r: crate::protocol::task::KillRequest| {
            container(&r.id)?;
            exec_of(&r.exec_id)?;
            signal(r.signal).map(|_| ())
        }),
        _ => decode(payload).and_then(|r: crate::protocol::task::ProcessRequest| {
            container(&r.id)?;
            exec_of(&r.exec_id).map(|_| ())
        }),
    };
    done.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_requests_are_refused_with_the_right_code() {
        let create_with = |id: &str, bundle: &str| {
            let r = CreateTaskRequest {
                id: id.into(),
                bundle: bundle.into(),
                ..CreateTaskRequest::default()
            };
            create(r).map(|_| ()).map_err(|status| status.code)
        };
        assert_eq!(create_with("a", "/run/a"), Ok(()));
        for (id, bundle) in
            [("../a", "/run/a"), ("", "/run/a"), ("a", "run/a"), ("a", "/run/../etc"), ("a", "")]
        {
            assert_eq!(create_with(id, bundle), Err(Code::InvalidArgument as i32), "{id} {bundle}");
        }
        assert_eq!(container("../../x").unwrap_err().code, Code::NotFound as i32);
        assert_eq!(exec_of("a/b").unwrap_err().code, Code::InvalidArgument as i32);
        for number in [65, 1 << 31, u32::MAX] {
            assert_eq!(signal(number).unwrap_err().code, Code::InvalidArgument as i32);
        }
        assert_eq!(signal(64), Ok(64));
        assert_eq!(
            decode::<CreateTaskRequest>(&[0xff]).unwrap_err().code,
            Code::InvalidArgument as i32
        );
    }

    #[test]
    fn unknown_options_are_named() {
        let any = Any { type_url: "example.org/Other".into(), value: vec![1] };
        let error = options(Some(any)).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument as i32);
        assert!(error.message.contains("example.org/Other"));
    }

    #[test]
    fn the_terminal_of_an_exec_is_the_requests() {
        let spec = |value: &str| {
            let r = ExecProcessRequest {
                id: "c".into(),
                exec_id: "e".into(),
                terminal: true,
                spec: Some(Any { type_url: String::new(), value: value.as_bytes().to_vec() }),
                ..ExecProcessRequest::default()
            };
            exec(r).map(|e| String::from_utf8(e.spec).unwrap())
        };
        assert_eq!(
            spec(r#"{"args":["x"],"terminal":false}"#).unwrap(),
            r#"{"args":["x"],"terminal":true}"#
        );
        assert!(spec("[]").is_err());
        assert!(spec("").is_err());
    }
}
