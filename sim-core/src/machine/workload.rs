//! One workload's state, what flows into it, and how its tables are made.

use super::instance::{Instance, State};
use super::outbox::Outbox;
use crate::capacity::CapacityModel;
use crate::command::Command;
use crate::event::TrafficSample;
use crate::forecast::{Forecaster, ForecasterConfig};
use crate::invariants::{self, Facts, Health};
use crate::journal::{Kind, Record, Report};
use crate::lead_time::LeadTime;
use crate::name::{InstanceId, ProxyName, ServerName, WorkloadName};
use crate::policy::Policy;
use crate::server::ServerSpec;
use crate::table::{FULL_BP, Share, Version, WeightTable};
use crate::time::Time;
use crate::workload::{Standby, WorkloadSpec};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Samples scored before forecast intervals count as calibrated.
const CALIBRATED_AFTER: u32 = 30;
/// A parity proof is waited for at most so many times as long as a phase that has requests enough.
const PROOF_PATIENCE: u32 = 20;
/// Answers that the shadow must have given before its share rises to the second warm step, and the
/// time in which they should come.
pub(super) const FIRST_ANSWERS: u64 = 5;
const FIRST_ANSWERS_SECONDS: f64 = 10.0;
/// Longest season that is looked for, in steps.
const SEASON_STEPS_MAX: u32 = 120;

/// Phase of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// First instance starts, intervals and capacity are learned. The reactive floor acts.
    Baseline,
    /// All is well, perhaps with a warm shadow standing by.
    Steady,
    /// A shadow is being created.
    Creating,
    /// The shadow takes 1–5 % and has to prove parity.
    Warming,
    /// Traffic moves over in steps.
    Shifting,
    /// All traffic is on the new primary; the old instance ends its requests.
    Draining,
    /// The old instance is idle and kept for undo.
    Baking,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Baseline => "baseline",
            Self::Steady => "steady",
            Self::Creating => "creating",
            Self::Warming => "warming",
            Self::Shifting => "shifting",
            Self::Draining => "draining",
            Self::Baking => "baking",
        })
    }
}

/// What a shadow is created for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Goal {
    /// To take over.
    Move,
    /// To stand by.
    Standby,
}

/// Last report of one proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProxyState {
    pub(crate) applied: Version,
    pub(crate) in_flight: BTreeMap<InstanceId, u64>,
    pub(crate) ejected: Vec<InstanceId>,
}

/// One server as it stands.
pub(crate) struct PoolServer {
    pub(crate) spec: ServerSpec,
    pub(crate) up: bool,
    /// It is not just late to connect.
    pub(crate) away: bool,
    pub(crate) cpus_free: f64,
    pub(crate) memory_free_bytes: u64,
}

/// The pool as it stands.
pub(crate) struct Pool {
    pub(crate) servers: Vec<PoolServer>,
}

/// One workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Workload {
    pub(crate) spec: WorkloadSpec,
    pub(crate) standby: Standby,
    pub(crate) phase: Phase,
    pub(crate) phase_since: Time,
    pub(crate) goal: Goal,
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    pub(crate) primary: Option<InstanceId>,
    pub(crate) shadow: Option<InstanceId>,
    pub(crate) retiring: Option<InstanceId>,
    /// It was told that a drain takes long.
    pub(crate) drain_is_late: bool,
    /// When a shadow last failed to come up on a server.
    pub(crate) failed_starts: BTreeMap<ServerName, Time>,
    /// The instance on its way out was the primary of a move, and is kept for a while.
    pub(crate) bake: bool,
    pub(crate) shadow_bp: u16,
    pub(crate) table: Option<WeightTable>,
    pub(crate) republish: bool,
    pub(crate) proxies: BTreeMap<ProxyName, ProxyState>,
    pub(crate) demand: Forecaster,
    pub(crate) demand_rps: f64,
    pub(crate) capacity: CapacityModel,
    pub(crate) lead: LeadTime,
    pub(crate) arrivals: u64,
    pub(crate) covered: Duration,
    /// Arrivals and seconds covered of the last steps, newest last.
    pub(crate) rates: VecDeque<(u64, f64)>,
    pub(crate) traffic_at: Option<Time>,
    pub(crate) confirm: u32,
    pub(crate) saturated: u32,
    pub(crate) frozen: bool,
    pub(crate) calibrated: bool,
    pub(crate) looks: u32,
    pub(crate) ramp_at: usize,
    pub(crate) ramp_since: Time,
    /// A proof under way is waited for until then; 0 before the first look.
    pub(crate) proof_until: Time,
    /// The standby had too few requests to prove itself.
    pub(crate) unproven: bool,
    pub(crate) steps_back: u32,
    /// The last death of an instance, in words.
    pub(crate) last_death: Option<String>,
    /// Primaries in a row that died before they served, or soon after.
    pub(crate) failed_lives: u32,
    pub(crate) next_move_at: Time,
    pub(crate) next_start_at: Time,
}

