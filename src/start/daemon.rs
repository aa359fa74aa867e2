//! Spawns `serve`: this same binary, in the bundle, with the listener as descriptor 3.

use super::Address;
use crate::{args::Common, protocol::bootstrap::Caller, sys};
use std::{
    io,
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

/// Starts the daemon and returns its pid. Connections wait in the listener's backlog until it is
/// up; if it cannot be run, nobody listens any more, and the address goes.
pub(super) fn spawn(
    common: &Common,
    caller: &Caller,
    listener: OwnedFd,
    address: &Address,
) -> io::Result<u32> {
    // By its path, so that `ps` shows the name under which we are installed; by the magic link if
    // that path is gone.
    let own_path = std::env::current_exe().ok().filter(|path| path.exists());
    let mut command = Command::new(own_path.unwrap_or_else(|| "/proc/self/exe".into()));
    command
        .args(["-namespace", common.namespace.as_str(), "-id", common.id.as_str()])
        .args(["-address", &common.address])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if common.debug || caller.debug {
        command.arg("-debug");
    }
    if std::env::var_os("TTRPC_ADDRESS").is_none()
        && let Some(address) = &caller.ttrpc_address
    {
        command.env("TTRPC_ADDRESS", address);
    }
    sys::malloc::keep_nothing(&mut command);
    sys::spawn::daemon(command, vec![listener], || address.forget())
}
