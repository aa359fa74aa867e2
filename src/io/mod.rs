//! stdin, stdout and stderr of a process: fifos made by containerd, pipes made by us, a console, files.
//!
//! Nothing here opens a fifo in a way that waits, and nothing waits for a reader: fifos are opened read-write, so we
//! hold both ends ourselves. Never here: threads, container state.

mod console;
mod copy;
pub mod file;
mod logger;
mod process_io;
mod spool_policy;
mod stdio;

pub use console::ConsoleSocket;
pub(crate) use copy::release_scratch;
pub use process_io::{ChildEnds, ProcessIo};
pub use spool_policy::{BadPolicy, SpoolPolicy};
pub use stdio::{Plan, StdioError};