/// A forecaster of demand that has seen nothing.
pub(crate) fn new_forecaster(policy: &Policy) -> Forecaster {
    Forecaster::new(ForecasterConfig {
        season_steps_known: policy.season_steps.clone(),
        season_steps_max: SEASON_STEPS_MAX,
        horizon_steps: policy.horizon_steps,
        calibrated_after: CALIBRATED_AFTER,
    })
}

impl Workload {
    pub(crate) fn new(spec: WorkloadSpec, policy: &Policy) -> Self {
        Self {
            standby: spec.standby,
            spec,
            phase: Phase::Baseline,
            phase_since: Time::default(),
            goal: Goal::Move,
            instances: BTreeMap::new(),
            primary: None,
            shadow: None,
            retiring: None,
            drain_is_late: false,
            failed_starts: BTreeMap::new(),
            bake: false,
            shadow_bp: 0,
            table: None,
            republish: false,
            proxies: BTreeMap::new(),
            demand: new_forecaster(policy),
            demand_rps: 0.0,
            capacity: CapacityModel::new(policy.utilisation_usable),
            lead: LeadTime::default(),
            arrivals: 0,
            covered: Duration::ZERO,
            rates: VecDeque::new(),
            traffic_at: None,
            confirm: 0,
            saturated: 0,
            frozen: false,
            calibrated: false,
            looks: 0,
            ramp_at: 0,
            ramp_since: Time::default(),
            proof_until: Time::default(),
            unproven: false,
            steps_back: 0,
            last_death: None,
            failed_lives: 0,
            next_move_at: Time::default(),
            next_start_at: Time::default(),
        }
    }

    /// What it waits for, in a few words: in `Baseline`, while a shadow proves itself, and while no
    /// instance serves.
    pub(crate) fn waits_for(&self, policy: &Policy, now: Time) -> Option<String> {
        if !self.is_healthy(self.primary) {
            let last = self.last_death.as_ref();
            let last = last.map_or(String::new(), |why| alloc::format!("; last: {why}"));
            return Some(if self.primary.is_some() {
                alloc::format!("waits for an instance that is ready{last}")
            } else {
                let pause = self.next_start_at.since(now).as_secs_f64();
                alloc::format!("next start in {pause:.0} s{last}")
            });
        }
        if self.phase == Phase::Warming {
            let seen = |id| self.get(id).map_or(0, |i| i.arm.total());
            let seen = seen(self.shadow).min(seen(self.primary));
            let need = policy.parity_requests_min;
            return Some(alloc::format!("parity: {seen} of {need} requests seen"));
        }
        if self.phase != Phase::Baseline {
            return None;
        }
        let samples = (!self.demand.is_calibrated())
            .then(|| alloc::format!("{} samples of demand so far", self.demand.samples_seen()));
        let requests = self.capacity.service_seconds().is_none().then(|| {
            alloc::format!(
                "{:.0} of {:.0} requests that tell its capacity",
                self.capacity.requests_seen(),
                crate::capacity::REQUESTS_MIN
            )
        });
        let missing: Vec<String> = samples.into_iter().chain(requests).collect();
        (!missing.is_empty()).then(|| alloc::format!("learns: {}", missing.join(", ")))
    }

    pub(crate) fn get(&self, id: Option<InstanceId>) -> Option<&Instance> {
        self.instances.get(&id?)
    }

    pub(crate) fn is_healthy(&self, id: Option<InstanceId>) -> bool {
        self.get(id).is_some_and(Instance::is_healthy)
    }

    pub(crate) fn enter(&mut self, out: &Outbox, phase: Phase) {
        self.phase = phase;
        self.phase_since = out.now;
        self.confirm = 0;
        self.looks = 0;
        self.proof_until = Time::default();
    }

    pub(crate) fn record(
        &self,
        out: &mut Outbox,
        kind: Kind,
        instance: Option<InstanceId>,
        reason: impl Into<String>,
        report: Option<Report>,
    ) {
        out.record(Record {
            at: out.now,
            workload: self.spec.name.clone(),
            kind,
            instance,
            shadow_bp: self.shadow_bp,
            reason: reason.into(),
            report,
        });
    }

