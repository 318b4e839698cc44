//! One demonstration from its world to its verdict.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sim_core::journal::Kind;
use sim_node::cgroup::Hierarchy;

use super::config::{Addresses, render};
use super::instance::Instance;
use super::scenario::Scenario;
use super::screen::Screen;
use super::settings::{OBJECTIVE, Programs, RUN_SECONDS_MAX, WORKLOAD};
use super::sim::Sim;
use super::timeline::Timeline;
use super::verdict::{Figures, Mode, P99_RATIO_MAX, order_broken};
use crate::clock::Clock;
use crate::load::record::failures;
use crate::load::request::{Mix, client};
use crate::sweep::Sweep;
use crate::world::World;
use crate::world::workspace::Workspace;

/// What is kept back of the time limit for stopping and judging.
const CLOSING_SECONDS: f64 = 20.0;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the demand is drawn from.
    pub seed: u64,
    /// How it is meant to go.
    pub mode: Mode,
    /// Capacity of the first instance, where it is not to be measured.
    pub capacity_rps: Option<f64>,
    /// Name of the cgroup, and of the run's folder.
    pub name: String,
    /// Where to copy the log of `sim run` to.
    pub log: Option<PathBuf>,
}

impl Options {
    /// Cgroup of the sweep.
    #[must_use]
    pub fn sweep_cgroup(&self) -> String {
        format!("{}-sweep", self.name)
    }
}

/// Figures of a run and the promises it broke.
#[derive(Debug)]
pub struct Verdict {
    /// Every figure.
    pub figures: Figures,
    /// One line for each promise that was not kept.
    pub broken: Vec<String>,
}

impl Verdict {
    /// The tail during the move, and nothing else, was not as promised, and the primary was seen to be
    /// full then for no reason but the price of a request on this machine.
    #[must_use]
    pub fn only_the_machine(&self) -> bool {
        let ratio = self.figures.p99_during_over_before;
        self.figures.mode == Mode::Forecast
            && self.broken.len() == 1
            && ratio.is_some_and(|ratio| ratio > P99_RATIO_MAX)
            && self.figures.dear_moment.is_some()
    }
}

/// Sets up, sweeps, runs, stops and judges. Dropping the future stops what it started.
///
/// # Errors
/// The run never came to a load.
pub async fn run(
    options: &Options,
    world: &World,
    hierarchy: &Hierarchy,
    workspace: &Workspace,
    screen: &mut Screen,
) -> Result<Verdict> {
    let clock = Clock::start();
    raise_descriptor_limit()?;
    let programs = Programs::locate()?;
    for server in &world.servers {
        let text = format!(
            "server {} at {}: {:.2} CPU, {} MiB, {:.2} an hour, {}",
            server.name,
            server.address,
            server.cpus,
            server.memory_mib,
            server.price_per_hour,
            server.failure_domain
        );
        screen.stage("world", &text);
    }
    if let Some(reason) = &world.shared_network {
        screen.stage(
            "world",
            &format!("servers are loopback addresses: {reason}"),
        );
    }
    let folder = workspace.path();
    let (capacity_rps, mix) = sweep(options, &programs, world, hierarchy, folder, screen).await?;

    let addresses = Addresses::choose(world)?;
    let forecast = options.mode != Mode::Reactive;
    let config = folder.join("sim.toml");
    let text = render(world, &programs, addresses, folder, &options.name, forecast)?;
    std::fs::create_dir(folder.join("data")).context("data folder")?;
    std::fs::create_dir(folder.join("run")).context("runtime folder")?;
    std::fs::write(&config, text).with_context(|| config.display().to_string())?;
    let log = options
        .log
        .clone()
        .unwrap_or_else(|| folder.join("sim.log"));
    let mut sim = Sim::start(&programs.sim, &config, folder, &log)?;
    sim.ready(Duration::from_secs(15)).await?;
    screen.stage(
        "sim",
        &format!(
            "runs; proxy at {}, log at {}",
            addresses.listen,
            log.display()
        ),
    );
    let journal = sim.journal()?;
    let mut scenario = Scenario {
        mode: options.mode,
        seed: options.seed,
        capacity_rps,
        mix,
        world,
        sim,
        journal,
        entries: Vec::new(),
        addresses,
        client: client(),
        clock,
        screen,
        load: None,
        timeline: Timeline::default(),
        primary: None,
        failover_ms: None,
        died_seen_by: None,
        live_from: 0,
        shadow_bp: 0,
    };
    let limit = RUN_SECONDS_MAX as f64 - CLOSING_SECONDS - clock.elapsed_seconds();
    let limit = Duration::from_secs_f64(limit.max(1.0));
    let outcome = match tokio::time::timeout(limit, scenario.run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow::anyhow!("not over within {RUN_SECONDS_MAX} s")),
    };
    conclude(scenario, outcome).await
}

