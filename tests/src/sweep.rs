//! What one instance carries, found by trying: the highest open-loop rate at which the SLO's
//! quantile stays within its bound and nothing fails.
//!
//! First a closed loop finds the throughput ceiling in a second and a half, then rates around it
//! are tried and the gap halved. A step is long enough for a queue to show: at 5 % above what is carried, a second
//! of load adds 50 ms of waiting.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::SeedableRng as _;
use rand_pcg::Pcg64;

use crate::clock::Clock;
use crate::load::Engine;
use crate::load::arrivals::Constant;
use crate::load::record::{Latencies, Outcome, Record};
use crate::load::request::{HttpClient, Mix, client};

/// Rates tried.
const STEPS: u32 = 8;
/// How long each is offered.
const STEP_SPAN: Duration = Duration::from_millis(2_000);

/// What counts as carried.
#[derive(Clone, Copy, Debug)]
pub struct Objective {
    /// Quantile of latencies that must stay within the bound.
    pub quantile: f64,
    /// The bound, in milliseconds.
    pub bound_ms: f64,
}

/// One rate, tried.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Offered, in requests per second.
    pub rate_rps: f64,
    /// Requests sent.
    pub sent: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Median latency.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// The objective held.
    pub carried: bool,
}

/// Sweeps one instance.
#[derive(Debug)]
pub struct Sweep {
    engine: Engine,
    client: HttpClient,
    mix: Mix,
    target: SocketAddr,
    objective: Objective,
    seed: u64,
}

impl Sweep {
    /// # Errors
    /// The load engine could not start.
    pub fn new(target: SocketAddr, mix: Mix, objective: Objective, seed: u64) -> Result<Self> {
        let engine = Engine::start(Clock::start(), target, mix.clone())?;
        Ok(Self {
            engine,
            client: client(),
            mix,
            target,
            objective,
            seed,
        })
    }

    /// Finds the capacity in about twenty seconds; each step is shown as it ends.
    ///
    /// # Errors
    /// Nothing is carried at all, or a thread failed.
    pub async fn capacity_rps(&mut self, mut show: impl FnMut(&Step)) -> Result<f64> {
        let ceiling = self.ceiling_rps(Duration::from_millis(1_500)).await;
        ensure!(ceiling > 0.0, "the instance answers nothing");
        let mut search = Search::new(0.85 * ceiling);
        for _ in 0..STEPS {
            let step = self.step(search.rate_rps, STEP_SPAN).await?;
            show(&step);
            search.learn(step.carried);
        }
        let bound_ms = self.objective.bound_ms;
        search
            .carried_rps
            .with_context(|| format!("no rate tried was carried within {bound_ms} ms"))
    }

    /// Offers one rate for `span` and waits until its last request has ended.
    ///
    /// # Errors
    /// A thread failed.
    pub async fn step(&mut self, rate_rps: f64, span: Duration) -> Result<Step> {
        self.seed = self.seed.wrapping_add(1);
        let before = self.engine.ledger().closed();
        self.engine
            .pace(Constant(rate_rps), self.seed, Some(span))?
            .wait()
            .await?;
        self.engine.settle().await;
        let records = self.engine.ledger().since(before);
        Ok(judge(rate_rps, &records, self.objective))
    }

    async fn ceiling_rps(&self, span: Duration) -> f64 {
        let began = Instant::now();
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..16 {
            let mut random = Pcg64::seed_from_u64(self.seed ^ worker);
            let (client, mix, target) = (self.client.clone(), self.mix.clone(), self.target);
            workers.spawn(async move {
                let mut done = 0_u32;
                while began.elapsed() < span {
                    let outcome = mix.draw(&mut random).fire(&client, target).await;
                    done += u32::from(outcome == Outcome::Ok);
                }
                done
            });
        }
        let done: u32 = workers.join_all().await.into_iter().sum();
        f64::from(done) / began.elapsed().as_secs_f64()
    }
}

/// Bisection that believes a refusal only when it is repeated: a neighbour's burst of CPU can
/// make a carried rate look refused, and would then hold every later rate down.
#[derive(Clone, Copy, Debug)]
struct Search {
    /// The next rate to try.
    rate_rps: f64,
    /// The highest rate carried.
    carried_rps: Option<f64>,
    refused_rps: Option<f64>,
    doubted: bool,
}

impl Search {
    fn new(rate_rps: f64) -> Self {
        Self {
            rate_rps,
            carried_rps: None,
            refused_rps: None,
            doubted: false,
        }
    }

    fn learn(&mut self, carried: bool) {
        if !carried && !self.doubted {
            self.doubted = true;
            return;
        }
        self.doubted = false;
        if carried {
            self.carried_rps = Some(self.rate_rps);
        } else {
            self.refused_rps = Some(self.rate_rps);
        }
        self.rate_rps = match (self.carried_rps, self.refused_rps) {
            (Some(carried), Some(refused)) => (carried + refused) / 2.0,
            (Some(carried), None) => 1.12 * carried,
            (None, Some(refused)) => 0.75 * refused,
            (None, None) => self.rate_rps,
        };
    }
}

fn judge(rate_rps: f64, records: &[Record], objective: Objective) -> Step {
    let latencies = Latencies::of(records);
    let quantile = |q| latencies.quantile_ms(q).unwrap_or(f64::INFINITY);
    let failed = records.iter().filter(|record| record.failed()).count();
    Step {
        rate_rps,
        sent: records.len(),
        failed,
        p50_ms: quantile(0.50),
        p99_ms: quantile(0.99),
        carried: failed == 0 && quantile(objective.quantile) <= objective.bound_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim_core::time::Time;

    const OBJECTIVE: Objective = Objective {
        quantile: 0.99,
        bound_ms: 150.0,
    };

    fn records(slow: usize, outcome: Outcome) -> Vec<Record> {
        (0..200)
            .map(|index| Record {
                intended: Time(0),
                latency_micros: if index < slow { 151_000 } else { 10_000 },
                idempotent: true,
                outcome: if index == 0 { outcome } else { Outcome::Ok },
            })
            .collect()
    }

    #[test]
    fn a_rate_is_carried_only_within_the_bound_and_without_failures() {
        assert!(judge(100.0, &records(2, Outcome::Ok), OBJECTIVE).carried);
        assert!(!judge(100.0, &records(3, Outcome::Ok), OBJECTIVE).carried);
        assert!(!judge(100.0, &records(0, Outcome::Body), OBJECTIVE).carried);
        assert!(!judge(100.0, &[], OBJECTIVE).carried);
    }

    #[test]
    fn the_search_closes_in_on_the_knee_despite_a_lone_refusal() {
        for knee in [300.0, 430.0, 520.0] {
            let mut search = Search::new(400.0);
            for step in 0..STEPS {
                let disturbed = step == 1;
                search.learn(search.rate_rps <= knee && !disturbed);
            }
            let found = search.carried_rps.unwrap();
            assert!((0.85 * knee..=knee).contains(&found), "{found} for {knee}");
        }
    }

    #[test]
    fn a_sweep_that_carries_nothing_finds_nothing() {
        let mut search = Search::new(400.0);
        for _ in 0..STEPS {
            search.learn(false);
        }
        assert_eq!(search.carried_rps, None);
    }
}
