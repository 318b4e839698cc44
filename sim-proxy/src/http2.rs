//! HTTP/2 connections of users, by ALPN or, in clear text, by prior knowledge (RFC 9113, section 3.3).
//!
//! Pingora's proxy serves the streams ([`crate::gateway`]), each as one request like any other. The loop that accepts
//! them is ours and not Pingora's, for what that leaves open: a stream stays on the thread of its connection; a
//! connection that nobody uses is told so before it is closed; whoever opens streams to reset them is shut out (rapid
//! reset, CVE-2023-44487: h2 itself stops only resets that come before we have accepted the stream); and each way in
//! which a connection ends is counted. Endless CONTINUATION frames, small and empty DATA frames, and resets that we
//! owe are limited by h2, which then ends the connection with ENHANCE_YOUR_CALM.

use crate::counters::Counters;
use crate::exposition::{Kind, Page};
use crate::gateway::Gateway;
use crate::limits::Refusal;
use http::Method;
use http::header::{COOKIE, HeaderValue};
use pingora_core::apps::HttpServerApp as _;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{self, H2Accept, H2Options, HttpSession};
use pingora_core::protocols::l4::stream::Stream as PlainStream;
use pingora_core::protocols::{Digest, Stream};
use pingora_core::server::ShutdownWatch;
use pingora_error::{Error, ErrorType, OrErr as _, Result};
use pingora_http::RequestHeader;
use pingora_proxy::HttpProxy;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests at a time on one connection.
const STREAMS_MAX: u32 = 128;
/// Longest list of fields of a request, decoded, bytes: as on the fast path.
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1_024;
/// What a user may send ahead of its instance, for one request and for all of a connection, bytes.
const STREAM_WINDOW_BYTES: u32 = 256 * 1_024;
const CONNECTION_WINDOW_BYTES: u32 = 1_024 * 1_024;
/// How long a user may take to begin, and how long it may take nothing of an answer.
const USER_PATIENCE: Duration = Duration::from_secs(60);
/// How long the last words to a connection may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often a user is asked whether it is still there, and how long it may take to answer: streams may be silent for
/// hours, and of who is gone for good nothing is heard.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(20);
/// Requests that can't be read, of one connection, before it is closed.
const MALFORMED_MAX: u32 = 32;
/// Requests that the user has reset, of one connection, before it is closed if they are more than half of all.
const RESETS_MAX: u64 = 200;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preface {
    Whole,
    /// So far.
    Part,
    No,
}

/// Whether `bytes` begin with the preface of HTTP/2.
pub(crate) fn preface(bytes: &[u8]) -> Preface {
    match bytes.first_chunk::<{ PREFACE.len() }>() {
        Some(first) if first == PREFACE => Preface::Whole,
        Some(_) => Preface::No,
        None if PREFACE.starts_with(bytes) => Preface::Part,
        None => Preface::No,
    }
}

/// `stream` with `read` to be read again; `None` for one that isn't plain TCP: over TLS, HTTP/2 is agreed on by ALPN.
pub(crate) fn rewound(stream: Stream, read: &[u8]) -> Option<Stream> {
    let mut stream = stream.into_any().downcast::<PlainStream>().ok()?;
    stream.rewind(read);
    Some(stream)
}

/// Makes one field of the pieces in which HTTP/2 may send a cookie (RFC 9113, section 8.2.3): other versions know but
/// one.
pub(crate) fn join_cookies(request: &mut RequestHeader) -> Result<()> {
    let mut pieces = request.headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (pieces.next(), pieces.next()) else {
        return Ok(());
    };
    let mut whole = first.as_bytes().to_vec();
    for piece in std::iter::once(second).chain(pieces) {
        whole.extend_from_slice(b"; ");
        whole.extend_from_slice(piece.as_bytes());
    }
    let whole = HeaderValue::from_maybe_shared(bytes::Bytes::from(whole));
    let whole = whole.or_err(ErrorType::InternalError, "while joining a cookie")?;
    request.insert_header(COOKIE, whole)
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By the user, or after a stop of ours, in order.
    Closed,
    /// The user left without a word, or the network.
    Broken,
    /// It did not begin in time, or nothing was asked for too long.
    Idle,
    /// The user broke the protocol.
    Protocol,
    /// The user sent too much of what costs us more than it.
    Flood,
}

