//! A small pool with one workload, in which time is a number: nodes that start instances after a
//! while, and users that come at a given rate. Everything the core asks for is carried out.
#![allow(dead_code, reason = "each test file uses its part of the world")]

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sim_core::command::Command;
use sim_core::event::{Event, ExitCause, InstanceTraffic, ResourceSample, Source, TrafficSample};
use sim_core::histogram::LatencyHistogram;
use sim_core::journal::{Kind, Record};
use sim_core::machine::Core;
use sim_core::name::{InstanceId, ProxyName, ServerName, WorkloadName};
use sim_core::policy::Policy;
use sim_core::server::ServerSpec;
use sim_core::table::WeightTable;
use sim_core::time::Time;
use sim_core::workload::{Readiness, Slo, Standby, WorkloadSpec};
use std::collections::BTreeMap;
use std::time::Duration;

/// CPU-seconds a request.
pub(crate) const SERVICE_SECONDS: f64 = 0.001;
const STEP: Duration = Duration::from_millis(200);
const CREATE: Duration = Duration::from_secs(3);

pub(crate) struct Running {
    pub(crate) server: ServerName,
    pub(crate) cpus: f64,
    pub(crate) ready_at: Time,
    pub(crate) ready: bool,
}

pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) now: Time,
    pub(crate) running: BTreeMap<InstanceId, Running>,
    pub(crate) table: Option<WeightTable>,
    pub(crate) records: Vec<Record>,
    pub(crate) commands: Vec<Command>,
    /// Every input, for replay.
    pub(crate) inputs: Vec<(Time, Event)>,
    /// Reports get lost while set.
    pub(crate) mute: bool,
    /// Factor on the latency of an instance.
    pub(crate) slow: BTreeMap<InstanceId, f64>,
    /// Share of an instance's requests that fail.
    pub(crate) failing: BTreeMap<InstanceId, f64>,
    /// The node of this instance does not report.
    pub(crate) silent: Option<InstanceId>,
    /// The proxy goes on with the table that it has.
    pub(crate) deaf: bool,
    applied: Option<WeightTable>,
    rng: Pcg64,
    ticks: u64,
}

pub(crate) fn name<T>(made: Result<T, sim_core::name::NameError>) -> T {
    made.expect("a valid name")
}

pub(crate) fn workload() -> WorkloadName {
    name(WorkloadName::new("web"))
}

fn server(name_: &str, cpus: f64, price_per_hour: f64) -> ServerSpec {
    ServerSpec {
        name: name(ServerName::new(name_)),
        address: std::net::IpAddr::from([127, 0, 0, 1]),
        cpus,
        memory_bytes: 1 << 30,
        price_per_hour,
        failure_domain: name_.into(),
    }
}

impl World {
    pub(crate) fn new(seed: u64, policy: Policy) -> Self {
        let slo = Slo {
            quantile: 0.99,
            bound: Duration::from_millis(200),
            window: Duration::from_secs(60),
            error_budget: 0.001,
        };
        let readiness = Readiness {
            path: "/".into(),
            successes: 3,
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(30),
        };
        let spec = WorkloadSpec {
            name: workload(),
            command: vec!["x".into()],
            environment: Vec::new(),
            cpus: 0.25,
            memory_bytes: 1 << 20,
            home: name(ServerName::new("a")),
            slo,
            readiness,
            standby: Standby::Predicted,
            slo_minute_price: 0.03,
        };
        let servers = vec![
            server("a", 0.3, 0.1),
            server("b", 0.6, 0.3),
            server("c", 0.5, 0.4),
        ];
        let core = Core::new(policy, 1, servers, vec![spec]);
        let mut world = Self {
            core,
            now: Time(1_000_000_000),
            running: BTreeMap::new(),
            table: None,
            records: Vec::new(),
            commands: Vec::new(),
            inputs: Vec::new(),
            mute: false,
            slow: BTreeMap::new(),
            failing: BTreeMap::new(),
            silent: None,
            deaf: false,
            applied: None,
            rng: Pcg64::seed_from_u64(seed),
            ticks: 0,
        };
        for server in ["a", "b", "c"] {
            let server = name(ServerName::new(server));
            world.feed(Event::ServerUp {
                server,
                running: Vec::new(),
            });
        }
        world
    }

    pub(crate) fn feed(&mut self, event: Event) {
        self.inputs.push((self.now, event.clone()));
        let outcome = self.core.step(self.now, event);
        self.records.extend(outcome.records);
        for command in outcome.commands {
            self.carry_out(&command);
            self.commands.push(command);
        }
    }

    fn carry_out(&mut self, command: &Command) {
        match command {
            Command::Start {
                instance,
                server,
                cpus,
                ..
            } => {
                let ready_at = self.now.after(CREATE);
                let running = Running {
                    server: server.clone(),
                    cpus: *cpus,
                    ready_at,
                    ready: false,
                };
                self.running.insert(*instance, running);
                let address = ([127, 0, 0, 1], 1000 + instance.0 as u16).into();
                self.feed(Event::Started {
                    instance: *instance,
                    address,
                });
            }
            Command::Stop { instance, .. } => {
                if self.running.remove(instance).is_some() {
                    let (instance, cause) = (*instance, ExitCause::Code(0));
                    self.feed(Event::Exited {
                        instance,
                        cause,
                        expected: true,
                    });
                }
            }
            Command::Publish(table) => self.table = Some(table.clone()),
        }
    }

    pub(crate) fn kill(&mut self, instance: InstanceId) {
        if self.running.remove(&instance).is_some() {
            let cause = ExitCause::Signal(9);
            self.feed(Event::Exited {
                instance,
                cause,
                expected: false,
            });
        }
    }

