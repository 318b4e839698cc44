//! SIM as a whole, with a primary and a shadow that stands by.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench::free_address;
use bench::open_loop::Taken;
use bench::secure::Certificate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sim_core::journal::Kind;
use sim_core::time::Time;
use sim_tests::clock::Clock;
use sim_tests::demo::sim::{Journal, Sim, last_pick_ns};
use sim_tests::load::request::client;
use tokio::runtime::Runtime;

use super::{
    AFTER_DEAD, AFTER_STOPPED, BEFORE, DEAD, KILL_HZ, Load, Method, STOP_HZ, STOPPED, begin,
    finish, milliseconds, noticed,
};
use crate::configurations::Users;
use crate::sim;

const PATIENCE: Duration = Duration::from_secs(60);
/// The shadow gets its first share once its proof has come, by a table that the proxy has within this.
const TABLE: Duration = Duration::from_secs(1);

pub(super) struct Whole {
    runtime: Runtime,
    sim: Sim,
    journal: Journal,
    users: SocketAddr,
    secure: Option<(SocketAddr, Certificate)>,
    admin: SocketAddr,
    clock: Clock,
    primary: u64,
    _folder: tempfile::TempDir,
}

impl Whole {
    pub(super) fn start(method: Method) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        let setting = sim::Setting::own()?;
        let (users, admin) = (free_address()?, free_address()?);
        let config = at.join("sim.toml");
        let text = sim::two_servers(at, method.users() == Users::Grpc)?;
        let mut table = sim::own_places(&text, at, users, admin)?;
        let secure = match method.users() {
            Users::Tls => Some((free_address()?, Certificate::new(at)?)),
            Users::Http1 | Users::Http2 | Users::Grpc => None,
        };
        if let Some((listen, certificate)) = &secure {
            sim::serve_over_tls(&mut table, *listen, certificate)?;
        }
        std::fs::write(&config, table.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let clock = Clock::start();
        let log = at.join("sim.log");
        let mut sim = Sim::start(&setting.program, &config, at, &log)?;
        let (journal, primary) = runtime.block_on(async {
            sim.ready(PATIENCE).await?;
            let mut journal = sim.journal()?;
            for _ in 0..2 {
                ready(&mut journal).await?;
            }
            tokio::time::sleep(TABLE).await;
            let primary = sim.status().await?.primary("echo");
            anyhow::Ok((journal, primary.context("no primary")?))
        })?;
        Ok(Self {
            runtime,
            sim,
            journal,
            users,
            secure,
            admin,
            clock,
            primary,
            _folder: folder,
        })
    }

    fn plan(&self, method: Method, rate_hz: f64, span: Duration) -> Load {
        method.plan(self.users, self.secure.as_ref(), rate_hz, span)
    }

    fn pid(&self) -> Result<Pid> {
        let status = self.runtime.block_on(self.sim.status())?;
        let instance = status.instance(self.primary).context("no instance")?;
        ensure!(instance.pid > 1, "the primary has no process");
        Ok(Pid::from_raw(instance.pid))
    }

    /// Kills the primary; SIM itself starts another instance.
    pub(super) fn kill(mut self, method: Method) -> Result<Value> {
        let pid = self.pid()?;
        let span = BEFORE + DEAD + AFTER_DEAD;
        let (_, load) = begin(self.plan(method, KILL_HZ, span))?;
        kill(pid, Signal::SIGKILL)?;
        let killed = Instant::now();
        // Till the proxy's table is without it, and the control plane has forgotten it.
        let (last_pick, died) = self.runtime.block_on(self.last_words(killed))?;
        let again = self.runtime.block_on(async {
            let again = tokio::time::timeout(AFTER_DEAD, ready(&mut self.journal)).await;
            again.ok().transpose()
        })?;
        let taken = finish(load)?;
        let mut row = noticed(&taken.shots);
        let late = last_pick.zip(died);
        let late = late.map(|(picked, died)| Duration::from_nanos(picked.saturating_sub(died)));
        row["last_pick_after_death_ms"] =
            late.map_or(Value::Null, |late| milliseconds(late).into());
        let (back, ready) = match again {
            Some((instance, at)) => {
                let ready = at.0.saturating_sub(self.clock.time_of(killed).0);
                (
                    self.first_answer(&taken, instance, at),
                    json!(ready / 1_000),
                )
            }
            None => (None, Value::Null),
        };
        row["back_after_restart_ms"] = back.map_or(Value::Null, |back| milliseconds(back).into());
        row["restarted_and_ready_after_death_ms"] = ready;
        Ok(row)
    }

    /// When the primary was picked last, and when it died, by the kernel's clock: what was said of it last.
    async fn last_words(&self, killed: Instant) -> Result<(Option<u64>, Option<u64>)> {
        let (mut picked, mut died) = (None, None);
        let client = client();
        while killed.elapsed() < DEAD {
            let status = self.sim.status().await?;
            let known = status.instance(self.primary);
            let ns = known.map(|one| one.died_monotonic_ns).filter(|&ns| ns > 0);
            died = ns.or(died);
            picked = last_pick_ns(&client, self.admin, self.primary)
                .await?
                .or(picked);
        }
        Ok((picked, died))
    }

    /// From the proof of `instance` to the first request that it answered.
    fn first_answer(&self, taken: &Taken, instance: u64, ready: Time) -> Option<Duration> {
        let shots = taken.shots.iter();
        let own = shots.filter(|shot| u64::from(shot.instance) == instance);
        let first = own.map(|shot| shot.due).min()?;
        let at = self.clock.time_of(taken.begin + first);
        Some(Duration::from_micros(at.0.saturating_sub(ready.0)))
    }

    /// Stops the primary for a while.
    pub(super) fn stop(self, method: Method) -> Result<Value> {
        let pid = self.pid()?;
        let span = BEFORE + STOPPED + AFTER_STOPPED;
        let (_, load) = begin(self.plan(method, STOP_HZ, span))?;
        kill(pid, Signal::SIGSTOP)?;
        std::thread::sleep(STOPPED);
        // It may have been ended meanwhile: who doesn't answer is replaced.
        kill(pid, Signal::SIGCONT).ok();
        Ok(noticed(&finish(load)?.shots))
    }
}

/// The next proof of an instance: which one, and when.
async fn ready(journal: &mut Journal) -> Result<(u64, Time)> {
    loop {
        let entry = tokio::time::timeout(PATIENCE, journal.next())
            .await
            .context("no proof of an instance")??;
        if entry.record.kind == Kind::Ready {
            let instance = entry.record.instance.context("a proof of nobody")?;
            return Ok((instance.0, entry.record.at));
        }
    }
}