impl End {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Closed, "closed"),
        (Self::Broken, "broken"),
        (Self::Idle, "idle"),
        (Self::Protocol, "protocol_error"),
        (Self::Flood, "flood"),
    ];
}

/// Of all connections. All Relaxed: each is a fact of its own.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    begun: AtomicU64,
    ended: [AtomicU64; 5],
}

impl Counts {
    pub(crate) fn ended(&self, end: End) {
        self.ended[end as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Writes them to a page of metrics.
    pub(crate) fn export(&self, page: &mut Page) {
        // Ends first: none has ended that has not begun.
        let ends = End::ALL.map(|(end, name)| {
            let count = &self.ended[end as usize];
            (name, count.load(Ordering::Relaxed))
        });
        page.family(
            "sim_proxy_http2_connections_total",
            Kind::Counter,
            "Connections of users that speak HTTP/2.",
        )
        .sample(&[], self.begun.load(Ordering::Relaxed));
        page.family(
            "sim_proxy_http2_connections_ended_total",
            Kind::Counter,
            "Ends of such connections: closed in order, broken, idle, protocol_error (the user's), flood (of resets, frames or malformed requests).",
        );
        for (reason, count) in ends {
            page.sample(&[("reason", &reason)], count);
        }
    }
}

/// The streams of one connection.
#[derive(Debug, Default)]
struct Streams {
    open: AtomicU64,
    reset: AtomicU64,
    none: Notify,
}

tokio::task_local! {
    /// Of the connection whose stream the task serves.
    static STREAMS: Arc<Streams>;
}

/// Notes that the user has reset the stream that this task serves, if it serves one.
pub(crate) fn note_reset() {
    // Elsewhere there is no connection to note it for.
    STREAMS
        .try_with(|streams| streams.reset.fetch_add(1, Ordering::Relaxed))
        .ok();
}

impl Streams {
    fn begin(self: &Arc<Self>) -> OpenStream {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenStream(self.clone())
    }

    /// Until there has been none for as long.
    async fn none_for(&self, idle: Duration) {
        // Only the connection's own loop opens streams, and that waits here; all run on one thread.
        while self.open.load(Ordering::Relaxed) > 0 {
            self.none.notified().await;
        }
        sleep(idle).await;
    }
}

/// A stream that is being served.
struct OpenStream(Arc<Streams>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.none.notify_one();
        }
    }
}

fn options() -> H2Options {
    let mut options = H2Options::default();
    options
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    options
}

/// What every connection needs.
pub(crate) struct Http2<'a> {
    pub(crate) general: &'a Arc<HttpProxy<Gateway>>,
    pub(crate) counters: &'a Counters,
    /// How long a connection without requests is kept.
    pub(crate) idle: Duration,
    pub(crate) shutdown: &'a ShutdownWatch,
}

