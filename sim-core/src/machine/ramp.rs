//! Shifting: the shadow's share rises in steps, each proven before the next.

use super::moves::percent;
use super::outbox::Outbox;
use super::workload::{Phase, Workload};
use crate::journal::Kind;
use crate::parity::Verdict;
use crate::policy::Policy;
use crate::table::FULL_BP;
use crate::time::Time;
use alloc::format;
use core::time::Duration;

/// Steps back in one move before it is given up.
const STEPS_BACK_MAX: u32 = 3;

impl Workload {
    pub(crate) fn begin_shifting(&mut self, out: &mut Outbox, policy: &Policy, why: &str) {
        self.enter(out, Phase::Shifting);
        self.steps_back = 0;
        if self.shadow_bp < policy.ramp_bp[0] {
            self.ramp_to(out, policy, 0, why);
        } else {
            // It has more already: that share has to be proven before the next.
            self.ramp_since = out.now;
            self.reset_arms();
        }
    }

    pub(crate) fn shifting(&mut self, out: &mut Outbox, policy: &Policy) {
        let waited = out.now.since(self.ramp_since);
        if waited < Duration::from_millis(policy.ramp_step_ms) {
            return;
        }
        if !self.is_table_applied() {
            if waited > Duration::from_millis(policy.phase_timeout_ms) {
                self.abort(out, policy, "the proxies don't take this step over");
            }
            return;
        }
        match self.judge(policy) {
            Verdict::Equal(why) => self.step_up(out, policy, &why),
            Verdict::Worse(why) => self.step_back(out, policy, &why),
            Verdict::Undecided(why) => {
                // The side with the smaller share is the slower one to be proven.
                let smaller_bp = self.shadow_bp.min(FULL_BP - self.shadow_bp);
                if self.is_proof_late(out.now, policy, self.ramp_since, smaller_bp) {
                    self.abort(out, policy, &format!("no proof at this step: {why}"));
                }
            }
        }
    }

    fn step_up(&mut self, out: &mut Outbox, policy: &Policy, why: &str) {
        let next = policy.ramp_bp.iter().position(|&bp| bp > self.shadow_bp);
        let Some(next) = next else { return };
        // Never ahead of what the shadow is known to carry.
        let share = f64::from(policy.ramp_bp[next]) / f64::from(FULL_BP);
        let capacity = self
            .get(self.shadow)
            .and_then(|i| self.capacity.usable_rps(i.cpus));
        if let Some([_, middle, _]) = capacity
            && share * self.demand_rps > middle
        {
            let waited = out.now.since(self.ramp_since);
            if waited > Duration::from_millis(policy.phase_timeout_ms) {
                let reason = format!("the shadow carries {middle:.0}/s: both are kept");
                self.ramp_since = out.now;
                self.record(out, Kind::StepBack, self.shadow, reason, None);
            }
            return;
        }
        self.ramp_to(out, policy, next, why);
    }

    fn ramp_to(&mut self, out: &mut Outbox, policy: &Policy, at: usize, why: &str) {
        let target = policy.ramp_bp[at];
        self.ramp_at = at;
        self.ramp_since = out.now;
        self.proof_until = Time::default();
        self.shadow_bp = target;
        self.reset_arms();
        if target < FULL_BP {
            self.publish(out, policy, false);
            let reason = format!("{:.0} % to the shadow: {why}", percent(target));
            self.record(out, Kind::Ramp, self.shadow, reason, None);
        } else {
            self.take_over(out, policy, why);
        }
    }

    /// All traffic to the shadow: roles are swapped, the old primary drains.
    fn take_over(&mut self, out: &mut Outbox, policy: &Policy, why: &str) {
        self.lead.shift.observe(out.now.since(self.phase_since));
        let reason = format!("100 % to the shadow: {why}");
        self.record(out, Kind::Ramp, self.shadow, reason, None);
        let shadow = self.shadow.take();
        self.retiring = core::mem::replace(&mut self.primary, shadow);
        self.bake = true;
        self.shadow_bp = 0;
        self.saturated = 0;
        self.publish(out, policy, false);
        self.enter(out, Phase::Draining);
        let reason = "the old primary gets no new requests and ends those in flight";
        self.record(out, Kind::Draining, self.retiring, reason, None);
    }

    fn step_back(&mut self, out: &mut Outbox, policy: &Policy, why: &str) {
        self.steps_back += 1;
        if self.steps_back >= STEPS_BACK_MAX {
            self.abort(
                out,
                policy,
                &format!("worse {} times: {why}", self.steps_back),
            );
            return;
        }
        let lower = policy
            .ramp_bp
            .iter()
            .rev()
            .copied()
            .find(|&bp| bp < self.shadow_bp);
        let lower = lower.unwrap_or(policy.warm_bp[1]);
        // What the primary can't carry stays with the shadow, worse or not.
        self.shadow_bp = lower.max(self.held_bp().min(self.shadow_bp));
        self.ramp_since = out.now;
        self.proof_until = Time::default();
        self.reset_arms();
        // A share that falls on the shadow rises on the primary: still a planned step.
        self.publish(out, policy, true);
        let reason = format!("back to {:.0} %: {why}", percent(self.shadow_bp));
        self.record(out, Kind::StepBack, self.shadow, reason, None);
    }
}
