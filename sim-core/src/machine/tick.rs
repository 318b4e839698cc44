//! The end of a step: windows are closed, models learn, and the decision is taken.

use super::outbox::Outbox;
use super::workload::{Phase, Pool, Workload};
use crate::capacity::Window;
use crate::decide::{self, Decision, Desired, View};
use crate::journal::{Kind, Report};
use crate::name::InstanceId;
use crate::policy::Policy;
use crate::workload::Standby;
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

/// Requests that a window needs before it says something of CPU per request and of the SLO's tail. It
/// spans as many steps as that takes.
const WINDOW_REQUESTS_MIN: u64 = 50;
/// A window breaks the SLO where this many times the allowed share is too slow: one window's
/// tail is a handful of requests.
const SLO_EXCESS: f64 = 2.0;

impl Workload {
    pub(crate) fn tick(
        &mut self,
        out: &mut Outbox,
        policy: &Policy,
        pool: &Pool,
        next_instance: &mut u64,
    ) {
        self.close_windows(policy);
        self.forget_gone();
        if self.republish && self.is_healthy(self.primary) {
            self.republish = false;
            self.publish(out, policy, true);
        }
        if self.primary.is_none() && self.shadow.is_none() {
            self.start_first(out, policy, pool, next_instance);
            return;
        }
        let fresh = self.is_fresh(out.now, policy);
        if fresh == self.frozen {
            self.frozen = !fresh;
            let (kind, reason) = if fresh {
                (Kind::Thawed, "telemetry is back")
            } else {
                (
                    Kind::Frozen,
                    "telemetry is missing: planned moves are frozen",
                )
            };
            self.record(out, kind, self.primary, reason, None);
            if fresh && matches!(self.phase, Phase::Warming | Phase::Shifting) {
                // What was published in the meantime may have been refused, and the time that
                // was frozen proves nothing.
                self.phase_since = out.now;
                self.ramp_since = out.now;
                self.reset_arms();
                self.publish(out, policy, false);
            }
        }
        match self.phase {
            Phase::Baseline | Phase::Steady => self.settle(out, policy, pool, next_instance),
            _ if !fresh => self.frozen_move(out, policy),
            Phase::Creating => self.creating(out, policy),
            Phase::Warming => self.warming(out, policy),
            Phase::Shifting => self.shifting(out, policy),
            Phase::Draining | Phase::Baking => {
                self.watch_new_primary(out, policy);
                // An undo may have begun another phase.
                match self.phase {
                    Phase::Draining => self.drained(out, policy),
                    Phase::Baking => self.baking(out, policy),
                    _ => {}
                }
            }
        }
    }

    /// Baseline and Steady: learn, decide, begin what is asked for.
    fn settle(&mut self, out: &mut Outbox, policy: &Policy, pool: &Pool, next_instance: &mut u64) {
        if !self.is_healthy(self.primary) {
            return;
        }
        let decision = self.decide(out, policy, pool);
        if self.phase == Phase::Baseline
            && self.demand.is_calibrated()
            && let Some([low, middle, high]) = decision.report.capacity_rps
        {
            let reason = format!(
                "baseline known after {} samples: {:.0}/s now, {:.2} ms CPU a request, usable capacity {middle:.0}/s ({low:.0} to {high:.0})",
                self.demand.samples_seen(),
                self.demand_rps,
                self.capacity.service_seconds().unwrap_or(0.0) * 1e3,
            );
            self.calibrated = true;
            self.enter(out, Phase::Steady);
            self.record(
                out,
                Kind::Steady,
                self.primary,
                reason,
                Some(decision.report.clone()),
            );
        }
        match &decision.desired {
            Desired::Move(why) => {
                self.confirm += 1;
                if self.confirm >= policy.confirm_ticks && out.now >= self.next_move_at {
                    let why = why.clone();
                    self.begin_move(out, policy, pool, next_instance, &why, decision.report);
                } else if self.standby == Standby::Always && out.now < self.next_move_at {
                    // A move has to pause; the standby that was promised has not.
                    self.keep_standby(out, policy, pool, next_instance, decision.report);
                }
            }
            Desired::Standby => {
                self.confirm = 0;
                self.keep_standby(out, policy, pool, next_instance, decision.report);
            }
            Desired::Stay(_) => {
                self.confirm = 0;
                let unasked = self.standby != Standby::Always && self.shadow.is_some();
                if unasked && out.now >= self.next_move_at && !self.frozen {
                    self.dismiss(out, policy);
                }
            }
        }
    }

    fn keep_standby(
        &mut self,
        out: &mut Outbox,
        policy: &Policy,
        pool: &Pool,
        next_instance: &mut u64,
        report: Report,
    ) {
        let missing = self.shadow.is_none() && self.retiring.is_none();
        let settled = matches!(self.phase, Phase::Baseline | Phase::Steady);
        if missing && settled && out.now >= self.next_start_at {
            self.begin_standby(out, policy, pool, next_instance, report);
        }
    }

