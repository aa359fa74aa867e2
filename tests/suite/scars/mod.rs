//! How shims have failed their users, a test each; the numbers are those of docs/regressions.md,
//! which also says where the others live and which line of the shim is the defence.

mod exits;
mod io;
mod leaks;
mod life;
mod oom;

// For the rooms below.
use crate::support::{add, delete, ends, process, reader, script, signal, start, text, wait};
