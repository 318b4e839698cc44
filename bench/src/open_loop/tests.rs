use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};

use super::*;

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
