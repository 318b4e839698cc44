//! Moves: create, warm, drain, bake, reclaim, and giving up.

use super::instance::{Instance, State};
use super::outbox::Outbox;
use super::placing::{Found, HELPS};
use super::workload::{FIRST_ANSWERS, Goal, Phase, Pool, Workload};
use crate::command::Command;
use crate::journal::{Kind, Report};
use crate::name::{InstanceId, ServerName};
use crate::parity::{self, Arm, Verdict};
use crate::policy::Policy;
use crate::table::FULL_BP;
use alloc::format;
use core::time::Duration;

/// Extra time over the readiness timeout before a silent creation is given up.
const CREATE_SLACK: Duration = Duration::from_secs(10);
/// Undo needs this many first attempts in a window, and more than this share of them failed.
const UNDO_REQUESTS_MIN: u64 = 20;
const UNDO_ERROR_RATE: f64 = 0.05;
/// First attempts after which the watch over a new primary begins to count anew: what fails now
/// must not drown in what went well before.
const UNDO_WINDOW: u64 = 500;
impl Workload {
    /// Asks for a new instance; `None` where the invariants refuse it.
    pub(crate) fn start(
        &mut self,
        out: &mut Outbox,
        policy: &Policy,
        server: ServerName,
        cpus: f64,
        next_instance: &mut u64,
    ) -> Option<InstanceId> {
        let id = InstanceId(*next_instance);
        let command = Command::Start {
            instance: id,
            workload: self.name().clone(),
            server: server.clone(),
            cpus,
        };
        if !self.command(out, policy, command, self.primary.is_none()) {
            return None;
        }
        *next_instance += 1;
        let memory = self.spec.memory_bytes;
        self.instances
            .insert(id, Instance::new(id, server, cpus, memory, out.now));
        Some(id)
    }

    /// Begins a planned move: with the warm shadow if there is one, else with a new one.
    pub(crate) fn begin_move(
        &mut self,
        out: &mut Outbox,
        policy: &Policy,
        pool: &Pool,
        next_instance: &mut u64,
        why: &str,
        report: Report,
    ) {
        self.record(out, Kind::Trigger, self.primary, why, Some(report.clone()));
        if self.is_healthy(self.shadow) {
            self.move_to_standby(out, policy, pool, report);
        } else {
            self.create(out, policy, pool, next_instance, Goal::Move, report);
        }
    }

    /// Moves to the warm standby if it is larger than the primary, even where it is too small for the
    /// forecast: it is the quickest relief, and the next move can start from there. One that is
    /// no relief is replaced if a server has room for one that is.
    fn move_to_standby(&mut self, out: &mut Outbox, policy: &Policy, pool: &Pool, report: Report) {
        let (Some(primary), Some(shadow)) = (self.get(self.primary), self.get(self.shadow)) else {
            return;
        };
        let (id, cpus) = (shadow.id, shadow.cpus);
        let seen = shadow.is_seen(out.now, policy);
        if seen && cpus >= HELPS * primary.cpus {
            let asked_rps = report.forecast_rps.max(report.demand_rps);
            let capacity = self.capacity.usable_rps(cpus);
            let why = match capacity {
                Some([_, carried, _]) if carried <= asked_rps => format!(
                    "the standby is warm already; of the forecast it carries {:.0} %",
                    carried / asked_rps * 100.0
                ),
                _ => "the standby is warm already".into(),
            };
            self.goal = Goal::Move;
            if self.unproven {
                self.unproven = false;
                self.enter(out, Phase::Warming);
                self.reset_arms();
                let reason = format!("{why}, but has to prove itself before it takes more");
                self.record(out, Kind::Warming, self.shadow, reason, None);
                return;
            }
            self.begin_shifting(out, policy, &why);
            return;
        }
        let found = self.find_place(out, policy, pool, Goal::Move, &report, Some(id));
        let better = found.chosen.filter(|(_, found)| *found >= HELPS * cpus);
        let reason = match (seen, better) {
            (false, _) => "nothing is heard of the standby's node: it is given up".into(),
            (true, Some((server, better))) => format!(
                "the warm standby is too small for the forecast: {better:.2} CPUs on {server} \
                 instead of {cpus:.2}"
            ),
            (true, None) => {
                self.next_move_at = out.now.after(Duration::from_millis(policy.move_pause_ms));
                let reason = "the warm standby is no larger, and nor is any server";
                self.record(out, Kind::NoPlacement, self.shadow, reason, Some(report));
                return;
            }
        };
        self.goal = Goal::Move;
        self.dismiss(out, policy);
        self.record(out, Kind::Draining, Some(id), reason, Some(report));
    }

