//! The only place with `unsafe` and raw system calls. Wrappers take borrowed descriptors and return
//! owned ones; EINTR and errno end here.
#![allow(unsafe_code, reason = "this is the fence: each block says why it is sound")]

pub mod enter;
pub mod entry;
pub mod fd;
pub mod idmap;
pub mod loopdev;
pub mod malloc;
pub mod process;
pub mod program;
pub mod pty;
pub mod seccomp;
pub mod signals;
pub mod spawn;
pub mod stack;
pub mod watchdog;
