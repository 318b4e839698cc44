//! HTTP/2 frame by frame, by a suite that others have written: httpwg (107 cases of RFC 9113). It speaks to a real proxy
//! with a real instance behind it, in the clear and over TLS. (h2spec, which no registry has, is no test:
//! `cargo xtask conformance --h2spec PROGRAM` runs it.)

use super::peers;
use crate::control::Control;
use crate::secure::{NAME, Way, each_way};
use crate::upstream::own_address;
use crate::world::{World, table};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_rustls::TlsConnector;

/// Where the program is; `cargo xtask` says so.
const HTTPWG: &str = "SIM_HTTPWG";
/// Cases that httpwg has.
const HTTPWG_CASES: usize = 107;

/// Cases of httpwg that may fail, and why. Some do not every time: what h2 says then depends on what it has forgotten.
const KNOWN: &[(&str, &Reason)] = &[
    ("4. http frames :: invalid header block fragment", &GENERAL),
    (
        "5. streams and multiplexing :: closed sends headers frame",
        &GENERAL,
    ),
    (
        "5. streams and multiplexing :: closed sends headers frame after rst stream",
        &GENERAL,
    ),
    (
        "5. streams and multiplexing :: half closed remote sends data frame",
        &GENERAL,
    ),
    (
        "5. streams and multiplexing :: half closed remote sends headers frame",
        &GENERAL,
    ),
    (
        "6. frame definitions :: sends data frame on invalid stream state",
        &GENERAL,
    ),
    (
        "6. frame definitions :: sends ping frame with invalid length",
        &GENERAL,
    ),
    (
        "6. frame definitions :: sends priority frame with invalid length",
        &GENERAL,
    ),
    (
        "6. frame definitions :: sends rst stream frame with invalid length",
        &GENERAL,
    ),
    (
        "6. frame definitions :: sends settings frame with ack and payload",
        &GENERAL,
    ),
    (
        "6. frame definitions :: sends settings frame with invalid length",
        &GENERAL,
    ),
    (
        "6. frame definitions :: sends settings initial window size with exceeded max window size value",
        &GENERAL,
    ),
    (
        "6. frame definitions :: sends settings initial window size with invalid value",
        &GENERAL,
    ),
    (
        "6. frame definitions :: sends window update frame with invalid length",
        &GENERAL,
    ),
    (
        "7. error codes :: sends goaway frame with unknown error code",
        &LET_GO,
    ),
    (
        "8. expressing http semantics in http2 :: client sends push promise frame",
        &UNFINISHED,
    ),
    (
        "8. expressing http semantics in http2 :: sends connect without authority",
        &ANSWERED,
    ),
    (
        "8. expressing http semantics in http2 :: sends headers frame with leading space in field value",
        &ANSWERED,
    ),
    (
        "8. expressing http semantics in http2 :: sends headers frame with mismatched host authority",
        &ANSWERED,
    ),
    (
        "8. expressing http semantics in http2 :: sends headers frame with pseudo header in trailer",
        &DROPPED,
    ),
    (
        "8. expressing http semantics in http2 :: sends headers frame with trailing tab in field value",
        &ANSWERED,
    ),
    (
        "3. starting http2 :: sends invalid connection preface",
        &NO_PREFACE,
    ),
];

/// Why a case may fail, and what httpwg says then.
struct Reason {
    says: &'static str,
    why: &'static str,
    /// Over TLS it must not.
    in_the_clear_alone: bool,
}

const GENERAL: Reason = Reason {
    says: "but got ProtocolError",
    why: "h2 ends the connection with the general code where there is one for the case",
    in_the_clear_alone: false,
};
const LET_GO: Reason = Reason {
    says: "peer hung up. Last frame: Some(Conn:GoAway",
    why: "who says goodbye and has no request left is let go; the suite waits for an answer to a ping",
    in_the_clear_alone: false,
};
const UNFINISHED: Reason = Reason {
    says: "Timed out while waiting for connection error",
    why: "the suite sends no END_HEADERS; the rest of the frame's fields is waited for until the connection is idle",
    in_the_clear_alone: false,
};
const ANSWERED: Reason = Reason {
    says: "Timed out while waiting for stream error, last frame: (Some(#1:",
    why: "it is answered with 400, as RFC 9113, 8.1.1 lets a server do, and not reset",
    in_the_clear_alone: false,
};
const DROPPED: Reason = Reason {
    says: "last frame: (Some(#1:Data",
    why: "h2 drops such a field of the trailers; the instance never sees it",
    in_the_clear_alone: false,
};
const NO_PREFACE: Reason = Reason {
    says: "peer frame header, then incomplete payload, then hung up",
    why: "what doesn't begin with the preface is taken for HTTP/1.1, and refused in its words",
    in_the_clear_alone: true,
};

