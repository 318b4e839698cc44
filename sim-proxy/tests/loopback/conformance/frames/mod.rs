//! HTTP/2 frame by frame: cases of our own, by the sections of RFC 9113, that need no other program and run wherever
//! the tests do. Each has a connection to itself, on which it sends bytes that no library would, and says what has to
//! become of it: an answer, the end of one stream, or the end of the connection, and by which code.
//!
//! Where the RFC names a code for an error, h2 often says the general one, PROTOCOL_ERROR (section 7), which both ends
//! take the same way: then either is right here. Where the RFC lets a server choose between the end of the stream and
//! the end of the connection (section 5.4.2), either is right, too.

mod connection;
mod flow;
mod messages;
mod wire;

use crate::control::Control;
use crate::secure::{Way, each_way};
use crate::upstream::Upstream;
use crate::world::{World, table};
use wire::{ACK, Connection, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, RST_STREAM};
use wire::{block, frame};

/// Codes of errors (RFC 9113, section 7).
const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED: u32 = 7;
const COMPRESSION: u32 = 9;
const CALM: u32 = 11;

/// A good request's, but for the rest of the fields.
const GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "web.example"),
];
/// Of one that is never answered.
const HANG: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/hang"),
    (":authority", "web.example"),
];
/// Of one whose body comes back.
const ECHO: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/echo"),
    (":authority", "web.example"),
];

/// A request's head in one frame.
fn head(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
}

/// A good request, whole.
fn get(stream: u32) -> Vec<u8> {
    head(stream, END_STREAM, &GET)
}

/// What a user does.
enum Step {
    Send(Vec<u8>),
    /// Waits for a frame of this kind, with these flags at least, on this stream.
    Await(u8, u8, u32),
}

