//! Users who want an answer, each kind at a rate of its own, whatever becomes of the requests before.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use bench::open_loop::{Plan, Taken};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::instance::{KEY, SHORT};
use crate::tally::{Asked, May, Tally};
use crate::world::{CALLS, NAME, RPC, Users, WEB};

/// Whoever has no answer by then has none.
const PATIENCE: Duration = Duration::from_secs(30);
const LARGE: usize = 1_024 * 1_024;

type Asking = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Users of one kind.
pub(crate) struct Kind {
    name: &'static str,
    may: May,
    rate_hz: f64,
    /// Of a number that no other request has.
    ask: Box<dyn Fn(u64) -> Asking + Send + Sync>,
}

impl Kind {
    pub(crate) fn new<F>(
        name: &'static str,
        may: May,
        rate_hz: f64,
        ask: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        Self::numbered(name, may, rate_hz, move |_| ask())
    }

    /// Whose instances say which of them came.
    fn numbered<F>(
        name: &'static str,
        may: May,
        rate_hz: f64,
        ask: impl Fn(u64) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        Self {
            name,
            may,
            rate_hz,
            ask: Box::new(move |number| Box::pin(ask(number))),
        }
    }

    /// Asks once, and notes what came of it.
    fn ask(&self, tally: &Arc<Tally>) -> impl Future<Output = ()> + Send + use<> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (ask, tally) = ((self.ask)(number), tally.clone());
        let (name, may) = (self.name, self.may);
        async move {
            let begun = Instant::now();
            let result = timeout(PATIENCE, ask).await;
            let result = result.unwrap_or_else(|_| Err(anyhow!("no end after {PATIENCE:?}")));
            let asked = Asked {
                name,
                may,
                number: Some(number),
                begun,
                ended: Instant::now(),
            };
            tally.note(asked, result.map_err(|error| format!("{error:#}")));
        }
    }

    /// At its rate, for so long.
    pub(crate) async fn keep_asking(self, tally: Arc<Tally>, span: Duration) {
        let end = Instant::now() + span;
        let mut tick = interval(Duration::from_secs_f64(1.0 / self.rate_hz));
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut asked = JoinSet::new();
        while Instant::now() < end {
            tick.tick().await;
            asked.spawn(self.ask(&tally));
            while asked.try_join_next().is_some() {}
        }
        asked.join_all().await;
    }
}

/// One of each, one after the other.
pub(crate) async fn once(kinds: Vec<Kind>, tally: &Arc<Tally>) {
    for kind in kinds {
        kind.ask(tally).await;
    }
}

/// A plan that is under way.
pub(crate) struct Load {
    name: &'static str,
    may: May,
    taken: JoinHandle<Result<Taken>>,
}

/// HTTP/1.1 in the clear, by the open loop of the benchmarks.
pub(crate) fn plans(users: &Users, span: Duration) -> Result<Vec<Load>> {
    let get = |path: &str, rate_hz| Plan {
        warm: Duration::ZERO,
        connections: 8,
        connections_max: 64,
        patience: PATIENCE,
        ..Plan::get(users.clear, path, rate_hz, span)
    };
    let close = b"GET / HTTP/1.1\r\nHost: soak.example\r\nConnection: close\r\n\r\n";
    let large = format!("/bytes/{LARGE}");
    let pieces = format!("/pieces/{LARGE}");
    let loads = [
        ("GET", May::Never, get("/", 100.0)),
        ("GET, slow instance", May::Never, get("/slow", 5.0)),
        (
            "GET, new connection",
            May::Never,
            Plan {
                request: close.to_vec(),
                connections: 1,
                ..get("/", 15.0)
            },
        ),
        (
            "POST in chunks",
            May::WhenKilled(WEB),
            get("/", 20.0).post_chunked("/"),
        ),
        ("GET of 1 MiB", May::WhenKilled(WEB), get(&large, 2.0)),
        (
            "GET of 1 MiB in chunks",
            May::WhenKilled(WEB),
            get(&pieces, 2.0),
        ),
    ];
    let loads = loads.into_iter().map(|(name, may, plan)| {
        let taken = plan.start()?;
        Ok(Load { name, may, taken })
    });
    loads.collect()
}

impl Load {
    /// Waits for its end.
    pub(crate) async fn note(self, tally: &Tally) -> Result<()> {
        let taken = tokio::task::spawn_blocking(|| self.taken.join());
        let taken = taken
            .await?
            .map_err(|_| anyhow!("{} panicked", self.name))??;
        for shot in taken.shots {
            let begun = taken.begin + shot.due;
            let result = if shot.failed() {
                Err(format!("{:?}", shot.outcome))
            } else {
                Ok(())
            };
            let asked = Asked {
                name: self.name,
                may: self.may,
                number: None,
                begun,
                ended: begun + shot.latency,
            };
            tally.note(asked, result);
        }
        Ok(())
    }
}

