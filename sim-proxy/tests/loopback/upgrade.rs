//! One proxy takes over from another under load: nobody's request fails, and no connection is refused.

use crate::control::{Control, applied};
use crate::process::{HANDOVER, ProxyProcess, STREAM_GRACE_MS, TAKE_OVER, TLS, UPGRADE_DRAIN_MS};
use crate::secure::{Authority, Connector, NAME, clear, over_tls};
use crate::upstream::Upstream;
use crate::websocket::{Begins, Echo, echoes, open_on};
use crate::world::{pair, table};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sim_core::table::Version;
use sim_life::descriptors;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_stream::StreamExt as _;
use tokio_tungstenite::tungstenite::protocol::Message;

/// Proxies that follow one another at the same addresses.
struct Line {
    socket: PathBuf,
    handover: PathBuf,
    _directory: TempDir,
    present: ProxyProcess,
    /// Of those that follow.
    settings: Vec<(&'static str, String)>,
}

impl Line {
    async fn start() -> (Self, Control, [Upstream; 2]) {
        Self::start_with(&[]).await
    }

    /// The first of them with `settings`.
    async fn start_with(settings: &[(&str, &str)]) -> (Self, Control, [Upstream; 2]) {
        let directory = TempDir::new().expect("a directory");
        let socket = directory.path().join("control.sock");
        let handover = directory.path().join("proxy.sock");
        let mut control = Control::start(&socket);
        let path = handover.display().to_string();
        let settings = [&[(HANDOVER, path.as_str())], settings].concat();
        let present = ProxyProcess::start(&socket, &settings);
        let ups = [Upstream::start("i1").await, Upstream::start("i2").await];
        control.publish(&pair(1, &ups, 5_000)).await;
        let line = Self {
            socket,
            handover,
            _directory: directory,
            present,
            settings: Vec::new(),
        };
        line.wait_until_it_can_be_relieved().await;
        (line, control, ups)
    }

    fn users(&self) -> SocketAddr {
        self.present.addresses[1].expect("in the clear")
    }

    /// Starts a successor and waits until it is alone; who was there before.
    async fn upgrade(&mut self) -> ProxyProcess {
        let (socket, handover) = (self.socket.clone(), self.handover.display().to_string());
        let own = [(HANDOVER, handover), (TAKE_OVER, self.present.told.clone())];
        let settings = [own.as_slice(), self.settings.as_slice()].concat();
        let started = tokio::task::spawn_blocking(move || {
            let settings: Vec<_> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
            ProxyProcess::start(&socket, &settings)
        });
        let successor = started.await.expect("it takes over");
        assert_eq!(successor.addresses, self.present.addresses);
        let predecessor = std::mem::replace(&mut self.present, successor);
        self.wait_until_it_can_be_relieved().await;
        predecessor
    }

