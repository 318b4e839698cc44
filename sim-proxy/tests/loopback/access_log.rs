//! The access log as it is read: lines of JSON, of both paths, whatever becomes of a request.

use crate::process::{ACCESS_LOG, LIMITS, TRACE};
use crate::protocol::raw;
use crate::world::{PATIENCE, World};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn ask(world: &World, request: &str) {
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    user.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while user
        .read_buf(&mut answer)
        .await
        .is_ok_and(|count| count > 0)
    {}
    assert!(!answer.is_empty(), "{request:?}");
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let parse = |line: &str| serde_json::from_str(line).expect("a line of JSON");
    text.lines().map(parse).collect()
}

/// Waits until the proxy has written so many lines.
async fn written(world: &World, count: f64) {
    world
        .wait_for(|m| m.sum("sim_proxy_access_log_lines_total", &[]) == count)
        .await;
}

/// The parts of a line that are the same each time.
fn certain(line: &Value) -> Value {
    let mut line = line.clone();
    let fields = line.as_object_mut().expect("an object");
    let duration = fields.remove("duration_ms").expect("a duration");
    assert!(
        duration
            .as_f64()
            .is_some_and(|ms| (0.0..60_000.0).contains(&ms))
    );
    let time = fields.remove("time").expect("a time");
    let time = time.as_str().expect("text");
    assert!(time.len() == 27 && time.ends_with('Z'), "{time}");
    line
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_a_line_whatever_becomes_of_it_and_without_its_secrets() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("log");
    let settings = [
        (ACCESS_LOG, file.to_str().expect("text")),
        (LIMITS, "headers=5"),
    ];
    // All of it is the first one's.
    let (world, _control, _ups) = World::with_two_and(10_000, &settings).await;
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let fields = format!("Host: shop\r\nConnection: close\r\n{trace}\r\n");
    let crowd = "A: 1\r\n".repeat(9);
    let line = |path: &str, protocol: &str, status: u16, outcome: &str| {
        json!({
            "client": "127.0.0.1", "method": "GET", "host": "shop", "path": path, "protocol": protocol,
            "status": status, "outcome": outcome, "bytes_in": 0, "bytes_out": 2, "workload": "web",
            "instance": "i1", "tries": 1, "hedged": false, "trace_id": "0af7651916cd43dd8448eb211c80319c",
        })
    };
    let mut count = 0.0;
    for version in ["1.1", "1.0"] {
        let protocol = format!("HTTP/{version}");
        let mut refused = line("/many", &protocol, 431, "refused");
        (refused["instance"], refused["workload"]) = (Value::Null, Value::Null);
        refused["tries"] = 0.into();
        let mut echoed = line("/echo", &protocol, 200, "ok");
        (echoed["method"], echoed["bytes_in"], echoed["bytes_out"]) =
            ("POST".into(), 5.into(), 5.into());
        let failed = line("/status/500", &protocol, 500, "failed");
        for (request, expected) in [
            (
                format!("GET /a?token=secret HTTP/{version}\r\n{fields}\r\n"),
                line("/a", &protocol, 200, "ok"),
            ),
            (
                format!("POST /echo HTTP/{version}\r\nContent-Length: 5\r\n{fields}\r\nabcde"),
                echoed,
            ),
            (
                format!("GET /status/500 HTTP/{version}\r\n{fields}\r\n"),
                failed,
            ),
            (
                format!("GET /many HTTP/{version}\r\n{fields}{crowd}\r\n"),
                refused,
            ),
        ] {
            ask(&world, &request).await;
            count += 1.0;
            written(&world, count).await;
            let lines = lines(&file);
            let mut line = certain(&lines[lines.len() - 1]);
            if line["status"] == 431 {
                // The proxy's own page, whatever it says.
                assert!(line["bytes_out"].as_u64() > Some(2), "{line}");
                line["bytes_out"] = 2.into();
            }
            assert_eq!(line, expected, "{request}");
        }
    }
    assert!(!fs::read_to_string(&file).expect("lines").contains("secret"));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).expect("there").permissions());
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_under_load_loses_no_line() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("log");
    let settings = [(ACCESS_LOG, file.to_str().expect("text"))];
    let (world, _control, _ups) = World::with_two_and(5_000, &settings).await;
    let user = world.client();
    let mut rotated = Vec::new();
    for number in 0..200 {
        user.get(&format!("/{number}")).await;
        if number % 50 == 20 {
            let old = directory.path().join(format!("log.{number}"));
            written(&world, f64::from(number + 1)).await;
            fs::rename(&file, &old).expect("renamed");
            world.signal(Signal::SIGHUP);
            rotated.push(old);
        }
    }
    // The last lines are written before the process ends.
    assert!(world.terminate().await.success());
    rotated.push(file);
    // Two workers leave entries in the order in which their requests are over.
    let mut paths: Vec<_> = rotated
        .iter()
        .flat_map(|file| lines(file))
        .map(|line| line["path"].as_str().expect("text").to_owned())
        .collect();
    let mut sent: Vec<_> = (0..200).map(|number| format!("/{number}")).collect();
    paths.sort();
    sent.sort();
    assert_eq!(paths, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_costs_lines_that_are_counted_and_no_request() {
    let directory = TempDir::new().expect("a directory");
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe");
    let settings = [(ACCESS_LOG, pipe.to_str().expect("text"))];
    let (world, _control, _ups) = World::with_two_and(5_000, &settings).await;
    // More than the pipe and the queue hold.
    let mut users = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut user = TcpStream::connect(world.proxy).await.expect("connected");
        users.spawn(async move {
            let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(50);
            for _ in 0..50 {
                user.write_all(request.as_bytes()).await.expect("sent");
                let mut answers = Vec::new();
                while String::from_utf8_lossy(&answers)
                    .matches("HTTP/1.1 200 OK")
                    .count()
                    < 50
                {
                    assert!(user.read_buf(&mut answers).await.expect("answers") > 0);
                }
            }
        });
    }
    tokio::time::timeout(10 * PATIENCE, users.join_all())
        .await
        .expect("nobody waits for the log");
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["ok"]) == 10_000.0)
        .await;
    let sum = |name: &str| metrics.sum(name, &[]);
    let dropped = sum("sim_proxy_access_log_dropped_total");
    assert!(dropped > 0.0);
    assert!(dropped + sum("sim_proxy_access_log_lines_total") < 10_000.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_that_begins_here_is_in_the_log_as_the_instance_was_told_it() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("log");
    let settings = [(ACCESS_LOG, file.to_str().expect("text")), (TRACE, "0.5")];
    let (world, _control, _ups) = World::with_two_and(10_000, &settings).await;
    for (count, version) in (1..).zip(["1.1", "1.0"]) {
        let request = format!("GET /head HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = raw(&world, &request).await;
        let (_, told) = answer
            .split_once("\"traceparent\": \"00-")
            .expect("a trace");
        written(&world, f64::from(count)).await;
        let lines = lines(&file);
        assert_eq!(lines[lines.len() - 1]["trace_id"], told[..32]);
    }
}
