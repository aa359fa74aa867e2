//! A shim that nobody needs ends by itself: no container, no bundle, no client, for a while. A
//! crash of containerd between `start` and Create, or a Shutdown that never came, leaves such a one
//! behind.
//!
//! Ten times as long without any container, and it ends though its bundle is there and containerd
//! connected: a containerd that was killed before it could send Create, or Shutdown after a Delete,
//! adopts the shim when it is started again, and nobody can delete it, since it has no task (seen
//! with 1.6). The first container of a pod outlives the others, so an empty shim is not about to
//! get another.

use crate::{rpc::Load, shim::Shim};
use std::{path::Path, rc::Rc, time::Duration};

/// How long nobody must have needed us.
const GRACE: Duration = Duration::from_secs(60);
/// Environment variable with another number of seconds; 0: never.
const VARIABLE: &str = "CLEAT_UNNEEDED_SECONDS";
/// Looks in that time.
const LOOKS: u32 = 4;
/// How many times as long a shim without a container is kept for a client that is connected.
const WITH_CLIENT: u32 = 10;

/// Resolves when nobody needs the shim. Sleeps without a timer while there is a container, but for
/// one look after each Shutdown that came too early, and after a Create whose caller had gone,
/// whether the containers are given up.
pub(super) async fn wait(shim: &Rc<Shim>, load: &Load) {
    let grace = match std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()) {
        Some(0) => return std::future::pending().await,
        Some(seconds) => Duration::from_secs(seconds),
        None => GRACE,
    };
    let (mut empty, mut unneeded) = (0, 0);
    while unneeded < LOOKS && empty < LOOKS * WITH_CLIENT {
        shim.until_doubtful().await;
        tokio::time::sleep(grace / LOOKS).await;
        shim.delete_given_up().await;
        empty = if shim.is_empty() { empty + 1 } else { 0 };
        unneeded = if empty > 0 && !is_expected(load) { unneeded + 1 } else { 0 };
    }
    log::warn!("no container: the shim ends after_seconds={}", (grace / LOOKS * empty).as_secs());
}

/// Whether somebody is there who may send a Create.
fn is_expected(load: &Load) -> bool {
    // Our working directory is the bundle of the first container; containerd removes it when it
    // gives the container up.
    load.connections.get() > 0 || Path::new("config.json").exists()
}
