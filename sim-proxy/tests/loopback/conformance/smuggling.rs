//! Requests that hide another one, through two different proxies in a row: nobody sees the hidden one.

use super::peers::{self, Kind, Peer};
use super::recorder::{Record, Recorder};
use super::{MORE_PATIENCE, PATIENCE, say, say_patiently};
use crate::world::{World, table};
use std::net::SocketAddr;
use tokio::time::sleep;

/// What must never be seen: it is only ever sent inside of something else.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";

/// What is sent behind it.
const AFTER: &str = "GET /after HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// Ways to name a coding or a length that one parser may take and the other may not.
const CODINGS: &[&str] = &[
    "Transfer-Encoding: chunked",
    "Transfer-Encoding:chunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding\t: chunked",
    " Transfer-Encoding: chunked",
    "\tTransfer-Encoding: chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "X: y\r Transfer-Encoding: chunked",
    "Transfer-Encoding:\r\n chunked",
    "Transfer-Encoding:\n chunked",
    "Transfer-Encoding: \u{b}chunked",
    "Transfer-Encoding: \u{c}chunked",
    "Transfer-Encoding:\u{a0}chunked",
    "Transfer-Encoding: chunked\u{b}",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunkedx",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: 'chunked'",
    "Transfer-Encoding: CHUNKED",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: , chunked",
    "Transfer-Encoding: chunked,",
    "Transfer-Encoding: chunked;q=1",
    "Transfer-Encoding: identity",
    "Transfer-Encoding:",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer_Encoding: chunked",
    "Transfer-Encoding\u{0}: chunked",
    "Transfer-Encoding: chunked\u{0}",
    "Transfer-\rEncoding: chunked",
    "Transfer-Encoding",
    ": chunked\r\nTransfer-Encoding: chunked",
    "Content-Encoding: chunked",
];

/// Ways to name a length of `LENGTH`.
const LENGTHS: &[&str] = &[
    "Content-Length: LENGTH",
    "Content-Length: +LENGTH",
    "Content-Length: 0LENGTH",
    "Content-Length: LENGTH ",
    "Content-Length: LENGTH, LENGTH",
    "Content-Length: LENGTH,0",
    "Content-Length: LENGTH;0",
    "Content-Length: LENGTH.0",
    "Content-Length: 0\r\nContent-Length: LENGTH",
    "Content-Length: LENGTH\r\nContent-Length: 0",
    "Content-Length: LENGTH\r\nContent-Length: LENGTH",
    "Content-Length : LENGTH",
    " Content-Length: LENGTH",
    "X: y\nContent-Length: LENGTH",
    "X: y\rContent-Length: LENGTH",
    "Content-Length:\r\n LENGTH",
    "Content-Length: \u{b}LENGTH",
    "Content-Length: -LENGTH",
    "Content-Length: 0xLENGTH",
];

/// Chunked bodies that parsers may see end in different places; none of them has an end before the hidden request.
const CHUNKS: &[&str] = &[
    "0\n\nHIDDEN",
    "0\r\n\nHIDDEN",
    "0\n\r\nHIDDEN",
    "0\r\rHIDDEN",
    "0;x\nHIDDEN0\r\n\r\n",
    "5;x\nhello\r\n0\r\n\r\nHIDDEN",
    "5\nhello\r\n0\r\n\r\nHIDDEN",
    "5\r\nhello\n0\r\n\r\nHIDDEN",
    "5\r\nhelloX\r\n0\r\n\r\nHIDDEN",
    "5\r\nhelloXX0\r\n\r\nHIDDEN",
    "+5\r\nhello\r\n0\r\n\r\nHIDDEN",
    "0x5\r\nhello\r\n0\r\n\r\nHIDDEN",
    "5 \r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\nHIDDEN",
    "-5\r\nhello\r\n0\r\n\r\nHIDDEN",
    "5_0\r\nhello\r\n0\r\n\r\nHIDDEN",
    "10000000000000005\r\nhello\r\n0\r\n\r\nHIDDEN",
    "ffffffffffffffff\r\nHIDDEN",
    "\r\n5\r\nhello\r\n0\r\n\r\nHIDDEN",
    "0\r\nX: y\n\nHIDDEN",
    "0\r\n X: y\r\n\r\n",
    "0\r\nContent-Length: 5\r\n\r\n",
    "0\r\nTransfer-Encoding: chunked\r\n\r\n",
];

