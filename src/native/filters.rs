//! The seccomp filters of a container's init, kept in the bundle for its native execs: taken while
//! the init waits for its start, when the runtime has loaded them and no code of the container has
//! run.

use crate::{
    bundle::{Bundle, SECCOMP},
    sys::seccomp,
};
use std::io;

/// Takes them and writes them down. In a helper: it waits for the init to stop for a moment.
pub fn keep(init: u32, bundle: &Bundle) -> io::Result<()> {
    let mut filters = seccomp::filters_of(init)?;
    if filters.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    // A filter may have turned mitigations of speculation on; if it has not, ours must not either.
    if speculation(&init.to_string())? == speculation("self")? {
        filters.iter_mut().for_each(seccomp::Filter::allow_speculation);
    }
    bundle.write(SECCOMP, &seccomp::encode(&filters)?, 0o600).map_err(io::Error::other)
}

/// The lines `Speculation…` of proc_pid_status(5).
fn speculation(process: &str) -> io::Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    Ok(status.lines().filter(|line| line.starts_with("Speculation")).collect())
}
