//! The same over HTTP/2: requests share connections, each with a stream of its own. For what users notice, not for
//! microseconds: it runs on tokio, whose timer counts in milliseconds.

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, TE};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use sim_tests::load::arrivals::{Arrivals, Constant};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::{Outcome, Shot, Taken};

/// A connection that isn't there by then isn't.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// What to send.
#[derive(Clone, Debug)]
pub struct SharedPlan {
    /// Whom to ask.
    pub target: SocketAddr,
    /// Requests a second.
    pub rate_hz: f64,
    /// For so long.
    pub span: Duration,
    /// The same gives the same arrivals.
    pub seed: u64,
    /// Connections, which take turns; one that is closed is opened again.
    pub connections: usize,
    /// What is asked for.
    pub path: String,
    /// The message of a call of gRPC, framed; none: a GET.
    pub call: Option<Bytes>,
    /// Who isn't answered after that has failed.
    pub patience: Duration,
    /// The core to stay on.
    pub cpu: Option<usize>,
}

impl SharedPlan {
    /// GETs of `path` for `span`, by eight connections.
    #[must_use]
    pub fn get(target: SocketAddr, path: &str, rate_hz: f64, span: Duration) -> Self {
        Self {
            target,
            rate_hz,
            span,
            seed: 1,
            connections: 8,
            path: path.to_owned(),
            call: None,
            patience: Duration::from_secs(10),
            cpu: None,
        }
    }

    /// Calls of gRPC with a message of 64 bytes, else the same.
    #[must_use]
    pub fn calling(self, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            call: Some([&[0, 0, 0, 0, 64][..], &[b'x'; 64]].concat().into()),
            ..self
        }
    }

    /// Sends it from a thread of its own.
    ///
    /// # Errors
    /// There is no thread; by it, that nobody listens.
    pub fn start(self) -> Result<JoinHandle<Result<Taken>>> {
        let run = move || {
            if let Some(cpu) = self.cpu {
                let mut set = CpuSet::new();
                set.set(cpu)?;
                sched_setaffinity(Pid::from_raw(0), &set).context("the load's core")?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build()?;
            runtime.block_on(self.run())
        };
        let thread = std::thread::Builder::new().name("open loop".to_owned());
        thread.spawn(run).context("load thread")
    }

    async fn run(self) -> Result<Taken> {
        let mut connections = Vec::new();
        for _ in 0..self.connections {
            let connection = self.connect().await;
            connections.push(connection.with_context(|| self.target.to_string())?);
        }
        let begin = Instant::now();
        let end = self.span.as_secs_f64();
        let arrivals = Arrivals::new(Constant(self.rate_hz), self.seed);
        let (mut shots, mut closed_idle, mut sent) = (JoinSet::new(), 0, 0);
        for due in arrivals.take_while(|due| *due < end) {
            let due = Duration::from_secs_f64(due);
            sleep_until((begin + due).into()).await;
            let turn = sent % connections.len();
            sent += 1;
            let connection = &mut connections[turn];
            if connection.is_closed() {
                closed_idle += 1;
                // Where nobody listens the request fails by the old one.
                if let Ok(new) = self.connect().await {
                    *connection = new;
                }
            }
            let answer = ask(connection.clone(), self.request()?);
            let patience = self.patience;
            shots.spawn(async move {
                let (outcome, instance) = match timeout(patience, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) => (Outcome::Broken, 0),
                    Err(_) => (Outcome::Late, 0),
                };
                Shot {
                    due,
                    latency: begin.elapsed().saturating_sub(due),
                    outcome,
                    instance,
                }
            });
        }
        Ok(Taken {
            begin,
            sent,
            shots: shots.join_all().await,
            closed_idle,
        })
    }

    fn request(&self) -> Result<Request<Full<Bytes>>> {
        let uri = format!("http://{}{}", self.target, self.path);
        let request = Request::builder().uri(uri);
        let request = match &self.call {
            None => request.body(Full::default()),
            Some(message) => request
                .method("POST")
                .header(CONTENT_TYPE, "application/grpc")
                .header(TE, "trailers")
                .body(Full::new(message.clone())),
        };
        request.context("a request")
    }

    async fn connect(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let stream = timeout(CONNECT_MAX, TcpStream::connect(self.target)).await??;
        stream.set_nodelay(true)?;
        let shaken = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (requests, connection) = shaken.map_err(io::Error::other)?;
        // How it ends is told to those who ask on it.
        tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(requests)
    }
}