    /// Sends `command` if it keeps every rule; else journals the refusal and says `false`.
    pub(crate) fn command(
        &self,
        out: &mut Outbox,
        policy: &Policy,
        command: Command,
        unplanned: bool,
    ) -> bool {
        let health = |i: &Instance| Health {
            instance: i.id,
            healthy: i.is_healthy(),
        };
        let facts = Facts {
            copies: self.instances.values().map(health).collect(),
            table: self.table.as_ref(),
            fresh: self.is_fresh(out.now, policy),
            unplanned,
        };
        match invariants::check(&facts, &command) {
            Ok(()) => {
                out.command(command);
                true
            }
            Err(why) => {
                let reason = alloc::format!("refused a command that breaks an invariant: {why}");
                self.record(out, Kind::Refused, None, reason, None);
                false
            }
        }
    }

    /// Makes a table of the roles and the shadow's share, and publishes it.
    pub(crate) fn publish(&mut self, out: &mut Outbox, policy: &Policy, unplanned: bool) {
        let primary_serves = self.is_healthy(self.primary);
        let shadow_serves = self.is_healthy(self.shadow);
        let shadow_bp = match (primary_serves, shadow_serves) {
            (true, true) => self.shadow_bp,
            (false, true) => FULL_BP,
            _ => 0,
        };
        let mut shares: Vec<Share> = Vec::new();
        let mut list = |id: Option<InstanceId>, weight_bp: u16| {
            let Some(instance) = self.get(id).filter(|i| i.is_healthy()) else {
                return;
            };
            let Some(address) = instance.address.clone() else {
                return;
            };
            shares.push(Share {
                instance: instance.id,
                address,
                weight_bp,
                ready: true,
            });
        };
        list(self.primary, FULL_BP - shadow_bp);
        list(self.shadow, shadow_bp);
        if primary_serves || shadow_serves {
            list(self.retiring, 0);
        }
        let last = self.table.as_ref().map_or(0, |t| t.version().generation);
        let version = Version {
            epoch: out.epoch,
            generation: last + 1,
        };
        match WeightTable::new(self.spec.name.clone(), version, shares) {
            Ok(table) => {
                if self.command(out, policy, Command::Publish(table.clone()), unplanned) {
                    self.table = Some(table);
                }
            }
            Err(error) => self.record(out, Kind::Refused, None, error.to_string(), None),
        }
    }

    /// Traffic was reported lately, and the resources of the primary and of a shadow that is being
    /// proven.
    pub(crate) fn is_fresh(&self, now: Time, policy: &Policy) -> bool {
        if self.primary.is_none() {
            return true;
        }
        // One that stands by is no reason to freeze.
        let proven = matches!(self.phase, Phase::Warming | Phase::Shifting);
        self.is_primary_seen(now, policy) && (!proven || self.is_seen(self.shadow, now, policy))
    }

    /// Its traffic and its resources were reported lately.
    pub(crate) fn is_primary_seen(&self, now: Time, policy: &Policy) -> bool {
        let limit = Duration::from_millis(policy.stale_ms);
        let traffic = self.traffic_at.is_some_and(|at| now.since(at) <= limit);
        !self.is_healthy(self.primary) || (traffic && self.is_seen(self.primary, now, policy))
    }

    /// An instance that isn't ready yet has nothing to report.
    fn is_seen(&self, id: Option<InstanceId>, now: Time, policy: &Policy) -> bool {
        self.get(id)
            .is_none_or(|i| !i.is_healthy() || i.is_seen(now, policy))
    }

    /// The shadow did not come to serve: its server is not the first choice for a while.
    pub(crate) fn note_failed_start(&mut self, out: &Outbox) {
        if let Some(server) = self.get(self.shadow).map(|i| i.server.clone()) {
            self.failed_starts.insert(server, out.now);
        }
    }

