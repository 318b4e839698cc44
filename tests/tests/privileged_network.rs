//! What the probes say of a network that is made slow and lossy, held against who made it so.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test's helpers are tests too"
)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sim_ebpf::{Probes, ProbesConfig};
use sim_node::cgroup::Hierarchy;
use sim_tests::world::cgroup::CpuCap;
use sim_tests::world::privilege::{missing, or_skip};
use sim_tests::world::process::{Guarded, Placement, place};
use sim_tests::world::{Server, World};

const BULK_PORT: u16 = 9_000;
const ECHO_PORT: u16 = 9_001;
/// A sender alone would keep its packets back rather than fill the queue (TCP small queues).
const BULKS: usize = 32;
/// How long the link is kept full.
const FULL: Duration = Duration::from_secs(4);

/// Sends without end on one port, and answers each byte on the other.
const SERVICE: &str = "
import socket, sys, threading
def listen(port):
    s = socket.create_server((sys.argv[1], port))
    print('listening', flush=True)
    while True:
        c, _ = s.accept()
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield c
def bulk(c):
    try:
        while True: c.sendall(bytes(65536))
    except OSError: pass
def echo(c):
    while b := c.recv(1): c.sendall(b)
def serve(port, what):
    for c in listen(port): threading.Thread(target=what, args=(c,), daemon=True).start()
threading.Thread(target=serve, args=(9000, bulk), daemon=True).start()
serve(9001, echo)
";

/// Runs `program` in the server's namespace; what it says.
fn there(server: &Server, program: &str, arguments: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments.split(' ')).stdin(Stdio::null());
    let placement = Placement {
        netns: server.netns(),
        cgroups: Vec::new(),
    };
    place(&mut command, placement, Signal::SIGKILL);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Segments that the namespace's own TCP says it sent again.
fn segments_sent_again(server: &Server) -> u64 {
    let text = there(server, "cat", "/proc/net/snmp");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs
        .find(|(name, _)| *name == "RetransSegs")
        .unwrap()
        .1
        .parse()
        .unwrap()
}

/// Lets every fiftieth packet of the bulk get lost on its way here.
fn lose_packets() {
    for rule in [
        "add table ip lossy",
        "add chain ip lossy in { type filter hook input priority 0; }",
        "add rule ip lossy in tcp sport 9000 numgen inc mod 50 == 0 counter drop",
    ] {
        nft(rule);
    }
}

/// Packets that got lost.
fn lost() -> u64 {
    let table = nft("list table ip lossy");
    let (_, rest) = table.split_once("counter packets ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn nft(rule: &str) -> String {
    let output = Command::new("nft").arg(rule).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {rule}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn round_trips_and_retransmits_agree_with_what_delays_and_drops() {
    let object = std::env::var_os("SIM_EBPF_OBJECT");
    let lacking = object
        .is_none()
        .then(|| "SIM_EBPF_OBJECT is not set".to_owned());
    if !or_skip("round_trips_and_retransmits_agree", missing().or(lacking)) {
        return;
    }
    let world = World::build().unwrap();
    assert_eq!(world.shared_network, None);
    let server = &world.servers[0];
    // Packets of two segments at most, so that one that is dropped doesn't stall the connection.
    there(server, "ip", "link set dev eth0 gso_max_segs 2");
    // 10 Mbit/s and a queue that holds a tenth of a second of it: then it drops.
    there(
        server,
        "tc",
        "qdisc add dev eth0 root tbf rate 10mbit burst 10kb latency 100ms",
    );
    let name = format!("sim-network-test-{}", std::process::id());
    let cap = CpuCap::create(&Hierarchy::detect().unwrap(), &name, 1.0).unwrap();
    let id = cap.group().id().unwrap();
    let mut config = ProbesConfig::new(object.unwrap());
    config.cgroup_root = cap.group().unified_dir();
    let mut probes = Probes::load(&config).unwrap();
    probes.track(id).unwrap();

    let mut service = Command::new("python3");
    service.args(["-c", SERVICE, &server.address.to_string()]);
    service.stdin(Stdio::null()).stdout(Stdio::piped());
    let placement = Placement {
        netns: server.netns(),
        cgroups: cap.procs().unwrap(),
    };
    let grace = Duration::from_secs(5);
    let mut service =
        Guarded::spawn("service", service, placement, Signal::SIGKILL, grace).unwrap();
    // Two threads say it, perhaps at once.
    service.stdout().unwrap().read_exact(&mut [0; 20]).unwrap();

    let mut echo = TcpStream::connect(SocketAddr::new(server.address, ECHO_PORT)).unwrap();
    echo.set_nodelay(true).unwrap();
    let bulk = [(); BULKS].map(|()| {
        let stream = TcpStream::connect(SocketAddr::new(server.address, BULK_PORT)).unwrap();
        let mut sink = stream.try_clone().unwrap();
        let reader = std::thread::spawn(move || std::io::copy(&mut sink, &mut std::io::sink()));
        (stream, reader)
    });
    // Until the queue stands.
    std::thread::sleep(Duration::from_secs(1));
    let before = probes.read(id).unwrap();
    let begin = Instant::now();
    let mut trips = Vec::new();
    while begin.elapsed() < FULL {
        let sent = Instant::now();
        echo.write_all(&[1]).unwrap();
        echo.read_exact(&mut [0]).unwrap();
        trips.push(sent.elapsed().as_secs_f64());
    }
    let counted = probes.read(id).unwrap().since(&before);
    trips.sort_by(f64::total_cmp);
    let timed = trips[trips.len() / 2];
    let seen = counted.rtt_hist.quantile_ns(0.5).unwrap() / 1e9;
    eprintln!(
        "round trip: {:.1} ms by the probes, {:.1} ms timed",
        seen * 1e3,
        timed * 1e3
    );
    assert!(timed > 0.02, "the queue stands: {timed}");
    // The histogram's buckets are a factor of two wide.
    assert!(
        (0.5..=2.0).contains(&(seen / timed)),
        "{seen} against {timed}"
    );

    let before = probes.read(id).unwrap();
    let again_before = segments_sent_again(server);
    lose_packets();
    std::thread::sleep(FULL);
    for (stream, _) in &bulk {
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
    let counted = probes.read(id).unwrap().since(&before);
    let (again, lost) = (segments_sent_again(server) - again_before, lost());
    for (_, reader) in bulk {
        reader.join().unwrap().ok();
    }
    let ours = counted.retransmits;
    eprintln!("retransmits: {ours} by the probes, {again} by the namespace, {lost} packets lost");
    assert!(lost > 20, "packets get lost: {lost}");
    // The readings are not taken at one moment.
    let off = 3.0 + 0.02 * again as f64;
    assert!(
        (ours as f64 - again as f64).abs() <= off,
        "{ours} against {again}"
    );
    // A lost packet was one segment or two, and some are sent again that were only late.
    assert!(
        ours as f64 >= 0.8 * lost as f64 && ours <= 3 * lost,
        "{ours} against {lost}"
    );
}