/// All of them as whole conversations; each begins with a request of its own and hides another.
fn attacks() -> Vec<String> {
    let mut attacks = Vec::new();
    for coding in CODINGS {
        // By its length the hidden one is body; by chunks it stands behind the end.
        let body = format!("0\r\n\r\n{HIDDEN}");
        for length in LENGTHS {
            let length = length.replace("LENGTH", &body.len().to_string());
            for fields in [
                format!("{length}\r\n{coding}"),
                format!("{coding}\r\n{length}"),
            ] {
                attacks.push(post(&fields, &body));
            }
        }
        // By its chunks the hidden one is body; by a length of 4 it stands behind the end.
        let body = format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len());
        // Where the field names no coding that is so, and no attack.
        if coding.starts_with("Content-") || coding.starts_with("Transfer_") {
            continue;
        }
        attacks.push(post(&format!("Content-Length: 4\r\n{coding}"), &body));
        attacks.push(post(&format!("{coding}\r\nContent-Length: 4"), &body));
    }
    for length in LENGTHS {
        let length = length.replace("LENGTH", &HIDDEN.len().to_string());
        attacks.push(post(&length, HIDDEN));
        attacks.push(post(&length, HIDDEN).replace("POST", "GET"));
    }
    for chunks in CHUNKS {
        let body = chunks.replace("HIDDEN", HIDDEN);
        attacks.push(post("Transfer-Encoding: chunked", &body));
    }
    attacks
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /sent HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")
}

/// Sends each, and a decent request behind it. `seen` gives the request lines that the last one has seen since.
async fn attack(row: &str, to: SocketAddr, seen: impl Fn() -> Vec<String>) {
    let (mut failures, mut passed, mut sent) = (Vec::new(), 0, 0);
    for attack in attacks() {
        say(to, format!("{attack}{AFTER}").as_bytes()).await;
        sent += 1;
        let mut lines = seen();
        if is_strange(&lines) {
            // It is no other's that came late, where the machine paused.
            sleep(MORE_PATIENCE).await;
            seen();
            say_patiently(to, format!("{attack}{AFTER}").as_bytes(), MORE_PATIENCE).await;
            lines = seen();
        }
        if is_strange(&lines) {
            failures.push(format!("{attack:?} was seen as {lines:?}"));
        }
        passed += lines.len();
        assert!(failures.len() < 20, "{row}: {failures:#?}");
    }
    somebody_is_there(row, to, seen).await;
    assert!(failures.is_empty(), "{row}: {failures:#?}");
    println!("smuggling: {row}: {sent} attempts, {passed} requests passed, none of them hidden");
}

/// Whether it is more than the one that was sent and the one behind it.
fn is_strange(lines: &[String]) -> bool {
    let allowed = ["POST /sent", "GET /sent", "GET /after"];
    let strange = lines.iter().any(|line| !allowed.contains(&&**line));
    let after = lines.iter().filter(|line| *line == "GET /after").count();
    strange || lines.len() > 2 || after > 1
}

/// And was all the time, or nothing would have been seen.
async fn somebody_is_there(row: &str, to: SocketAddr, seen: impl Fn() -> Vec<String>) {
    sleep(PATIENCE).await;
    seen();
    say_patiently(to, AFTER.as_bytes(), MORE_PATIENCE).await;
    assert_eq!(seen(), ["GET /after"], "{row}");
}

fn lines(records: &[Record]) -> Vec<String> {
    let line = |record: &Record| format!("{} {}", record.method, record.target);
    records.iter().map(line).collect()
}