/// How it was answered, and by which instance.
async fn ask(
    mut connection: SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(Outcome, u32)> {
    let is_call = request.headers().contains_key(CONTENT_TYPE);
    let answer: Response<Incoming> = connection.send_request(request).await?;
    let (head, body) = answer.into_parts();
    let instance = head.headers.get("x-instance");
    let instance = instance.and_then(|value| value.to_str().ok()?.parse().ok());
    let trailers = body.collect().await?.trailers().cloned();
    let said = head.headers.get("grpc-status");
    let said = said.or_else(|| trailers.as_ref()?.get("grpc-status"));
    let outcome = if is_call && said.is_none_or(|status| status != "0") {
        Outcome::Broken
    } else {
        Outcome::Status(head.status.as_u16())
    };
    Ok((outcome, instance.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::combinators::BoxBody;
    use hyper::HeaderMap;
    use hyper::server::conn::http2;
    use hyper::service::service_fn;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    async fn answer(
        call: Request<Incoming>,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
        let status = call.uri().path().trim_start_matches('/').to_owned();
        let status = status.parse().expect("a value");
        let trailers = HeaderMap::from_iter([(
            hyper::header::HeaderName::from_static("grpc-status"),
            status,
        )]);
        let body = Full::from("x").with_trailers(async move { Some(Ok(trailers)) });
        let answer = Response::builder().header("x-instance", "3");
        Ok(answer.body(body.boxed()).expect("valid"))
    }

    /// An instance, and the connections that it has had. Each is closed after so many milliseconds.
    fn serve(ms: u64) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("nonblocking");
        let connections = Arc::<AtomicUsize>::default();
        let count = connections.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listening");
                loop {
                    let (stream, _) = listener.accept().await.expect("accept");
                    count.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(async move {
                        let server = http2::Builder::new(TokioExecutor::new());
                        let served =
                            server.serve_connection(TokioIo::new(stream), service_fn(answer));
                        timeout(Duration::from_millis(ms), served)
                            .await
                            .map(drop)
                            .ok();
                    });
                }
            });
        });
        (address, connections)
    }

    fn run(plan: SharedPlan) -> Taken {
        let plan = SharedPlan {
            connections: 2,
            ..plan
        };
        let thread = plan.start().expect("a thread");
        thread.join().expect("no panic").expect("it runs")
    }

    #[test]
    fn requests_and_calls_share_connections_and_a_status_of_grpc_counts() {
        let (target, connections) = serve(60_000);
        let span = Duration::from_millis(300);
        for (path, failed) in [("/0", false), ("/14", true)] {
            let plan = SharedPlan::get(target, path, 400.0, span);
            let plain = run(plan.clone());
            assert!(plain.shots.len() > 50 && plain.failed() == 0);
            let calls = run(plan.calling(path));
            assert_eq!(calls.shots.len(), calls.sent);
            assert!(calls.shots.iter().all(|shot| shot.failed() == failed));
            assert!(calls.shots.iter().all(|shot| shot.instance == 3));
        }
        assert_eq!(connections.load(Ordering::SeqCst), 8);
    }

    #[test]
    fn a_connection_that_was_closed_is_opened_again() {
        let (target, connections) = serve(100);
        let plan = SharedPlan::get(target, "/0", 400.0, Duration::from_millis(500));
        let taken = run(plan);
        let opened = connections.load(Ordering::SeqCst);
        assert!(opened >= 6 && taken.closed_idle == opened - 2, "{opened}");
        // But for those that were under way.
        assert!(taken.failed() <= opened, "{}", taken.failed());
    }
}