async fn sweep(
    options: &Options,
    programs: &Programs,
    world: &World,
    hierarchy: &Hierarchy,
    folder: &Path,
    screen: &mut Screen,
) -> Result<(f64, Mix)> {
    let home = world.servers.first().context("a world without servers")?;
    let cgroup = options.sweep_cgroup();
    let mut instance = Instance::start(programs, home, hierarchy, &cgroup, folder)?;
    if let Some(reason) = &instance.no_cgroup {
        screen.stage(
            "sweep",
            &format!("held to its CPU share by stopping it now and then: {reason}"),
        );
    }
    let client = client();
    instance.ready(&client).await?;
    let mix = Mix::learn(&client, instance.address).await?;
    if let Some(capacity_rps) = options.capacity_rps {
        screen.stage(
            "capacity",
            &format!("{capacity_rps:.0} requests a second, as given"),
        );
        return Ok((capacity_rps, mix));
    }
    let mut sweep = Sweep::new(instance.address, mix.clone(), OBJECTIVE, options.seed)?;
    let mut show = |step: &crate::sweep::Step| {
        let verdict = if step.carried { "carried" } else { "too much" };
        let text = format!(
            "{:>5.0} requests a second: p50 {:>6.1} ms, p99 {:>6.1} ms, {} failed, {verdict}",
            step.rate_rps, step.p50_ms, step.p99_ms, step.failed
        );
        screen.stage("sweep", &text);
    };
    let capacity_rps = sweep.capacity_rps(&mut show).await?;
    let text = format!(
        "{capacity_rps:.0} requests a second within {:.0} ms at p99; SIM is not told",
        OBJECTIVE.bound_ms
    );
    screen.stage("capacity", &text);
    Ok((capacity_rps, mix))
}

