//! Verbs that ask a running control plane, and the one place that prints.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the command line's face"
)]

use crate::cli::{ClientArgs, JournalArgs};
use crate::roles::{CannotStart, block_on};
use serde_json::{Value, json};
use sim_api::v1;
use sim_api::v1::control_plane_client::ControlPlaneClient;
use sim_core::journal::Record;
use std::io::Write;
use std::path::Path;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

/// Prints to standard output. A reader that has gone away is no error of ours.
pub(crate) fn say(text: &str) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Prints to standard error.
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}

async fn dial(socket: &Path) -> anyhow::Result<ControlPlaneClient<Channel>> {
    let refused = |_| {
        CannotStart(format!(
            "--socket {}: no control plane answers here",
            socket.display()
        ))
    };
    Ok(ControlPlaneClient::new(
        sim_api::socket::dial(socket).await.map_err(refused)?,
    ))
}

fn refused(status: tonic::Status) -> anyhow::Error {
    CannotStart(status.message().to_owned()).into()
}

/// `sim journal`.
pub(crate) fn journal(args: &JournalArgs) -> anyhow::Result<()> {
    block_on(async {
        let mut client = dial(&args.client.socket).await?;
        let request = v1::JournalRequest {
            from: args.from,
            follow: args.follow,
        };
        let mut records = client.journal(request).await.map_err(refused)?.into_inner();
        while let Some(line) = records.next().await {
            let line = line.map_err(refused)?;
            if args.client.json {
                let mut record: Value = serde_json::from_str(&line.json)?;
                record["sequence"] = json!(line.sequence);
                say(&record.to_string());
            } else {
                say(&describe(line.sequence, &serde_json::from_str(&line.json)?));
            }
        }
        Ok(())
    })?
}

fn describe(sequence: u64, record: &Record) -> String {
    let kind = serde_json::to_value(record.kind).unwrap_or_default();
    let kind = kind.as_str().unwrap_or_default();
    let mut text = format!(
        "{sequence:>5}  {}  {}  {kind:<12} {}",
        record.at, record.workload, record.reason
    );
    for candidate in record.report.iter().flat_map(|r| &r.candidates) {
        let score = candidate
            .score
            .map_or("refused".into(), |s| format!("{s:.3}"));
        text.push_str(&format!(
            "\n{:>24}  {score:>8}  {}",
            candidate.server, candidate.why
        ));
    }
    text
}

/// `sim status`.
pub(crate) fn status(args: &ClientArgs) -> anyhow::Result<()> {
    block_on(async {
        let reply = dial(&args.socket).await?.status(v1::StatusRequest {}).await;
        let reply = reply.map_err(refused)?.into_inner();
        let value = status_json(&reply)?;
        if args.json {
            say(&value.to_string());
        } else {
            say(&describe_status(&reply, &value));
        }
        Ok(())
    })?
}

fn status_json(reply: &v1::StatusReply) -> anyhow::Result<Value> {
    let workloads: Vec<Value> = reply
        .workloads_json
        .iter()
        .map(|text| serde_json::from_str(text))
        .collect::<Result<_, _>>()?;
    let servers: Vec<Value> = reply.servers.iter().map(server_json).collect();
    Ok(json!({
        "epoch": reply.epoch,
        "workloads": workloads,
        "servers": servers,
        "proxies": reply.proxies,
    }))
}

fn server_json(server: &v1::ServerStatus) -> Value {
    let probes = server.probes.clone().unwrap_or_default();
    let group =
        |g: &v1::ProbeGroup| json!({ "name": g.name, "active": g.active, "refused": g.refused });
    let instance = |i: &v1::RunningInstance| {
        json!({
            "instance": i.instance,
            "workload": i.workload,
            "address": i.address,
            "pid": i.pid,
            "cpus": i.cpus,
            "ready": i.ready,
            "died_monotonic_ns": i.died_monotonic_ns,
        })
    };
    json!({
        "server": server.server,
        "connected": server.connected,
        "cpus": server.cpus,
        "cpus_allocated": server.cpus_allocated,
        "probes": {
            "groups": probes.groups.iter().map(group).collect::<Vec<_>>(),
            "run_ns_total": probes.run_ns_total,
            "run_count_total": probes.run_count_total,
            "losses_total": probes.losses_total,
        },
        "instances": server.instances.iter().map(instance).collect::<Vec<_>>(),
    })
}

fn describe_status(reply: &v1::StatusReply, value: &Value) -> String {
    let mut lines = vec![format!(
        "epoch {}, proxies: {}",
        reply.epoch,
        reply.proxies.join(", ")
    )];
    for workload in value["workloads"].as_array().into_iter().flatten() {
        let number = |key: &str| workload[key].as_f64().unwrap_or(0.0);
        let capacity = workload["capacity_rps"][1]
            .as_f64()
            .map_or("unknown".into(), |c| format!("{c:.0}/s"));
        lines.push(format!(
            "workload {}: {}, {:.0}/s, capacity {capacity}, {:.0} % utilised, primary {}, shadow {} at {:.1} %, standby {}",
            workload["workload"].as_str().unwrap_or_default(),
            workload["phase"].as_str().unwrap_or_default(),
            number("demand_rps"),
            number("utilisation") * 100.0,
            workload["primary"],
            workload["shadow"],
            number("shadow_bp") / 100.0,
            workload["standby"].as_str().unwrap_or_default(),
        ));
    }
    for server in &reply.servers {
        let state = if server.connected {
            "connected"
        } else {
            "not connected"
        };
        lines.push(format!(
            "server {}: {state}, {:.2} of {:.2} CPUs given",
            server.server, server.cpus_allocated, server.cpus
        ));
        let groups = server.probes.as_ref().map_or(&[][..], |p| &p.groups);
        if let (Some(first), true) = (groups.first(), groups.iter().all(|g| !g.active)) {
            lines.push(format!("  no kernel probes: {}", first.refused));
        } else {
            for group in groups.iter().filter(|g| !g.active) {
                lines.push(format!("  no {} probes: {}", group.name, group.refused));
            }
        }
        for i in server.instances.iter().filter(|i| i.pid != 0) {
            let state = if i.ready { "ready" } else { "starting" };
            lines.push(format!(
                "  i{} of {} at {}: {state}, {:.2} CPUs, pid {}",
                i.instance, i.workload, i.address, i.cpus, i.pid
            ));
        }
    }
    lines.join("\n")
}

/// `sim standby`.
pub(crate) fn standby(args: &ClientArgs, workload: &str, standby: &str) -> anyhow::Result<()> {
    sim_api::standby_of(standby).map_err(|e| CannotStart(e.to_string()))?;
    block_on(async {
        let request = v1::SetStandbyRequest {
            workload: workload.into(),
            standby: standby.into(),
        };
        dial(&args.socket)
            .await?
            .set_standby(request)
            .await
            .map_err(refused)?;
        Ok(())
    })?
}
