//! The general path's shared connections to instances, so that they can be shut down from outside ([`crate::drain`]).
//!
//! A connection of HTTP/2 is nobody's own: any worker's requests may be on it, and a thread of Pingora's choice closes
//! it. But Pingora lets us make it, and tells when it is about to be closed. So the descriptors of those that are open are
//! kept here, and one that is still here, while this is locked, is not yet another's.

use crate::cut::Connection;
use async_trait::async_trait;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::upstreams::peer::{Tracer, Tracing};
use pingora_error::{Error, ErrorType, Result};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::{TcpStream, UnixStream};

/// All that are open. Locked when one is made and when it ends; a request takes one that is there, and locks nothing.
#[derive(Debug, Default)]
pub(crate) struct Links(Mutex<HashSet<RawFd>>);

impl Links {
    fn open(&self) -> MutexGuard<'_, HashSet<RawFd>> {
        // It is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shuts one down, if it is still open.
    pub(crate) fn shut(&self, connection: &Connection) {
        let open = self.open();
        if open.contains(&connection.fd()) {
            connection.shut();
        }
    }
}

/// Makes connections that [`Links`] knows.
#[derive(Debug)]
pub(crate) struct Connect(pub(crate) Arc<Links>);

#[async_trait]
impl L4Connect for Connect {
    async fn connect(&self, to: &PeerAddress) -> Result<Stream> {
        let mut stream: Stream = match to {
            PeerAddress::Inet(to) => TcpStream::connect(to).await.map_err(failed)?.into(),
            PeerAddress::Unix(to) => {
                let path = to.as_pathname().unwrap_or(Path::new(""));
                UnixStream::connect(path).await.map_err(failed)?.into()
            }
        };
        let fd = stream.as_raw_fd();
        self.0.open().insert(fd);
        let links = self.0.clone();
        stream.tracer = Some(Tracer(Box::new(Link { links, fd })));
        Ok(stream)
    }
}

fn failed(error: io::Error) -> Box<Error> {
    use io::ErrorKind as K;
    let kind = match error.kind() {
        K::ConnectionRefused => ErrorType::ConnectRefused,
        K::TimedOut => ErrorType::ConnectTimedout,
        K::HostUnreachable | K::NetworkUnreachable => ErrorType::ConnectNoRoute,
        K::ConnectionReset | K::ConnectionAborted => ErrorType::ConnectError,
        // No local port or descriptor is left, or the like: that is ours.
        _ => ErrorType::InternalError,
    };
    Error::because(kind, "while connecting to an instance", error)
}

/// One that is open. Pingora says that it ends just before it closes it.
#[derive(Clone, Debug)]
struct Link {
    links: Arc<Links>,
    fd: RawFd,
}

impl Tracing for Link {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {
        self.links.open().remove(&self.fd);
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn one_that_is_open_can_be_shut_and_none_is_known_after_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = listener.local_addr().expect("bound");
        let links = Arc::<Links>::default();
        let connect = Connect(links.clone());
        let to = PeerAddress::Inet(peer);
        let here = connect.connect(&to).await.expect("connected");
        let (mut there, local) = listener.accept().await.expect("accepted");
        let fd = here.as_raw_fd();
        let connection = Connection::inet(fd, local, peer);
        links.shut(&connection);
        assert_eq!(there.read(&mut [0]).await.expect("the end"), 0);
        drop(here);
        assert!(links.open().is_empty());
        // It may be another's by now.
        links.shut(&connection);
    }

    #[tokio::test]
    async fn a_refused_connection_is_told_as_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let to = PeerAddress::Inet(listener.local_addr().expect("bound"));
        drop(listener);
        let error = Connect(Arc::default()).connect(&to).await;
        let error = error.expect_err("nobody listens");
        assert_eq!(error.etype(), &ErrorType::ConnectRefused);
    }
}
