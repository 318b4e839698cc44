//! What packets and TCP tell: requests, connections, and how their two groups share programs.
//!
//! Needs root and `SIM_EBPF_OBJECT`; with `SIM_REQUIRE_PRIVILEGED=1` a lack of either is a failure.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    dead_code,
    reason = "a test's helpers are tests too, and each file uses its part of them"
)]

mod support;

use sim_ebpf::{Counters, Group, Probes};
use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};
use support::{Actor, Cgroup, Privileged, assert_close, eventually};

/// Not a test: what [`Actor`] runs.
#[test]
fn actor() {
    support::play();
}

/// A server in a cgroup, and probes that look at its packets.
struct Served {
    probes: Probes,
    cgroup: Cgroup,
    _root: Cgroup,
    _server: Actor,
    port: u16,
}

impl Served {
    fn new(privileged: &Privileged, think_ms: u64) -> Self {
        let root = Cgroup::new("served");
        let cgroup = Cgroup::below(&root.path, "server");
        let mut config = privileged.config();
        config.cgroup_root = Some(root.path.clone());
        let mut probes = Probes::load(&config).unwrap();
        assert!(probes.is_active(Group::Http), "{:?}", probes.status());
        probes.track(cgroup.id()).unwrap();
        let mut server = Actor::start(&cgroup, &format!("serve {think_ms}"));
        let port = server.hears("port ").parse().unwrap();
        Self {
            probes,
            cgroup,
            _root: root,
            _server: server,
            port,
        }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).unwrap()
    }

    fn counters(&self) -> Counters {
        self.probes.read(self.cgroup.id()).unwrap()
    }

    /// What ten requests add to the counters.
    fn ten_requests(&self) -> Counters {
        let before = self.counters();
        for _ in 0..10 {
            let mut stream = self.connect();
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = [0; 256];
            assert!(stream.read(&mut answer).unwrap() > 0);
        }
        self.counters().since(&before)
    }

    /// Programs that look at packets.
    fn programs(&self) -> Vec<String> {
        let programs = self.probes.cost().programs.into_iter();
        let names = programs.map(|program| program.name);
        names
            .filter(|name| {
                ["packet_", "net_", "http_"]
                    .iter()
                    .any(|begin| name.starts_with(begin))
            })
            .collect()
    }
}

#[test]
fn requests_are_timed_and_classed_without_touching_the_service() {
    const GOOD: u64 = 40;
    const BAD: u64 = 10;
    const THINK_MS: u64 = 40;
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let served = Served::new(&privileged, THINK_MS);
    let mut spent_ns = 0;
    for at in 0..GOOD + BAD {
        // Two on each connection: the first of a new one, and one on a connection that was kept alive.
        let mut stream = served.connect();
        for _ in 0..2 {
            let path = if at < GOOD { "/good" } else { "/bad" };
            let began = Instant::now();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = [0; 256];
            let mut read = 0;
            while !answer[..read].ends_with(b"ok") {
                read += stream.read(&mut answer[read..]).unwrap();
            }
            spent_ns += began.elapsed().as_nanos() as u64;
        }
    }
    let counted = served.counters();
    assert_eq!(counted.http_requests, 2 * (GOOD + BAD));
    assert_eq!(counted.http_responses, [0, 2 * GOOD, 0, 0, 2 * BAD]);
    assert_eq!(counted.http_hist.total(), 2 * (GOOD + BAD));
    let thought_ns = 2 * (GOOD + BAD) * THINK_MS * 1_000_000;
    assert!(
        counted.http_service_ns >= thought_ns,
        "{}",
        counted.http_service_ns
    );
    // The client sees the same time and the way there and back.
    assert!(counted.http_service_ns <= spent_ns);
    assert_close("service ns", counted.http_service_ns, spent_ns, 0.10);
    let median = counted.http_hist.quantile_ns(0.5).unwrap();
    assert!(
        (THINK_MS as f64 * 0.8e6..=2.0 * THINK_MS as f64 * 1e6).contains(&median),
        "{median}"
    );
}

#[test]
fn what_is_no_request_is_not_counted() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let served = Served::new(&privileged, 0);
    let mut stream = served.connect();
    stream.write_all(b"GETAWAY nothing\r\n").unwrap();
    thread::sleep(Duration::from_millis(20));
    stream
        .write_all(b"a body that mentions GET / HTTP/1.1\r\n")
        .unwrap();
    thread::sleep(Duration::from_millis(20));
    let counted = served.counters();
    assert_eq!(counted.http_requests, 0);
    assert!(counted.net_rx_packets > 0);
}

#[test]
fn connections_and_resets_are_charged_to_both_ends() {
    const CONNECTIONS: u64 = 20;
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let (server, client) = (Cgroup::new("server"), Cgroup::new("client"));
    let mut probes = privileged.load();
    probes.track(server.id()).unwrap();
    probes.track(client.id()).unwrap();
    let mut serving = Actor::start(&server, "serve 0");
    let port = serving.hears("port ");
    let mut dialling = Actor::start(&client, &format!("dial {port} {CONNECTIONS}"));
    dialling.go();
    dialling.done();
    let made = eventually("all connections counted", || {
        let made = probes.read(client.id()).unwrap();
        (made.connects >= CONNECTIONS && made.connect_failures > 0).then_some(made)
    });
    let received = probes.read(server.id()).unwrap();
    // Each is closed with its last bytes unread, which is a reset; the last port is nobody's.
    assert_eq!(
        (made.connects, received.accepts),
        (CONNECTIONS, CONNECTIONS)
    );
    assert_eq!((made.accepts, received.connects), (0, 0));
    assert_eq!((made.connect_failures, received.connect_failures), (1, 0));
    eprintln!(
        "{} resets sent by the client, {} received by the server",
        made.resets_sent, received.resets_received
    );
    assert_eq!(made.resets_sent, CONNECTIONS);
    assert_eq!(received.resets_received, CONNECTIONS);
}

#[test]
fn two_groups_share_their_programs_and_each_goes_on_without_the_other() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    for (shed, left) in [
        (Group::Http, ["net_egress", "net_ingress"]),
        (Group::Net, ["http_request", "http_response"]),
    ] {
        let mut served = Served::new(&privileged, 0);
        assert_eq!(served.programs(), ["packet_in", "packet_out"]);
        let both = served.ten_requests();
        assert_eq!((both.http_requests, both.http_responses[1]), (10, 10));
        // SYN, its answer's acknowledgement, the request.
        assert!(both.net_rx_packets >= 30, "{}", both.net_rx_packets);
        assert!(both.rtt_hist.total() > 0);
        let cost = served.probes.cost().run_ns_total;

        served.probes.shed(shed, "it was too dear".into());
        assert_eq!(served.programs(), left);
        assert!(served.probes.cost().run_ns_total >= cost);
        let one = served.ten_requests();
        let (requests, packets) = (one.http_requests, one.net_rx_packets);
        if shed == Group::Http {
            assert!(requests == 0 && packets >= 30, "{requests} and {packets}");
        } else {
            assert_eq!((requests, packets), (10, 0));
        }
        let groups: Vec<Group> = served.probes.group_costs().iter().map(|g| g.0).collect();
        assert!(!groups.contains(&shed), "{groups:?}");
        assert!(served.probes.is_active(Group::Net) != served.probes.is_active(Group::Http));

        for group in [Group::Net, Group::Http] {
            served.probes.shed(group, "it was too dear".into());
        }
        assert_eq!(served.programs(), [""; 0]);
    }
}
