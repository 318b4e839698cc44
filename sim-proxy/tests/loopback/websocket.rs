//! WebSocket through the proxy: a real server and a real client, and servers that are quicker than a library.

use crate::process::HEDGE_QUANTILE;
use crate::secure::{Way, Wire, each_way};
use crate::upstream::own_address;
use crate::world::{Load, World, table};
use futures_util::SinkExt as _;
use hyper::Method;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tokio_stream::StreamExt as _;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async};

/// The key of a user that has but one, which is RFC 6455's own.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A user's end.
pub(crate) type Socket = WebSocketStream<Wire>;

/// How an instance begins.
#[derive(Clone, Copy)]
pub(crate) enum Begins {
    /// It says that the protocol changes, and waits for the user.
    Quietly,
    /// Its first message is in the packet that says so.
    WithMessage,
    /// Its first message comes a little later, unasked.
    ThenMessage,
    /// It takes longer than nearly all answers to say so.
    Slowly,
    /// It says so, and is gone.
    ThenReset,
    /// It says so to whoever connects, before anything is asked, to a user whose key is [`KEY`].
    Unasked,
}

/// An instance that sends each message back.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    /// WebSockets that have begun.
    begun: Arc<AtomicU64>,
    server: JoinHandle<()>,
    killed: Arc<Notify>,
}

impl Echo {
    pub(crate) async fn start(begins: Begins) -> Self {
        let listener = TcpListener::bind(own_address()).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (begun, killed) = (Arc::<AtomicU64>::default(), Arc::<Notify>::default());
        let server = tokio::spawn(accept(listener, begins, begun.clone(), killed.clone()));
        Self {
            address,
            begun,
            server,
            killed,
        }
    }

    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// As by SIGKILL.
    pub(crate) async fn kill(self) {
        self.killed.notify_one();
        self.server.await.expect("it serves until it is killed");
    }
}

async fn accept(listener: TcpListener, begins: Begins, begun: Arc<AtomicU64>, killed: Arc<Notify>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = killed.notified() => break,
        };
        let (stream, _) = accepted.expect("accept");
        stream.set_nodelay(true).expect("nodelay");
        stream.set_zero_linger().expect("reset on close");
        connections.spawn(serve(stream, begins, begun.clone()));
    }
    drop(listener);
    connections.shutdown().await;
}

fn switched(key: &str) -> Vec<u8> {
    let accepted = derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accepted}\r\n\r\n"
    )
    .into_bytes()
}

async fn serve(mut stream: TcpStream, begins: Begins, begun: Arc<AtomicU64>) {
    if matches!(begins, Begins::Unasked) {
        stream.write_all(&switched(KEY)).await.expect("sent");
    }
    let (mut asked, end) = (Vec::new(), b"\r\n\r\n");
    // Its first message may be behind it.
    let len = loop {
        if stream.read_buf(&mut asked).await.unwrap_or_default() == 0 {
            return;
        }
        if let Some(at) = asked.windows(end.len()).position(|four| four == end) {
            break at + end.len();
        }
    };
    begun.fetch_add(1, Ordering::SeqCst);
    let ahead = asked.split_off(len);
    let asked = String::from_utf8(asked).expect("text");
    let mut fields = asked.lines().filter_map(|line| line.split_once(": "));
    let key = fields.find_map(|(name, value)| {
        let is_key = name.eq_ignore_ascii_case("sec-websocket-key");
        is_key.then_some(value)
    });
    let mut answer = match begins {
        Begins::Unasked => vec![],
        _ => switched(key.expect("a key")),
    };
    // A text of five bytes.
    let hello = b"\x81\x05hello";
    if matches!(begins, Begins::WithMessage) {
        answer.extend_from_slice(hello);
    }
    if matches!(begins, Begins::Slowly) {
        sleep(Duration::from_millis(400)).await;
    }
    stream.write_all(&answer).await.expect("sent");
    match begins {
        Begins::Quietly | Begins::Slowly | Begins::WithMessage | Begins::Unasked => {}
        Begins::ThenMessage => {
            sleep(Duration::from_millis(30)).await;
            stream.write_all(hello).await.expect("sent");
        }
        Begins::ThenReset => {
            // It has come to the proxy by then.
            sleep(Duration::from_millis(30)).await;
            return;
        }
    }
    let socket = WebSocketStream::from_partially_read(stream, ahead, Role::Server, None);
    let mut socket = socket.await;
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            break;
        }
    }
    // In order: with the other side's end read, nothing is left to reset.
    let mut stream = socket.into_inner();
    stream.shutdown().await.unwrap_or_default();
    let mut rest = [0; 64];
    while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
}