    /// Begins to create a standby.
    pub(crate) fn begin_standby(
        &mut self,
        out: &mut Outbox,
        policy: &Policy,
        pool: &Pool,
        next_instance: &mut u64,
        report: Report,
    ) {
        let reason = "standby is 'always' and none stands by";
        self.record(
            out,
            Kind::Trigger,
            self.primary,
            reason,
            Some(report.clone()),
        );
        self.create(out, policy, pool, next_instance, Goal::Standby, report);
    }

    fn create(
        &mut self,
        out: &mut Outbox,
        policy: &Policy,
        pool: &Pool,
        next_instance: &mut u64,
        goal: Goal,
        mut report: Report,
    ) {
        let Found {
            chosen,
            candidates,
            load_cpus,
            note,
        } = self.find_place(out, policy, pool, goal, &report, None);
        report.candidates = candidates;
        let Some((server, cpus)) = chosen else {
            self.next_move_at = out.now.after(Duration::from_millis(policy.move_pause_ms));
            self.next_start_at = self.next_move_at;
            let reason = format!("no server has room for {load_cpus:.2} CPUs of load");
            self.record(out, Kind::NoPlacement, None, reason, Some(report));
            return;
        };
        let best = report.candidates.first().map_or("", |c| c.why.as_str());
        let reason = format!("{server} is cheapest of those that fit: {best}{note}");
        self.record(out, Kind::Placement, None, reason, Some(report));
        if let Some(id) = self.start(out, policy, server.clone(), cpus, next_instance) {
            self.shadow = Some(id);
            self.shadow_bp = 0;
            self.unproven = false;
            self.goal = goal;
            self.enter(out, Phase::Creating);
            let reason = format!("shadow {id} starts on {server} with {cpus:.2} CPUs");
            self.record(out, Kind::Creating, Some(id), reason, None);
        }
    }

