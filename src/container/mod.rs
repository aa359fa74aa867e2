//! A container as a value: pure, no clock, no system call, no await. (state, event) → (state,
//! effects), or a refusal.
//!
//! ```text
//!              StartRequested      Started               PauseRequested      Paused
//!   Created ───────────────▶ Starting ─────▶ Running ───────────────▶ Pausing ─────▶ Paused
//!      ▲        StartFailed     │               ▲  ▲     PauseFailed     │             │ Resume-
//!      └────────────────────────┘               │  └─────────────────────┘             │ Requested
//!                                               │                                      ▼
//!                                               └──────────── Resumed ──────────── Resuming
//!
//!   any of these ── the init has exited, and nothing holds its exit back ──▶ Stopped
//!   Created, Stopped ── DeleteRequested ──▶ Deleting
//! ```
//! The init's exit is held back until its start was published, its execs have exited, and, without
//! a pid namespace of the container's own, the rest of its processes have been killed. So it is the
//! last exit of the container.
//!
//! Everything here is plain data: it is printed by the dump, and can be written out and read back.

mod effect;
mod state;
mod transition;

pub use effect::{Effect, Notice};
pub use state::{Container, Exec, ExecPhase, Exit, PidNamespace, Process, Status, Stdio};
pub use transition::{Event, Refusal};