    pub(crate) fn take_traffic(&mut self, now: Time, proxy: ProxyName, sample: TrafficSample) {
        self.traffic_at = Some(now);
        self.arrivals += sample.arrivals;
        // Proxies report side by side: time is covered once, by whichever covers most of it.
        self.covered += sample.window.div_f64(self.proxies.len().max(1) as f64);
        let in_flight = sample
            .instances
            .iter()
            .map(|i| (i.instance, i.in_flight))
            .collect();
        let ejected = sample
            .instances
            .iter()
            .filter(|i| i.ejected)
            .map(|i| i.instance)
            .collect();
        let was_applied = self.is_table_applied();
        for seen in sample.instances {
            if let Some(instance) = self.instances.get_mut(&seen.instance) {
                instance.tick.add(seen.ok, seen.failed, &seen.latency);
                instance.arm.add(seen.ok, seen.failed, &seen.latency);
            }
        }
        self.proxies.insert(
            proxy,
            ProxyState {
                applied: sample.applied,
                in_flight,
                ejected,
            },
        );
        if !was_applied && self.is_table_applied() {
            // What was answered before was answered under another share.
            self.reset_arms();
        }
    }

    /// Every proxy works by the table in force, and there is one at least.
    pub(crate) fn is_table_applied(&self) -> bool {
        let version = self.table.as_ref().map(WeightTable::version);
        !self.proxies.is_empty() && self.proxies.values().all(|p| Some(p.applied) >= version)
    }

    pub(crate) fn is_ejected_everywhere(&self, id: InstanceId) -> bool {
        !self.proxies.is_empty() && self.proxies.values().all(|p| p.ejected.contains(&id))
    }

    /// Starts the comparison of primary and shadow anew.
    pub(crate) fn reset_arms(&mut self) {
        self.looks = 0;
        for instance in self.instances.values_mut() {
            instance.arm = crate::parity::Arm::default();
        }
    }

    /// Upper lead time without margin, in seconds.
    pub(crate) fn lead_seconds(&self, policy: &Policy) -> f64 {
        let step = policy.step_ms as f64 / 1e3;
        let warm_prior = 2.0 * step + self.proof_seconds(policy, policy.warm_bp[1]);
        let stay = (policy.ramp_step_ms as f64 / 1e3).max(step);
        let shift_prior = stay * policy.ramp_bp.len() as f64;
        let timeout = self.spec.readiness.timeout.as_secs_f64();
        self.lead.create.upper_seconds(timeout)
            + self.lead.warm.upper_seconds(
                warm_prior.min(self.proof_limit(policy, policy.warm_bp[1]).as_secs_f64()),
            )
            + self.lead.shift.upper_seconds(shift_prior)
    }

    /// How long the requests of one parity proof take to come at a share of `share_bp`, in seconds.
    fn proof_seconds(&self, policy: &Policy, share_bp: u16) -> f64 {
        let share = f64::from(share_bp.max(1)) / f64::from(FULL_BP);
        policy.parity_requests_min as f64 / (self.demand_rps * share).max(0.001)
    }

    /// How long a proof at a share of `share_bp` is waited for: a service with few users needs longer to
    /// show what it is, up to a limit.
    pub(crate) fn proof_limit(&self, policy: &Policy, share_bp: u16) -> Duration {
        let least = Duration::from_millis(policy.phase_timeout_ms);
        let twice = Duration::try_from_secs_f64(2.0 * self.proof_seconds(policy, share_bp));
        let most = least * PROOF_PATIENCE;
        twice.map_or(most, |wanted| wanted.clamp(least, most))
    }

    /// Whether a proof at `share_bp` that began at `since` has had its time. Where demand rises, that
    /// becomes shorter, but what was begun gets at least one such time more.
    pub(crate) fn is_proof_late(
        &mut self,
        now: Time,
        policy: &Policy,
        since: Time,
        share_bp: u16,
    ) -> bool {
        let limit = self.proof_limit(policy, share_bp);
        let wanted = since.after(limit);
        self.proof_until = if wanted > self.proof_until {
            wanted
        } else {
            self.proof_until.min(wanted.max(now.after(limit)))
        };
        now > self.proof_until
    }

    /// First share of a shadow, in basis points: the least of the allowed ones that brings the first
    /// answers soon.
    pub(crate) fn first_share_bp(&self, policy: &Policy) -> u16 {
        let wanted = FIRST_ANSWERS as f64 / FIRST_ANSWERS_SECONDS / self.demand_rps.max(0.001);
        let wanted_bp = libm::ceil(wanted * f64::from(FULL_BP)).min(f64::from(FULL_BP)) as u16;
        wanted_bp.clamp(policy.warm_bp[0], policy.warm_bp[1])
    }

    /// Drops what has ended.
    pub(crate) fn forget_gone(&mut self) {
        self.instances.retain(|_, i| i.state != State::Gone);
    }

    pub(crate) fn name(&self) -> &WorkloadName {
        &self.spec.name
    }
}