/// HTTP/2, TLS, gRPC and WebSocket.
pub(crate) fn kinds(users: &Users) -> Vec<Kind> {
    let clear = Arc::new(Fleet::new(users, Way::Clear));
    let secure = Arc::new(Fleet::new(users, Way::Secure));
    let calls = Arc::new(Fleet::new(users, Way::Clear));
    let posts = Arc::new(Fleet::new(users, Way::Secure));
    let kept = Arc::<Mutex<Vec<http1::SendRequest<Full<Bytes>>>>>::default();
    let (over_tls, new_over_tls, upgrading) = (users.clone(), users.clone(), users.clone());
    vec![
        Kind::new("GET, HTTP/2", May::Never, 40.0, move || {
            ask_for(clear.clone(), "/", SHORT)
        }),
        Kind::new("GET, HTTP/2 over TLS", May::Never, 40.0, move || {
            ask_for(secure.clone(), "/", SHORT)
        }),
        Kind::numbered(
            "call of gRPC",
            May::WhenKilled(CALLS),
            30.0,
            move |number| call(calls.clone(), number),
        ),
        Kind::numbered(
            "POST of 256 KiB, HTTP/2 over TLS",
            May::WhenKilled(WEB),
            2.0,
            move |number| post(posts.clone(), 256 * 1_024, number),
        ),
        Kind::new("GET over TLS", May::Never, 20.0, move || {
            get_over_tls(over_tls.clone(), Some(kept.clone()))
        }),
        Kind::new("GET over TLS, new connection", May::Never, 4.0, move || {
            get_over_tls(new_over_tls.clone(), None)
        }),
        Kind::numbered("WebSocket", May::WhenKilled(WEB), 2.0, move |number| {
            upgrade(upgrading.clone(), number)
        }),
    ]
}

pub(crate) async fn dial(users: &Users, alpn: &[u8]) -> Result<TlsStream<TcpStream>> {
    let mut config = (*users.tls).clone();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(users.secure).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(Arc::new(config));
    Ok(connector
        .connect(ServerName::try_from(NAME)?, stream)
        .await?)
}

pub(crate) enum Way {
    Clear,
    Secure,
}

pub(crate) type Sender = http2::SendRequest<Full<Bytes>>;

/// Connections of HTTP/2 that take turns.
pub(crate) struct Fleet {
    users: Users,
    way: Way,
    turn: AtomicUsize,
    slots: [Mutex<Option<Sender>>; 2],
}

impl Fleet {
    pub(crate) fn new(users: &Users, way: Way) -> Self {
        Self {
            users: users.clone(),
            way,
            turn: AtomicUsize::new(0),
            slots: Default::default(),
        }
    }

    /// One that takes a request.
    pub(crate) async fn sender(&self) -> Result<Sender> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        let mut slot = self.slots[turn].lock().await;
        if let Some(sender) = &mut *slot
            && sender.ready().await.is_ok()
        {
            return Ok(sender.clone());
        }
        let mut sender = match self.way {
            Way::Clear => {
                let stream = TcpStream::connect(self.users.clear).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                // Whoever sends on it hears of its end.
                tokio::spawn(async move { connection.await.unwrap_or_default() });
                sender
            }
            Way::Secure => {
                let stream = dial(&self.users, b"h2").await?;
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                tokio::spawn(async move { connection.await.unwrap_or_default() });
                sender
            }
        };
        sender.ready().await?;
        *slot = Some(sender.clone());
        Ok(sender)
    }
}

pub(crate) fn request(method: Method, host: &str, path: &str) -> Result<http::request::Builder> {
    let uri: Uri = format!("http://{host}{path}").parse()?;
    Ok(Request::builder().method(method).uri(uri))
}

async fn ask_for(fleet: Arc<Fleet>, path: &'static str, length: usize) -> Result<()> {
    let request = request(Method::GET, NAME, path)?.body(Full::default())?;
    let answer = fleet.sender().await?.send_request(request).await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(body.len() == length, "{} bytes", body.len());
    Ok(())
}

async fn post(fleet: Arc<Fleet>, length: usize, number: u64) -> Result<()> {
    let body = Full::from(vec![b'y'; length]);
    let request = request(Method::POST, NAME, &format!("/echo/{number}"))?.body(body)?;
    let answer = fleet.sender().await?.send_request(request).await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(body.len() == length, "{} bytes", body.len());
    Ok(())
}

async fn call(fleet: Arc<Fleet>, number: u64) -> Result<()> {
    let request = request(Method::POST, RPC, &format!("/soak.Echo/{number}"))?
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::from(&b"\0\0\0\0\x05hello"[..]))?;
    let answer = fleet.sender().await?.send_request(request).await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    // What has no message says it at once.
    let mut said = answer.headers().clone();
    let body = answer.into_body().collect().await?;
    said.extend(body.trailers().cloned().unwrap_or_default());
    let status = said.get("grpc-status").context("no status")?;
    let text = said.get("grpc-message");
    ensure!(status == "0", "status {status:?}, message {text:?}");
    Ok(())
}

type Kept = Arc<Mutex<Vec<http1::SendRequest<Full<Bytes>>>>>;

/// On a connection that is kept, or on one of its own.
async fn get_over_tls(users: Users, kept: Option<Kept>) -> Result<()> {
    let idle = match &kept {
        Some(kept) => kept.lock().await.pop(),
        None => None,
    };
    let mut sender = match idle.filter(http1::SendRequest::is_ready) {
        Some(sender) => sender,
        None => {
            let stream = dial(&users, b"http/1.1").await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(async move { connection.await.unwrap_or_default() });
            sender
        }
    };
    let request = Request::get("/").header("host", NAME);
    let answer = sender.send_request(request.body(Full::default())?).await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(body.len() == SHORT, "{} bytes", body.len());
    if let Some(kept) = kept
        && sender.ready().await.is_ok()
    {
        kept.lock().await.push(sender);
    }
    Ok(())
}

/// What passes once the protocol has changed is the two ends' own affair.
async fn upgrade(users: Users, number: u64) -> Result<()> {
    let mut stream = TcpStream::connect(users.clear).await?;
    let request = format!(
        "GET /upgrade/{number} HTTP/1.1\r\nHost: {NAME}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("no whole head")?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101 "), "{head:?}");
    for number in 0..10 {
        stream.write_all(&[number; 100]).await?;
        let mut echo = [0; 100];
        stream.read_exact(&mut echo).await.context("no echo")?;
        ensure!(echo == [number; 100], "another echo");
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
