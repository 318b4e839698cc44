//! An instance: a small HTTP server that counts, and that can die. It answers in the protocol that it is asked in.

use crate::secure::Wire;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// Answers by path:
/// * `/echo` the body; `/head` the request's head; `/status/N` that status;
/// * `/bytes/N` so many bytes of [`pattern`];
/// * `/swallow` reads the body, counts it, and resets the connection;
/// * `/slow-on/NAME` answers after half a second, or 500 if that isn't the server's name;
/// * `/hang` never answers; `/slow` answers after half a second;
/// * anything else with the server's name.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) counts: Arc<Counts>,
    server: JoinHandle<()>,
    killed: Arc<Notify>,
}

#[derive(Default)]
pub(crate) struct Counts {
    requests: AtomicU64,
    swallowed: AtomicU64,
    copies: AtomicU64,
    copied_bodies: Mutex<Vec<Bytes>>,
    stalled: AtomicBool,
    connections: AtomicU64,
    handshakes: AtomicU64,
}

impl Counts {
    /// Connections accepted.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Handshakes of TLS that went well.
    pub(crate) fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Makes it take requests and answer none, or answer again.
    pub(crate) fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
    }

    /// Requests that were marked as copies.
    pub(crate) fn copies(&self) -> u64 {
        self.copies.load(Ordering::SeqCst)
    }

    /// Bodies of those for `/echo`.
    pub(crate) fn copied_bodies(&self) -> Vec<Bytes> {
        self.copied_bodies.lock().expect("no panic").clone()
    }

    pub(crate) fn swallowed(&self) -> u64 {
        self.swallowed.load(Ordering::SeqCst)
    }
}

/// For one instance alone, or a test in parallel may get the port of a killed one.
pub(crate) fn own_address() -> SocketAddr {
    static STARTED: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let own = STARTED.fetch_add(1, Ordering::SeqCst);
    ([127, high, low, own], 0).into()
}

impl Upstream {
    pub(crate) async fn start(name: &'static str) -> Self {
        Self::start_on(name, own_address()).await
    }

    pub(crate) async fn start_on(name: &'static str, address: SocketAddr) -> Self {
        Self::start_by(name, address, None).await
    }

    /// One that speaks TLS alone.
    pub(crate) async fn start_secured(name: &'static str, tls: Arc<ServerConfig>) -> Self {
        Self::start_by(name, own_address(), Some(tls.into())).await
    }

    async fn start_by(name: &'static str, address: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address)
            .await
            .expect("an address for an instance");
        let address = listener.local_addr().expect("bound");
        Self::serve_at(name, address, Listener::Tcp(listener), tls)
    }

    /// One at a Unix socket, whose file stays when it is killed.
    pub(crate) fn start_unix(
        name: &'static str,
        path: &Path,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        if path.exists() {
            std::fs::remove_file(path).expect("left by the one before");
        }
        let listener = Listener::Unix(UnixListener::bind(path).expect("a socket"));
        let none = ([0, 0, 0, 0], 0).into();
        Self::serve_at(name, none, listener, tls.map(Into::into))
    }

    fn serve_at(
        name: &'static str,
        address: SocketAddr,
        listener: Listener,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let counts = Arc::<Counts>::default();
        let (killed, at) = (Arc::<Notify>::default(), (listener, tls));
        let server = tokio::spawn(accept(at, name, counts.clone(), killed.clone()));
        Self {
            address,
            counts,
            server,
            killed,
        }
    }

    /// As by SIGKILL: the listener closes and every connection is reset at once.
    pub(crate) async fn kill(self) {
        self.killed.notify_one();
        self.server.await.expect("it serves until it is killed");
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> Wire {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await.expect("accept");
                stream.set_nodelay(true).expect("nodelay");
                stream.set_zero_linger().expect("reset on close");
                Wire::new(stream)
            }
            Self::Unix(listener) => Wire::new(listener.accept().await.expect("accept").0),
        }
    }
}

/// What comes on a connection in the clear, and whether that is HTTP/2.
async fn begun(stream: Wire) -> (impl AsyncRead + AsyncWrite + Send + Unpin, bool) {
    let (mut read, write) = tokio::io::split(stream);
    let mut first = Vec::with_capacity(3);
    while first.len() < 3 && read.read_buf(&mut first).await.is_ok_and(|count| count > 0) {}
    let is_http2 = first == b"PRI";
    let read = std::io::Cursor::new(first).chain(read);
    (tokio::io::join(read, write), is_http2)
}

async fn accept(
    (listener, tls): (Listener, Option<TlsAcceptor>),
    name: &'static str,
    counts: Arc<Counts>,
    killed: Arc<Notify>,
) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = killed.notified() => break,
        };
        counts.connections.fetch_add(1, Ordering::SeqCst);
        let (counts, tls) = (counts.clone(), tls.clone());
        connections.spawn(async move {
            let Some(tls) = tls else {
                let (stream, is_http2) = begun(stream).await;
                return serve(stream, is_http2, name, counts).await;
            };
            // One that is refused is part of the tests.
            if let Ok(stream) = tls.accept(stream).await {
                counts.handshakes.fetch_add(1, Ordering::SeqCst);
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                serve(stream, is_http2, name, counts).await;
            }
        });
    }
    drop(listener);
    // Not by dropping it: what is aborted may answer once more before it has its turn to end.
    connections.shutdown().await;
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    is_http2: bool,
    name: &'static str,
    counts: Arc<Counts>,
) {
    let service = service_fn(|request| answer(request, name, counts.clone()));
    let io = TokioIo::new(stream);
    // A reset connection is part of the tests.
    if is_http2 {
        let served = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
        served.await.unwrap_or_default();
    } else {
        // More fields than any user may send, and what the proxy adds.
        let served = http1::Builder::new()
            .max_headers(200)
            .serve_connection(io, service);
        served.await.unwrap_or_default();
    }
}

async fn answer(
    request: Request<Incoming>,
    name: &'static str,
    counts: Arc<Counts>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    counts.requests.fetch_add(1, Ordering::SeqCst);
    let is_copy = request.headers().contains_key("sim-mirror");
    counts
        .copies
        .fetch_add(u64::from(is_copy), Ordering::SeqCst);
    while counts.stalled.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let path = request.uri().path().to_owned();
    let text = |text: String| Ok(Response::new(Full::from(text)));
    match path.as_str() {
        "/echo" => {
            let body = request
                .into_body()
                .collect()
                .await
                .map_err(std::io::Error::other)?;
            let body = body.to_bytes();
            if is_copy {
                let mut bodies = counts.copied_bodies.lock().expect("no panic");
                bodies.push(body.clone());
            }
            Ok(Response::new(Full::new(body)))
        }
        "/head" => text(format!("{} {:?}", request.method(), request.headers())),
        "/swallow" => {
            request
                .into_body()
                .collect()
                .await
                .map_err(std::io::Error::other)?;
            counts.swallowed.fetch_add(1, Ordering::SeqCst);
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
        "/hang" => std::future::pending().await,
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            text(name.to_owned())
        }
        _ => {
            let mut response = Response::new(Full::from(name));
            if let Some(length) = path.strip_prefix("/bytes/") {
                *response.body_mut() = Full::new(pattern(length.parse().expect("a length")));
            }
            if let Some(slow) = path.strip_prefix("/slow-on/") {
                if slow == name {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                } else {
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                }
            }
            if let Some(status) = path.strip_prefix("/status/") {
                *response.status_mut() = status.parse().expect("a status");
            }
            Ok(response)
        }
    }
}

/// Bytes of which each place can be told.
pub(crate) fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}