async fn sim_before(last: SocketAddr) -> (World, crate::control::Control) {
    let (world, mut control) = World::start();
    control
        .publish(&table(1, 1, &[(1, last, 10_000, true)]))
        .await;
    (world, control)
}

async fn nothing_hidden_passes_before(kind: Kind) {
    if !peers::are_there() {
        return;
    }
    let recorder = Recorder::start().await;
    let peer = Peer::start(kind, recorder.address).await;
    let (world, _control) = sim_before(peer.address).await;
    attack(&format!("SIM before {kind:?}"), world.proxy, || {
        lines(&recorder.take())
    })
    .await;
}

/// A request among those `seen` that is none of those `meant`. The one behind the attack was sent, whether or not the
/// other row came that far.
fn never_meant(meant: &[String], seen: &[String]) -> Option<String> {
    let after = "GET /after".to_owned();
    let mut meant = meant.to_vec();
    if !meant.contains(&after) {
        meant.push(after);
    }
    for line in seen {
        match meant.iter().position(|other| other == line) {
            Some(at) => drop(meant.swap_remove(at)),
            None => return Some(line.clone()),
        }
    }
    None
}

/// What the one in front makes of an attack is its own reading. With SIM behind it no more comes out than without.
async fn nothing_hidden_passes_behind(kind: Kind) {
    if !peers::are_there() {
        return;
    }
    let (recorder, alone) = (Recorder::start().await, Recorder::start().await);
    let (world, _control) = sim_before(recorder.address).await;
    let peer = Peer::start(kind, world.proxy).await;
    let without = Peer::start(kind, alone.address).await;
    let (mut failures, mut passed) = (Vec::new(), 0);
    for attack in attacks() {
        let sent = format!("{attack}{AFTER}");
        say(without.address, sent.as_bytes()).await;
        say(peer.address, sent.as_bytes()).await;
        let (mut meant, mut seen) = (lines(&alone.take()), lines(&recorder.take()));
        if never_meant(&meant, &seen).is_some() {
            // It is no other's that came late, where the machine paused.
            sleep(MORE_PATIENCE).await;
            drop((alone.take(), recorder.take()));
            say_patiently(without.address, sent.as_bytes(), MORE_PATIENCE).await;
            say_patiently(peer.address, sent.as_bytes(), MORE_PATIENCE).await;
            (meant, seen) = (lines(&alone.take()), lines(&recorder.take()));
        }
        passed += seen.len();
        if let Some(line) = never_meant(&meant, &seen) {
            failures.push(format!("{attack:?}: {line} was never meant: {seen:?}"));
        }
        assert!(failures.len() < 20, "SIM behind {kind:?}: {failures:#?}");
    }
    let row = format!("SIM behind {kind:?}");
    somebody_is_there(&row, peer.address, || lines(&recorder.take())).await;
    assert!(failures.is_empty(), "SIM behind {kind:?}: {failures:#?}");
    println!(
        "smuggling: SIM behind {kind:?}: {passed} requests passed, none of them SIM's own reading"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_hidden_passes_before_nginx() {
    nothing_hidden_passes_before(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_hidden_passes_before_haproxy() {
    nothing_hidden_passes_before(Kind::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_hidden_passes_before_envoy() {
    nothing_hidden_passes_before(Kind::Envoy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_hidden_passes_before_gunicorn() {
    if !peers::are_there() {
        return;
    }
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    let peer = Peer::start(Kind::Gunicorn, nobody).await;
    let (world, _control) = sim_before(peer.address).await;
    let told = std::cell::Cell::new(0);
    attack("SIM before Gunicorn", world.proxy, || {
        let seen = peer.seen();
        seen[told.replace(seen.len())..].to_vec()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_hidden_passes_behind_nginx() {
    nothing_hidden_passes_behind(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_hidden_passes_behind_haproxy() {
    nothing_hidden_passes_behind(Kind::Haproxy).await;
}
