use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::secure::Certificate;

/// Serves each connection on a thread of its own by `answer`, which is told how many requests came before.
fn serve(answer: impl Fn(&mut TcpStream, usize) -> bool + Copy + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a copy")).lines();
                let mut count = 0;
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty() {
                        if !answer(&mut stream, count) {
                            return;
                        }
                        count += 1;
                    }
                }
            });
        }
    });
    address
}

fn good(stream: &mut TcpStream) -> bool {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Instance: 3\r\n\r\nok";
    stream.write_all(answer).is_ok()
}

fn plan(target: SocketAddr, rate_hz: f64, span: Duration) -> Plan {
    Plan {
        warm: Duration::ZERO,
        connections: 4,
        ..Plan::get(target, "/", rate_hz, span)
    }
}

#[test]
fn every_arrival_is_answered_and_accounted_for() {
    let target = serve(|stream, _| good(stream));
    let span = Duration::from_millis(500);
    let taken = plan(target, 400.0, span).run().expect("it runs");
    let due = Arrivals::new(Constant(400.0), 1)
        .take_while(|due| *due < 0.5)
        .count();
    assert_eq!((taken.shots.len(), taken.failed()), (due, 0));
    assert!(taken.shots.iter().all(|shot| shot.instance == 3));
    assert!(taken.latencies_us().is_sorted());
}

#[test]
fn a_stall_shows_in_all_that_were_due_meanwhile() {
    // The second request of a connection waits 300 ms; one connection, so that all others wait behind it.
    let target = serve(|stream, count| {
        if count == 1 {
            std::thread::sleep(Duration::from_millis(300));
        }
        good(stream)
    });
    let plan = Plan {
        connections: 1,
        connections_max: 1,
        ..plan(target, 200.0, Duration::from_millis(400))
    };
    let taken = plan.run().expect("it runs");
    let late = taken.shots.iter();
    let late = late.filter(|shot| shot.latency > Duration::from_millis(100));
    // Some 40 are due in the first 200 ms of the stall; one alone would be late by its own clock.
    assert!(late.count() >= 20, "{:?}", taken.latencies_us());
}

#[test]
fn who_is_cut_off_or_never_answered_has_failed() {
    let cut = serve(|_, _| false);
    let span = Duration::from_millis(100);
    let taken = plan(cut, 200.0, span).run().expect("it runs");
    assert!(!taken.shots.is_empty());
    assert!(
        taken
            .shots
            .iter()
            .all(|shot| shot.outcome == Outcome::Broken)
    );

    let silent = serve(|_, _| true);
    let plan = Plan {
        patience: Duration::from_millis(50),
        ..plan(silent, 200.0, span)
    };
    let taken = plan.run().expect("it runs");
    assert!(!taken.shots.is_empty());
    assert!(taken.shots.iter().all(|shot| shot.outcome == Outcome::Late));
}

#[test]
fn a_connection_closed_between_two_requests_is_counted_and_replaced() {
    let target = serve(|stream, count| good(stream) && count == 0);
    let span = Duration::from_millis(300);
    let plan = Plan {
        connections: 1,
        connections_max: 1,
        ..plan(target, 20.0, span)
    };
    let taken = plan.run().expect("it runs");
    assert!(taken.shots.len() > 1);
    assert!(taken.closed_idle > 0 || taken.failed() > 0);
}

#[test]
fn over_tls_answers_of_several_records_are_read_whole_and_strangers_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let certificate = Certificate::new(folder.path()).expect("made");
    let chain = CertificateDer::from_pem_file(&certificate.chain).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .expect("they fit");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(config.clone()).expect("a connection");
            let mut tls = StreamOwned::new(connection, stream.expect("a connection"));
            std::thread::spawn(move || {
                let body = "x".repeat(40_000);
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n{body}");
                let mut seen = Vec::new();
                let mut byte = [0];
                // Its end is that of the connection.
                while tls.read_exact(&mut byte).is_ok() {
                    seen.extend(byte);
                    if seen.ends_with(b"\r\n\r\n") {
                        seen.clear();
                        tls.write_all(answer.as_bytes()).expect("written");
                    }
                }
            });
        }
    });
    let span = Duration::from_millis(300);
    let plan = plan(target, 100.0, span);
    let taken = plan.clone().over_tls(certificate.users.clone()).run();
    let taken = taken.expect("it runs");
    assert!(taken.shots.len() > 10);
    assert_eq!((taken.failed(), taken.closed_idle), (0, 0));

    let other = tempfile::tempdir().expect("a folder");
    let stranger = Certificate::new(other.path()).expect("made");
    plan.over_tls(stranger.users)
        .run()
        .expect_err("it trusts somebody else");
}
