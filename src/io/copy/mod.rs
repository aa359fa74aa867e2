//! The copy engine: moves the bytes of one channel from a source to a sink.
//!
//! - [`pacing`] decides. It is pure: it hears what a step has brought and what has woken the copy,
//!   and says what to do next. [`batching`] is its part for sources that write little and often.
//! - [`engine`] does what it says, with the loop's timers and readiness.
//! - [`splice`], [`sink`], [`spool`]: a step each; [`source`] has the reads.
//! - [`watched`] is a descriptor in the event loop; [`ticker`] the timer that all beats share.

mod batching;
mod engine;
mod pacing;
mod scratch;
mod sink;
mod source;
mod splice;
mod spool;
#[cfg(test)]
mod tests;
mod ticker;
mod watched;

pub(super) use engine::Copy;
pub(crate) use scratch::release_scratch;
pub(super) use sink::OnWriteError;
pub(super) use watched::Watched;
