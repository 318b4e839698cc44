//! The metrics page of a real node, held against what happened.
#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use sim_node::cgroup::Hierarchy;
use sim_tests::director::Director;
use sim_tests::world::privilege::{missing, or_skip};

const REQUESTS: usize = 40;
/// For what takes a moment on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// A service that works for each answer.
const SERVICE: &str = "
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/work':
            sum(range(200000))
        self.send_response(404 if self.path == '/missing' else 200)
        self.send_header('Content-Length', '2')
        self.end_headers()
        self.wfile.write(b'ok')
    def log_message(self, *_): pass
http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_says_what_happened_and_forgets_what_is_gone() {
    let object = std::env::var_os("SIM_EBPF_OBJECT").is_none();
    let missing = missing().or(object.then(|| "SIM_EBPF_OBJECT is not set".to_owned()));
    if !or_skip("the_page_says_what_happened", missing) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let metrics = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut director = Director::start(folder.path(), &format!("metrics = '{metrics}'")).unwrap();
    let command = ["python3", "-c", SERVICE, "{address}", "{port}"];
    director.run(1, "web", &command).await.unwrap();
    director.run(2, "idle", &command).await.unwrap();
    director.ready(2).await.unwrap();
    let address: SocketAddr = director.heard.address(1).unwrap().parse().unwrap();
    let of = |instance: u64, workload: &str| {
        format!("workload=\"{workload}\",instance=\"i{instance}\",server=\"a\"")
    };
    let (web, idle) = (of(1, "web"), of(2, "idle"));
    let answers = |page: &str, status: &str| {
        value(
            page,
            "sim_container_http_responses_total",
            &format!("{web},status=\"{status}\""),
        )
        .unwrap()
    };
    let deadline = Instant::now() + PATIENCE;
    // Its readiness was asked for once.
    let before = loop {
        let page = get(metrics, "/metrics").1;
        if answers(&page, "2xx") > 0.0 {
            break page;
        }
        assert!(Instant::now() < deadline, "it is ready: {page}");
        std::thread::sleep(Duration::from_millis(50));
    };
    for _ in 0..REQUESTS {
        assert_eq!(get(address, "/work").0, 200);
    }
    assert_eq!(get(address, "/missing").0, 404);

    // A page may be a second old, and show none of it yet.
    let deadline = Instant::now() + PATIENCE;
    let page = loop {
        let (status, page) = get(metrics, "/metrics");
        assert_eq!(status, 200);
        if answers(&page, "4xx") > 0.0 {
            break page;
        }
        assert!(Instant::now() < deadline, "what happened: {page}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!((answers(&page, "2xx") - answers(&before, "2xx") - REQUESTS as f64).abs() < 0.1);
    assert!((answers(&page, "4xx") - 1.0).abs() < 0.1);
    let served = "http_server_request_duration_seconds_count";
    let all = value(&page, served, &web).unwrap() - value(&before, served, &web).unwrap();
    assert!((all - REQUESTS as f64 - 1.0).abs() < 0.1, "{all}");

    // Against the cgroup's own file, which is read a little later.
    let used = value(&page, "container_resources_cpu_usage_seconds_total", &web).unwrap();
    let filed = cpu_seconds(&director.cgroup);
    assert!(
        used > 0.05 && (used - filed).abs() < 0.01 + 0.02 * filed,
        "{used} against {filed}"
    );
    // A tenth of a CPU is less than it wanted.
    let throttled = "container_resources_cpu_throttled_seconds_total";
    assert!(value(&page, throttled, &web).unwrap() > 0.0);
    let bytes = "container_memory_working_set_bytes";
    assert!(value(&page, bytes, &web).unwrap() > 1e6);
    assert!(value(&page, "container_resources_cpu_delay_seconds_total", &idle).is_some());
    let runs = "sim_probe_runs_total";
    assert!(value(&page, runs, "server=\"a\",program=\"sched_switch\"").unwrap() > 0.0);
    assert!(page.ends_with("# EOF\n"));

    // The service takes one connection at a time: the first one keeps it, two more wait.
    let waited = "sim_container_net_tcp_accept_wait_seconds_total";
    let waiting = "sim_container_net_tcp_accept_queue";
    let waited_before = value(&page, waited, &web).unwrap();
    let held = [(); 3].map(|()| TcpStream::connect(address).unwrap());
    let deadline = Instant::now() + PATIENCE;
    let page = loop {
        let page = get(metrics, "/metrics").1;
        let two = (value(&page, waiting, &web).unwrap() - 2.0).abs() < 0.1;
        if two && value(&page, waited, &web).unwrap() > waited_before + 1.0 {
            break page;
        }
        assert!(Instant::now() < deadline, "two connections wait: {page}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(value(&page, waiting, &idle).unwrap() < 0.1);
    assert!(value(&page, waited, &idle).unwrap() < 0.1);
    drop(held);

    assert_eq!(get(metrics, "/").0, 404);
    director.stop(2).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while get(metrics, "/metrics").1.contains(&idle) {
        assert!(Instant::now() < deadline, "a series of what is gone");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(get(metrics, "/metrics").1.contains(&web));

    let run = director.cgroup.trim_end_matches("/a").to_owned();
    drop(director);
    let left = Hierarchy::detect().unwrap().directories(&run);
    assert!(left.is_empty(), "{left:?}");
}

fn cpu_seconds(cgroup: &str) -> f64 {
    let directory = Hierarchy::detect().unwrap().unified_dir(cgroup).unwrap();
    let file = Path::new(&directory).join("i1/cpu.stat");
    let text = std::fs::read_to_string(file).unwrap();
    let usage = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    usage.unwrap().trim().parse::<f64>().unwrap() / 1e6
}

/// The value of a sample whose labels are exactly these.
fn value(page: &str, name: &str, labels: &str) -> Option<f64> {
    let begin = format!("{name}{{{labels}}} ");
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(begin.as_str()))?;
    line.trim().parse().ok()
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
    (status, body)
}