/// What has to come of it.
enum Expect {
    /// The end of the connection, and a GOAWAY with one of these codes before it.
    Goaway(&'static [u32]),
    /// The end of this stream by one of these codes. Others go on.
    Reset(u32, &'static [u32]),
    /// The one or the other.
    Either(u32, &'static [u32]),
    /// An answer with this status on this stream.
    Answer(u32, u16),
}

struct Case {
    section: &'static str,
    says: &'static str,
    steps: Vec<Step>,
    expect: Expect,
}

/// One whose user only sends.
fn case(
    section: &'static str,
    says: &'static str,
    expect: Expect,
    frames: impl IntoIterator<Item = Vec<u8>>,
) -> Case {
    let bytes: Vec<_> = frames.into_iter().flatten().collect();
    let steps = vec![Step::Send(bytes)];
    Case {
        section,
        says,
        steps,
        expect,
    }
}

/// Whether the connection ended with a GOAWAY, and by which code; an error is what came instead of what had to.
async fn run(world: &World, case: Case) -> Result<Option<u32>, String> {
    let mut connection = Connection::begun(world).await;
    for step in case.steps {
        match step {
            Step::Send(bytes) => connection.send(&bytes).await,
            Step::Await(kind, flags, stream) => {
                let wanted = |frame: &Frame| {
                    (frame.kind, frame.stream) == (kind, stream) && frame.flags & flags == flags
                };
                connection.wait_for(wanted).await?;
            }
        }
    }
    let of = match case.expect {
        Expect::Goaway(_) => 0,
        Expect::Reset(stream, _) | Expect::Either(stream, _) | Expect::Answer(stream, _) => stream,
    };
    // What would be a verdict.
    let says = |frame: &Frame| {
        frame.kind == GOAWAY || frame.stream == of && [HEADERS, RST_STREAM].contains(&frame.kind)
    };
    let said = connection.wait_for(says).await?;
    let named = format!("kind {}, {:?}", said.kind, said.payload);
    match (case.expect, said.kind) {
        (Expect::Goaway(codes) | Expect::Either(_, codes), GOAWAY)
            if codes.contains(&said.code()) =>
        {
            while connection.next().await.is_some() {}
            Ok(Some(said.code()))
        }
        (Expect::Reset(_, codes) | Expect::Either(_, codes), RST_STREAM)
            if codes.contains(&said.code()) =>
        {
            alive(&mut connection).await.map(|()| None)
        }
        (Expect::Answer(_, status), HEADERS) if said.status() == Some(status) => Ok(None),
        _ => Err(named),
    }
}

/// A ping is answered, and the answer is its own.
async fn alive(connection: &mut Connection) -> Result<(), String> {
    connection.send(&frame(PING, 0, 0, b"are you?")).await;
    let is_pong = |frame: &Frame| frame.kind == PING && frame.flags & ACK == ACK;
    let pong = connection.wait_for(is_pong).await?;
    (pong.payload == b"are you?")
        .then_some(())
        .ok_or_else(|| format!("{pong:?}"))
}

/// The codes of the connections that ended by one. All cases that fail are told.
async fn run_all(world: &World, cases: Vec<Case>) -> Vec<u32> {
    let mut codes = Vec::new();
    let mut failed = Vec::new();
    for case in cases {
        let (section, says) = (case.section, case.says);
        match run(world, case).await {
            Ok(code) => codes.extend(code),
            Err(came) => failed.push(format!("{section} {says}: {came}")),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    codes
}

async fn world(way: Way) -> (World, Control, Upstream) {
    let (world, mut control) = World::start_by(way, &[]);
    let up = Upstream::start("i1").await;
    let only = [(1, up.address, 10_000, true)];
    control.publish(&table(1, 1, &only)).await;
    (world, control, up)
}

each_way! {
    what_breaks_a_connection_ends_it_and_what_does_not_is_answered
    what_is_no_message_reaches_no_instance
    what_does_not_begin_with_the_preface_is_closed
}

async fn what_breaks_a_connection_ends_it_and_what_does_not_is_answered(way: Way) {
    let (world, _control, _up) = world(way).await;
    let mut cases = connection::cases();
    cases.extend(flow::cases());
    let begun = cases.len() as f64;
    let codes = run_all(&world, cases).await;
    let metrics = world
        .wait_for(|metrics| {
            metrics.sum("sim_proxy_http2_connections_ended_total", &[]) == begun
                && metrics.sum("sim_proxy_requests_in_flight", &[]) == 0.0
        })
        .await;
    let ended = |reason| metrics.sum("sim_proxy_http2_connections_ended_total", &[reason]);
    let floods = codes.iter().filter(|code| **code == CALM).count();
    assert_eq!(ended("flood"), floods as f64, "{metrics:?}");
    let broken = codes.len() - floods;
    assert_eq!(ended("protocol_error"), broken as f64, "{metrics:?}");
    let ends = metrics.sum("sim_proxy_requests_ended_total", &[]);
    assert_eq!(metrics.sum("sim_proxy_requests_total", &[]), ends);
}

async fn what_is_no_message_reaches_no_instance(way: Way) {
    let (world, _control, up) = world(way).await;
    let cases = messages::cases();
    let is_good = |case: &&Case| matches!(case.expect, Expect::Answer(_, 200));
    let good = cases.iter().filter(is_good).count() as u64;
    run_all(&world, cases).await;
    world
        .wait_for(|metrics| metrics.sum("sim_proxy_requests_in_flight", &[]) == 0.0)
        .await;
    assert_eq!(up.counts.requests(), good);
}

/// In the clear it is taken for HTTP/1.1; over TLS HTTP/2 has been agreed on.
async fn what_does_not_begin_with_the_preface_is_closed(way: Way) {
    let is_clear = matches!(way, Way::Clear);
    let (world, _control, up) = world(way).await;
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"[..],
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: web.example\r\n\r\n",
    ] {
        let mut connection = Connection::silent(&world).await;
        connection.send(bytes).await;
        let rest = connection.rest().await;
        let refused = rest.starts_with(b"HTTP/1.1 400 ");
        assert_eq!(refused, is_clear, "{:?}", String::from_utf8_lossy(&rest));
    }
    assert_eq!(up.counts.requests(), 0);
}
