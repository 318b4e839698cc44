//! Verbs that ask a running control plane, and the one place that prints.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the command line's face"
)]

use crate::cli::{ClientArgs, JournalArgs};
use crate::roles::{CannotStart, block_on};
use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};
use sim_api::v1;
use sim_api::v1::control_plane_client::ControlPlaneClient;
use sim_core::journal::Record;
use sim_core::name::InstanceId;
use sim_core::time::Time;
use std::io::Write;
use std::path::Path;
use tokio_stream::StreamExt;
use tonic::Code;
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

async fn dial(args: &ClientArgs) -> anyhow::Result<ControlPlaneClient<Channel>> {
    let socket = args.socket()?;
    let refused = |_| {
        CannotStart(format!(
            "{}: no control plane answers here; is SIM running? --config FILE looks where that file says, --socket PATH there",
            socket.display()
        ))
    };
    Ok(ControlPlaneClient::new(
        sim_api::socket::dial(&socket).await.map_err(refused)?,
    ))
}

/// What the control plane answered, in its words and not the protocol's.
fn refused(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        Code::NotFound | Code::InvalidArgument => CannotStart(status.message().to_owned()).into(),
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal => {
            tracing::debug!("{status}");
            anyhow::anyhow!("the control plane has ended")
        }
        _ => anyhow::anyhow!("{}", status.message()),
    }
}

/// Tells a control plane that the whole run ends.
pub(crate) async fn close(socket: &Path) -> anyhow::Result<()> {
    let channel = sim_api::socket::dial(socket).await?;
    ControlPlaneClient::new(channel)
        .close(v1::CloseRequest {})
        .await
        .map_err(refused)?;
    Ok(())
}

/// `sim journal`.
pub(crate) fn journal(args: &JournalArgs) -> anyhow::Result<()> {
    block_on(async {
        let mut client = dial(&args.client).await?;
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
                let record = serde_json::from_str(&line.json)?;
                say(&describe(line.sequence, &record, args.verbose));
            }
        }
        Ok(())
    })?
}

fn describe(sequence: u64, record: &Record, verbose: bool) -> String {
    let mut text = format!(
        "{sequence:>5}  {}  {}  {:<12} {}",
        moment(record.at),
        record.workload,
        record.kind,
        record.reason
    );
    let candidates = record.report.iter().flat_map(|r| &r.candidates);
    for candidate in candidates.filter(|_| verbose) {
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

/// RFC 3339, UTC, with milliseconds.
fn moment(at: Time) -> String {
    i64::try_from(at.0)
        .ok()
        .and_then(DateTime::from_timestamp_micros)
        .map_or_else(
            || at.to_string(),
            |at| at.to_rfc3339_opts(SecondsFormat::Millis, true),
        )
}

/// `sim status`.
pub(crate) fn status(args: &ClientArgs) -> anyhow::Result<()> {
    block_on(async {
        let reply = dial(args).await?.status(v1::StatusRequest {}).await;
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
    let proxy = |p: &v1::ProxyStatus| json!({ "proxy": p.proxy, "workload": p.workload, "listen": p.listen });
    Ok(json!({
        "epoch": reply.epoch,
        "workloads": workloads,
        "servers": servers,
        "proxies": reply.proxies.iter().map(proxy).collect::<Vec<_>>(),
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
    let mut lines = vec![format!("epoch {}", reply.epoch)];
    for proxy in &reply.proxies {
        lines.push(format!(
            "proxy {}: {} at http://{}",
            proxy.proxy, proxy.workload, proxy.listen
        ));
    }
    if reply.proxies.is_empty() {
        lines.push("proxy: none is connected".into());
    }
    for workload in value["workloads"].as_array().into_iter().flatten() {
        lines.push(describe_workload(reply, workload));
    }
    for server in &reply.servers {
        let state = if server.connected {
            "connected"
        } else {
            "not connected"
        };
        lines.push(format!(
            "server {}: {state}, {:.2} of {:.2} CPUs given, {}",
            server.server,
            server.cpus_allocated,
            server.cpus,
            describe_probes(server.probes.as_ref())
        ));
        for i in server.instances.iter().filter(|i| i.pid != 0) {
            let state = if i.ready { "ready" } else { "starting" };
            lines.push(format!(
                "  {} of {} at {}: {state}, {:.2} CPUs, pid {}",
                InstanceId(i.instance),
                i.workload,
                i.address,
                i.cpus,
                i.pid
            ));
        }
    }
    lines.join("\n")
}

fn describe_workload(reply: &v1::StatusReply, workload: &Value) -> String {
    let number = |key: &str| workload[key].as_f64().unwrap_or(0.0);
    let word = |key: &str| workload[key].as_str().unwrap_or_default().to_owned();
    let capacity = workload["capacity_rps"][1]
        .as_f64()
        .map_or("not known yet".into(), |c| format!("{c:.0}/s"));
    let instance = |key: &str| {
        let id = workload[key].as_u64()?;
        let runs = |s: &&v1::ServerStatus| s.instances.iter().any(|i| i.instance == id);
        let server = reply.servers.iter().find(runs);
        let place = server.map_or(String::new(), |s| format!(" on {}", s.server));
        Some(format!("{}{place}", InstanceId(id)))
    };
    let mut text = format!(
        "workload {}: {}, {:.0}/s, usable capacity {capacity}, {:.0} % of its CPUs used, primary {}",
        word("workload"),
        word("phase"),
        number("demand_rps"),
        number("utilisation") * 100.0,
        instance("primary").unwrap_or_else(|| "none".into()),
    );
    match instance("shadow") {
        Some(shadow) => text.push_str(&format!(
            ", shadow {shadow} with {:.1} % of the traffic",
            number("shadow_bp") / 100.0
        )),
        None => text.push_str(", no shadow"),
    }
    if let Some(retiring) = instance("retiring") {
        text.push_str(&format!(", {retiring} on its way out"));
    }
    text.push_str(&format!(", standby '{}'", word("standby")));
    if workload["frozen"].as_bool() == Some(true) {
        text.push_str(", planned moves are frozen: telemetry is missing");
    }
    if let Some(waits) = workload["waits_for"].as_str() {
        text.push_str(&format!("; {waits}"));
    }
    text
}

fn describe_probes(probes: Option<&v1::ProbeReport>) -> String {
    let groups = probes.map_or(&[][..], |p| &p.groups);
    let missing: Vec<&v1::ProbeGroup> = groups.iter().filter(|g| !g.active).collect();
    match (groups.len(), missing.as_slice()) {
        (0, _) => "its probes are not known yet".into(),
        (_, []) => "all kernel probes".into(),
        (all, [first, ..]) if missing.len() == all => {
            format!("no kernel probes: {}", first.refused)
        }
        _ => {
            let why = |g: &&v1::ProbeGroup| format!("no {} probes ({})", g.name, g.refused);
            missing.iter().map(why).collect::<Vec<_>>().join(", ")
        }
    }
}

/// `sim standby`.
pub(crate) fn standby(args: &ClientArgs, workload: &str, standby: &str) -> anyhow::Result<()> {
    sim_api::standby_of(standby).map_err(|e| CannotStart(e.to_string()))?;
    block_on(async {
        let request = v1::SetStandbyRequest {
            workload: workload.into(),
            standby: standby.into(),
        };
        dial(args)
            .await?
            .set_standby(request)
            .await
            .map_err(refused)?;
        if !args.json {
            say(&format!("standby of {workload} is now '{standby}'"));
        }
        Ok(())
    })?
}
