//! What users notice of an upgrade: SIM's proxy is relieved again and again under an open loop, by kept connections and
//! by new ones.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use bench::open_loop::{Outcome, Plan, Taken};
use bench::{free_address, round_to};
use serde_json::{Map, Value, json};

use crate::processes::{OTHER_CPU, await_answer};
use crate::sim;

/// Requests a second on kept connections, and with a connection for each.
const KEPT_HZ: f64 = 5_000.0;
const NEW_HZ: f64 = 500.0;
const UPGRADES: u32 = 5;
/// Between two upgrades, and before the first and after the last.
const PAUSE: Duration = Duration::from_secs(2);

/// Requests that failed, connections that were closed while they were idle, and how long an upgrade took.
pub(crate) fn measure() -> Result<Map<String, Value>> {
    let folder = tempfile::tempdir()?;
    let (setting, users) = (sim::Setting::own()?, free_address()?);
    let mut running = sim::start(&setting, folder.path(), users)?;
    await_answer(&mut running, users, "/")?;
    let span = PAUSE * (UPGRADES + 2);
    let kept = Plan {
        warm: Duration::ZERO,
        cpu: Some(OTHER_CPU),
        connections_max: 8_192,
        ..Plan::get(users, "/", KEPT_HZ, span)
    };
    let new = Plan {
        rate_hz: NEW_HZ,
        request: b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".to_vec(),
        connections: 1,
        ..kept.clone()
    };
    let loads = [kept.start()?, new.start()?];
    let mut took_ms = Vec::new();
    for _ in 0..UPGRADES {
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        let output = Command::new(&setting.program)
            .args(["upgrade", "--config"])
            .arg(folder.path().join("sim.toml"))
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sim upgrade: {said}");
        took_ms.push(milliseconds(begun.elapsed()));
    }
    let mut rows = Vec::new();
    for load in loads {
        let taken = load
            .join()
            .map_err(|_| anyhow!("the load's thread panicked"))??;
        rows.push(noticed(&taken));
    }
    let failed = |row: &Value| row["failed"].as_u64().unwrap_or(u64::MAX);
    let all_failed: u64 = rows.iter().map(failed).sum();
    let upgrades = json!({
        "upgrades": UPGRADES,
        "took_ms": took_ms,
        "kept_connections_at_5000_rps": rows[0],
        "new_connections_at_500_rps": rows[1],
    });
    println!("upgrade: sim: {upgrades}");
    Ok(Map::from_iter([
        ("upgrade_failed".to_owned(), all_failed.into()),
        ("upgrade_under_load".to_owned(), upgrades),
    ]))
}

fn noticed(taken: &Taken) -> Value {
    let slowest = taken.shots.iter().map(|shot| shot.latency).max();
    // Refused or broken is the upgrade's doing; a status is an answer, such as that of a proxy with too much to do.
    let of = |wanted: fn(Outcome) -> bool| {
        let outcomes = taken.shots.iter().map(|shot| shot.outcome);
        outcomes.filter(|&outcome| wanted(outcome)).count()
    };
    json!({
        "broken_or_refused": of(|outcome| outcome == Outcome::Broken),
        "late": of(|outcome| outcome == Outcome::Late),
        "answered_503": of(|outcome| outcome == Outcome::Status(503)),
        "answered_504": of(|outcome| outcome == Outcome::Status(504)),
        "requests": taken.shots.len(),
        "failed": taken.failed(),
        "closed_idle": taken.closed_idle,
        "slowest_ms": milliseconds(slowest.unwrap_or_default()),
    })
}

fn milliseconds(span: Duration) -> f64 {
    round_to(span.as_secs_f64() * 1e3, 0.01)
}
