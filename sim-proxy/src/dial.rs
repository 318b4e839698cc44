//! Connections to instances that are ours: those of the fast path, of active checks and of mirrors. (On the general path
//! Pingora connects, by the same rules.)

use crate::tls::instances::{Alpn, InstanceTls, is_refusal};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use sim_core::address::Address;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A connection to an instance.
#[derive(Debug)]
pub(crate) enum Link {
    /// In the clear.
    Plain(Socket),
    /// Over TLS; boxed, so that what is common is no larger for it.
    Secured(Box<Secured>),
}

/// A connection as the kernel has it.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection after its handshake.
#[derive(Debug)]
pub(crate) struct Secured {
    stream: TlsStream<Socket>,
    /// See [`crate::tls::instances::Material`].
    material: u64,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoLink {
    /// Nobody listens there, or nobody can be reached.
    #[error("{0}")]
    Connect(io::Error),
    /// TLS isn't agreed on: the certificate isn't good, or it was none.
    #[error("TLS: {0}")]
    Tls(io::Error),
}

/// Connects to an instance, over TLS if its workload says how, to speak `alpn` there.
pub(crate) async fn dial(
    address: &Address,
    tls: Option<&InstanceTls>,
    alpn: Alpn,
) -> Result<Link, NoLink> {
    let connected = match address {
        Address::Inet(address) => TcpStream::connect(address).await.map(|stream| {
            // Without it the end of what is sent may wait for an acknowledgement; it goes out all the same.
            stream.set_nodelay(true).ok();
            Socket::Tcp(stream)
        }),
        // A queue that is full is told at once: there is nothing to wait for.
        Address::Unix(path) => UnixStream::connect(&**path).await.map(Socket::Unix),
    };
    let socket = connected.map_err(NoLink::Connect)?;
    match tls {
        None => Ok(Link::Plain(socket)),
        // Boxed: what is in the clear needs no room for it.
        Some(tls) => Box::pin(shake_hands(socket, tls, alpn)).await,
    }
}

async fn shake_hands(socket: Socket, tls: &InstanceTls, alpn: Alpn) -> Result<Link, NoLink> {
    let (config, name, material) = {
        let material = tls.material();
        (material.config(alpn), material.name.clone(), material.id)
    };
    let stream = TlsConnector::from(config).connect(name, socket).await;
    let stream = stream.map_err(NoLink::Tls)?;
    let agreed = stream.get_ref().1.alpn_protocol();
    // Who knows no ALPN speaks HTTP/1.1 (RFC 9113, section 3.2).
    if agreed.is_none() && alpn == Alpn::Http2 || agreed.is_some_and(|name| name != alpn.name()) {
        let error = io::Error::other("it doesn't speak HTTP/2");
        return Err(NoLink::Tls(error));
    }
    Ok(Link::Secured(Box::new(Secured { stream, material })))
}

/// True where failing to connect to `address` is the instance's failure. Running out of local ports or file descriptors
/// is not, and must not eject every instance in turn.
pub(crate) fn is_instance_at_fault(error: &io::Error, address: &Address) -> bool {
    use io::ErrorKind as K;
    let refused = matches!(
        error.kind(),
        K::ConnectionRefused
            | K::ConnectionReset
            | K::ConnectionAborted
            | K::TimedOut
            | K::HostUnreachable
            | K::NetworkUnreachable
    );
    // There is no socket, it is another's, or its queue is full (unix(7)).
    let is_unix = matches!(address, Address::Unix(_));
    let absent = matches!(
        error.kind(),
        K::NotFound | K::NotADirectory | K::PermissionDenied | K::WouldBlock
    );
    refused || is_unix && absent
}

impl Link {
    /// By which material it is secured; 0: it is in the clear.
    pub(crate) fn material(&self) -> u64 {
        match self {
            Self::Plain(_) => 0,
            Self::Secured(secured) => secured.material,
        }
    }

    /// Whether there is nothing to read: else the instance has closed it, or sent what nobody asked for. Without `ask`
    /// by what this worker was told, without a system call unless there is something.
    pub(crate) fn is_quiet(&mut self, ask: bool) -> bool {
        match self {
            Self::Plain(socket) if ask => socket.is_silent(),
            Self::Plain(socket) => {
                let read = socket.try_read(&mut [0]);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            // What has come may be TLS's own, tickets for instance, which this takes.
            Self::Secured(secured) => {
                let mut byte = [0];
                let mut buffer = ReadBuf::new(&mut byte);
                let mut context = Context::from_waker(Waker::noop());
                let read = Pin::new(&mut secured.stream).poll_read(&mut context, &mut buffer);
                read.is_pending() && (!ask || secured.stream.get_ref().0.is_silent())
            }
        }
    }

    /// Whether the instance has broken it off since it takes no certificate of ours.
    pub(crate) fn is_refused(&mut self) -> bool {
        match self {
            Self::Plain(_) => false,
            // It says again what reading ended in.
            Self::Secured(secured) => {
                let told = secured.stream.get_mut().1.process_new_packets();
                told.is_err_and(|error| is_refusal(&error))
            }
        }
    }
}

impl Socket {
    fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(bytes),
            Self::Unix(stream) => stream.try_read(bytes),
        }
    }

    /// Whether nothing has come, says the kernel.
    fn is_silent(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(stream) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

#[cfg(test)]
impl From<TcpStream> for Link {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(Socket::Tcp(stream))
    }
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is kept back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl AsyncRead for Link {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Self::Secured(secured) => Pin::new(&mut secured.stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Link {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Secured(secured) => Pin::new(&mut secured.stream).poll_write(context, bytes),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(context),
            Self::Secured(secured) => Pin::new(&mut secured.stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Secured(secured) => Pin::new(&mut secured.stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_common_is_hardly_larger_for_what_is_not() {
        let plain = size_of::<TcpStream>();
        assert!(size_of::<Link>() <= plain + size_of::<usize>());
        let address = Address::from(([127, 0, 0, 1], 80));
        let to = std::net::SocketAddr::from(([127, 0, 0, 1], 80));
        let ours = size_of_val(&dial(&address, None, Alpn::Http1));
        let theirs = size_of_val(&TcpStream::connect(to));
        assert!(ours <= theirs + 64, "{ours} for {theirs} bytes");
    }
}
