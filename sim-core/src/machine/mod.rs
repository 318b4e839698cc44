//! The state machine: folds events into state, and state into commands.
//!
//! Phases of a workload: `Baseline → Steady → Creating → Warming → Shifting → Draining → Baking →
//! Steady`, roles swapped. Failover is reachable from every phase that has a live shadow, abort
//! from every phase before Baking. [`Core::step`] is the only way in.

mod failover;
mod instance;
mod moves;
mod outbox;
mod placing;
mod ramp;
mod status;
mod tick;
mod workload;

pub use instance::{Instance, State};
pub use status::Status;
pub use workload::Phase;

use crate::command::Command;
use crate::event::{Event, ExitCause};
use crate::journal::{Kind, Record};
use crate::name::{InstanceId, ServerName, WorkloadName};
use crate::policy::Policy;
use crate::server::ServerSpec;
use crate::table::Version;
use crate::time::Time;
use crate::workload::WorkloadSpec;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use outbox::Outbox;
use serde::{Deserialize, Serialize};
use workload::Workload;

/// What one step asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Commands, in order.
    pub commands: Vec<Command>,
    /// Journal records, in order.
    pub records: Vec<Record>,
}

/// A server and what the core knows of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) spec: ServerSpec,
    pub(crate) up: bool,
    pub(crate) down_since: Option<Time>,
}

/// The decision core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Core {
    policy: Policy,
    epoch: u64,
    /// The latest time seen.
    now: Time,
    /// The whole run ends.
    closing: bool,
    next_instance: u64,
    servers: BTreeMap<ServerName, Server>,
    workloads: BTreeMap<WorkloadName, Workload>,
}

impl Core {
    /// A core that knows its pool and its workloads, and no instance yet. `epoch` is the fencing
    /// epoch of this control plane.
    #[must_use]
    pub fn new(
        policy: Policy,
        epoch: u64,
        servers: Vec<ServerSpec>,
        workloads: Vec<WorkloadSpec>,
    ) -> Self {
        let server = |spec: ServerSpec| {
            (
                spec.name.clone(),
                Server {
                    spec,
                    up: false,
                    down_since: None,
                },
            )
        };
        let workload = |spec: WorkloadSpec| (spec.name.clone(), Workload::new(spec, &policy));
        let workloads = workloads.into_iter().map(workload).collect();
        Self {
            epoch,
            now: Time::default(),
            closing: false,
            next_instance: 1,
            servers: servers.into_iter().map(server).collect(),
            workloads,
            policy,
        }
    }

    /// Takes the lead with a core restored from a snapshot: the epoch rises, connections are
    /// unknown until nodes and proxies dial in again, and every table will be published anew.
    pub fn take_lead(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.closing = false;
        for server in self.servers.values_mut() {
            // Since when it is away is unknown; the first tick begins to count.
            server.up = false;
            server.down_since = None;
        }
        for workload in self.workloads.values_mut() {
            workload.proxies.clear();
            workload.republish = true;
        }
    }

    /// Takes a changed configuration: specifications are replaced, what is new is added, servers
    /// and workloads that are gone are forgotten unless they still hold or have instances.
    pub fn reconfigure(
        &mut self,
        policy: Policy,
        servers: Vec<ServerSpec>,
        workloads: Vec<WorkloadSpec>,
    ) {
        let other_series = (self.policy.step_ms, self.policy.horizon_steps)
            != (policy.step_ms, policy.horizon_steps)
            || self.policy.season_steps != policy.season_steps;
        self.policy = policy;
        if other_series {
            // What was learned in steps of another length, or for another horizon, is no use.
            for workload in self.workloads.values_mut() {
                workload.demand = workload::new_forecaster(&self.policy);
            }
        }
        let listed: Vec<ServerName> = servers.iter().map(|s| s.name.clone()).collect();
        for spec in servers {
            let fresh = Server {
                spec: spec.clone(),
                up: false,
                down_since: None,
            };
            let server = self.servers.entry(spec.name.clone()).or_insert(fresh);
            server.spec = spec;
        }
        let used: Vec<ServerName> = self
            .servers
            .keys()
            .filter(|n| self.instances_on(n).count() > 0)
            .cloned()
            .collect();
        self.servers
            .retain(|name, _| listed.contains(name) || used.contains(name));
        let listed: Vec<WorkloadName> = workloads.iter().map(|w| w.name.clone()).collect();
        for spec in workloads {
            let fresh = || Workload::new(spec.clone(), &self.policy);
            let workload = self
                .workloads
                .entry(spec.name.clone())
                .or_insert_with(fresh);
            if workload.spec.standby != spec.standby {
                workload.standby = spec.standby;
            }
            workload.spec = spec;
        }
        self.workloads
            .retain(|name, w| listed.contains(name) || !w.instances.is_empty());
    }

