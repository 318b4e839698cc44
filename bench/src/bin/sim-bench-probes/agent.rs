//! What a node takes at a hundred workloads: a real `sim node`, told what to run by a control plane that
//! this program plays.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sim_tests::director::Director;

use bench::{cpu_ns, round_to};

const WORKLOADS: u64 = 100;
/// How long the node is watched.
const WATCH: Duration = Duration::from_secs(30);

pub(crate) fn measure() -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(watch())
}

async fn watch() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let program = std::env::current_exe()?.display().to_string();
    let mut director = Director::start(folder.path(), "")?;
    for instance in 1..=WORKLOADS {
        let command = [program.as_str(), "serve", "{address}:{port}"];
        director
            .run(instance, &format!("w{instance}"), &command)
            .await?;
    }
    director.ready(WORKLOADS).await?;
    println!("node: {WORKLOADS} workloads run");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let pid = director.pid();
    let samples = || {
        // Relaxed: counts, by which nothing else is ordered.
        let all = director.heard.samples.load(Ordering::Relaxed);
        (
            all,
            director.heard.samples_of_kernel.load(Ordering::Relaxed),
        )
    };
    let (begin, cpu_before, (before, of_kernel_before)) = (Instant::now(), cpu_ns(pid)?, samples());
    tokio::time::sleep(WATCH).await;
    let (seconds, cpu, (after, of_kernel)) = (
        begin.elapsed().as_secs_f64(),
        cpu_ns(pid)?.saturating_sub(cpu_before) as f64,
        samples(),
    );
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mebibytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kibibytes = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<f64>().ok());
        kibibytes.map(|kib| round_to(kib / 1024.0, 0.1))
    };
    let samples = (after - before) as f64;
    Ok(json!({
        "workloads": WORKLOADS,
        "samples_per_second": round_to(samples / seconds, 0.1),
        "samples_of_kernel_share":
            round_to((of_kernel - of_kernel_before) as f64 / samples.max(1.0), 0.001),
        "cpu_percent_of_a_core": round_to(cpu / 1e9 / seconds * 100.0, 0.001),
        "cpu_us_per_workload_and_tick": round_to(cpu / 1e3 / samples.max(1.0), 0.1),
        "rss_mib": mebibytes("VmRSS:"),
        "rss_anonymous_mib": mebibytes("RssAnon:"),
    }))
}

/// What each workload does: answers 200 to each connection's first request, one after the other.
pub(crate) fn serve(address: &str) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let address: SocketAddr = address.parse().context("address")?;
    let listener = std::net::TcpListener::bind(address)?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut head = [0; 1024];
        // Whoever leaves before the answer doesn't want it.
        if stream.read(&mut head).is_ok() {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                .ok();
        }
    }
    Ok(())
}