    pub(crate) fn decide(&self, out: &Outbox, policy: &Policy, pool: &Pool) -> Decision {
        let forecast =
            (policy.forecast && self.demand.is_calibrated()).then(|| self.demand.forecast());
        let primary = self.get(self.primary);
        let shadow_hour_price = primary.map_or(0.0, |i| {
            let server = pool.servers.iter().find(|s| s.spec.name == i.server);
            server.map_or(0.0, |s| s.spec.price_per_hour * i.cpus / s.spec.cpus)
        });
        decide::decide(&View {
            policy,
            forecast: forecast.as_ref(),
            demand_rps: self.demand_rps,
            capacity_rps: primary.and_then(|i| self.capacity.usable_rps(i.cpus)),
            lead_seconds: self.lead_seconds(policy),
            utilisation: primary.map_or(0.0, |i| i.utilisation),
            saturated_ticks: self.saturated,
            shadow_hour_price,
            slo_minute_price: self.spec.slo_minute_price,
            standby: self.standby,
            fresh: self.is_fresh(out.now, policy),
        })
    }

    fn close_windows(&mut self, policy: &Policy) {
        let covered = core::mem::take(&mut self.covered).as_secs_f64();
        let arrivals = core::mem::take(&mut self.arrivals);
        let seen = covered > 0.0 && self.is_healthy(self.primary);
        if seen {
            self.rates.push_back((arrivals, covered));
            let kept = (policy.demand_window_ms / policy.step_ms).max(1) as usize;
            while self.rates.len() > kept {
                self.rates.pop_front();
            }
            let sum = self
                .rates
                .iter()
                .fold((0, 0.0), |(a, c), &(x, y)| (a + x, c + y));
            self.demand_rps = sum.0 as f64 / sum.1;
        }
        // Before the first instance serves there is no demand to speak of, only silence.
        if self.demand.samples_seen() > 0 || (seen && arrivals > 0) {
            self.demand.observe(seen.then(|| arrivals as f64 / covered));
        }
        let serving: Vec<InstanceId> = self
            .instances
            .values()
            .filter(|i| i.is_healthy())
            .map(|i| i.id)
            .collect();
        for id in serving {
            self.close_instance(id, policy);
        }
    }

    fn close_instance(&mut self, id: InstanceId, policy: &Policy) {
        let slo = self.spec.slo.clone();
        let is_primary = self.primary == Some(id);
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let bound_micros = u64::try_from(slo.bound.as_micros()).unwrap_or(u64::MAX);
        let (seconds, throttled) = instance.close_tick(bound_micros);
        let utilisation = instance.utilisation;
        if let Some((seen, slow)) = instance.close_window(WINDOW_REQUESTS_MIN) {
            instance.violated =
                slow as f64 > SLO_EXCESS * (1.0 - slo.quantile) * seen.requests as f64;
            let violated = instance.violated;
            self.capacity.observe(Window { violated, ..seen });
        }
        let violated = self.instances.get(&id).is_some_and(|i| i.violated);
        if is_primary && seconds > 0.0 {
            // Throttling and a broken SLO alone may have other causes, which a move won't mend.
            let held_back = throttled >= policy.throttled_saturated || violated;
            let saturated = utilisation >= policy.utilisation_saturated
                || (held_back && utilisation >= policy.utilisation_usable);
            self.saturated = if saturated { self.saturated + 1 } else { 0 };
        }
    }

    /// No instance at all: the first one starts at home.
    fn start_first(
        &mut self,
        out: &mut Outbox,
        policy: &Policy,
        pool: &Pool,
        next_instance: &mut u64,
    ) {
        if out.now < self.next_start_at || !self.instances.is_empty() {
            return;
        }
        let (cpus, memory) = (self.spec.cpus, self.spec.memory_bytes);
        let fits = |s: &&super::workload::PoolServer| {
            s.up && s.cpus_free >= cpus && s.memory_free_bytes >= memory
        };
        let home = pool
            .servers
            .iter()
            .filter(|s| s.spec.name == self.spec.home)
            .find(fits);
        // Home is where it starts first; after a death without a standby any server will do.
        let anywhere = || {
            let others = pool.servers.iter().filter(fits);
            others.min_by(|a, b| a.spec.price_per_hour.total_cmp(&b.spec.price_per_hour))
        };
        // After a start of SIM nodes connect one by one: home may be a moment late.
        let mut at_home = pool
            .servers
            .iter()
            .filter(|s| s.spec.name == self.spec.home);
        let is_awaited = at_home.any(|s| !s.up && !s.away);
        let elsewhere = self.table.is_some() && !is_awaited;
        let Some(server) = home.or_else(|| elsewhere.then(anywhere).flatten()) else {
            return;
        };
        let name = server.spec.name.clone();
        let reason = match self.failed_lives {
            0 if self.table.is_none() => {
                format!("first instance starts on {name} with {cpus:.2} CPUs")
            }
            0 => format!("starts again on {name} with {cpus:.2} CPUs"),
            lives => format!(
                "starts again on {name} with {cpus:.2} CPUs, after a pause of {:.0} s: the last {lives} died at their start or within {:.0} s",
                self.restart_pause().as_secs_f64(),
                super::failover::LIFE.as_secs_f64(),
            ),
        };
        self.next_start_at = out
            .now
            .after(Duration::from_millis(policy.move_pause_ms.min(5_000)));
        self.enter(out, Phase::Baseline);
        if let Some(id) = self.start(out, policy, name, cpus, next_instance) {
            self.primary = Some(id);
            self.record(out, Kind::Baseline, Some(id), reason, None);
        }
    }
}
