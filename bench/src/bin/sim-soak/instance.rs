//! What the proxy has behind it: an HTTP/1.1 and gRPC server by path, in a process of its own that can be killed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{copy, split};
use tokio::net::{TcpListener, TcpStream};

use crate::arrivals::Teller;

/// How HTTP/2 begins.
const PREFACE: &[u8] = b"PRI";
/// What `/` is answered with.
pub(crate) const SHORT: usize = 96;
/// A piece of an answer in pieces.
const PIECE: usize = 8 * 1_024;
/// The key of a user who asks for a WebSocket, and what it is answered with (RFC 6455's own, section 1.3).
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
pub(crate) const SLOW: Duration = Duration::from_millis(200);

/// Serves until it is killed, and tells whoever listens at `tell` what numbers came.
pub(crate) async fn serve(listen: SocketAddr, tell: SocketAddr) -> Result<()> {
    let teller = Arc::new(Teller::new(listen, tell)?);
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // Who hangs up has been served.
        let teller = teller.clone();
        tokio::spawn(async move { connection(stream, teller).await.unwrap_or_default() });
    }
}

async fn connection(stream: TcpStream, teller: Arc<Teller>) -> Result<()> {
    let mut first = [0; PREFACE.len()];
    stream.peek(&mut first).await?;
    let service = service_fn(move |request: Request<Incoming>| {
        teller.came(request.uri().path());
        answer(request)
    });
    let io = TokioIo::new(stream);
    if first == PREFACE {
        let server = http2::Builder::new(TokioExecutor::new());
        server.serve_connection(io, service).await?;
    } else {
        let server = http1::Builder::new().serve_connection(io, service);
        server.with_upgrades().await?;
    }
    Ok(())
}

type Body = BoxBody<Bytes, hyper::Error>;

fn whole(bytes: impl Into<Bytes>) -> Body {
    let never = |never: Infallible| match never {};
    Full::new(bytes.into()).map_err(never).boxed()
}

/// * `/bytes/N` so many bytes; `/pieces/N` the same in chunks;
/// * `/echo/NUMBER` the body; `/slow` after a while;
/// * `/upgrade/NUMBER` gives back what comes behind a change of protocol;
/// * a call of gRPC, whose method is its number, its message;
/// * anything else 96 bytes.
async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    if request.headers().contains_key(CONTENT_TYPE) {
        return call(request).await;
    }
    if let Some(length) = path.strip_prefix("/bytes/") {
        return Ok(Response::new(whole(vec![
            b'x';
            length.parse().unwrap_or(0)
        ])));
    }
    if let Some(length) = path.strip_prefix("/pieces/") {
        let length: usize = length.parse().unwrap_or(0);
        let pieces = (0..length.div_ceil(PIECE)).map(move |number| {
            let size = PIECE.min(length - number * PIECE);
            Ok(Frame::data(Bytes::from(vec![b'x'; size])))
        });
        let body = StreamBody::new(tokio_stream::iter(pieces));
        return Ok(Response::new(http_body_util::BodyExt::boxed(body)));
    }
    match path.rsplit_once('/').unwrap_or_default() {
        ("/echo", _) => Ok(Response::new(whole(
            request.into_body().collect().await?.to_bytes(),
        ))),
        ("/upgrade", _) => Ok(upgrade(request)),
        ("", "slow") => {
            tokio::time::sleep(SLOW).await;
            Ok(Response::new(whole(vec![b'x'; SHORT])))
        }
        _ => {
            // Who sends a body wants to get rid of it.
            request.into_body().collect().await?;
            Ok(Response::new(whole(vec![b'x'; SHORT])))
        }
    }
}

async fn call(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let message = request.into_body().collect().await?.to_bytes();
    let status = HeaderName::from_static("grpc-status");
    let trailers = HeaderMap::from_iter([(status, HeaderValue::from_static("0"))]);
    let body = whole(message).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

fn upgrade(mut request: Request<Incoming>) -> Response<Body> {
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(&mut request).await {
            let (mut from, mut to) = split(TokioIo::new(upgraded));
            // Until the user leaves, in whatever way.
            copy(&mut from, &mut to).await.unwrap_or_default();
        }
    });
    let mut response = Response::new(whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = response.headers_mut();
    fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
    fields.insert("sec-websocket-accept", HeaderValue::from_static(ACCEPT));
    response
}
