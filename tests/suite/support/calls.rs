//! Calls to the shim of container `a`, and what their channels are.

use super::{Direct, Rig, alive, exec_request, process_spec, until};
use cleat::protocol::{Empty, task as api};
use std::path::Path;

pub fn process(id: &str, exec: &str) -> api::ProcessRequest {
    api::ProcessRequest { id: id.into(), exec_id: exec.into() }
}

/// Adds an exec of a shell script; `change` may give it channels. The Go shim wants both outputs or
/// none.
pub fn add(
    direct: &mut Direct,
    exec: &str,
    script: &str,
    change: impl FnOnce(&mut api::ExecProcessRequest),
) {
    let mut request = exec_request("a", exec, &process_spec(&["sh", "-c", script]));
    change(&mut request);
    if !request.stdout.starts_with("binary")
        && !request.stdout.is_empty()
        && request.stderr.is_empty()
    {
        request.stderr = "/dev/null".into();
    }
    direct.call::<Empty>("Exec", &request).unwrap();
}

pub fn start(direct: &mut Direct, exec: &str) -> u32 {
    direct.call::<api::PidResponse>("Start", &process("a", exec)).unwrap().pid
}

pub fn wait(direct: &mut Direct, exec: &str) -> u32 {
    direct.call::<api::WaitResponse>("Wait", &process("a", exec)).unwrap().exit_status
}

pub fn delete(direct: &mut Direct, exec: &str) {
    direct.call::<api::DeleteResponse>("Delete", &process("a", exec)).unwrap();
}

pub fn signal(
    direct: &mut Direct,
    id: &str,
    exec: &str,
    signal: u32,
) -> Result<Empty, cleat::rpc::Status> {
    direct
        .call("Kill", &api::KillRequest { id: id.into(), exec_id: exec.into(), signal, all: false })
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Opens a fifo for reading without waiting for a writer; reads wait.
pub fn reader(path: &Path) -> std::fs::File {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty()).unwrap();
    file
}

/// Makes an executable script in the rig's directory.
pub fn script(rig: &Rig, name: &str, text: &str) -> std::path::PathBuf {
    let path = rig.dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Waits for the end of the only shim.
pub fn ends(shim: u32) {
    until("the shim ends", || !alive(shim));
}

/// The bundle of a container `b` on the root file system of `a`, which runs; `change` is made to
/// the config.json of `a`.
pub fn bundle_beside(rig: &Rig, change: impl FnOnce(&mut serde_json::Value)) -> std::path::PathBuf {
    let bundle = rig.dir.join("b");
    std::fs::create_dir_all(&bundle).unwrap();
    let text = super::read_all(rig.bundle("a").join("config.json"));
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["root"]["path"] = super::text(&rig.bundle("a").join("rootfs")).into();
    config["linux"]["cgroupsPath"] = format!("/{}/b", rig.namespace).into();
    change(&mut config);
    std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    bundle
}

/// Makes and starts a container `b` on a rootfs of its own; `change` is made to the config.json of
/// `a`, which runs. Returns its init's pid.
pub fn second_container(
    rig: &Rig,
    direct: &mut Direct,
    rootfs: cleat::protocol::Mount,
    change: impl FnOnce(&mut serde_json::Value),
) -> u32 {
    let bundle = bundle_beside(rig, |config| {
        config["root"]["path"] = "rootfs".into();
        change(config);
    });
    let create = api::CreateTaskRequest {
        id: "b".into(),
        bundle: text(&bundle),
        rootfs: vec![rootfs],
        ..api::CreateTaskRequest::default()
    };
    let pid = direct.call::<api::PidResponse>("Create", &create).unwrap().pid;
    direct.call::<api::PidResponse>("Start", &process("b", "")).unwrap();
    pid
}

pub fn remove_second_container(direct: &mut Direct) {
    signal(direct, "b", "", 9).unwrap();
    direct.call::<api::WaitResponse>("Wait", &process("b", "")).unwrap();
    direct.call::<api::DeleteResponse>("Delete", &process("b", "")).unwrap();
}
