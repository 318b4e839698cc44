//! Serves the node's metrics page. Loopback only, so whoever is on this machine may read it.

use crate::metrics::{self, Snapshot};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};

/// A reader that sends no request by then is let go.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that a connection lasts, with a reader that doesn't read.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; the next ones wait.
const CONNECTIONS_MAX: usize = 4;
/// A page younger than this is given again: however often it is asked for, the agent has its own work.
const PAGE_AGE_MAX: Duration = Duration::from_secs(1);
/// Pause after a failed accept, as when descriptors have run out.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause before an address that is taken is tried again.
const BIND_PAUSE: Duration = Duration::from_secs(10);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Asks the agent for what a page shows.
pub(crate) type Ask = mpsc::Sender<oneshot::Sender<Snapshot>>;

/// The last page, and when it was made.
type Last = Arc<Mutex<Option<(Instant, Bytes)>>>;

/// Serves until the agent is gone. An address that is taken is tried again and again: a node without a
/// metrics page is worth more than none.
pub(crate) async fn serve(address: SocketAddr, agent: Ask) {
    let mut complained = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if complained => tracing::debug!("metrics at {address}: {error}"),
            Err(error) => tracing::warn!(
                "metrics are not served at {address} ({error}); it is tried again each {} s",
                BIND_PAUSE.as_secs()
            ),
        }
        complained = true;
        tokio::select! {
            () = tokio::time::sleep(BIND_PAUSE) => {}
            () = agent.closed() => return,
        }
    };
    if complained {
        tracing::info!("metrics are served at {address}");
    }
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let last = Last::default();
    loop {
        // Never closed, so there is always a place in the end.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = agent.closed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("metrics: {error}");
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        let (agent, last) = (agent.clone(), Arc::clone(&last));
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, agent.clone(), Arc::clone(&last)));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("metrics: {error}"),
                Err(_) => tracing::debug!("metrics: a reader takes too long"),
            }
            drop(place);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    agent: Ask,
    last: Last,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => page(&agent, &last).await,
        (_, "/metrics") => Err((StatusCode::METHOD_NOT_ALLOWED, "only GET\n")),
        _ => Err((StatusCode::NOT_FOUND, "only /metrics\n")),
    };
    let (status, kind, text) = match page {
        Ok(page) => (StatusCode::OK, CONTENT_TYPE, page),
        Err((status, why)) => (status, "text/plain", Bytes::from(why)),
    };
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

async fn page(agent: &Ask, last: &Last) -> Result<Bytes, (StatusCode, &'static str)> {
    const GONE: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "the node is ending\n");
    // Held while a page is made: who comes meanwhile gets the same.
    let mut last = last.lock().await;
    if let Some((made, page)) = &*last
        && made.elapsed() < PAGE_AGE_MAX
    {
        return Ok(page.clone());
    }
    let (answer, snapshot) = oneshot::channel();
    agent.send(answer).await.map_err(|_| GONE)?;
    let snapshot = snapshot.await.map_err(|_| GONE)?;
    let page = metrics::page(snapshot).map_err(|_| {
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            "the page can't be made\n",
        )
    })?;
    let page = Bytes::from(page);
    *last = Some((Instant::now(), page.clone()));
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_taken_is_served_once_it_is_free() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = taken.local_addr().expect("address");
        let (ask, mut questions) = mpsc::channel::<oneshot::Sender<Snapshot>>(1);
        let serving = tokio::spawn(serve(address, ask));
        tokio::time::sleep(BIND_PAUSE / 2).await;
        drop(taken);
        tokio::time::sleep(BIND_PAUSE).await;
        let mut stream = TcpStream::connect(address).await.expect("served");
        let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
        stream.write_all(request).await.expect("asked");
        let question = questions.recv().await.expect("a question");
        question.send(Snapshot::default()).expect("awaited");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
        drop(questions);
        serving.await.expect("it ends with the agent");
    }
}