impl Http2<'_> {
    /// Serves a connection to its end.
    pub(crate) async fn serve(self, stream: Stream) {
        let counts = &self.counters.http2;
        counts.begun.fetch_add(1, Ordering::Relaxed);
        let end = self.streams(stream).await;
        counts.ended(end);
    }

    async fn streams(&self, stream: Stream) -> End {
        let digest = Arc::new(Digest {
            ssl_digest: stream.get_ssl_digest(),
            timing_digest: stream.get_timing_digest(),
            proxy_digest: stream.get_proxy_digest(),
            socket_digest: stream.get_socket_digest(),
        });
        let handshake = server::handshake(stream, Some(options()));
        let mut connection = match timeout(USER_PATIENCE, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return end_of(&error),
            Err(_) => return End::Idle,
        };
        let mut gone = pin!(gone(connection.ping_pong()));
        let streams = Arc::<Streams>::default();
        let mut shutdown = self.shutdown.clone();
        let (mut stopping, mut malformed, mut accepted) = (false, 0, 0_u64);
        // Once it is to end: how, and when at the latest.
        let mut farewell: Option<(End, Instant)> = None;
        loop {
            let deadline = farewell.map_or_else(Instant::now, |(_, deadline)| deadline);
            let stream = tokio::select! {
                biased;
                // An error is the end of who would say so.
                _ = shutdown.wait_for(|&stop| stop), if !stopping => {
                    stopping = true;
                    connection.graceful_shutdown();
                    continue;
                }
                stream = HttpSession::from_h2_conn(&mut connection, digest.clone()) => stream,
                () = &mut gone => return farewell.map_or(End::Broken, |(end, _)| end),
                () = streams.none_for(self.idle), if farewell.is_none() && !stopping => {
                    connection.graceful_shutdown();
                    farewell = Some((End::Idle, Instant::now() + FAREWELL));
                    continue;
                }
                () = sleep_until(deadline), if farewell.is_some() => {
                    return farewell.map_or(End::Closed, |(end, _)| end);
                }
            };
            let said = farewell.map(|(end, _)| end);
            match stream {
                Ok(None) => return said.unwrap_or(End::Closed),
                Err(error) => return said.unwrap_or_else(|| end_of(&error)),
                Ok(Some(H2Accept::Rejected)) => {
                    self.counters.arrived();
                    self.counters.refused(Refusal::Malformed);
                    malformed += 1;
                }
                Ok(Some(H2Accept::Session(session))) => {
                    accepted += 1;
                    if farewell.is_none_or(|(end, _)| end == End::Idle) {
                        self.spawn(session, &streams);
                    }
                }
            }
            let reset = streams.reset.load(Ordering::Relaxed);
            let is_flood = malformed >= MALFORMED_MAX || reset >= RESETS_MAX.max(accepted / 2);
            if is_flood && said != Some(End::Flood) {
                connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                farewell = Some((End::Flood, Instant::now() + FAREWELL));
            }
        }
    }

    fn spawn(&self, mut session: HttpSession, streams: &Arc<Streams>) {
        session.set_write_timeout(Some(USER_PATIENCE));
        if session.req_header().method == Method::CONNECT {
            // Pingora answers it before we hear of it.
            self.counters.arrived();
            self.counters.refused(Refusal::Malformed);
        }
        let (general, shutdown) = (self.general.clone(), self.shutdown.clone());
        let open = streams.begin();
        tokio::spawn(STREAMS.scope(streams.clone(), async move {
            let session = ServerSession::new_http2(session);
            // A stream serves one request: nothing is left to go on with.
            general.process_new_http(session, &shutdown).await;
            drop(open);
        }));
    }
}

/// Until the user doesn't answer.
async fn gone(pings: Option<h2::PingPong>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        sleep(PING_INTERVAL).await;
        let pong = timeout(PING_PATIENCE, pings.ping(h2::Ping::opaque()));
        if !matches!(pong.await, Ok(Ok(_))) {
            return;
        }
    }
}

/// How a connection ended by `error`.
fn end_of(error: &Error) -> End {
    let Some(error) = error.root_cause().downcast_ref::<h2::Error>() else {
        return End::Broken;
    };
    match error.reason() {
        Some(h2::Reason::ENHANCE_YOUR_CALM) if !error.is_remote() => End::Flood,
        Some(_) if !error.is_remote() => End::Protocol,
        Some(_) => End::Closed,
        None => End::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_preface_is_taken_for_one() {
        for len in 0..PREFACE.len() {
            assert_eq!(preface(&PREFACE[..len]), Preface::Part);
        }
        assert_eq!(preface(PREFACE), Preface::Whole);
        assert_eq!(preface(&[PREFACE, b"\0"].concat()), Preface::Whole);
        for other in ["PROPFIND / HTTP/1.1\r\n", "GET", "PRI * HTTP/1.1\r\n"] {
            assert_eq!(preface(other.as_bytes()), Preface::No);
        }
    }
}
