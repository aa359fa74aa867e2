//! A shim that nobody needs ends by itself: no container, no bundle, no client, for a while. A crash of containerd between `start` and
//! Create, or a Shutdown that never came, leaves such a one behind. And one that never had a container ends though its bundle is there and
//! containerd connected: containerd 1.6 adopts such a shim when it is restarted, and nobody can delete it, since it has no task.

use crate::{rpc::Load, shim::Shim};
use std::{path::Path, time::Duration};

/// How long nobody must have needed us.
const GRACE: Duration = Duration::from_secs(60);
/// Environment variable with another number of seconds; 0: never.
const VARIABLE: &str = "CLEAT_UNNEEDED_SECONDS";
/// Looks in that time.
const LOOKS: u32 = 4;
/// How many times as long a shim that never had a container is kept for the Create that should have followed within milliseconds.
const NEVER_USED: u32 = 10;

/// Resolves when nobody needs the shim. Sleeps without a timer while there is a container.
pub(super) async fn wait(shim: &Shim, load: &Load) {
    let grace = match std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()) {
        Some(0) => return std::future::pending().await,
        Some(seconds) => Duration::from_secs(seconds),
        None => GRACE,
    };
    let (mut quiet, mut unused) = (0, 0);
    while quiet < LOOKS && unused < LOOKS * NEVER_USED {
        shim.until_empty().await;
        tokio::time::sleep(grace / LOOKS).await;
        quiet = if is_needed(shim, load) { 0 } else { quiet + 1 };
        unused = if shim.was_used() { 0 } else { unused + 1 };
    }
    log::warn!(
        "no container, and nobody who needs one: the shim ends seconds={}",
        (grace / LOOKS * quiet.max(unused)).as_secs()
    );
}

fn is_needed(shim: &Shim, load: &Load) -> bool {
    // Our working directory is the bundle of the first container; containerd removes it when it gives the container up.
    !shim.is_empty() || load.connections.get() > 0 || Path::new("config.json").exists()
}
