//! How a request of the general path leaves an instance that it waits for.
//!
//! Pingora's proxy asks one instance at a time and can't be told to ask another. But it asks anew where a connection
//! breaks before the answer has begun, if [`crate::gateway`] says so. So whoever looks for the waiting
//! ([`crate::waiting`]) shuts the connection down, and leaves word why. A time-out of Pingora's would not do: the one
//! between two reads holds for the body too, and would cut long downloads.
//!
//! The file descriptor is Pingora's, and may be another's once its request is over. It is used by the thread alone that
//! also closes it, while the seat of the request is taken, and only if both ends of the connection are those of then.

use crate::counters::RetryReason;
use crate::dispatch::Dispatch;
use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, Shutdown, SockaddrStorage, UnixAddr, getpeername, getsockname, recv, shutdown,
};
use pingora_core::protocols::Digest;
use sim_core::address::Address;
use sim_core::name::InstanceId;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

/// A connection on which nothing of an answer has come.
#[derive(Debug)]
pub(crate) struct Cut {
    dispatch: Arc<Dispatch>,
    instance: InstanceId,
    connection: Connection,
    /// Attempts made for the request.
    tries: u8,
    /// For this reason it may not.
    refused: Option<RetryReason>,
    left: Option<RetryReason>,
}

/// Which one.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    fd: RawFd,
    ends: Ends,
}

/// What tells a connection from others.
#[derive(Clone, Debug)]
enum Ends {
    Inet {
        local: SocketAddr,
        peer: SocketAddr,
    },
    /// Of a Unix socket one end has no name, and the other the same for all. What else there is to tell them by costs a
    /// system call for each request. It is enough beside what holds of all: that the descriptor is used while its
    /// request has not ended, by the thread that closes it.
    Unix {
        path: Arc<str>,
    },
}

impl Connection {
    /// One of Pingora's to an instance at `address`, by what it tells of it.
    pub(crate) fn of(fd: RawFd, address: &Address, digest: Option<&Digest>) -> Option<Self> {
        let socket = digest?.socket_digest.as_ref()?;
        let ends = match address {
            Address::Inet(_) => Ends::Inet {
                local: *socket.local_addr()?.as_inet()?,
                peer: *socket.peer_addr()?.as_inet()?,
            },
            Address::Unix(path) => Ends::Unix { path: path.clone() },
        };
        Some(Self { fd, ends })
    }

    /// One over TCP.
    #[cfg(test)]
    pub(crate) fn inet(fd: RawFd, local: SocketAddr, peer: SocketAddr) -> Self {
        let ends = Ends::Inet { local, peer };
        Self { fd, ends }
    }

    /// Its descriptor.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    /// The descriptor is still this connection's.
    fn is_same(&self) -> bool {
        let is = |found: nix::Result<SockaddrStorage>, known: SocketAddr| {
            found.is_ok_and(|found| found == SockaddrStorage::from(known))
        };
        match &self.ends {
            Ends::Inet { local, peer } => {
                is(getsockname(self.fd), *local) && is(getpeername(self.fd), *peer)
            }
            Ends::Unix { path } => {
                let found = getpeername::<UnixAddr>(self.fd).ok();
                found.is_some_and(|found| found.path() == Some(Path::new(&**path)))
            }
        }
    }

    /// The same, and nothing has come on it.
    fn is_silent(&self) -> bool {
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        self.is_same() && recv(self.fd, &mut [0], peek) == Err(Errno::EAGAIN)
    }

    /// Shuts it down, if it is still there.
    pub(crate) fn shut(&self) {
        if self.is_same() {
            // It fails where the instance has just broken the connection: then the request hears of that.
            shutdown(self.fd, Shutdown::Both).ok();
        }
    }
}

impl Cut {
    pub(crate) fn new(
        dispatch: &Arc<Dispatch>,
        instance: InstanceId,
        connection: Connection,
        tries: u8,
    ) -> Self {
        Self {
            dispatch: dispatch.clone(),
            instance,
            connection,
            tries,
            refused: None,
            left: None,
        }
    }

    /// Why it was cut.
    pub(crate) fn left(&self) -> Option<RetryReason> {
        self.left
    }

    /// Cuts it, if the request has anywhere else to go and may.
    pub(crate) fn leave(&mut self, reason: RetryReason) {
        if self.left.is_some() || self.refused == Some(reason) {
            return;
        }
        if !self.dispatch.routes.has_other(self.instance) || !self.connection.is_silent() {
            return;
        }
        if !self.dispatch.may_retry(self.tries, reason) {
            self.refused = Some(reason);
            return;
        }
        self.left = Some(reason);
        // It fails where the instance has just broken the connection: then the request hears of that.
        shutdown(self.connection.fd, Shutdown::Both).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_core::protocols::SocketDigest;
    use std::os::fd::AsRawFd as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

    #[tokio::test]
    async fn only_the_connection_of_then_is_shut() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = listener.local_addr().expect("bound");
        let here = TcpStream::connect(peer).await.expect("connected");
        let (mut there, _) = listener.accept().await.expect("accepted");
        let other = TcpStream::connect(peer).await.expect("connected");
        let mut connection = Connection {
            fd: other.as_raw_fd(),
            ends: Ends::Inet {
                local: here.local_addr().expect("bound"),
                peer,
            },
        };
        connection.shut();
        there.write_all(b"H").await.expect("sent");
        here.readable().await.expect("open");
        assert_eq!(here.try_read(&mut [0]).expect("a byte"), 1);
        connection.fd = here.as_raw_fd();
        connection.shut();
        assert_eq!(there.read(&mut [0]).await.expect("the end"), 0);
        drop(other);
    }

    #[tokio::test]
    async fn only_the_connection_of_then_is_silent_and_only_until_something_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = listener.local_addr().expect("bound");
        let here = TcpStream::connect(peer).await.expect("connected");
        let (mut there, _) = listener.accept().await.expect("accepted");
        let connection = Connection {
            fd: here.as_raw_fd(),
            ends: Ends::Inet {
                local: here.local_addr().expect("bound"),
                peer,
            },
        };
        assert!(connection.is_silent());
        let other = TcpStream::connect(peer).await.expect("connected");
        let fd = other.as_raw_fd();
        let ends = connection.ends.clone();
        assert!(!Connection { fd, ends }.is_silent());
        there.write_all(b"H").await.expect("sent");
        here.readable().await.expect("open");
        assert!(!connection.is_silent());
    }

    #[tokio::test]
    async fn so_it_is_with_a_unix_socket() {
        let directory = tempfile::tempdir().expect("a directory");
        let [path, elsewhere] = ["a.sock", "b.sock"].map(|name| directory.path().join(name));
        let listener = UnixListener::bind(&path).expect("a socket");
        let _elsewhere = UnixListener::bind(&elsewhere).expect("a socket");
        let here = UnixStream::connect(&path).await.expect("connected");
        let (mut there, _) = listener.accept().await.expect("accepted");
        let digest = Digest {
            socket_digest: Some(Arc::new(SocketDigest::from_raw_fd(here.as_raw_fd()))),
            ..Digest::default()
        };
        let address = Address::unix(path.to_str().expect("text")).expect("valid");
        let connection = Connection::of(here.as_raw_fd(), &address, Some(&digest)).expect("known");
        assert!(connection.is_silent());
        let other = UnixStream::connect(&elsewhere).await.expect("connected");
        let (fd, ends) = (other.as_raw_fd(), connection.ends.clone());
        assert!(!Connection { fd, ends }.is_silent());
        there.write_all(b"H").await.expect("sent");
        here.readable().await.expect("open");
        assert!(!connection.is_silent());
    }
}
