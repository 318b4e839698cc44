//! Serves the node's metrics page. Loopback only, so whoever is on this machine may read it.

use crate::metrics::{self, Snapshot};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// A reader that sends no request by then is let go.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept, as when descriptors have run out.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Asks the agent for what a page shows.
pub(crate) type Ask = mpsc::Sender<oneshot::Sender<Snapshot>>;

/// Serves until the agent is gone.
pub(crate) async fn serve(listener: TcpListener, agent: Ask) {
    while !agent.is_closed() {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("metrics: {error}");
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, agent.clone()));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!("metrics: {error}");
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    agent: Ask,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => page(&agent).await,
        (_, "/metrics") => Err((StatusCode::METHOD_NOT_ALLOWED, "only GET\n")),
        _ => Err((StatusCode::NOT_FOUND, "only /metrics\n")),
    };
    let (status, kind, text) = match page {
        Ok(page) => (StatusCode::OK, CONTENT_TYPE, page),
        Err((status, why)) => (status, "text/plain", why.to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

async fn page(agent: &Ask) -> Result<String, (StatusCode, &'static str)> {
    const GONE: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "the node is ending\n");
    let (answer, snapshot) = oneshot::channel();
    agent.send(answer).await.map_err(|_| GONE)?;
    let snapshot = snapshot.await.map_err(|_| GONE)?;
    metrics::page(snapshot).map_err(|_| {
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            "the page can't be made\n",
        )
    })
}
