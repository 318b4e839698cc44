use super::*;
use nix::sys::stat::Mode;
use serde_json::Value;
use sim_core::name::{InstanceId, WorkloadName};
use std::fs;
use std::path::Path;

fn entry(path: &str) -> Entry {
    let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    Entry {
        ended_ns: 1_700_000_000_123_456_000,
        duration_ns: 1_500_000,
        client: Some([10, 0, 0, 7].into()),
        workload: Some(WorkloadName::new("web").expect("valid")),
        question: Question::of_head(head.as_bytes(), true),
        protocol: "HTTP/1.1",
        status: 200,
        ending: Ending::Ok,
        bytes_in: 40,
        bytes_out: 120,
        instance: Some(InstanceId(1)),
        tries: 1,
        hedged: false,
    }
}

fn settings(path: &Path) -> AccessLogSettings {
    AccessLogSettings {
        to: Destination::File(path.to_owned()),
        sample: 1.0,
        always_failed: true,
        slow: None,
        query: false,
    }
}

fn paths(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).expect("lines");
    assert!(text.is_empty() || text.ends_with('\n'));
    let path = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["path"].as_str().expect("a path").to_owned()
    };
    text.lines().map(path).collect()
}

/// Waits until so many lines are written.
fn written(log: &AccessLog, count: u64) {
    while log.tally().written.load(Ordering::Relaxed) < count {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_line_says_what_happened_and_escapes_what_was_sent() {
    let mut out = Vec::new();
    line::write(&entry("/\"\\\u{1}\u{7f}"), &mut out);
    let mut without = entry("/");
    (without.status, without.instance, without.client) = (0, None, None);
    line::write(&without, &mut out);
    let text = String::from_utf8(out).expect("text");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let expected = serde_json::json!({
        "time": "2023-11-14T22:13:20.121956Z", "client": "10.0.0.7", "method": "GET", "host": "a",
        "path": "/\"\\\u{1}\u{7f}", "protocol": "HTTP/1.1", "status": 200, "outcome": "ok", "bytes_in": 40,
        "bytes_out": 120, "duration_ms": 1.5, "workload": "web", "instance": "i1", "tries": 1, "hedged": false,
    });
    assert_eq!(lines[0], expected);
    assert_eq!(lines[1]["status"], Value::Null);
    assert_eq!(lines[1]["client"], Value::Null);
}

#[test]
fn a_sample_is_its_share_and_failures_and_slow_ones_are_all_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let (log, _writer) = AccessLog::open(AccessLogSettings {
        sample: 0.1,
        slow: Some(Duration::from_millis(100)),
        ..settings(&directory.path().join("log"))
    })
    .expect("open");
    let wanted = |ending, duration_ns| {
        let wants = |_: &u32| log.wants(ending, duration_ns);
        (0..100_000).filter(wants).count()
    };
    // Six standard deviations of a binomial with 100 000 draws at 0.1.
    assert!((9_431..=10_569).contains(&wanted(Ending::Ok, 99_999_999)));
    assert_eq!(wanted(Ending::Failed, 0), 100_000);
    assert_eq!(wanted(Ending::Ok, 100_000_000), 100_000);
    let (none, _writer) = AccessLog::open(AccessLogSettings {
        sample: 0.0,
        always_failed: false,
        ..settings(&directory.path().join("none"))
    })
    .expect("open");
    assert!((0..10_000).all(|_| !none.wants(Ending::Failed, u64::MAX - 1)));
    let (all, _writer) = AccessLog::open(settings(&directory.path().join("all"))).expect("open");
    assert!((0..10_000).all(|_| all.wants(Ending::Ok, 0)));
}

#[test]
fn a_rotation_loses_no_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("log");
    let (log, writer) = AccessLog::open(settings(&file)).expect("open");
    let mut rotated = Vec::new();
    for round in 0..10_u64 {
        for number in 0..100 {
            log.log(entry(&format!("/{round}/{number}")));
        }
        written(&log, 100 * (round + 1));
        let old = directory.path().join(format!("log.{round}"));
        // Half of them as logrotate does it by itself, half with a signal afterwards and a file that is there again.
        fs::rename(&file, &old).expect("renamed");
        if round % 2 == 0 {
            fs::write(&file, "").expect("made");
            log.reopen();
        }
        rotated.push(old);
    }
    drop(writer);
    rotated.push(file);
    let there = rotated.iter().filter(|file| file.exists());
    let lines: Vec<_> = there.flat_map(|file| paths(file)).collect();
    let sent: Vec<_> = (0..10)
        .flat_map(|round| (0..100).map(move |number| format!("/{round}/{number}")))
        .collect();
    assert_eq!(lines, sent);
}

#[test]
fn who_does_not_read_costs_lines_and_no_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe");
    let (log, _writer) = AccessLog::open(settings(&pipe)).expect("open");
    // More than the pipe, the batch and the queue hold; none of it waits.
    let sent = 20_000;
    for number in 0..sent {
        log.log(entry(&format!("/{number}")));
    }
    let dropped = log.tally().dropped.load(Ordering::Relaxed);
    assert!(dropped > 0 && dropped < sent, "{dropped}");
}

#[test]
fn a_file_that_cannot_be_made_is_an_error_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let none = directory.path().join("none").join("log");
    assert!(AccessLog::open(settings(&none)).is_err());
}
