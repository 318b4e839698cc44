//! What one cgroup does, once a second: `watch OBJECT CGROUP [SECONDS]`.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use sim_ebpf::{Counters, Probes, ProbesConfig, cgroup_id};
use std::{env, error::Error, path::PathBuf, thread, time::Duration};

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = env::args_os().skip(1);
    let (Some(object), Some(cgroup)) = (arguments.next(), arguments.next().map(PathBuf::from))
    else {
        return Err("usage: watch OBJECT CGROUP [SECONDS]".into());
    };
    let seconds: u32 = arguments
        .next()
        .map_or(Ok(u32::MAX), |text| text.to_string_lossy().parse())?;
    let mut config = ProbesConfig::new(object);
    config.cgroup_root = Some(cgroup.clone());
    let mut probes = Probes::load(&config)?;
    for group in probes.status() {
        println!("{group}");
    }
    let id = cgroup_id(&cgroup)?;
    probes.track(id)?;
    let mut before = probes.read(id)?;
    for _ in 0..seconds {
        thread::sleep(Duration::from_secs(1));
        probes.settle();
        let now = probes.read(id)?;
        show(&now.since(&before));
        before = now;
        probes.flush_log();
    }
    println!("lost: {:?}", probes.losses());
    for program in probes.cost().programs {
        let ns = program.run_ns.checked_div(program.run_count).unwrap_or(0);
        println!(
            "{:>18} {ns:>6} ns x {:>9}, missed {}",
            program.name, program.run_count, program.missed_count
        );
    }
    Ok(())
}

fn show(spent: &Counters) {
    let p99_us = |histogram: &sim_ebpf::Log2Histogram| {
        histogram.quantile_ns(0.99).map_or(0.0, |ns| ns / 1e3)
    };
    println!(
        "cpu {:>6.1} ms, waits {:>7} p99 {:>8.0} us | block r {} w {} B, p99 {:>8.0} us | net rx {} tx {} B, rtt p99 {:>6.0} us, retransmits {}",
        spent.on_cpu_ns as f64 / 1e6,
        spent.run_queue_waits,
        p99_us(&spent.run_queue_hist),
        spent.block_read_bytes,
        spent.block_write_bytes,
        p99_us(&spent.block_hist),
        spent.net_rx_bytes,
        spent.net_tx_bytes,
        p99_us(&spent.rtt_hist),
        spent.retransmits,
    );
}
