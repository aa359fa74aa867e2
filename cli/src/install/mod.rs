//! containerd's configuration as text: what `cleat install` puts in can be told from what is the
//! user's, and taken out to the byte.
//!
//! Nothing here knows what a value means; `commands/install.rs` decides, and asks containerd.

pub(crate) mod marks;
pub(crate) mod replace;