    /// Teaches a workload's forecaster the demand of earlier runs, oldest first, one sample a
    /// step, `None` where one is missing.
    pub fn prime(
        &mut self,
        workload: &WorkloadName,
        demand_rps: impl IntoIterator<Item = Option<f64>>,
    ) {
        if let Some(found) = self.workloads.get_mut(workload) {
            demand_rps
                .into_iter()
                .for_each(|sample| found.demand.observe(sample));
        }
    }

    /// Fencing epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The latest time seen.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// The tunables.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Server that holds `instance`.
    #[must_use]
    pub fn server_of(&self, instance: InstanceId) -> Option<&ServerName> {
        self.workloads
            .values()
            .find_map(|w| w.instances.get(&instance))
            .map(|i| &i.server)
    }

    /// Workload and CPUs of `instance`.
    #[must_use]
    pub fn workload_and_cpus(&self, instance: InstanceId) -> Option<(&WorkloadName, f64)> {
        self.workloads.values().find_map(|w| {
            let found = w.instances.get(&instance)?;
            Some((w.name(), found.cpus))
        })
    }

    /// The whole run ends ([`Event::Closing`]).
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// State of every workload, for people and tools.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        self.workloads
            .values()
            .map(|w| status::of(w, &self.policy, self.now))
            .collect()
    }

    /// CPUs of `server` in all.
    #[must_use]
    pub fn cpus(&self, server: &ServerName) -> Option<f64> {
        self.servers.get(server).map(|s| s.spec.cpus)
    }

    /// CPUs of `server` that are promised to instances.
    #[must_use]
    pub fn cpus_allocated(&self, server: &ServerName) -> f64 {
        self.instances_on(server).map(|i| i.cpus).sum()
    }

    fn instances_on<'a>(&'a self, server: &'a ServerName) -> impl Iterator<Item = &'a Instance> {
        self.workloads
            .values()
            .flat_map(|w| w.instances.values())
            .filter(move |i| i.server == *server && i.state != State::Gone)
    }

    /// Folds one event in. A `now` before an earlier one, also of the run that a snapshot is from,
    /// is read as that one.
    pub fn step(&mut self, now: Time, event: Event) -> Outcome {
        let now = now.max(self.now);
        self.now = now;
        let mut out = Outbox::new(now, self.epoch);
        match event {
            Event::Tick if self.closing => {}
            Event::Tick => self.tick(&mut out),
            Event::ServerUp { server, running } => self.server_up(&mut out, &server, &running),
            Event::ServerDown(server) => {
                if let Some(server) = self.servers.get_mut(&server) {
                    server.up = false;
                    server.down_since.get_or_insert(now);
                }
            }
            Event::Started { instance, address } => {
                if let Some(found) = self.instance_mut(instance) {
                    found.address = Some(address);
                }
            }
            Event::Ready { instance, create } => self.ready(&mut out, instance, create),
            Event::Exited {
                instance,
                cause,
                expected,
            } => {
                self.exited(&mut out, instance, &cause, expected);
            }
            Event::Resources { instance, sample } => {
                if let Some(found) = self.instance_mut(instance) {
                    found.take_resources(now, &sample);
                }
            }
            Event::Traffic {
                proxy,
                workload,
                sample,
            } => {
                if let Some(found) = self.workloads.get_mut(&workload) {
                    found.take_traffic(now, proxy, sample);
                    found.drained(&mut out, &self.policy);
                }
            }
            Event::ProxyDown(proxy) => {
                for workload in self.workloads.values_mut() {
                    workload.proxies.remove(&proxy);
                }
            }
            Event::SetStandby { workload, standby } => {
                if let Some(found) = self.workloads.get_mut(&workload)
                    && found.standby != standby
                {
                    found.standby = standby;
                    let reason = alloc::format!("standby is now '{standby}'");
                    found.record(&mut out, Kind::Operator, None, reason, None);
                }
            }
            Event::Closing => {
                self.closing = true;
                for workload in self.workloads.values_mut() {
                    workload.close(&mut out, &self.policy);
                }
            }
        }
        out.finish()
    }

    fn instance_mut(&mut self, id: InstanceId) -> Option<&mut Instance> {
        self.workloads
            .values_mut()
            .find_map(|w| w.instances.get_mut(&id))
    }

    fn workload_of(&mut self, id: InstanceId) -> Option<&mut Workload> {
        self.workloads
            .values_mut()
            .find(|w| w.instances.contains_key(&id))
    }

    fn ready(&mut self, out: &mut Outbox, id: InstanceId, create: core::time::Duration) {
        let policy = self.policy.clone();
        if let Some(workload) = self.workload_of(id) {
            workload.ready(out, &policy, id, create);
        }
    }

    fn exited(&mut self, out: &mut Outbox, id: InstanceId, cause: &ExitCause, expected: bool) {
        let policy = self.policy.clone();
        if let Some(workload) = self.workload_of(id) {
            workload.exited(out, &policy, id, cause, expected);
        }
    }

    /// A node is back: what it no longer runs is dead, what the core doesn't know is stopped.
    fn server_up(&mut self, out: &mut Outbox, name: &ServerName, running: &[InstanceId]) {
        let Some(server) = self.servers.get_mut(name) else {
            return;
        };
        server.up = true;
        server.down_since = None;
        let lost: Vec<InstanceId> = self
            .instances_on(name)
            .filter(|i| i.state != State::Asked && !running.contains(&i.id))
            .map(|i| i.id)
            .collect();
        for id in lost {
            self.exited(out, id, &ExitCause::NodeLost, false);
        }
        // What was asked of the node while it was away never reached it.
        let policy = self.policy.clone();
        for workload in self.workloads.values_mut() {
            workload.reask(out, &policy, name, running);
        }
        let known: Vec<InstanceId> = self.instances_on(name).map(|i| i.id).collect();
        for &id in running.iter().filter(|id| !known.contains(id)) {
            out.stop_unknown(id, name.clone(), &self.policy);
        }
    }

    fn tick(&mut self, out: &mut Outbox) {
        self.lost_servers(out);
        let names: Vec<WorkloadName> = self.workloads.keys().cloned().collect();
        for name in names {
            // Taken out and put back, so that a workload and the pool can be borrowed at once.
            let Some(mut workload) = self.workloads.remove(&name) else {
                continue;
            };
            let pool = self.pool(&workload);
            workload.tick(out, &self.policy, &pool, &mut self.next_instance);
            self.workloads.insert(name, workload);
        }
    }

    /// A server that stays away, and whose instances the proxies have ejected, is dead.
    fn lost_servers(&mut self, out: &mut Outbox) {
        let wait = core::time::Duration::from_millis(2 * self.policy.stale_ms);
        for server in self.servers.values_mut().filter(|s| !s.up) {
            server.down_since.get_or_insert(out.now);
        }
        let mut dead: Vec<InstanceId> = Vec::new();
        for (name, server) in &self.servers {
            let Some(since) = server.down_since else {
                continue;
            };
            if out.now.since(since) < wait {
                continue;
            }
            for workload in self.workloads.values() {
                dead.extend(
                    workload
                        .instances
                        .values()
                        .filter(|i| i.server == *name)
                        // One that serves is only dead when the proxies say so too.
                        .filter(|i| {
                            i.state == State::Stopping
                                || (i.state == State::Ready && workload.is_ejected_everywhere(i.id))
                        })
                        .map(|i| i.id),
                );
            }
        }
        for id in dead {
            self.exited(out, id, &ExitCause::NodeLost, false);
        }
    }

    /// The pool as `workload` sees it while it is taken out of the map: its own instances count
    /// as used too.
    fn pool(&self, workload: &Workload) -> workload::Pool {
        let used = |name: &ServerName| {
            let own = workload
                .instances
                .values()
                .filter(|i| i.server == *name && i.state != State::Gone);
            self.instances_on(name)
                .chain(own)
                .fold((0.0, 0), |(cpus, bytes), i| {
                    (cpus + i.cpus, bytes + i.memory_bytes)
                })
        };
        let wait = core::time::Duration::from_millis(2 * self.policy.stale_ms);
        let server = |(name, server): (&ServerName, &Server)| {
            let (cpus, bytes) = used(name);
            workload::PoolServer {
                spec: server.spec.clone(),
                up: server.up,
                away: !server.up
                    && server
                        .down_since
                        .is_some_and(|at| self.now.since(at) >= wait),
                cpus_free: (server.spec.cpus - cpus).max(0.0),
                memory_free_bytes: server.spec.memory_bytes.saturating_sub(bytes),
            }
        };
        workload::Pool {
            servers: self.servers.iter().map(server).collect(),
        }
    }

    /// Version of the table in force for `workload`.
    #[must_use]
    pub fn table_version(&self, workload: &WorkloadName) -> Option<Version> {
        self.workloads
            .get(workload)?
            .table
            .as_ref()
            .map(crate::table::WeightTable::version)
    }

    /// Table in force for `workload`, for a proxy that dials in.
    #[must_use]
    pub fn table(&self, workload: &WorkloadName) -> Option<&crate::table::WeightTable> {
        self.workloads.get(workload)?.table.as_ref()
    }

    /// Specification of `workload`.
    #[must_use]
    pub fn spec(&self, workload: &WorkloadName) -> Option<&WorkloadSpec> {
        self.workloads.get(workload).map(|w| &w.spec)
    }
}