/// Ends the load, stops everything, and judges; also after a stage that was not reached.
async fn conclude(mut scenario: Scenario<'_>, outcome: Result<()>) -> Result<Verdict> {
    let mut broken = Vec::new();
    if let Err(error) = &outcome {
        broken.push(format!("{error:#}"));
    }
    let status = scenario.sim.status().await;
    let probe_overhead_percent = status
        .ok()
        .and_then(|status| scenario.probe_overhead_percent(&status));
    let Some(load) = scenario.load.take() else {
        scenario.screen.line(&scenario.sim.log_tail());
        outcome?;
        anyhow::bail!("the load never began");
    };
    load.pacer.stop()?;
    load.engine.settle().await;
    let ledger = load.engine.finish()?;
    if !broken.is_empty() {
        scenario.screen.line(&scenario.sim.log_tail());
    }
    let records = ledger.since(0);

    let kinds: Vec<Kind> = scenario
        .entries
        .iter()
        .map(|entry| entry.record.kind)
        .collect();
    let order = order_broken(scenario.mode, &kinds);
    let mut timeline = scenario.timeline;
    timeline.read(&scenario.entries);
    let counts = timeline.failures(&records);
    let [before, during, after, kill] = timeline.quantiles(&records);
    let crossing = timeline
        .load
        .zip(load.demand.reaches(scenario.capacity_rps))
        .map(|(origin, seconds)| scenario.clock.seconds_of(origin) + seconds);
    let dear_moment = scenario.primary.as_ref().and_then(|watch| {
        let moment = watch.dear_moment(timeline.created?, timeline.reclaimed?)?;
        let at = scenario.clock.seconds_of(moment.at);
        scenario.screen.stage(
            "dear",
            &format!(
                "at {at:.0} s a request cost the primary {:.2} ms of CPU instead of {:.2}, and its share was {:.0} % used: the machine, not the demand",
                moment.then_ms,
                moment.before_ms,
                moment.used * 100.0
            ),
        );
        Some(moment)
    });
    let ready = timeline.ready.map(|ready| scenario.clock.seconds_of(ready));
    let failed = records.iter().filter(|record| record.failed()).count() as u64;
    let figures = Figures {
        seed: scenario.seed,
        mode: scenario.mode,
        requests_sent: ledger.sent(),
        ok: records.len() as u64 - failed,
        failed,
        failed_planned_move: counts.planned_move,
        failed_kill_idempotent: counts.kill_idempotent,
        failed_kill_other: counts.kill_other,
        failed_otherwise: counts.otherwise,
        before,
        during,
        after,
        kill,
        dear_moment,
        p99_during_over_before: before.zip(during).map(|(b, d)| d.p99_ms / b.p99_ms),
        lead_left_seconds: crossing
            .zip(ready)
            .map(|(crossing, ready)| crossing - ready),
        failover_ms: scenario.failover_ms,
        died_seen_by: scenario.died_seen_by.map(str::to_owned),
        probe_overhead_percent,
        decisions: scenario.entries.len() as u64,
        order_ok: order.is_none(),
        capacity_measured_rps: scenario.capacity_rps,
        capacity_estimated_rps: scenario
            .first(Kind::Trigger)
            .or_else(|| scenario.first(Kind::Steady))
            .and_then(|record| Some(record.report.as_ref()?.capacity_rps?[1])),
        duration_seconds: scenario.clock.elapsed_seconds(),
    };
    broken.extend(figures.broken(order));
    summarise(scenario.screen, &figures);
    for (outcome, count) in failures(&records) {
        scenario
            .screen
            .stage("failed", &format!("{count} requests: {outcome}"));
    }
    if !scenario.sim.stop() {
        broken.push("sim run did not stop within its grace and was killed".to_owned());
    }
    Ok(Verdict { figures, broken })
}

fn summarise(screen: &mut Screen, figures: &Figures) {
    screen.line("");
    screen.line(&format!("{WORKLOAD:>12}  requests    p50 ms    p99 ms"));
    let stretches = [
        ("before", figures.before),
        ("during move", figures.during),
        ("after", figures.after),
        ("after kill", figures.kill),
    ];
    for (name, quantiles) in stretches {
        if let Some(q) = quantiles {
            let (p50, p99) = (q.p50_ms, q.p99_ms);
            screen.line(&format!(
                "{name:>12}  {:>8}  {p50:>8.1}  {p99:>8.1}",
                q.requests
            ));
        }
    }
    let counts = format!(
        "{} requests, {} failed",
        figures.requests_sent, figures.failed
    );
    let measured = [
        ("lead time left", figures.lead_left_seconds, "s"),
        ("failover", figures.failover_ms, "ms"),
        (
            "probes",
            figures.probe_overhead_percent,
            "% of the machine's CPU time",
        ),
    ];
    let measured = measured
        .into_iter()
        .filter_map(|(name, figure, unit)| Some(format!("{name} {:.2} {unit}", figure?)));
    let parts: Vec<String> = std::iter::once(counts).chain(measured).collect();
    screen.line(&parts.join("; "));
}

/// An overloaded open loop holds as many connections as requests; the default of 1024 is few.
fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("RLIMIT_NOFILE")
}
