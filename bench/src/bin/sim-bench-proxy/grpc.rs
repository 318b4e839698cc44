//! A gRPC instance: over HTTP/2 it answers every call with the message it was sent and a status in trailers, over
//! HTTP/1.1 (as a readiness probe asks) every request with 200.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::LazyLock;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

/// How HTTP/2 begins.
const PREFACE: &[u8] = b"PRI";

/// Serves until it is killed.
pub(crate) fn serve(listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // Who hangs up has been served.
            tokio::spawn(async move { connection(stream).await.unwrap_or_default() });
        }
    })
}

async fn connection(stream: TcpStream) -> Result<()> {
    let mut first = [0; PREFACE.len()];
    stream.peek(&mut first).await?;
    let service = service_fn(answer);
    if first == PREFACE {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server
            .serve_connection(TokioIo::new(stream), service)
            .await?;
    } else {
        let server = hyper::server::conn::http1::Builder::new();
        server
            .serve_connection(TokioIo::new(stream), service)
            .await?;
    }
    Ok(())
}

/// Which instance it is, if it has been told.
fn number() -> Option<HeaderValue> {
    static NUMBER: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
        let number = std::env::var("SIM_INSTANCE").ok()?;
        HeaderValue::try_from(number).ok()
    });
    NUMBER.clone()
}

type Body = BoxBody<Bytes, hyper::Error>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let is_call = request.headers().contains_key(CONTENT_TYPE);
    let message = request.into_body().collect().await?.to_bytes();
    let body = Full::new(message).map_err(|never: Infallible| match never {});
    if !is_call {
        return Ok(Response::new(body.boxed()));
    }
    let status = HeaderName::from_static("grpc-status");
    let trailers = HeaderMap::from_iter([(status, HeaderValue::from_static("0"))]);
    let body = body.with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    if let Some(number) = number() {
        response.headers_mut().insert("x-instance", number);
    }
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}