    pub(crate) fn ready(
        &mut self,
        out: &mut Outbox,
        policy: &Policy,
        id: InstanceId,
        create: Duration,
    ) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        if instance.state != State::Asked || instance.address.is_none() {
            return;
        }
        instance.state = State::Ready;
        // Its proof is a sign of life: its node's first report follows.
        instance.resources_at.get_or_insert(out.now);
        let server = instance.server.clone();
        self.lead.create.observe(create);
        let need = self.spec.readiness.successes;
        let path = self.spec.readiness.path.clone();
        let proof = format!(
            "{need} good answers on {path} after {:.1} s on {server}",
            create.as_secs_f64()
        );
        self.record(out, Kind::Ready, Some(id), proof, None);
        if self.primary.is_none() && self.shadow == Some(id) {
            self.primary = self.shadow.take();
            self.enter(out, Phase::Baseline);
        }
        if self.primary == Some(id) {
            self.publish(out, policy, true);
        } else if self.shadow == Some(id) {
            self.shadow_bp = self.first_share_bp(policy);
            self.enter(out, Phase::Warming);
            self.reset_arms();
            let mut reason = format!("{:.0} % of live traffic to {id}", percent(self.shadow_bp));
            if self.is_fresh(out.now, policy) {
                self.publish(out, policy, false);
            } else {
                // The thaw publishes it, also where no tick saw the frost.
                self.frozen = true;
                reason += ", once telemetry is back";
            }
            self.record(out, Kind::Warming, Some(id), reason, None);
        }
    }

    pub(crate) fn creating(&mut self, out: &mut Outbox, policy: &Policy) {
        let limit = self.spec.readiness.timeout + CREATE_SLACK;
        if out.now.since(self.phase_since) > limit {
            self.note_failed_start(out);
            let reason = format!("not ready after {:.0} s", limit.as_secs_f64());
            self.abort(out, policy, &reason);
        }
    }

    pub(crate) fn warming(&mut self, out: &mut Outbox, policy: &Policy) {
        if self.is_proof_late(out.now, policy, self.phase_since, policy.warm_bp[1]) {
            self.give_up_proof(out, policy);
            return;
        }
        if !self.is_table_applied() {
            return;
        }
        let last = policy.warm_bp[1];
        let answers = self.get(self.shadow).map_or(0, |i| i.arm.ok);
        if self.shadow_bp < last {
            if answers >= FIRST_ANSWERS {
                self.shadow_bp = last;
                self.publish(out, policy, false);
                let reason = format!("first {answers} answers are good: {:.0} %", percent(last));
                self.record(out, Kind::Warming, self.shadow, reason, None);
            }
        } else {
            match self.judge(policy) {
                Verdict::Equal(why) => {
                    self.lead.warm.observe(out.now.since(self.phase_since));
                    self.record(out, Kind::Parity, self.shadow, why, None);
                    self.warmed(out, policy);
                }
                Verdict::Worse(why) => {
                    self.abort(out, policy, &format!("shadow is worse: {why}"));
                }
                Verdict::Undecided(_) => {}
            }
        }
    }

    /// The shadow's time to prove itself is over. One that only stands by is better than none, if it
    /// never failed.
    fn give_up_proof(&mut self, out: &mut Outbox, policy: &Policy) {
        let (ok, failed) = self
            .get(self.shadow)
            .map_or((0, 0), |i| (i.arm.ok, i.arm.failed));
        let seen = format!(
            "{ok} good answers and {failed} bad ones in {:.0} s, {} are needed for a proof",
            out.now.since(self.phase_since).as_secs_f64(),
            policy.parity_requests_min
        );
        if self.goal == Goal::Standby && failed == 0 && self.is_table_applied() {
            self.unproven = true;
            self.settle_again(out);
            let reason = format!(
                "stands by with {:.0} % of the traffic, unproven: {seen}",
                percent(self.shadow_bp)
            );
            self.record(out, Kind::StandbyWarm, self.shadow, reason, None);
            return;
        }
        self.abort(out, policy, &format!("parity was not proven: {seen}"));
    }

    /// What a move does while telemetry is stale: it waits, but not for ever for a shadow that alone
    /// is not seen.
    pub(crate) fn frozen_move(&mut self, out: &mut Outbox, policy: &Policy) {
        if !matches!(self.phase, Phase::Warming | Phase::Shifting)
            || !self.is_primary_seen(out.now, policy)
        {
            return;
        }
        let Some(seen) = self.get(self.shadow).and_then(|i| i.resources_at) else {
            return;
        };
        let silent = out.now.since(seen);
        let limit = Duration::from_millis(policy.phase_timeout_ms);
        if silent < limit || out.now.since(self.ramp_since) < limit {
            return;
        }
        let why = format!(
            "nothing is heard of the shadow's node for {:.0} s",
            silent.as_secs_f64()
        );
        if self.phase == Phase::Shifting && self.held_bp() > 0 {
            // It serves, and the primary can't do without: said again after each such time.
            self.ramp_since = out.now;
            let reason =
                format!("{why}; the primary does not carry the load alone, so both are held");
            self.record(out, Kind::StepBack, self.shadow, reason, None);
            return;
        }
        self.abort(out, policy, &why);
    }

    fn warmed(&mut self, out: &mut Outbox, policy: &Policy) {
        match self.goal {
            Goal::Move => self.begin_shifting(out, policy, "parity is proven"),
            Goal::Standby => {
                self.unproven = false;
                let reason = format!(
                    "stands by with {:.0} % of the traffic",
                    percent(self.shadow_bp)
                );
                self.settle_again(out);
                self.record(out, Kind::StandbyWarm, self.shadow, reason, None);
            }
        }
    }

    /// Looks once more at primary and shadow side by side.
    pub(crate) fn judge(&mut self, policy: &Policy) -> Verdict {
        let empty = Arm::default();
        self.looks += 1;
        let primary = self.get(self.primary).map_or(&empty, |i| &i.arm);
        let shadow = self.get(self.shadow).map_or(&empty, |i| &i.arm);
        parity::judge(policy, self.looks, primary, shadow)
    }

    /// Gives a move up: traffic goes back to the primary as far as it carries it.
    pub(crate) fn abort(&mut self, out: &mut Outbox, policy: &Policy, why: &str) {
        let held = self.held_bp();
        if self.phase == Phase::Shifting && held > 0 && self.is_healthy(self.shadow) {
            self.shadow_bp = self.shadow_bp.min(held).max(1);
            self.steps_back = 0;
            self.reset_arms();
            self.publish(out, policy, false);
            let reason = format!(
                "{why}; the primary carries {:.0} % alone, so both are held at {:.0} %",
                percent(FULL_BP - held),
                percent(self.shadow_bp)
            );
            self.record(out, Kind::StepBack, self.shadow, reason, None);
            self.ramp_since = out.now;
            return;
        }
        self.record(out, Kind::Abort, self.shadow, why, None);
        let pause = Duration::from_millis(policy.move_pause_ms);
        self.next_move_at = out.now.after(pause);
        self.next_start_at = self.next_move_at;
        self.dismiss(out, policy);
    }

    /// Share of the demand that the primary alone is known not to carry, in basis points.
    pub(super) fn held_bp(&self) -> u16 {
        let capacity = self
            .get(self.primary)
            .and_then(|i| self.capacity.usable_rps(i.cpus))
            .map_or(f64::INFINITY, |c| c[1]);
        if self.demand_rps <= capacity {
            return 0;
        }
        FULL_BP - (capacity / self.demand_rps * f64::from(FULL_BP)) as u16
    }

    /// Takes the shadow out of traffic, drains it and ends it.
    pub(crate) fn dismiss(&mut self, out: &mut Outbox, policy: &Policy) {
        self.retiring = self.shadow.take();
        self.bake = false;
        self.shadow_bp = 0;
        self.publish(out, policy, true);
        self.enter(out, Phase::Draining);
        self.drained(out, policy);
    }

    /// Whether the instance on its way out has ended its requests; goes on to bake if so.
    pub(crate) fn drained(&mut self, out: &mut Outbox, policy: &Policy) {
        let (Phase::Draining, Some(id)) = (self.phase, self.retiring) else {
            return;
        };
        let quiet = self
            .proxies
            .values()
            .all(|p| p.in_flight.get(&id).copied().unwrap_or(0) == 0);
        let never_served = !self.is_healthy(Some(id));
        let waited = out.now.since(self.phase_since);
        let late = waited > Duration::from_millis(policy.drain_timeout_ms);
        // A proxy that has not taken the table over still sends requests there, however late it is.
        let applied = self.is_table_applied();
        if !(applied && (quiet || late)) && !never_served {
            if late && !self.drain_is_late {
                self.drain_is_late = true;
                let reason = format!(
                    "still draining after {:.0} s: no proxy, or not every one, has taken the table over",
                    waited.as_secs_f64()
                );
                self.record(out, Kind::Draining, Some(id), reason, None);
            }
            return;
        }
        self.drain_is_late = false;
        if self.bake {
            let reason = if quiet {
                format!(
                    "nothing in flight on {id} after {:.1} s; kept idle for {:.0} s in case of undo",
                    waited.as_secs_f64(),
                    policy.bake_ms as f64 / 1e3
                )
            } else {
                format!(
                    "{id} still has requests in flight after {:.0} s",
                    waited.as_secs_f64()
                )
            };
            self.enter(out, Phase::Baking);
            self.record(out, Kind::Baking, Some(id), reason, None);
        } else {
            self.enter(out, Phase::Baking);
            self.stop_retiring(out, policy);
        }
    }

    pub(crate) fn baking(&mut self, out: &mut Outbox, policy: &Policy) {
        let over = out.now.since(self.phase_since) >= Duration::from_millis(policy.bake_ms);
        match self.get(self.retiring) {
            Some(i) if i.state == State::Stopping => {}
            Some(_) if over => self.stop_retiring(out, policy),
            Some(_) => {}
            None => self.settle_again(out),
        }
    }

    fn stop_retiring(&mut self, out: &mut Outbox, policy: &Policy) {
        let Some(instance) = self.get(self.retiring) else {
            return;
        };
        let (id, server) = (instance.id, instance.server.clone());
        let grace = Duration::from_millis(policy.stop_grace_ms);
        let command = Command::Stop {
            instance: id,
            server,
            grace,
        };
        if !self.command(out, policy, command, false) {
            return;
        }
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.state = State::Stopping;
        }
        // It leaves the table too, so that no proxy takes it for a failover target.
        self.publish(out, policy, true);
    }

    /// Undo: the new primary fails requests that the old one didn't.
    pub(crate) fn watch_new_primary(&mut self, out: &mut Outbox, policy: &Policy) {
        if !self.bake || !self.is_healthy(self.retiring) {
            return;
        }
        let Some(primary) = self.get(self.primary) else {
            return;
        };
        let (failed, total) = (primary.arm.failed, primary.arm.total());
        if total < UNDO_REQUESTS_MIN || (failed as f64) <= UNDO_ERROR_RATE * total as f64 {
            if total >= UNDO_WINDOW {
                self.reset_arms();
            }
            return;
        }
        let reason = format!("{failed} of {total} requests failed on the new primary");
        core::mem::swap(&mut self.primary, &mut self.retiring);
        self.bake = false;
        if self.held_bp() > 0 {
            // The old primary was left for want of capacity: what it can't carry stays behind.
            self.shadow = self.retiring.take();
            self.shadow_bp = FULL_BP;
            self.enter(out, Phase::Shifting);
            self.abort(out, policy, &format!("undo: {reason}"));
            return;
        }
        self.next_move_at = out.now.after(Duration::from_millis(policy.move_pause_ms));
        self.publish(out, policy, true);
        let reason = format!("undo: {reason}");
        self.record(out, Kind::Abort, self.retiring, reason, None);
        self.enter(out, Phase::Draining);
    }

    /// Asks again for what a node missed while it was away.
    pub(crate) fn reask(
        &self,
        out: &mut Outbox,
        policy: &Policy,
        server: &ServerName,
        running: &[InstanceId],
    ) {
        let grace = Duration::from_millis(policy.stop_grace_ms);
        for i in self.instances.values().filter(|i| i.server == *server) {
            match i.state {
                State::Asked if !running.contains(&i.id) => out.command(Command::Start {
                    instance: i.id,
                    workload: self.name().clone(),
                    server: server.clone(),
                    cpus: i.cpus,
                }),
                State::Stopping if running.contains(&i.id) => {
                    out.command(Command::Stop {
                        instance: i.id,
                        server: server.clone(),
                        grace,
                    });
                }
                _ => {}
            }
        }
    }
}

pub(super) fn percent(basis_points: u16) -> f64 {
    f64::from(basis_points) / 100.0
}