    /// One fifth of a second under `rate` requests a second.
    pub(crate) fn step(&mut self, rate: f64) {
        self.now = self.now.after(STEP);
        let now = self.now;
        let ready: Vec<InstanceId> = self
            .running
            .iter()
            .filter(|(_, r)| !r.ready && r.ready_at <= now)
            .map(|(&id, _)| id)
            .collect();
        for instance in ready {
            if let Some(running) = self.running.get_mut(&instance) {
                running.ready = true;
            }
            self.feed(Event::Ready {
                instance,
                create: CREATE,
            });
        }
        if !self.mute {
            self.report(rate);
        }
        self.ticks += 1;
        if self.ticks.is_multiple_of(5) {
            self.feed(Event::Tick);
        }
    }

    fn report(&mut self, rate: f64) {
        let seconds = STEP.as_secs_f64();
        let mean = rate * seconds;
        // A normal deviate by the sum of twelve uniforms stands in for Poisson.
        let deviate: f64 = (0..12)
            .map(|_| self.rng.random_range(0.0..1.0))
            .sum::<f64>()
            - 6.0;
        let arrivals = (mean + deviate * mean.sqrt()).round().max(0.0) as u64;
        if !self.deaf {
            self.applied.clone_from(&self.table);
        }
        let Some(table) = self.applied.clone() else {
            return;
        };
        let mut instances = Vec::new();
        let mut samples = Vec::new();
        for share in table.shares() {
            let Some(running) = self.running.get(&share.instance) else {
                continue;
            };
            // Rounded at random, or a share of 1 % of few requests would be none for ever.
            let part = arrivals as f64 * f64::from(share.weight_bp) / 1e4;
            let n = (part + self.rng.random_range(0.0..1.0)) as u64;
            let cpu_seconds = (n as f64 * SERVICE_SECONDS).min(running.cpus * seconds);
            let utilisation = (cpu_seconds / (running.cpus * seconds)).min(0.98);
            let slow = self.slow.get(&share.instance).copied().unwrap_or(1.0);
            let mean_micros = 10_000.0 * slow * (1.0 + 0.2 * utilisation / (1.0 - utilisation));
            let mut latency = LatencyHistogram::default();
            for _ in 0..n {
                let u: f64 = self.rng.random_range(1e-6..1.0);
                latency.record_micros((-u.ln() * mean_micros / 3.0 + mean_micros) as u64);
            }
            let failing = self.failing.get(&share.instance).copied().unwrap_or(0.0);
            let failed = (n as f64 * failing + self.rng.random_range(0.0..1.0)) as u64;
            let failed = if failing > 0.0 { failed.min(n) } else { 0 };
            instances.push(InstanceTraffic {
                instance: share.instance,
                ok: n - failed,
                failed,
                latency,
                in_flight: 0,
                ejected: false,
            });
            samples.push((share.instance, cpu_seconds));
        }
        let silent = self.silent;
        for (instance, cpu_seconds) in samples.into_iter().filter(|s| Some(s.0) != silent) {
            let sample = ResourceSample {
                window: STEP,
                cpu_seconds,
                cpu_source: Source::Kernel,
                run_queue_seconds: 0.0,
                throttled_ratio: 0.0,
                memory_bytes: 0,
                block_bytes: 0,
                block_latency_p95_seconds: 0.0,
                network_bytes: 0,
                rtt_p50_seconds: 0.0,
            };
            self.feed(Event::Resources { instance, sample });
        }
        let sample = TrafficSample {
            window: STEP,
            arrivals,
            applied: table.version(),
            instances,
        };
        let proxy = name(ProxyName::new("p"));
        self.feed(Event::Traffic {
            proxy,
            workload: workload(),
            sample,
        });
    }

    /// `seconds` under the rate that `law` gives for each second since now.
    pub(crate) fn run(&mut self, seconds: u32, law: impl Fn(f64) -> f64) {
        for at in 0..seconds * 5 {
            self.step(law(f64::from(at) / 5.0));
        }
    }

    /// Steps under `rate` until a record of `kind` is written; at most `seconds`.
    pub(crate) fn run_until(&mut self, kind: Kind, seconds: u32, rate: f64) {
        let before = self.count(kind);
        for _ in 0..seconds * 5 {
            if self.count(kind) > before {
                return;
            }
            self.step(rate);
        }
        panic!(
            "no {kind:?} within {seconds} s; journal: {:#?}",
            self.kinds()
        );
    }

    /// The journal, for a failed assertion.
    pub(crate) fn story(&self) -> String {
        let line = |r: &Record| {
            format!(
                "{:.1} {:?} {}\n",
                r.at.as_secs_f64() - 1_000.0,
                r.kind,
                r.reason
            )
        };
        self.records.iter().map(line).collect()
    }

    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.records.iter().map(|r| r.kind).collect()
    }

    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.records.iter().filter(|r| r.kind == kind).count()
    }

    pub(crate) fn primary(&self) -> InstanceId {
        self.core.status()[0].primary.expect("a primary")
    }

    pub(crate) fn shadow(&self) -> InstanceId {
        self.core.status()[0].shadow.expect("a shadow")
    }

    pub(crate) fn standby(&mut self, standby: Standby) {
        self.feed(Event::SetStandby {
            workload: workload(),
            standby,
        });
    }

    pub(crate) fn weight(&self, instance: InstanceId) -> u16 {
        self.table.as_ref().map_or(0, |t| t.weight_bp(instance))
    }

    pub(crate) fn assert_no_refusal(&self) {
        let refused: Vec<&Record> = self
            .records
            .iter()
            .filter(|r| r.kind == Kind::Refused)
            .collect();
        assert!(refused.is_empty(), "{refused:#?}");
    }
}