    async fn wait_until_it_can_be_relieved(&self) {
        for _ in 0..3_000 {
            let there = UnixStream::connect(&self.handover).and_then(descriptors::peer_process);
            if there.is_ok_and(|pid| pid == self.present.pid()) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("the proxy does not wait for a successor");
    }
}

async fn ended(process: ProxyProcess) {
    let ended = tokio::task::spawn_blocking(move || process.wait());
    assert!(ended.await.expect("no panic").success());
}

/// What users saw.
#[derive(Default)]
struct Seen {
    answered: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

impl Seen {
    fn note(&self, result: Result<StatusCode, String>) {
        match result {
            Ok(StatusCode::OK) => self.answered.fetch_add(1, Ordering::SeqCst),
            other => {
                tell(&format!("{other:?}"));
                self.failed.fetch_add(1, Ordering::SeqCst)
            }
        };
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    async fn wait_for_more(&self, more: u64) {
        let until = self.answered.load(Ordering::SeqCst) + more;
        while self.answered.load(Ordering::SeqCst) < until {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Captured by the test harness; shown where the test fails.
fn tell(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").expect("written");
}

/// Requests at a fixed rate, whether the ones before are answered or not: idle connections are used again, one in four
/// has a body in pieces, and some take long. No request is sent twice.
async fn send_at_a_rate(by: Connector, to: SocketAddr, seen: Arc<Seen>) {
    let client = Client::builder(TokioExecutor::new())
        .retry_canceled_requests(false)
        .build(by);
    let mut tick = interval(Duration::from_millis(4));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut sent = JoinSet::new();
    let mut number = 0_u64;
    while !seen.is_over() {
        tick.tick().await;
        number += 1;
        let (client, seen) = (client.clone(), seen.clone());
        sent.spawn(async move {
            let body = number.is_multiple_of(4);
            let path = match number % 64 {
                1 => "/slow",
                _ if body => "/echo",
                _ => "/",
            };
            let (pieces, stream) = tokio::sync::mpsc::channel(1);
            let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
            let request = Request::builder()
                .uri(format!("http://{to}{path}"))
                .method(if body { Method::POST } else { Method::GET });
            let request = request.body(StreamBody::new(stream)).expect("a request");
            let sending = async move {
                for piece in ["abc", "def"].iter().filter(|_| body) {
                    let frame = Frame::data(Bytes::from_static(piece.as_bytes()));
                    // Who doesn't read it any more says so below.
                    pieces.send(Ok::<_, std::io::Error>(frame)).await.ok();
                    sleep(Duration::from_millis(3)).await;
                }
            };
            let answering = async {
                let answer = client.request(request).await;
                let answer = answer.map_err(|error| format!("{path}: {error:?}"))?;
                let status = answer.status();
                let content = answer.into_body().collect().await;
                let content = content.map_err(|error| format!("{path}: {error:?}"))?;
                let right = !body || content.to_bytes() == "abcdef";
                right
                    .then_some(status)
                    .ok_or_else(|| "a wrong body".to_owned())
            };
            let ((), answered) = tokio::join!(sending, answering);
            seen.note(answered);
        });
        while sent.try_join_next().is_some() {}
    }
    sent.join_all().await;
}

/// A connection for each request.
async fn connect_each_time(to: SocketAddr, seen: Arc<Seen>) {
    while !seen.is_over() {
        let asked = async {
            let mut stream = TcpStream::connect(to).await?;
            let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = asked
            .await
            .map_err(|error| format!("new connection: {error:?}"));
        seen.note(
            answer.and_then(|answer| match answer.starts_with("HTTP/1.1 200 ") {
                true => Ok(StatusCode::OK),
                false => Err(format!("new connection: {answer:?}")),
            }),
        );
        sleep(Duration::from_millis(2)).await;
    }
}

/// The client had begun a stream after the GOAWAY, which names the last one that is served (RFC 9113, section 6.8).
fn is_farewell(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let error = source.and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
    })
}

/// One connection for as long as the proxy keeps it.
async fn speak_http2(to: SocketAddr, seen: Arc<Seen>) {
    while !seen.is_over() {
        let stream = TcpStream::connect(to).await.expect("connected");
        let io = TokioIo::new(stream);
        let (mut send, connection) =
            http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), io)
                .await
                .expect("HTTP/2");
        let connection = tokio::spawn(connection);
        while !seen.is_over() && send.ready().await.is_ok() {
            let request = Request::get(format!("http://{to}/")).body(Empty::new());
            let answer = send.send_request(request.expect("a request")).await;
            let answered = match answer {
                Ok(answer) => {
                    let status = answer.status();
                    let content = answer.into_body().collect().await;
                    content
                        .map(|_| status)
                        .map_err(|error| format!("HTTP/2: {error:?}"))
                }
                // The protocol says that nothing was done for it. A new connection is asked, as clients do.
                Err(error) if error.is_canceled() || is_farewell(&error) => continue,
                Err(error) => Err(format!("HTTP/2: {error:?}")),
            };
            seen.note(answered);
            sleep(Duration::from_millis(2)).await;
        }
        drop(send);
        connection.await.expect("no panic").unwrap_or_default();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_in_a_row_under_load_fail_nobody_and_refuse_nobody() {
    let certificates = Authority::new();
    let files = certificates.sign("web", &[NAME]).setting();
    let (mut line, _control, _ups) = Line::start_with(&[(TLS, &files)]).await;
    line.settings = vec![(TLS, files)];
    let seen = Arc::<Seen>::default();
    let mut users = JoinSet::new();
    let secure = line.present.addresses[2].expect("over TLS");
    let over_tls = over_tls(certificates.trusted(), NAME);
    users.spawn(send_at_a_rate(clear(), line.users(), seen.clone()));
    users.spawn(send_at_a_rate(over_tls, secure, seen.clone()));
    users.spawn(connect_each_time(line.users(), seen.clone()));
    users.spawn(speak_http2(line.users(), seen.clone()));
    let mut relieved = Vec::new();
    for _ in 0..5 {
        seen.wait_for_more(200).await;
        relieved.push(line.upgrade().await);
    }
    seen.wait_for_more(200).await;
    seen.stop.store(true, Ordering::SeqCst);
    users.join_all().await;
    assert_eq!(seen.failed.load(Ordering::SeqCst), 0);
    assert!(seen.answered.load(Ordering::SeqCst) >= 1_200);
    // Their last connections have gone with their users.
    for process in relieved {
        ended(process).await;
    }
}

async fn ask(stream: &mut TcpStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"i1") && !answer.ends_with(b"i2") {
        let count = stream.read_buf(&mut answer).await.expect("readable");
        assert_ne!(count, 0, "closed without an answer");
    }
    String::from_utf8(answer).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_stays_until_its_next_request_is_answered() {
    let (mut line, _control, _ups) = Line::start().await;
    let mut user = TcpStream::connect(line.users()).await.expect("connected");
    assert!(!ask(&mut user, "/").await.contains("Connection: close"));
    let relieved = line.upgrade().await;
    // The connection is still the old one's, which serves it once more.
    assert!(ask(&mut user, "/").await.contains("Connection: close\r\n"));
    assert_eq!(user.read(&mut [0]).await.expect("the end"), 0);
    ended(relieved).await;
    let mut user = TcpStream::connect(line.users()).await.expect("connected");
    assert!(!ask(&mut user, "/").await.contains("Connection: close"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_to_drain_and_a_signal_end_who_is_idle() {
    let limit = [(UPGRADE_DRAIN_MS, "100")];
    let (mut line, _control, _ups) = Line::start_with(&limit).await;
    let mut idle = TcpStream::connect(line.users()).await.expect("connected");
    ask(&mut idle, "/").await;
    ended(line.upgrade().await).await;
    assert_eq!(idle.read(&mut [0]).await.expect("the end"), 0);
    // The successor has ten minutes, and is told not to wait.
    let mut idle = TcpStream::connect(line.users()).await.expect("connected");
    ask(&mut idle, "/").await;
    let relieved = line.upgrade().await;
    let terminated = tokio::task::spawn_blocking(move || relieved.terminate());
    assert!(terminated.await.expect("no panic").success());
    assert_eq!(idle.read(&mut [0]).await.expect("the end"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_serves_by_the_tables_it_was_given_where_there_is_no_control_plane() {
    let (mut line, control, _ups) = Line::start().await;
    drop(control);
    let relieved = line.upgrade().await;
    ended(relieved).await;
    let mut user = TcpStream::connect(line.users()).await.expect("connected");
    assert!(ask(&mut user, "/").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_dies_before_it_serves_changes_nothing() {
    let (mut line, _control, _ups) = Line::start().await;
    for _ in 0..3 {
        let path = line.handover.clone();
        // It has the listeners, and is gone.
        let taken = tokio::task::spawn_blocking(move || {
            let mut asking = UnixStream::connect(path)?;
            std::io::Write::write_all(&mut asking, b"T")?;
            descriptors::receive(&asking, &mut [0; 4])
        });
        let (_, listeners) = taken.await.expect("no panic").expect("taken");
        assert_eq!(listeners.len(), 2);
    }
    let mut user = TcpStream::connect(line.users()).await.expect("connected");
    for _ in 0..3 {
        assert!(!ask(&mut user, "/").await.contains("Connection: close"));
    }
    drop(user);
    let relieved = line.upgrade().await;
    ended(relieved).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_is_told_by_both_while_the_relieved_one_has_requests() {
    let (mut line, mut control, ups) = Line::start().await;
    let [first, second] = &ups;
    first.counts.stall(true);
    second.counts.stall(true);
    let mut user = TcpStream::connect(line.users()).await.expect("connected");
    user.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        .await
        .expect("sent");
    let in_flight = |report: &sim_api::v1::ProxyReport| {
        report.instances.iter().map(|i| i.in_flight).sum::<u64>()
    };
    control.report(|report| in_flight(report) == 1).await;
    let relieved = line.upgrade().await;
    let name = format!("p1.{}", relieved.pid());
    control
        .report(|report| report.proxy == name && in_flight(report) == 1)
        .await;
    // It still gets tables, and the successor is known by the name of both.
    let seen = control.reports().len();
    control.publish(&pair(2, &ups, 2_500)).await;
    let version = Version {
        epoch: 1,
        generation: 2,
    };
    control
        .report(|report| report.proxy == name && applied(report) == version)
        .await;
    control
        .report(|report| report.proxy == "p1" && applied(report) == version)
        .await;
    assert!(control.reports().len() > seen);
    first.counts.stall(false);
    second.counts.stall(false);
    let mut answer = String::new();
    user.read_to_string(&mut answer).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    control
        .report(|report| report.proxy == name && in_flight(report) == 0)
        .await;
    ended(relieved).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_outlives_an_upgrade_until_weights_move_and_its_grace_is_over() {
    let grace = [(STREAM_GRACE_MS, "300")];
    let (mut line, mut control, _ups) = Line::start_with(&grace).await;
    let echo = [
        Echo::start(Begins::Quietly).await,
        Echo::start(Begins::Quietly).await,
    ];
    let lines = |first_bp: u16| {
        [
            (3, echo[0].address, first_bp, true),
            (4, echo[1].address, 10_000 - first_bp, true),
        ]
    };
    control.publish(&table(1, 2, &lines(10_000))).await;
    let wire = TcpStream::connect(line.users()).await.expect("connected");
    let mut socket = open_on(wire).await;
    let relieved = line.upgrade().await;
    echoes(&mut socket, Message::text("x")).await;
    // Both of them are told.
    control.publish(&table(1, 3, &lines(0))).await;
    let end = socket.next().await;
    assert!(matches!(end, Some(Ok(Message::Close(Some(_))))), "{end:?}");
    // Its answer to that, and the end.
    assert!(socket.next().await.is_none_or(|next| next.is_err()));
    ended(relieved).await;
    let wire = TcpStream::connect(line.users()).await.expect("connected");
    let mut socket = open_on(wire).await;
    echoes(&mut socket, Message::text("x")).await;
    assert_eq!((echo[0].begun(), echo[1].begun()), (1, 1));
}
