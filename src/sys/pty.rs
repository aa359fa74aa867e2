//! Descriptors over a unix socket (SCM_RIGHTS): a console's master as the runtime sends it, and
//! what a helper has opened. The slave of a master.

use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
    pty::{OpenptFlags, ioctl_tiocgptpeer},
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Receives one descriptor, close-on-exec. Anything else in the message is closed or ignored.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (_, received) = receive_descriptors(socket)?;
    let none = || io::Error::new(io::ErrorKind::InvalidData, "no descriptor in the message");
    received.into_iter().next().ok_or_else(none)
}

/// Receives a message with its descriptors, close-on-exec.
pub fn receive_descriptors(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // Room for more than one, so that a peer that sends several cannot leave some open in us
    // unseen.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0u8; 4096];
    let message =
        recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    text.truncate(message.bytes);
    let mut received = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            received.extend(descriptors);
        }
    }
    Ok((text, received))
}

/// Sends a message with at most four descriptors.
pub fn send_descriptors(
    socket: BorrowedFd<'_>,
    text: &[u8],
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Opens the slave of a master, wherever its file system is mounted (ioctl_tty(2), TIOCGPTPEER,
/// since Linux 4.13). It does not become our controlling terminal.
pub fn open_slave(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let nonblocking = OpenptFlags::from_bits_retain(libc::O_NONBLOCK.cast_unsigned());
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC | nonblocking;
    Ok(ioctl_tiocgptpeer(master, flags)?)
}
