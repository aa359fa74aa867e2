//! Exits: who is watched, and how the kernel's answer finds its owner.
//!
//! A zombie keeps its pid. What we know has a pidfd and an owner and is reaped through it, so an
//! exit can never be taken for another's. While a runtime call may be giving birth, unknown zombies
//! are left alone: one of them may be the new process, dead before we learned its pid. See
//! ARCHITECTURE.md, "Exits".

mod births;
mod reaper;

pub use births::BirthGuard;
pub use reaper::{Exited, ProcessKey, Reaper, is_running, parent_of};
