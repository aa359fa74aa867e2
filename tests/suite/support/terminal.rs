//! A terminal for programs that want one, at which one reads and types.

use rustix::{
    event::{PollFd, PollFlags, poll},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    process::{Child, Command, ExitStatus},
};

/// A program whose stdin, stdout and stderr are one terminal.
pub struct Terminal {
    child: Child,
    master: File,
    seen: Vec<u8>,
    /// How much of it was waited for.
    waited: usize,
}

impl Terminal {
    /// Starts it on a terminal of 80 columns and 24 rows.
    pub fn spawn(command: Command) -> Self {
        Self::sized(command, 80, 24)
    }

    /// The same on one of this size.
    pub fn sized(mut command: Command, columns: u16, rows: u16) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        tcsetwinsize(
            &master,
            Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 },
        )
        .unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let path = std::ffi::OsStr::from_bytes(name.as_bytes());
        let slave: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(path)
            .unwrap()
            .into();
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        // The command goes out of scope here, and its copies of the slave with it: so the master
        // sees the end.
        Self { child: command.spawn().unwrap(), master: master.into(), seen: Vec::new(), waited: 0 }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types this.
    pub fn write(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Reads until this was shown, after what was waited for before. `ctr` is better read so far
    /// before its container ends: containerd's client closes its fifos when it is told of the exit,
    /// with what is in them (client/task.go, `Delete`).
    pub fn read_until(&mut self, text: &str) {
        loop {
            let shown = String::from_utf8_lossy(&self.seen[self.waited..]).into_owned();
            if let Some(at) = shown.find(text) {
                self.waited += shown[..at + text.len()].len();
                return;
            }
            assert!(self.read() > 0, "it ended: {}", String::from_utf8_lossy(&self.seen));
        }
    }

    /// All that was shown.
    pub fn shown(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.seen)
    }

    /// Waits for more, and reads it.
    pub fn read_more(&mut self) {
        assert!(self.read() > 0, "it ended: {}", self.shown());
    }

    /// Reads to the end: all that was shown, and how the program ended.
    pub fn end(mut self) -> (String, ExitStatus) {
        while self.read() > 0 {}
        (String::from_utf8_lossy(&self.seen).into_owned(), self.child.wait().unwrap())
    }

    /// Closes it; the program goes on without.
    pub fn hang_up(self) -> Child {
        self.child
    }

    /// 0 at the end, of which a master is told by EIO (pty(7)): twice, for what was written just
    /// before the end may come after the first (drivers/tty/n_tty.c, `n_tty_read`).
    fn read(&mut self) -> usize {
        let limit = rustix::event::Timespec::try_from(super::LONG).unwrap();
        let mut asked = [PollFd::new(&self.master, PollFlags::IN)];
        let ready = poll(&mut asked, Some(&limit)).unwrap();
        assert!(ready > 0, "nothing more is shown: {}", String::from_utf8_lossy(&self.seen));
        let mut buffer = [0; 4096];
        let mut read = || match self.master.read(&mut buffer) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => 0,
            other => other.unwrap(),
        };
        let read = match read() {
            0 => read(),
            some => some,
        };
        self.seen.extend_from_slice(&buffer[..read]);
        read
    }
}