/// Asks for a change of protocol at `path`.
pub(crate) async fn open(world: &World) -> Socket {
    open_on(world.wire().await).await
}

/// The same on a connection that is there.
pub(crate) async fn open_on<S: AsyncRead + AsyncWrite + Unpin>(wire: S) -> WebSocketStream<S> {
    let (socket, answer) = client_async("ws://web.example/socket", wire)
        .await
        .expect("a WebSocket");
    assert_eq!(answer.status(), 101);
    socket
}

async fn world_of(way: Way, begins: [Begins; 2]) -> (World, crate::control::Control, [Echo; 2]) {
    let (world, mut control) = World::start_by(way, &[]);
    let [first, second] = begins;
    let echoes = [Echo::start(first).await, Echo::start(second).await];
    let lines = [
        (1, echoes[0].address, 10_000, true),
        (2, echoes[1].address, 0, true),
    ];
    control.publish(&table(1, 1, &lines)).await;
    (world, control, echoes)
}

pub(crate) async fn echoes<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    message: Message,
) {
    socket.send(message.clone()).await.expect("sent");
    let back = socket.next().await.expect("open").expect("a message");
    assert!(back == message, "{} for {}", back.len(), message.len());
}

each_way! {
    messages_of_any_size_pass_both_ways_and_the_close_with_its_reason
    who_has_said_goodbye_is_counted_as_one_request_that_went_well
    a_first_message_in_the_packet_of_the_101_arrives
    a_first_message_behind_the_101_arrives
    a_101_that_is_there_at_once_begins_a_websocket_like_any_other
    what_the_user_sends_with_its_question_arrives
    many_and_large_messages_pass_both_ways_at_once
    the_death_of_the_instance_ends_it_and_is_counted_there
    nothing_is_asked_again_once_the_protocol_has_changed
    no_two_are_asked_for_one_however_long_it_takes
    a_user_who_is_gone_is_gone_at_the_instance_too
    the_last_words_of_an_instance_arrive_whatever_the_user_is_still_sending
}

async fn messages_of_any_size_pass_both_ways_and_the_close_with_its_reason(way: Way) {
    let (world, _control, _echoes) = world_of(way, [Begins::Quietly; 2]).await;
    let mut socket = open(&world).await;
    for length in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
        echoes(&mut socket, Message::binary(vec![7; length])).await;
        echoes(&mut socket, Message::text("x".repeat(length))).await;
    }
    socket
        .send(Message::Ping(vec![1, 2].into()))
        .await
        .expect("sent");
    let pong = socket.next().await.expect("open").expect("a message");
    assert_eq!(pong, Message::Pong(vec![1, 2].into()));
    let goodbye = CloseFrame {
        code: CloseCode::Library(4_242),
        reason: "done".into(),
    };
    socket.close(Some(goodbye.clone())).await.expect("sent");
    let last = socket.next().await.expect("open").expect("a message");
    assert_eq!(last, Message::Close(Some(goodbye)));
    assert!(socket.next().await.is_none());
}

async fn who_has_said_goodbye_is_counted_as_one_request_that_went_well(way: Way) {
    let (world, _control, _echoes) = world_of(way, [Begins::Quietly; 2]).await;
    for round in 1..=3 {
        let mut socket = open(&world).await;
        echoes(&mut socket, Message::text("x")).await;
        let metrics = world.metrics().await;
        assert_eq!(metrics.sum("sim_proxy_requests_in_flight", &[]), 1.0);
        assert_eq!(metrics.sum("sim_proxy_in_flight", &["i1"]), 1.0);
        socket.close(None).await.expect("sent");
        while socket.next().await.is_some() {}
        let metrics = world.settled().await;
        let ended = |how| metrics.sum("sim_proxy_requests_ended_total", &[how]);
        assert_eq!(ended("ok"), f64::from(round), "{metrics:?}");
        assert_eq!(metrics.sum("sim_proxy_errors_total", &[]), 0.0);
    }
}

