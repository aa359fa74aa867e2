//! The program's beginning without the standard library's, which reads /proc/self/maps and sets up
//! a second stack, to say that the first one has overflowed: a quarter of the system calls of
//! `start`. Of the rest of it we do the same.

use rustix::fs::{Mode, OFlags};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

/// Exit code after a panic, as the standard library has it.
const PANICKED: libc::c_int = 101;

/// Makes a function the program's `main`. The crate has `#![no_main]`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn main(_count: i32, _words: *const *const u8) -> i32 {
            $crate::sys::entry::run($main)
        }
    };
}

/// Runs the program.
pub fn run(main: impl FnOnce() -> ExitCode) -> libc::c_int {
    keep_standard_streams();
    // SAFETY: integers; whoever writes where nobody reads gets an error.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    match catch_unwind(AssertUnwindSafe(main)) {
        Ok(ExitCode::SUCCESS) => libc::EXIT_SUCCESS,
        Ok(_) => libc::EXIT_FAILURE,
        Err(_) => PANICKED,
    }
}

/// Files that we open must not become our stdin, stdout or stderr.
fn keep_standard_streams() {
    for stream in 0..=2 {
        // SAFETY: F_GETFD takes no pointer.
        if unsafe { libc::fcntl(stream, libc::F_GETFD) } < 0
            && let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())
        {
            // It has the lowest free number, which is this one.
            std::mem::forget(null);
        }
    }
}
