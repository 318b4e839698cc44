//! Descriptors that go along with bytes over a Unix socket (`SCM_RIGHTS`), between processes of one user.
#![allow(
    unsafe_code,
    reason = "a received descriptor is a number until someone owns it"
)]

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, getsockopt, recvmsg, sendmsg, sockopt,
};
use nix::unistd::geteuid;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// Descriptors that may go along at once.
pub const DESCRIPTORS_MAX: usize = 16;

/// Sends `bytes` and `descriptors`; how many of the bytes went. The descriptors are with the first of them.
///
/// # Errors
/// The other side is gone, there is no room just now, or there are too many descriptors.
pub fn send(stream: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if descriptors.len() > DESCRIPTORS_MAX {
        let error = format!("more than {DESCRIPTORS_MAX} descriptors");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let bytes = [IoSlice::new(bytes)];
    let number = stream.as_fd().as_raw_fd();
    Ok(sendmsg::<UnixAddr>(number, &bytes, &rights, flags, None)?)
}

/// Receives bytes, how many of them, and the descriptors that came along.
///
/// # Errors
/// Nothing comes in the time that the socket waits, or the kernel refuses.
pub fn receive(stream: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut buffer = [IoSliceMut::new(bytes)];
    let mut space = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let number = stream.as_fd().as_raw_fd();
    let message = recvmsg::<UnixAddr>(number, &mut buffer, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            for descriptor in descriptors {
                // SAFETY: the kernel has just made it for this process; nobody else knows of it.
                received.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
    }
    Ok((message.bytes, received))
}

/// Refuses who is neither of this process's user nor root.
///
/// # Errors
/// It is somebody else's, or can't be told.
pub fn check_peer(stream: impl AsFd) -> io::Result<()> {
    let peer = getsockopt(&stream, sockopt::PeerCredentials)?.uid();
    if peer == 0 || peer == geteuid().as_raw() {
        return Ok(());
    }
    let error = format!("user {peer} is given nothing");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, error))
}

/// The process at the other end, which listens there or has connected.
///
/// # Errors
/// The kernel refuses.
pub fn peer_process(stream: impl AsFd) -> io::Result<i32> {
    Ok(getsockopt(&stream, sockopt::PeerCredentials)?.pid())
}