async fn a_first_message_in_the_packet_of_the_101_arrives(way: Way) {
    let (world, _control, _echoes) = world_of(way, [Begins::WithMessage; 2]).await;
    for _ in 0..50 {
        let mut socket = open(&world).await;
        let first = socket.next().await.expect("open").expect("a message");
        assert_eq!(first, Message::text("hello"));
        echoes(&mut socket, Message::text("x")).await;
    }
}

async fn a_first_message_behind_the_101_arrives(way: Way) {
    let (world, _control, _echoes) = world_of(way, [Begins::ThenMessage; 2]).await;
    for _ in 0..10 {
        let mut socket = open(&world).await;
        let first = socket.next().await.expect("open").expect("a message");
        assert_eq!(first, Message::text("hello"));
        echoes(&mut socket, Message::text("x")).await;
    }
}

/// What a user asks whose key is [`KEY`].
fn question() -> String {
    format!(
        "GET /socket HTTP/1.1\r\nHost: web.example\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// A text, masked with zeros.
const HI: &[u8] = b"\x81\x82\0\0\0\0hi";

/// The answer is there when the question is sent: so it is, now and then, where the proxy is busy (Pingora's issue 946).
async fn a_101_that_is_there_at_once_begins_a_websocket_like_any_other(way: Way) {
    let (world, _control, _echoes) = world_of(way, [Begins::Unasked; 2]).await;
    for _ in 0..20 {
        let mut wire = world.wire().await;
        wire.write_all(question().as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            assert!(wire.read_buf(&mut answer).await.expect("open") > 0);
        }
        wire.write_all(HI).await.expect("sent");
        while !answer.ends_with(b"\x81\x02hi") {
            assert!(wire.read_buf(&mut answer).await.expect("open") > 0);
        }
    }
}

/// Before it can know whether the protocol changes; some that know their server do.
async fn what_the_user_sends_with_its_question_arrives(way: Way) {
    let (world, _control, _echoes) = world_of(way, [Begins::Quietly; 2]).await;
    let mut wire = world.wire().await;
    let both = [question().as_bytes(), HI].concat();
    wire.write_all(&both).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n\x81\x02hi") {
        assert!(wire.read_buf(&mut answer).await.expect("open") > 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
}

async fn many_and_large_messages_pass_both_ways_at_once(way: Way) {
    const MESSAGES: usize = 40;
    const BYTES: usize = 250_000;
    let (world, _control, _echoes) = world_of(way, [Begins::Quietly; 2]).await;
    let config = WebSocketConfig::default();
    let socket = open(&world).await;
    let mut socket =
        WebSocketStream::from_raw_socket(socket.into_inner(), Role::Client, Some(config)).await;
    let (mut sent, mut back) = (0, 0);
    // Nothing waits for the answer to the one before.
    while back < MESSAGES {
        if sent < MESSAGES {
            let message = Message::binary(vec![sent as u8; BYTES]);
            socket.feed(message).await.expect("taken");
            sent += 1;
            if sent % 4 > 0 {
                continue;
            }
        }
        socket.flush().await.expect("sent");
        let message = socket.next().await.expect("open").expect("a message");
        assert!(message == Message::binary(vec![back as u8; BYTES]));
        back += 1;
    }
}

async fn the_death_of_the_instance_ends_it_and_is_counted_there(way: Way) {
    let (world, _control, [first, second]) = world_of(way, [Begins::Quietly; 2]).await;
    let mut socket = open(&world).await;
    echoes(&mut socket, Message::text("x")).await;
    first.kill().await;
    let end = socket.next().await;
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    let metrics = world.settled().await;
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
        1.0
    );
    let class = "class=\"reset\"";
    assert_eq!(
        metrics.sum("sim_proxy_instance_errors_total", &["i1", class]),
        1.0
    );
    assert_eq!(second.begun(), 0);
    // The next one goes to who lives.
    let mut socket = open(&world).await;
    echoes(&mut socket, Message::text("x")).await;
    assert_eq!(second.begun(), 1);
}

async fn nothing_is_asked_again_once_the_protocol_has_changed(way: Way) {
    let begins = [Begins::ThenReset, Begins::Quietly];
    let (world, _control, echoes) = world_of(way, begins).await;
    let mut socket = open(&world).await;
    let end = socket.next().await;
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    let metrics = world.settled().await;
    assert_eq!(metrics.sum("sim_proxy_retries_total", &[]), 0.0);
    assert_eq!((echoes[0].begun(), echoes[1].begun()), (1, 0));
}

async fn no_two_are_asked_for_one_however_long_it_takes(way: Way) {
    let settings = [(HEDGE_QUANTILE, "0.99")];
    let (world, mut control, _ups) = World::with_two_by(way, 5_000, &settings).await;
    let load = Load::start(&world, 2, &Method::GET);
    load.run(500).await;
    assert_eq!(load.end().await.1, 0);
    // A GET that took half as long would be sent to a second one.
    world
        .wait_for(|m| m.has("sim_proxy_overdue_after_seconds"))
        .await;
    let slow = [
        Echo::start(Begins::Slowly).await,
        Echo::start(Begins::Slowly).await,
    ];
    let lines = [
        (3, slow[0].address, 10_000, true),
        (4, slow[1].address, 0, true),
    ];
    control.publish(&table(1, 2, &lines)).await;
    let before = world.settled().await.sum("sim_proxy_retries_total", &[]);
    let mut socket = open(&world).await;
    echoes(&mut socket, Message::text("x")).await;
    assert_eq!((slow[0].begun(), slow[1].begun()), (1, 0));
    let retries = world.metrics().await.sum("sim_proxy_retries_total", &[]);
    assert_eq!(retries, before);
}

async fn a_user_who_is_gone_is_gone_at_the_instance_too(way: Way) {
    let (world, _control, _echoes) = world_of(way, [Begins::Quietly; 2]).await;
    let mut socket = open(&world).await;
    echoes(&mut socket, Message::text("x")).await;
    drop(socket);
    let metrics = world.settled().await;
    assert_eq!(metrics.sum("sim_proxy_in_flight", &["i1"]), 0.0);
    assert_eq!(metrics.sum("sim_proxy_ejections_total", &[]), 0.0);
}

/// What an instance says before it is gone.
const LAST_WORDS: usize = 3_000_000;

async fn the_last_words_of_an_instance_arrive_whatever_the_user_is_still_sending(way: Way) {
    let (world, mut control) = World::start_by(way, &[]);
    let listener = TcpListener::bind(own_address()).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let instance = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let asked = stream.read(&mut [0; 4_096]).await.expect("a question");
        assert!(asked > 0);
        stream.write_all(&switched(KEY)).await.expect("sent");
        let (mut coming, mut going) = stream.into_split();
        let taking = tokio::spawn(async move {
            let mut taken = vec![0; 65_536];
            while coming.read(&mut taken).await.is_ok_and(|count| count > 0) {}
        });
        going
            .write_all(&vec![b'.'; LAST_WORDS])
            .await
            .expect("sent");
        going.shutdown().await.expect("the end");
        taking.await.expect("no panic");
    });
    control
        .publish(&table(1, 1, &[(1, address, 10_000, true)]))
        .await;
    let mut wire = world.wire().await;
    let question = format!(
        "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    wire.write_all(question.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b".") {
        assert!(wire.read_buf(&mut answer).await.expect("open") > 0);
    }
    let (mut reading, mut writing) = tokio::io::split(wire);
    let sending = tokio::spawn(async move {
        // Until nobody takes it any more.
        while writing.write_all(&[b'!'; 16_384]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    let mut piece = vec![0; 20_000];
    loop {
        match reading.read(&mut piece).await.expect("no reset") {
            0 => break,
            count => answer.extend_from_slice(&piece[..count]),
        }
        // It is still sending when the last of it comes.
        sleep(Duration::from_micros(100)).await;
    }
    let words = answer.iter().filter(|&&byte| byte == b'.').count();
    // The status line has one of its own.
    assert_eq!(words, LAST_WORDS + 1);
    sending.await.expect("no panic");
    instance.await.expect("no panic");
}
