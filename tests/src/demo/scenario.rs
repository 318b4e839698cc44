//! The main job, stage by stage. Each waits for the journal to say so, with a deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use sim_core::journal::{Kind, Record};
use sim_core::time::Time;

use super::primary::PrimaryWatch;
use super::screen::Screen;
use super::settings::{OBJECTIVE, WORKLOAD};
use super::sim::{Entry, Journal, Running, Sim, Status, last_pick_ns};
use super::timeline::Timeline;
use super::verdict::Mode;
use crate::clock::{Clock, monotonic_ns};
use crate::demand::{Demand, Shape};
use crate::demo::config::Addresses;
use crate::load::record::Latencies;
use crate::load::request::{HttpClient, Mix, get};
use crate::load::{Engine, Pacer};
use crate::world::World;
use crate::world::leftovers::namespace_inode;

/// Constant load is watched for so long.
const FLAT_SECONDS: f64 = 90.0;
/// Load goes on for so long after the kill.
const AFTER_KILL: Duration = Duration::from_secs(10);
/// How often the journal is looked at and the live line is drawn.
const TICK: Duration = Duration::from_millis(250);

/// A run under way, and all it has seen so far.
#[derive(Debug)]
pub struct Scenario<'a> {
    /// How it is meant to go.
    pub mode: Mode,
    /// What the demand is drawn from.
    pub seed: u64,
    /// What the first instance carries.
    pub capacity_rps: f64,
    /// Requests to draw from.
    pub mix: Mix,
    /// Servers.
    pub world: &'a World,
    /// The program on show.
    pub sim: Sim,
    /// Its journal.
    pub journal: Journal,
    /// The journal so far.
    pub entries: Vec<Entry>,
    /// Where its proxy listens.
    pub addresses: Addresses,
    /// For questions outside of the load.
    pub client: HttpClient,
    /// Origin of the run.
    pub clock: Clock,
    /// Where it is shown.
    pub screen: &'a mut Screen,
    /// The load, once it runs.
    pub load: Option<Load>,
    /// Moments so far.
    pub timeline: Timeline,
    /// What the first primary uses.
    pub primary: Option<PrimaryWatch>,
    /// Time from death to the last pick of the dead.
    pub failover_ms: Option<f64>,
    /// Whose stamp of the death that counts from.
    pub died_seen_by: Option<&'static str>,
    /// First ended request that the live line still looks at.
    pub live_from: usize,
    /// Latest known share of the shadow, in basis points.
    pub shadow_bp: u16,
}

/// The load of a run.
#[derive(Debug)]
pub struct Load {
    /// The sender.
    pub engine: Engine,
    /// The arrivals.
    pub pacer: Pacer,
    /// Their law.
    pub demand: Arc<Demand>,
    /// Probe time when it began, in nanoseconds.
    pub probe_ns: u64,
    /// When that was read.
    pub began: Instant,
}

