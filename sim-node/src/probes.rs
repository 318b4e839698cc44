//! The kernel probes as the node uses them, and what it does without them.

use crate::budget::Budget;
use crate::metrics::Snapshot;
use sim_api::v1;
use sim_ebpf::{Counters, Group, GroupState, Losses, Probes, ProbesConfig};
use sim_life::Offer;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Loaded probes, or the reason why there are none.
pub(crate) struct Sensors {
    probes: Option<Probes>,
    refused: Option<String>,
    /// What CPU and memory are read from without probes.
    fallback: &'static str,
    budget: Budget,
    /// At the last look.
    losses: Losses,
}

impl Sensors {
    /// Loads what the kernel allows; says in one line each what it doesn't.
    pub(crate) fn load(
        object: Option<&Path>,
        cgroup_root: Option<PathBuf>,
        budget_percent: f64,
    ) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let budget = Budget::new(budget_percent, cpus);
        let fallback = if cgroup_root.is_some() {
            "CPU, throttling, pressure and memory come from cgroup files"
        } else {
            "CPU and memory come from /proc"
        };
        let Some(object) = object else {
            return Self::without("no object file is installed".into(), fallback, budget);
        };
        let mut config = ProbesConfig::new(object);
        config.cgroup_root = cgroup_root;
        match Probes::load(&config) {
            Ok(probes) => {
                for group in probes.status() {
                    if let GroupState::Refused { reason } = &group.state {
                        let (name, fallback) = (group.group.name(), group.group.fallback());
                        tracing::warn!("no {name} probes ({reason}): instead {fallback}");
                    }
                }
                Self {
                    probes: Some(probes),
                    refused: None,
                    fallback,
                    budget,
                    losses: Losses::default(),
                }
            }
            Err(error) => Self::without(error.to_string(), fallback, budget),
        }
    }

    fn without(reason: String, fallback: &'static str, budget: Budget) -> Self {
        tracing::warn!("no kernel probes ({reason}): {fallback}");
        Self {
            probes: None,
            refused: Some(reason),
            fallback,
            budget,
            losses: Losses::default(),
        }
    }

    pub(crate) fn is_active(&self, group: Group) -> bool {
        self.probes.as_ref().is_some_and(|p| p.is_active(group))
    }

    pub(crate) fn track(&mut self, cgroup: Option<u64>) {
        if let (Some(probes), Some(id)) = (&mut self.probes, cgroup)
            && let Err(error) = probes.track(id)
        {
            tracing::warn!("cgroup {id} is not counted by the probes: {error}");
        }
    }

    pub(crate) fn untrack(&mut self, cgroup: Option<u64>) {
        if let (Some(probes), Some(id)) = (&mut self.probes, cgroup) {
            probes.untrack(id);
        }
    }

    pub(crate) fn watch(&mut self, instance: u64, pid: u32, cgroup: u64) {
        if !is_initial_pid_namespace() {
            // The kernel side knows processes by their numbers there, which may be others' here.
            tracing::debug!(
                "i{instance} has no life flag: this node is in a pid namespace of its own"
            );
            return;
        }
        if let Some(probes) = &mut self.probes
            && let Err(error) = probes.watch(instance, pid, Some(cgroup))
        {
            tracing::debug!("i{instance}, process {pid}, has no life flag: {error}");
        }
    }

    /// Offers the life flags to proxies of this machine; none where the kernel gives no descriptor.
    pub(crate) fn offer_life(&self, socket: &Path) -> Option<Offer> {
        let probes = self.probes.as_ref().filter(|p| p.is_active(Group::Life))?;
        let offer = probes
            .life_descriptor()
            .and_then(|array| Offer::new(socket, array));
        offer
            .inspect_err(|error| {
                tracing::warn!(
                    "life flags are not offered ({error}): proxies learn of a death by failed requests"
                );
            })
            .ok()
    }

    pub(crate) fn unwatch(&mut self, instance: u64) {
        if let Some(probes) = &mut self.probes {
            probes.unwatch(instance);
        }
    }

    pub(crate) fn died_ns(&self, instance: u64) -> Option<u64> {
        self.probes.as_ref()?.life(instance)?.died_ns
    }

    /// Once a tick, before the reads.
    pub(crate) fn settle(&mut self) {
        if let Some(probes) = &mut self.probes {
            probes.settle();
            probes.flush_log();
        }
    }

    /// Sheds the dearest group where all together cost too much. Once in a while.
    pub(crate) fn keep_budget(&mut self) {
        let Some(probes) = &mut self.probes else {
            return;
        };
        if let Some(shed) = self.budget.look(Instant::now(), probes.group_costs()) {
            let (name, fallback) = (shed.group.name(), shed.group.fallback());
            tracing::warn!("{name} probes are {}: instead {fallback}", shed.reason);
            for (group, reason) in probes.shed(shed.group, shed.reason) {
                let (name, fallback) = (group.name(), group.fallback());
                tracing::warn!("{name} probes stop with them ({reason}): instead {fallback}");
            }
        }
        let losses = probes.losses();
        if losses.total() > 0 && self.losses.total() == 0 {
            tracing::warn!(
                "the probes had to drop facts, {losses:?} so far; sim_probe_losses_total has them"
            );
        }
        self.losses = losses;
    }

    pub(crate) fn read(&self, cgroup: Option<u64>) -> Option<Counters> {
        self.probes.as_ref()?.read(cgroup?).ok()
    }

    /// What runs, what it costs and loses, for the metrics page.
    pub(crate) fn tell(&self, snapshot: &mut Snapshot) {
        let active = |group: Group| (group.name(), self.is_active(group));
        snapshot.groups = Group::ALL.into_iter().map(active).collect();
        if let Some(probes) = &self.probes {
            snapshot.cost = probes.cost();
            snapshot.losses = probes.losses();
        }
    }

    /// What runs, what doesn't and why, what it costs.
    pub(crate) fn report(&self) -> v1::ProbeReport {
        let Some(probes) = &self.probes else {
            let refused = self.refused.clone().unwrap_or_default();
            let group = |g: &Group| v1::ProbeGroup {
                name: g.name().into(),
                active: false,
                refused: format!("{refused}: {}", self.fallback),
            };
            return v1::ProbeReport {
                groups: Group::ALL.iter().map(group).collect(),
                ..Default::default()
            };
        };
        let group = |status: &sim_ebpf::GroupStatus| {
            let refused = match &status.state {
                GroupState::Active => String::new(),
                GroupState::Refused { reason } => {
                    format!("{reason}: instead {}", status.group.fallback())
                }
            };
            v1::ProbeGroup {
                name: status.group.name().into(),
                active: refused.is_empty(),
                refused,
            }
        };
        let cost = probes.cost();
        v1::ProbeReport {
            groups: probes.status().iter().map(group).collect(),
            run_ns_total: cost.run_ns_total,
            run_count_total: cost.run_count_total,
            losses_total: probes.losses().total(),
        }
    }
}

/// Whether this process counts processes as the kernel's first pid namespace does.
fn is_initial_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`.
    const INITIAL: &str = "pid:[4026531836]";
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(INITIAL))
}
