//! stdin, stdout and stderr of a process: fifos made by containerd, pipes made by us, a console,
//! files.
//!
//! [`Plan`] says where the channels of a process lead, `ProcessIo` has them from Create or Exec
//! to Delete, `copy` moves their bytes. `logger` and `file` are about other processes that
//! write for us.
//!
//! Nothing here opens a fifo in a way that waits, and nothing waits for a reader: fifos are opened
//! read-write, so we hold both ends ourselves. Never here: threads, container state.

mod console;
mod copy;
pub mod file;
mod logger;
mod outputs;
mod pipe;
mod process_io;
mod spool_policy;
mod stdin;
mod stdio;

pub(crate) use console::ConsoleSocket;
pub(crate) use copy::release_scratch;
pub use process_io::ChildEnds;
pub(crate) use process_io::ProcessIo;
pub use spool_policy::{BadPolicy, SpoolPolicy};
pub use stdio::{Plan, StdioError};
