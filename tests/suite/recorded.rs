//! Answers byte for byte as those of Go's shims; `scripts/record` made the recordings.

use crate::support::{all_pids, cmdline, kill, shim_binary, until};
use cleat::protocol::info::RuntimeInfo;
use prost::Message;
use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const PLACE: &str = "/run/cleat-recorded";

fn recorded(name: &str, part: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/recorded/{name}.{part}"));
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn text(name: &str, part: &str) -> String {
    String::from_utf8(recorded(name, part)).unwrap()
}

/// Gives our answer to a recorded question, under the name of Go's shim.
fn answer(name: &str) -> Vec<u8> {
    let link = PathBuf::from(PLACE).join("containerd-shim-runc-v2");
    let _ = std::os::unix::fs::symlink(shim_binary(), &link);
    let mut command = Command::new(link);
    command.args(text(name, "arguments").lines()).current_dir(format!("{PLACE}/bundle"));
    command.env("TTRPC_ADDRESS", format!("{PLACE}/c.sock.ttrpc")).env_remove("MAX_SHIM_VERSION");
    command.envs(text(name, "environment").lines().filter_map(|line| line.split_once('=')));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&recorded(name, "stdin")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
    end_daemons();
    output.stdout
}

fn daemons() -> Vec<u32> {
    all_pids()
        .into_iter()
        .filter(|pid| cmdline(*pid).contains(&format!("{PLACE}/c.sock")))
        .collect()
}

fn end_daemons() {
    for pid in daemons() {
        kill(pid, libc::SIGTERM);
    }
    until("the daemon ends", || daemons().is_empty());
}

/// One test, since all use the same place: it is part of the answers.
#[test]
fn answers_are_those_of_gos_shims() {
    fs::create_dir_all(format!("{PLACE}/bundle")).unwrap();
    let config = r#"{"ociVersion":"1.0.2","annotations":{"io.containerd.runc.v2.group":"pod"}}"#;
    fs::write(format!("{PLACE}/bundle/config.json"), config).unwrap();
    let features = concat!(
        "#!/bin/sh\n",
        "printf '{\\n  \"ociVersionMin\": \"1.0.0\",\\n  \"ociVersionMax\": \"1.1.0\",\\n  \"hooks\": [\"prestart\"],",
        "\\n  \"linux\": {\"namespaces\": [\"cgroup\", \"user\"]}\\n}\\n'\n",
    );
    fs::write(format!("{PLACE}/runtime"), features).unwrap();
    fs::set_permissions(format!("{PLACE}/runtime"), fs::Permissions::from_mode(0o755)).unwrap();

    for name in ["start-1.6-empty", "start-1.6-options", "start-2.3-params", "start-2.3-directory"]
    {
        assert_eq!(answer(name), recorded(name, "stdout"), "{name}");
    }
    // Go's 2.1 shim says version 3. containerd 1.7 asks in the same words and refuses 3, so we say
    // 2, which both take.
    let json = text("start-2.1-options", "stdout").replace("\"version\":3", "\"version\":2");
    assert_eq!(String::from_utf8(answer("start-2.1-options")).unwrap(), json);
    // All but the version, which is ours.
    let expected = recorded("info-2.3-options", "stdout");
    let mut info = RuntimeInfo::decode(answer("info-2.3-options").as_slice()).unwrap();
    info.version = RuntimeInfo::decode(expected.as_slice()).unwrap().version;
    assert_eq!(info.encode_to_vec(), expected);
    fs::remove_dir_all(PLACE).unwrap();
}
