//! Several workloads behind one proxy.

use crate::control::Control;
use crate::process::WORKLOADS;
use crate::protocol::raw;
use crate::upstream::Upstream;
use crate::world::{World, table, table_of};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::handshake;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sim_core::name::WorkloadName;
use sim_core::table::WeightTable;
use tokio::net::TcpStream;

/// Beside `web`, which gets what is nobody else's.
const API: &str = "web;api=*/api|api.example/|*/ x-api:yes";

fn api_table(generation: u64, id: u64, upstream: &Upstream) -> WeightTable {
    let name = WorkloadName::new("api").expect("valid");
    table_of(name, 1, generation, &[(id, upstream.address, 10_000, true)])
}

/// `web` at `w`, and `api` at `a`.
async fn two() -> (World, Control, [Upstream; 2]) {
    let (world, mut control) = World::start_with(&[(WORKLOADS, API)]);
    let ups = [Upstream::start("w").await, Upstream::start("a").await];
    let web = table(1, 1, &[(1, ups[0].address, 10_000, true)]);
    control.publish(&web).await;
    control.publish(&api_table(1, 2, &ups[1])).await;
    (world, control, ups)
}

/// What a request to `path` gets, by the fast path and by the general one, which takes whatever is HTTP/1.0.
async fn answers(world: &World, host: &str, path: &str, fields: &str) -> [String; 2] {
    let mut answers = [const { String::new() }; 2];
    for (version, answer) in ["1.1", "1.0"].into_iter().zip(&mut answers) {
        let request = format!(
            "GET {path} HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n"
        );
        let whole = raw(world, &request).await;
        let (head, body) = whole.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).expect("a status");
        *answer = format!("{status} {body}");
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_goes_to_the_workload_of_its_host_path_or_field_on_both_paths() {
    let (world, _control, _ups) = two().await;
    for (host, path, fields, workload) in [
        ("x", "/", "", "w"),
        ("x", "/api", "", "a"),
        ("x", "/api/v1?q=/", "", "a"),
        ("x", "/%61pi", "", "a"),
        ("x", "/apis", "", "w"),
        ("x", "//api", "", "w"),
        ("x", "/api%2fv1", "", "w"),
        ("api.example", "/", "", "a"),
        ("API.Example.:8080", "/x", "", "a"),
        ("api.example.evil", "/", "", "w"),
        ("x", "/", "X-Api: yes\r\n", "a"),
        ("x", "/", "X-Api: no\r\nx-API:  yes \r\n", "a"),
        ("x", "/", "X-Api: yes, no\r\n", "w"),
    ] {
        let expected = format!("200 {workload}");
        let found = answers(&world, host, path, fields).await;
        assert_eq!(
            found,
            [expected.clone(), expected],
            "{host} {path} {fields}"
        );
    }
    let absolute =
        "GET http://api.example/ HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n";
    assert!(raw(&world, absolute).await.ends_with("\r\n\r\na"));
    // Two hosts would be two readings.
    let two_hosts = "GET http://api.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(raw(&world, two_hosts).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_http2_connection_go_each_to_its_workload() {
    let (world, _control, _ups) = two().await;
    let stream = TcpStream::connect(world.proxy).await.expect("connected");
    let (mut user, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    for (uri, status, body) in [
        ("http://x/", 200, "w"),
        ("http://x/api/v1", 200, "a"),
        ("http://API.example:8080/", 200, "a"),
        (
            "http://x/api/..%2fadmin",
            400,
            "400 Bad Request: the request is malformed\n",
        ),
    ] {
        let request = Request::get(uri)
            .body(Empty::<Bytes>::new())
            .expect("valid");
        let answer = user.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), status, "{uri}");
        let got = answer
            .into_body()
            .collect()
            .await
            .expect("whole")
            .to_bytes();
        assert_eq!(got, body, "{uri}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_an_instance_may_resolve_to_another_workload_s_reaches_nobody() {
    let (world, _control, ups) = two().await;
    let paths = [
        "/api/../admin",
        "/api/..",
        "/x/../api",
        "/./api",
        "/api/%2e%2E/admin",
        "/api/..%2fadmin",
        "/api%5C..%5Cadmin",
        "/api/..;x=1/admin",
    ];
    for path in paths {
        let [fast, general] = answers(&world, "x", path, "").await;
        let refused = "400 400 Bad Request: the request is malformed\n";
        assert_eq!([&*fast, &*general], [refused; 2], "{path}");
    }
    assert_eq!(ups[0].counts.requests() + ups[1].counts.requests(), 0);
    let metrics = world.settled().await;
    let count = |family: &str, label: &str| metrics.sum(family, &[label]) as usize;
    let refused = 2 * paths.len();
    assert_eq!(
        count("sim_proxy_requests_unmatched_total", "dot_segment"),
        refused
    );
    assert_eq!(count("sim_proxy_requests_ended_total", "refused"), refused);
    assert_eq!(count("sim_proxy_requests_total", ""), refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_no_workload_s_is_answered_404_and_counted() {
    let settings = "web=web.example/;api=api.example/";
    let (world, mut control) = World::start_with(&[(WORKLOADS, settings)]);
    let upstream = Upstream::start("w").await;
    control
        .publish(&table(1, 1, &[(1, upstream.address, 10_000, true)]))
        .await;
    let ok = "200 w".to_owned();
    assert_eq!(
        answers(&world, "web.example", "/", "").await,
        [ok.clone(), ok]
    );
    let none = "404 404 Not Found: no service is here\n".to_owned();
    assert_eq!(answers(&world, "x", "/", "").await, [none.clone(), none]);
    assert_eq!(upstream.counts.requests(), 2);
    let metrics = world.settled().await;
    assert_eq!(
        metrics.sum("sim_proxy_requests_unmatched_total", &["no_workload"]),
        2.0
    );
    assert_eq!(
        metrics.sum("sim_proxy_requests_total", &["workload=\"web\""]),
        2.0
    );
    assert_eq!(metrics.sum("sim_proxy_requests_total", &[]), 4.0);
    assert_eq!(metrics.sum("sim_proxy_requests_in_flight", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_workload_has_its_own_table_counters_and_report() {
    let (world, mut control) = World::start_with(&[(WORKLOADS, API)]);
    let ups = [Upstream::start("w").await, Upstream::start("a").await];
    control
        .publish(&table(1, 7, &[(1, ups[0].address, 10_000, true)]))
        .await;
    let user = world.client();
    assert_eq!(user.get("/").await, (StatusCode::OK, "w".into()));
    assert_eq!(user.get("/api").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.ready().await, StatusCode::SERVICE_UNAVAILABLE);
    control.publish(&api_table(3, 2, &ups[1])).await;
    assert_eq!(world.ready().await, StatusCode::OK);
    for _ in 0..3 {
        assert_eq!(user.get("/api").await, (StatusCode::OK, "a".into()));
    }
    // The failure of one is not the other's.
    let [_, api] = ups;
    api.kill().await;
    assert_eq!(user.get("/api").await.0, StatusCode::BAD_GATEWAY);
    assert_eq!(user.get("/").await, (StatusCode::OK, "w".into()));
    let metrics = world.settled().await;
    for (workload, arrived, ok, generation, no_instance) in
        [("web", 2.0, 2.0, 7.0, 0.0), ("api", 5.0, 3.0, 3.0, 1.0)]
    {
        let label = format!("workload=\"{workload}\"");
        let of = |family: &str| metrics.sum(family, &[&label]);
        assert_eq!(of("sim_proxy_requests_total"), arrived, "{workload}");
        assert_eq!(of("sim_proxy_table_generation"), generation, "{workload}");
        assert_eq!(of("sim_proxy_no_instance_total"), no_instance, "{workload}");
        assert_eq!(of("sim_proxy_control_connected"), 1.0, "{workload}");
        let ended = metrics.sum(
            "sim_proxy_requests_ended_total",
            &[&label, "outcome=\"ok\""],
        );
        assert_eq!(ended, ok, "{workload}");
    }
    // Reports are differences: together they tell each arrival once.
    for (workload, due) in [("web", 2), ("api", 5)] {
        let told = async {
            loop {
                let reports = control.reports();
                let own = reports.iter().filter(|report| report.workload == workload);
                let sum: u64 = own.map(|report| report.arrivals).sum();
                if sum >= due {
                    return sum;
                }
                control.next_report().await;
            }
        };
        assert_eq!(told.await, due, "{workload}");
    }
}
