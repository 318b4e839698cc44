//! A change of weights, from all to the first to all to the second, each by its own means: a table from the control
//! plane, nginx's reload, HAProxy's socket. (Envoy's means is a control plane of its own, which is none of ours.)

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench::control::Control;
use bench::free_address;
use bench::open_loop::{Plan, Shot};
use bench::peers::Peers;
use nix::sys::signal::{Signal, kill};
use serde_json::{Map, Value, json};
use sim_core::name::{InstanceId, WorkloadName};
use sim_core::table::{Share, Version, WeightTable};

use super::duo::Duo;
use super::{BEFORE, begin, finish, milliseconds};
use crate::configurations::{Users, instance, nginx_upstreams};
use crate::contender::Contender;
use crate::processes::{OTHER_CPU, PROXY_CPU, await_answer, pin_all, spawn};
use crate::sim;

/// So that a request is due every fifth of a millisecond.
const RATE_HZ: f64 = 5_000.0;
const AFTER: Duration = Duration::from_secs(2);

pub(super) fn measure(peers: &Peers) -> Result<Map<String, Value>> {
    let mut rows = json!({});
    rows["sim"] = of_sim(peers).context("weights, sim")?;
    println!("weights: sim: {}", rows["sim"]);
    for contender in [Contender::Nginx, Contender::Haproxy] {
        let name = contender.name();
        rows[name] = of_other(contender, peers).with_context(|| format!("weights, {name}"))?;
        println!("weights: {name}: {}", rows[name]);
    }
    let mut results = Map::new();
    for key in ["first_obeying_ms", "closed_connections", "failed"] {
        results.insert(format!("weight_change_{key}"), rows["sim"][key].clone());
    }
    results.insert("weight_change_at_5000_rps".to_owned(), rows);
    Ok(results)
}

/// The proxy alone, with a control plane of ours: the brain would not move all at once.
fn of_sim(peers: &Peers) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    let addresses = [free_address()?, free_address()?];
    let mut instances = Vec::new();
    for (number, address) in (1..).zip(addresses) {
        let command = instance(peers, at, &address.to_string(), number)?;
        let mut process = spawn("instance", command)?;
        await_answer(&mut process, address, "/")?;
        pin_all(process.pid(), OTHER_CPU)?;
        instances.push(process);
    }
    let table = |generation: u64, weights: [u16; 2]| -> Result<WeightTable> {
        let shares = (1..).zip(addresses).zip(weights);
        let shares = shares.map(|((number, address), weight_bp)| Share {
            instance: InstanceId(number),
            address: address.into(),
            weight_bp,
            ready: true,
        });
        let version = Version {
            epoch: 1,
            generation,
        };
        let name = WorkloadName::new("echo").context("a name")?;
        WeightTable::new(name, version, shares.collect()).context("a table")
    };
    let (users, admin) = (free_address()?, free_address()?);
    let config = at.join("sim.toml");
    let text = sim::two_servers(at, false)?;
    std::fs::write(
        &config,
        sim::own_places(&text, at, users, admin)?.to_string(),
    )?;
    std::fs::create_dir_all(at.join("run"))?;
    let control = Control::start(&at.join("run/control.sock"), [&table(1, [10_000, 0])?])?;
    let mut command = Command::new(sim::Setting::own()?.program);
    command.arg("proxy").arg("--config").arg(&config);
    let mut proxy = spawn("sim proxy", command)?;
    await_answer(&mut proxy, users, "/")?;
    pin_all(proxy.pid(), PROXY_CPU)?;
    let next = table(2, [0, 10_000])?;
    change(users, || {
        control.publish(&next);
        Ok(())
    })
}

fn of_other(contender: Contender, peers: &Peers) -> Result<Value> {
    let duo = Duo::weighted(contender, peers, Users::Http1, [100, 0])?;
    let at = duo.folder.path();
    change(duo.users, || match contender {
        Contender::Haproxy => {
            for (name, weight) in [("i1", 0), ("i2", 100)] {
                let mut socket = UnixStream::connect(at.join("haproxy.sock"))?;
                writeln!(socket, "set weight b/{name} {weight}")?;
                let mut said = String::new();
                socket.read_to_string(&mut said)?;
                ensure!(said.trim().is_empty(), "HAProxy: {said}");
            }
            Ok(())
        }
        _ => {
            let mut behind = duo.behind.clone();
            (behind.instances[0].1, behind.instances[1].1) = (0, 100);
            nginx_upstreams(at, &behind)?;
            kill(duo.proxy.pid(), Signal::SIGHUP).context("nginx")
        }
    })
}

/// Under load, what becomes of requests and connections when `command` changes all weights.
fn change(users: std::net::SocketAddr, command: impl FnOnce() -> Result<()>) -> Result<Value> {
    let span = BEFORE + AFTER;
    let (_, load) = begin(Plan::get(users, "/", RATE_HZ, span).into())?;
    let changed = Instant::now();
    command()?;
    let said = changed.elapsed();
    let taken = finish(load)?;
    let changed = changed.saturating_duration_since(taken.begin);
    let after = |shot: &&Shot| shot.due >= changed;
    let second = taken
        .shots
        .iter()
        .filter(after)
        .filter(|shot| shot.instance == 2);
    let first = taken
        .shots
        .iter()
        .filter(after)
        .filter(|shot| shot.instance == 1);
    let since = |due: Duration| milliseconds(due.saturating_sub(changed));
    let early = taken
        .shots
        .iter()
        .filter(|shot| shot.due < changed && shot.instance == 2);
    Ok(json!({
        "first_obeying_ms": second.map(|shot| shot.due).min().map(since),
        "last_disobeying_ms": first.map(|shot| shot.due).max().map_or(0.0, since),
        "command_ms": milliseconds(said),
        // Due before the change and sent after it.
        "obeying_before": early.count(),
        "closed_connections": taken.closed_idle,
        "failed": taken.failed(),
        "requests": taken.shots.len(),
    }))
}