impl Scenario<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// The first stage that was not reached in time, or what failed on the way.
    pub async fn run(&mut self) -> Result<()> {
        self.until("the first instance is ready", 40.0, 0, Kind::Ready)
            .await?;
        self.start_load().await?;
        if self.mode == Mode::Flat {
            return self.watch(FLAT_SECONDS).await;
        }
        // Where the reactive floor acts before the baseline is learned, the order of decisions
        // tells at the end.
        let trend_left = self.demand()?.trend_end_seconds() - self.load_seconds();
        let trigger = self
            .until("a move", trend_left + 30.0, 0, Kind::Trigger)
            .await?;
        let end = self
            .until("the move's end", 90.0, trigger, Kind::Reclaimed)
            .await?;
        self.pass_capacity().await?;
        self.sim.standby(WORKLOAD, "always").await?;
        let warm = self
            .until("a warm standby", 60.0, end, Kind::StandbyWarm)
            .await?;
        // A moment of rest, so that the kill meets a standby and not its last step.
        self.watch(2.0).await?;
        self.kill_primary(warm).await
    }

    async fn start_load(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = get(&self.client, self.addresses.listen, "/status/200").await {
            if Instant::now() > deadline {
                return Err(error.context("the proxy answers nothing though an instance is ready"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let status = self.sim.status().await?;
        for refused in status.refused_probes() {
            self.screen.stage("probe", &refused);
        }
        let primary = status.primary(WORKLOAD).and_then(|id| status.instance(id));
        self.primary = primary.and_then(|p| {
            let process_group = u32::try_from(p.pid).ok()?;
            Some(PrimaryWatch::new(p.instance, process_group))
        });
        let shape = if self.mode == Mode::Flat {
            Shape::Flat
        } else {
            Shape::Growing
        };
        let demand = Arc::new(Demand::draw(shape, self.capacity_rps, self.seed));
        let engine = Engine::start(self.clock, self.addresses.listen, self.mix.clone())?;
        let pacer = engine.pace(Arc::clone(&demand), self.seed, None)?;
        self.screen.stage("load", &demand.describe());
        self.timeline.load = Some(self.clock.time_of(pacer.origin()));
        let began = pacer.origin();
        self.load = Some(Load {
            engine,
            pacer,
            demand,
            probe_ns: status.probe_ns(),
            began,
        });
        Ok(())
    }

    /// Lets demand grow until it has passed what the old primary could carry, then holds it.
    async fn pass_capacity(&mut self) -> Result<()> {
        let demand = Arc::clone(self.demand()?);
        loop {
            let seconds = self.load_seconds();
            let rate = demand.trend_rps(seconds);
            if rate >= 1.02 * self.capacity_rps || seconds >= demand.trend_end_seconds() {
                demand.hold_at(seconds);
                let share = 100.0 * rate / self.capacity_rps;
                let text = format!(
                    "trend held at {rate:.0} requests a second, {share:.0} % of what the old \
                     primary carried"
                );
                self.screen.stage("load", &text);
                return Ok(());
            }
            self.watch(0.5).await?;
        }
    }

    async fn kill_primary(&mut self, from: usize) -> Result<()> {
        let status = self.sim.status().await?;
        let primary = status
            .primary(WORKLOAD)
            .and_then(|id| status.instance(id))
            .context("sim status names no running primary")?;
        self.check_is_ours(&primary)?;
        let called_ns = monotonic_ns();
        self.timeline.killed = Some(self.clock.now());
        killpg(Pid::from_raw(primary.pid), Signal::SIGKILL)
            .with_context(|| format!("kill -9 of the primary, process group {}", primary.pid))?;
        let text = format!(
            "-9 of the primary i{} on {}, process group {}, under load",
            primary.instance, primary.server, primary.pid
        );
        self.screen.stage("kill", &text);
        let killed = Instant::now();
        let (mut last_pick, mut died_ns) = (None, 0);
        let mut failed_over = false;
        while killed.elapsed() < AFTER_KILL {
            let pick = last_pick_ns(&self.client, self.addresses.admin, primary.instance).await;
            last_pick = last_pick.max(pick.unwrap_or(None));
            if died_ns == 0 {
                died_ns = self.died_ns(primary.instance).await;
            }
            self.step(Duration::from_millis(20)).await?;
            failed_over = failed_over || self.position(from, Kind::Failover).is_some();
            if !failed_over && killed.elapsed() > Duration::from_secs(8) {
                bail!("the journal tells of no failover 8 s after the kill");
            }
        }
        let last_pick: u64 =
            last_pick.context("the proxy's metrics never showed the killed instance")?;
        let seen_by_kernel = died_ns != 0;
        let died_ns = if seen_by_kernel { died_ns } else { called_ns };
        self.died_seen_by = Some(if seen_by_kernel { "kernel" } else { "kill" });
        self.failover_ms = Some(last_pick.saturating_sub(died_ns) as f64 / 1e6);
        Ok(())
    }

    async fn died_ns(&self, instance: u64) -> u64 {
        let status = self.sim.status().await.ok();
        status
            .and_then(|status| status.instance(instance))
            .map_or(0, |i| i.died_monotonic_ns)
    }

    /// A process that the status names is killed only if it lives in a namespace of ours.
    fn check_is_ours(&self, primary: &Running) -> Result<()> {
        ensure!(primary.pid > 1, "sim status says process {}", primary.pid);
        if self.world.shared_network.is_none() {
            let inode = namespace_inode(&format!("/proc/{}/ns/net", primary.pid));
            let ours = inode.is_some_and(|inode| self.world.namespaces().contains(&inode));
            ensure!(ours, "process {} is on none of our servers", primary.pid);
        }
        Ok(())
    }

    /// Waits for a journal entry of that kind at or after `from`; gives its position plus one.
    async fn until(&mut self, what: &str, seconds: f64, from: usize, kind: Kind) -> Result<usize> {
        let deadline = Instant::now() + Duration::from_secs_f64(seconds.max(1.0));
        loop {
            if let Some(position) = self.position(from, kind) {
                return Ok(position + 1);
            }
            if Instant::now() >= deadline {
                let last = self.entries.last().map_or_else(
                    || "nothing".to_owned(),
                    |entry| format!("{}: {}", entry.record.kind, entry.record.reason),
                );
                bail!("{what}: not within {seconds:.0} s; the journal's last word is {last}");
            }
            self.step(TICK).await?;
        }
    }

    fn position(&self, from: usize, kind: Kind) -> Option<usize> {
        let later = self.entries.get(from..)?;
        later
            .iter()
            .position(|entry| entry.record.kind == kind)
            .map(|index| from + index)
    }

    async fn watch(&mut self, seconds: f64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < deadline {
            self.step(TICK.min(deadline.saturating_duration_since(Instant::now())))
                .await?;
        }
        Ok(())
    }

    /// Takes journal entries for `span`, shows them, and sees that everything still runs.
    async fn step(&mut self, span: Duration) -> Result<()> {
        let end = tokio::time::Instant::now() + span;
        while let Ok(entry) = tokio::time::timeout_at(end, self.journal.next()).await {
            match entry {
                Ok(entry) => self.take(entry),
                Err(error) => {
                    self.sim.alive()?;
                    return Err(error);
                }
            }
        }
        self.sim.alive()?;
        if let Some(primary) = &mut self.primary {
            let now = self.clock.now();
            primary
                .look(now, &self.client, self.addresses.admin)
                .await?;
        }
        self.draw();
        Ok(())
    }

    fn take(&mut self, entry: Entry) {
        let seconds = self.clock.seconds_of(entry.record.at).max(0.0);
        self.screen.record(seconds, &entry.record);
        self.shadow_bp = entry.record.shadow_bp;
        self.entries.push(entry);
    }

    fn draw(&mut self) {
        const SPAN_MICROS: u64 = 3_000_000;
        let Some(load) = &self.load else { return };
        let recent = load.engine.ledger().since(self.live_from);
        let horizon = Time(self.clock.now().0.saturating_sub(SPAN_MICROS));
        let old = recent
            .iter()
            .take_while(|record| record.ended() < horizon)
            .count();
        self.live_from += old;
        let recent = &recent[old..];
        let latencies = Latencies::of(recent);
        let quantile = |q| latencies.quantile_ms(q).unwrap_or(0.0);
        let text = format!(
            "{:>7.1} s  {:.0} requests a second, p50 {:.1} ms, p99 {:.1} ms (bound {:.0}), shadow \
             {:.0} %",
            self.clock.elapsed_seconds(),
            recent.len() as f64 / (SPAN_MICROS as f64 / 1e6),
            quantile(0.50),
            quantile(0.99),
            OBJECTIVE.bound_ms,
            f64::from(self.shadow_bp) / 100.0
        );
        self.screen.live(&text);
    }

    fn demand(&self) -> Result<&Arc<Demand>> {
        Ok(&self.load.as_ref().context("no load yet")?.demand)
    }

    fn load_seconds(&self) -> f64 {
        self.load
            .as_ref()
            .map_or(0.0, |load| load.began.elapsed().as_secs_f64())
    }

    /// The first record of that kind.
    #[must_use]
    pub fn first(&self, kind: Kind) -> Option<&Record> {
        self.entries
            .iter()
            .map(|entry| &entry.record)
            .find(|record| record.kind == kind)
    }

    /// CPU time of the probes over that of the whole machine since the load began, in percent.
    #[must_use]
    pub fn probe_overhead_percent(&self, status: &Status) -> Option<f64> {
        let load = self.load.as_ref()?;
        let cores = std::thread::available_parallelism().ok()?.get() as f64;
        let spent_ns = status.probe_ns().checked_sub(load.probe_ns)? as f64;
        Some(100.0 * spent_ns / (load.began.elapsed().as_nanos() as f64 * cores))
    }
}
