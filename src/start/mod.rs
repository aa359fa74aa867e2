//! The `start` action, top to bottom, synchronous: find the shim of the group or make one, and
//! print its address.
//!
//! containerd reads stdout and stderr together, so nothing is ever printed but the answer. Whatever
//! was begun is undone on any error: the daemon killed, the socket removed.

mod daemon;
mod group;
mod placement;
mod socket;

use crate::{
    args::Common,
    bundle::{Bundle, BundleError},
    options,
    protocol::bootstrap::{BadInput, Caller, MAX_INPUT},
};
use std::{
    io::{self, Read},
    path::PathBuf,
};

pub use placement::PlacementError;
pub use socket::{Address, SocketError, is_alive};

/// Why `start` failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// stdin could not be read.
    #[error("read stdin")]
    Stdin(#[source] io::Error),
    /// stdin is nothing that a containerd sends.
    #[error(transparent)]
    Input(#[from] BadInput),
    /// Runtime options that cannot be used.
    #[error(transparent)]
    Options(#[from] options::BadOptions),
    /// The bundle lacks something.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// No socket.
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    /// No daemon.
    #[error("start the shim daemon")]
    Daemon(#[source] io::Error),
    /// The answer could not be written.
    #[error("write the address")]
    Answer(#[source] io::Error),
    /// The daemon could not be put where it belongs.
    #[error(transparent)]
    Placement(#[from] placement::PlacementError),
}

/// Runs `start`; the bundle is the working directory. `print` gets what belongs on stdout: a caller
/// that cannot be told of a new daemon leaves none behind.
pub fn run(common: &Common, print: impl FnOnce(&[u8]) -> io::Result<()>) -> Result<(), StartError> {
    let input = read_input(io::stdin().lock())?;
    let max_shim_version = std::env::var("MAX_SHIM_VERSION").ok();
    let caller = Caller::parse(&input, common.id.as_str(), max_shim_version.as_deref())?;
    drop(input);
    let options = caller.options.as_ref().map(options::read).transpose()?.unwrap_or_default();
    let bundle = Bundle::new(".");
    let group = group::of(&bundle, &common.id)?;
    let directory =
        caller.socket_dir.as_deref().map_or_else(socket::default_directory, PathBuf::from);
    if caller.socket_dir.is_some() {
        socket::remember_directory(&bundle, &directory)?;
    }
    let containerd = caller.grpc_address.as_deref().unwrap_or(&common.address);
    let address = Address::of_group(&directory, containerd, &common.namespace, &group)?;
    let socket::Bound::New(listener) = socket::bind(&address)? else {
        bundle.write_address(&address.to_string())?;
        return print(&caller.answer(&address.to_string())).map_err(StartError::Answer);
    };

    let mut undo = Undo { address: &address, daemon: None, done: false };
    bundle.write_address(&address.to_string())?;
    placement::share_core_with_pod();
    let daemon = daemon::spawn(common, &caller, listener, &address).map_err(StartError::Daemon)?;
    undo.daemon = Some(daemon);
    placement::join_cgroup(daemon, &options.shim_cgroup)?;
    placement::adjust_oom_score(daemon);
    print(&caller.answer(&address.to_string())).map_err(StartError::Answer)?;
    undo.done = true;
    Ok(())
}

fn read_input(stdin: impl Read) -> Result<Vec<u8>, StartError> {
    let mut input = Vec::new();
    let limit = u64::try_from(MAX_INPUT).unwrap_or(u64::MAX).saturating_add(1);
    stdin.take(limit).read_to_end(&mut input).map_err(StartError::Stdin)?;
    Ok(input)
}

/// Leaves nothing behind unless all went well.
struct Undo<'a> {
    address: &'a Address,
    daemon: Option<u32>,
    done: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Some(pid) = self.daemon {
            // Our own child, not reaped: the number is its own.
            let _ = crate::sys::process::signal_child(pid, libc::SIGKILL);
        }
        self.address.forget();
    }
}
