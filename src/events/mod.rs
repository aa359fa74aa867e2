//! Events on their way to containerd.
//!
//! One queue for the whole shim, in the order in which things happened; one envelope is sent at a
//! time and leaves the queue when containerd has acknowledged it. Never here: what an event means.

mod publisher;
mod queue;

pub use publisher::Publisher;
pub use queue::{EventQueue, Topic};
