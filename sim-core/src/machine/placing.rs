//! Where a shadow goes, and how large it has to be.

use super::instance::Instance;
use super::outbox::Outbox;
use super::workload::{Goal, Pool, Workload};
use crate::decide::rate_upper;
use crate::journal::{Candidate, Report};
use crate::name::{InstanceId, ServerName};
use crate::placement::{self, Ask, Offer};
use crate::policy::Policy;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// A move to an instance of this many times the primary's CPUs is of some help.
pub(super) const HELPS: f64 = 1.1;
/// Less is no instance, in CPUs: what a configuration may ask for at least.
const CPUS_MIN: f64 = 0.1;
/// For so long a server on which a shadow failed to come up is taken only if no other fits.
const FAILED_START_KEPT: Duration = Duration::from_secs(300);

/// What the search for a server came to.
#[derive(Default)]
pub(super) struct Found {
    /// Server and quota.
    pub(super) chosen: Option<(ServerName, f64)>,
    /// Every server with its score or refusal.
    pub(super) candidates: Vec<Candidate>,
    /// CPUs that the load was taken to use.
    pub(super) load_cpus: f64,
    /// Appended to the reason.
    pub(super) note: String,
}

impl Workload {
    /// Looks for a server. What `freed` holds counts as free.
    pub(super) fn find_place(
        &self,
        out: &Outbox,
        policy: &Policy,
        pool: &Pool,
        goal: Goal,
        report: &Report,
        freed: Option<InstanceId>,
    ) -> Found {
        let Some(primary) = self.get(self.primary) else {
            return Found::default();
        };
        let load_cpus = self.load_cpus(policy, primary, goal, report);
        let freed = self.get(freed);
        let mut offers: Vec<Offer<'_>> = pool
            .servers
            .iter()
            .map(|s| {
                let freed = freed.filter(|i| i.server == s.spec.name);
                Offer {
                    spec: &s.spec,
                    up: s.up,
                    failed_start: self
                        .failed_starts
                        .get(&s.spec.name)
                        .is_some_and(|&at| out.now.since(at) < FAILED_START_KEPT),
                    cpus_free: s.cpus_free + freed.map_or(0.0, |i| i.cpus),
                    memory_free_bytes: s.memory_free_bytes + freed.map_or(0, |i| i.memory_bytes),
                }
            })
            .collect();
        let primary_server = pool
            .servers
            .iter()
            .find(|s| s.spec.name == primary.server)
            .map(|s| &s.spec);
        let ask = |cpus_min: f64| Ask {
            load_cpus,
            // Never less than what the operator gave the first one: a service that is idle now has to
            // start up and to carry a burst too.
            cpus: (load_cpus / policy.utilisation_target).max(self.spec.cpus),
            cpus_min: cpus_min.max(CPUS_MIN),
            memory_bytes: self.spec.memory_bytes,
            primary: primary_server,
        };
        // First what holds the forecast; where none does, what is at least of some help: more
        // room than now for a move, half of the load for a standby.
        let helps = match goal {
            Goal::Move => primary.cpus * HELPS,
            Goal::Standby => load_cpus / 2.0,
        };
        let full = load_cpus / policy.utilisation_usable;
        let mut note = String::new();
        let (mut chosen, mut candidates) = placement::place(&ask(full), &offers);
        if chosen.is_none() && offers.iter().any(|o| o.failed_start) {
            for offer in &mut offers {
                offer.failed_start = false;
            }
            (chosen, candidates) = placement::place(&ask(full), &offers);
        }
        if chosen.is_none() && helps < full {
            (chosen, candidates) = placement::place(&ask(helps), &offers);
            if let Some((_, cpus)) = &chosen {
                let carried = cpus * policy.utilisation_usable / load_cpus * 100.0;
                note = format!("; too small for the forecast: carries {carried:.0} % of it");
            }
        }
        Found {
            chosen,
            candidates,
            load_cpus,
            note,
        }
    }

    /// CPUs that the forecast's upper quantile will use. For a move, if what it grows by inside
    /// the horizon is grown once more: a move has to last longer than the next one takes to make.
    fn load_cpus(&self, policy: &Policy, primary: &Instance, goal: Goal, report: &Report) -> f64 {
        let growths = match goal {
            Goal::Move => 2.0,
            Goal::Standby => 1.0,
        };
        let now = report.demand_rps;
        let ahead = if policy.forecast && self.demand.is_calibrated() {
            let step_seconds = policy.step_ms as f64 / 1e3;
            rate_upper(&self.demand.forecast(), report.level, step_seconds).fold(now, f64::max)
        } else {
            // Without a forecast, head room by rule of thumb.
            1.5 * now
        };
        match self.capacity.service_seconds() {
            Some(seconds) => (now + growths * (ahead - now).max(0.0)) * seconds,
            None => primary.cpus * primary.utilisation.max(0.5) * 1.5,
        }
    }
}
