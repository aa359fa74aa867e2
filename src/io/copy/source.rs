//! Reads from the source of a copy.

use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Reads what is there now; 0 at the end. A console's end is EIO twice in succession: the kernel
/// looks for bytes first and for the close of the slave then (v6.18 drivers/tty/n_tty.c,
/// `n_tty_read`), so what was written in between lies behind the first EIO.
pub(super) fn read(source: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    until_certain(|| rustix::io::read(source, &mut *buffer))
}

fn until_certain(mut read: impl FnMut() -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    let mut ended = false;
    loop {
        match read() {
            Err(Errno::INTR) => {}
            Err(Errno::IO) if ended => return Ok(0),
            Err(Errno::IO) => ended = true,
            other => return other,
        }
    }
}

/// Bytes that can be read now.
pub(super) fn readable_bytes(fd: &OwnedFd) -> usize {
    let bytes = rustix::io::ioctl_fionread(fd).unwrap_or(0);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consoles_first_eio_is_not_its_end() {
        let result = |answers: &[rustix::io::Result<usize>]| {
            let mut answers = answers.iter().copied();
            until_certain(|| answers.next().unwrap())
        };
        assert_eq!(result(&[Err(Errno::IO), Ok(7)]), Ok(7));
        assert_eq!(result(&[Err(Errno::IO), Err(Errno::INTR), Err(Errno::IO)]), Ok(0));
        assert_eq!(result(&[Err(Errno::INTR), Ok(0)]), Ok(0));
        assert_eq!(result(&[Err(Errno::IO), Err(Errno::AGAIN)]), Err(Errno::AGAIN));
    }
}