each_way! {
    the_cases_of_httpwg_pass_but_those_with_a_reason
}

async fn the_cases_of_httpwg_pass_but_those_with_a_reason(way: Way) {
    if !peers::has(&[HTTPWG]) {
        return;
    }
    let is_clear = matches!(way, Way::Clear);
    let (world, _control) = world(way).await;
    let at = plain(&world).await;
    // A case that waits for what doesn't come takes all of this; a slow machine is no failure.
    let patience = "5000";
    let output = Command::new(std::env::var_os(HTTPWG).expect("set"))
        .args(["--verbose", "--address", &at.to_string()])
        .args(["--connect-timeout", patience, "--frame-timeout", patience])
        .output()
        .await
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let verdicts = verdicts(&said);
    assert_eq!(verdicts.cases.len(), HTTPWG_CASES, "{said}");
    let mut reasons = BTreeMap::<&str, u32>::new();
    for case in verdicts.cases.difference(&verdicts.passed) {
        // One that panicked has no text of its own.
        let text = verdicts.texts.get(case).copied().unwrap_or(&said);
        let known = KNOWN.iter().find(|(known, _)| known == case);
        let reason = known.map(|(_, reason)| reason).filter(|reason| {
            text.contains(reason.says) && (is_clear || !reason.in_the_clear_alone)
        });
        let reason = reason.unwrap_or_else(|| panic!("{case}: {text}\n{said}"));
        *reasons.entry(reason.why).or_default() += 1;
    }
    let passed = verdicts.passed.len();
    println!("httpwg: {passed} of {HTTPWG_CASES} cases passed");
    for (why, count) in reasons {
        println!("httpwg: {count} not: {why}");
    }
}

/// What httpwg says of each case.
#[derive(Default)]
struct Verdicts<'a> {
    cases: BTreeSet<&'a str>,
    passed: BTreeSet<&'a str>,
    /// Why a case failed; none of one that panicked.
    texts: BTreeMap<&'a str, &'a str>,
}

fn verdicts(said: &str) -> Verdicts<'_> {
    let mut verdicts = Verdicts::default();
    let mut lines = said.lines();
    while let Some(line) = lines.next() {
        let Some((event, case)) = line.split_once(": RFC 9113 :: ") else {
            continue;
        };
        if event.ends_with("Running test") {
            verdicts.cases.insert(case);
        } else if event.ends_with("Test passed") {
            verdicts.passed.insert(case);
        } else if event.ends_with("Test failed") {
            let text = lines.by_ref().find(|line| !line.is_empty());
            verdicts.texts.insert(case, text.unwrap_or_default());
        }
    }
    verdicts
}

/// A proxy with an instance as the suite wants one: it reads a body to its end, and answers with more than five bytes.
async fn world(way: Way) -> (World, Control) {
    let (world, mut control, _) = World::with_two_by(way, 5_000, &[]).await;
    let listener = TcpListener::bind(own_address()).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            let service = service_fn(|request: Request<Incoming>| async {
                request.into_body().collect().await?;
                hyper::Result::Ok(Response::new(Full::<Bytes>::from(
                    "an answer of some length",
                )))
            });
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A request that is broken off breaks its connection.
            tokio::spawn(async move { served.await.unwrap_or_default() });
        }
    });
    let only = [(3, address, 10_000, true)];
    control.publish(&table(1, 2, &only)).await;
    (world, control)
}

/// Where the proxy is reached without TLS: itself, or a relay that speaks TLS to it.
async fn plain(world: &World) -> SocketAddr {
    let (Some(secure), Way::Tls(authority)) = (world.secure, world.way()) else {
        return world.proxy;
    };
    let mut config = authority.trusted();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (mut user, _) = listener.accept().await.expect("accept");
            let connector = connector.clone();
            tokio::spawn(async move {
                let stream = TcpStream::connect(secure).await.expect("connected");
                let name = ServerName::try_from(NAME).expect("a name");
                let mut stream = connector.connect(name, stream).await.expect("TLS");
                // Whoever breaks the protocol may be cut off in the middle.
                copy_bidirectional(&mut user, &mut stream)
                    .await
                    .unwrap_or_default();
            });
        }
    });
    address
}
