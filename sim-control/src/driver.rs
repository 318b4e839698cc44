//! The live driver: one task that owns core, store and registry.

use crate::beginning::{lost_state, prime};
use crate::registry::{Node, Proxy, Registry};
use crate::service::{Input, Service};
use crate::store::{Batch, Restored, Store, StoreError};
use sim_api::v1::{self, control_plane_server::ControlPlaneServer, node_report};
use sim_core::command::Command;
use sim_core::event::Event;
use sim_core::machine::Core;
use sim_core::name::{InstanceId, ProxyName, ServerName};
use sim_core::policy::Policy;
use sim_core::server::ServerSpec;
use sim_core::time::Time;
use sim_core::workload::WorkloadSpec;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;

/// Journal records read in one go.
const JOURNAL_PAGE: usize = 512;
/// Inputs that wait for the driver.
const INBOX: usize = 4096;
/// Ticks between two snapshots of the core.
const SNAPSHOT_TICKS: u64 = 60;
/// Ticks between two looks for history that is too old.
const FORGET_TICKS: u64 = 3600;
/// History older than this is dropped.
const HISTORY_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the control plane is told at its start. Values are validated by whoever reads the
/// configuration.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Socket to listen on.
    pub socket: PathBuf,
    /// Directory of the store.
    pub data_dir: PathBuf,
    /// Tunables of the core.
    pub policy: Policy,
    /// The pool.
    pub servers: Vec<ServerSpec>,
    /// The workloads.
    pub workloads: Vec<WorkloadSpec>,
}

/// Why the control plane can't run.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A path can't be used.
    #[error("{path}: {source}")]
    Path {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Another control plane listens there.
    #[error("{0}: another control plane listens here")]
    Taken(PathBuf),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server failed.
    #[error("gRPC server: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Runs the control plane until `shutdown` is done.
///
/// # Errors
/// [`ControlError`] where the socket or the store can't be used, or the store fails later: what
/// can't be journaled must not be done.
pub async fn run(
    config: ControlConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ControlError> {
    let listener = bind(&config.socket).await?;
    let mut driver = Driver::new(&config)?;
    let (inbox, inputs) = mpsc::channel(INBOX);
    let service = Service {
        driver: inbox,
        sessions: AtomicU64::new(1),
    };
    let server = tonic::transport::Server::builder()
        .add_service(ControlPlaneServer::new(service))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let served = tokio::select! {
        () = shutdown => Ok(()),
        result = server => result.map_err(Into::into),
        result = driver.run(inputs) => result,
    };
    driver.store.snapshot(&driver.core)?;
    if let Err(error) = std::fs::remove_file(&config.socket) {
        tracing::debug!("{}: {error}", config.socket.display());
    }
    served
}

async fn bind(path: &Path) -> Result<UnixListener, ControlError> {
    let wrap = |source| ControlError::Path {
        path: path.to_owned(),
        source,
    };
    if UnixStream::connect(path).await.is_ok() {
        return Err(ControlError::Taken(path.to_owned()));
    }
    if path.exists() {
        // A socket that nobody listens on: an earlier control plane was killed.
        std::fs::remove_file(path).map_err(wrap)?;
    }
    let listener = UnixListener::bind(path).map_err(wrap)?;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).map_err(wrap)?;
    Ok(listener)
}

/// Wall-clock microseconds that advance by the monotonic clock, and never fall behind `floor`.
pub(crate) struct Clock {
    base: u64,
    began: Instant,
}

impl Clock {
    fn new(floor: Time) -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let base = u64::try_from(wall.as_micros())
            .unwrap_or(u64::MAX)
            .max(floor.0 + 1);
        Self {
            base,
            began: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time(self.base).after(self.began.elapsed())
    }
}

pub(crate) struct Driver {
    pub(crate) core: Core,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    registry: Registry,
    followers: Vec<mpsc::Sender<v1::JournalRecord>>,
    /// Inputs since the last commit.
    batch: Batch,
    ticks: u64,
}

impl Driver {
    pub(crate) fn new(config: &ControlConfig) -> Result<Self, ControlError> {
        let mut store = Store::open(&config.data_dir)?;
        let restored = store.restore()?;
        let epoch = store.take_lead()?;
        let (policy, servers, workloads) = (
            config.policy.clone(),
            config.servers.clone(),
            config.workloads.clone(),
        );
        let mut lost = None;
        let mut core = match restored {
            Restored::Core(core, inputs) => {
                let mut core = *core;
                let replayed = inputs.len();
                for (at, event) in inputs {
                    // What these inputs led to was carried out when they came.
                    core.step(at, event);
                }
                core.reconfigure(policy, servers, workloads);
                tracing::info!("restored; {replayed} inputs replayed; epoch {epoch}");
                core
            }
            nothing => {
                if let Restored::Unreadable(why) = nothing {
                    lost = Some(why);
                }
                let mut core = Core::new(policy, epoch, servers, workloads);
                prime(&mut core, &store, config)?;
                core
            }
        };
        core.take_lead(epoch);
        store.snapshot(&core)?;
        let nodes = config
            .servers
            .iter()
            .map(|s| (s.name.clone(), Node::default()))
            .collect();
        let clock = Clock::new(core.now());
        let mut batch = Batch::default();
        if let Some(why) = lost {
            // What an operator set since the start of that run is gone with it: say so where they look.
            batch.records = config
                .workloads
                .iter()
                .map(|workload| lost_state(&workload.name, clock.now(), &why))
                .collect();
        }
        Ok(Self {
            clock,
            core,
            store,
            registry: Registry {
                nodes,
                ..Registry::default()
            },
            followers: Vec::new(),
            batch,
            ticks: 0,
        })
    }

    pub(crate) async fn run(
        &mut self,
        mut inputs: mpsc::Receiver<Input>,
    ) -> Result<(), ControlError> {
        let mut tick = interval(self.core.policy().step());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.tick()?,
                input = inputs.recv() => match input {
                    Some(input) => self.take(input)?,
                    None => return Ok(()),
                },
            }
        }
    }

    fn tick(&mut self) -> Result<(), ControlError> {
        self.step(Event::Tick)?;
        self.batch.at = self.clock.now();
        self.batch.samples = self.samples();
        self.commit()?;
        self.ticks += 1;
        if self.ticks.is_multiple_of(SNAPSHOT_TICKS) {
            self.store.snapshot(&self.core)?;
        }
        if self.ticks.is_multiple_of(FORGET_TICKS) {
            let age = u64::try_from(HISTORY_KEPT.as_micros()).unwrap_or(u64::MAX);
            self.store
                .forget_history(Time(self.clock.now().0.saturating_sub(age)))?;
        }
        Ok(())
    }

    fn samples(&self) -> Vec<(String, f64)> {
        let status = self.core.status();
        status
            .iter()
            .flat_map(|s| {
                [
                    (format!("{}/demand_rps", s.workload), s.demand_rps),
                    (format!("{}/utilisation", s.workload), s.utilisation),
                ]
            })
            .collect()
    }

    /// Feeds the core; what it answers is journaled, then carried out.
    fn step(&mut self, event: Event) -> Result<(), ControlError> {
        let now = self.clock.now();
        let outcome = self.core.step(now, event.clone());
        self.batch.inputs.push((now, event));
        let act = !outcome.commands.is_empty() || !outcome.records.is_empty();
        for record in &outcome.records {
            tracing::info!(workload = %record.workload, "{}: {}", record.kind, record.reason);
        }
        self.batch.records.extend(outcome.records);
        if act {
            self.commit()?;
        }
        for command in outcome.commands {
            self.carry_out(command);
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), ControlError> {
        let batch = std::mem::take(&mut self.batch);
        let first = self.store.commit(&batch)?;
        for (sequence, record) in (first..).zip(&batch.records) {
            let json = serde_json::to_string(record).map_err(StoreError::from)?;
            let line = v1::JournalRecord { sequence, json };
            // A follower that does not keep up is cut off; it reads the journal again from there.
            self.followers.retain(|f| f.try_send(line.clone()).is_ok());
        }
        Ok(())
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Publish(table) => self.registry.publish(&(&table).into()),
            Command::Stop {
                instance,
                server,
                grace,
            } => {
                let grace_micros = u64::try_from(grace.as_micros()).unwrap_or(u64::MAX);
                let stop = v1::StopInstance {
                    instance: instance.0,
                    grace_micros,
                };
                self.registry
                    .send_node(&server, v1::node_command::Command::Stop(stop));
            }
            Command::Start {
                instance,
                workload,
                server,
                cpus,
            } => {
                let Some(spec) = self.core.spec(&workload) else {
                    return;
                };
                let start = start_instance(spec, instance, cpus);
                let running = v1::RunningInstance {
                    instance: instance.0,
                    workload: workload.to_string(),
                    cpus,
                    ..Default::default()
                };
                if let Some(node) = self.registry.nodes.get_mut(&server) {
                    node.instances.insert(instance.0, running);
                }
                self.registry
                    .send_node(&server, v1::node_command::Command::Start(start));
            }
        }
    }

    fn take(&mut self, input: Input) -> Result<(), ControlError> {
        match input {
            Input::Event(event) => self.step(event)?,
            Input::NodeUp {
                session,
                server,
                running,
                link,
            } => {
                let Some(node) = self.registry.nodes.get_mut(&server) else {
                    let why = format!("no server {server} in the configuration");
                    tracing::warn!("a node was refused: {why}");
                    if link.try_send(Err(Status::not_found(why))).is_err() {
                        tracing::debug!("it is gone already");
                    }
                    return Ok(());
                };
                node.link = Some((session, link));
                // What ended while the node was away, or with it, has no process any more.
                for (id, instance) in &mut node.instances {
                    if !running.contains(&InstanceId(*id)) {
                        instance.ready = false;
                        instance.pid = 0;
                    }
                }
                self.registry.forget_ended(&server);
                tracing::info!(
                    "node {server} is connected, {} instances run there",
                    running.len()
                );
                self.step(Event::ServerUp { server, running })?;
            }
            Input::NodeDown { session, server } => {
                let Some(node) = self.registry.nodes.get_mut(&server) else {
                    return Ok(());
                };
                if node.link.as_ref().is_none_or(|(s, _)| *s == session) {
                    node.link = None;
                    if self.core.is_closing() {
                        tracing::info!("node {server} has ended");
                    } else {
                        tracing::warn!("node {server} is not connected any more");
                    }
                    self.step(Event::ServerDown(server))?;
                }
            }
            Input::NodeReport { server, report } => self.node_report(&server, report)?,
            Input::ProxyUp {
                session,
                proxy,
                workload,
                listen,
                link,
            } => {
                tracing::info!("proxy {proxy} is connected, for {workload}");
                let known = sim_core::name::WorkloadName::new(&workload).ok();
                if let Some(table) = known.as_ref().and_then(|w| self.core.table(w))
                    && link.try_send(Ok(table.into())).is_err()
                {
                    tracing::debug!("proxy {proxy} is gone already");
                }
                self.registry.proxies.insert(
                    (proxy, workload),
                    Proxy {
                        session,
                        listen,
                        link,
                    },
                );
            }
            Input::ProxyDown {
                session,
                proxy,
                workload,
            } => {
                let key = (proxy, workload);
                let found = self.registry.proxies.get(&key);
                if found.is_none_or(|p| p.session == session) {
                    self.registry.proxies.remove(&key);
                    let (proxy, workload) = key;
                    tracing::warn!(
                        "proxy {proxy} is not connected any more, for {workload}; if it runs, it serves on by its last table"
                    );
                    // One whose other sessions are up is about to open this one again. What it said last stands until
                    // then: no table counts as taken over that it has not acknowledged.
                    if !self.registry.has_proxy(&proxy) {
                        self.step(Event::ProxyDown(proxy))?;
                    }
                }
            }
            Input::Journal {
                from,
                follower,
                page,
            } => {
                self.commit()?;
                let records: Vec<v1::JournalRecord> = self
                    .store
                    .journal(from, JOURNAL_PAGE)?
                    .into_iter()
                    .map(|(sequence, json)| v1::JournalRecord { sequence, json })
                    .collect();
                if records.is_empty() {
                    self.followers.extend(follower);
                }
                if page.send(records).is_err() {
                    tracing::debug!("whoever asked for the journal is gone");
                }
            }
            Input::Status { reply } => {
                if reply.send(self.status()).is_err() {
                    tracing::debug!("whoever asked for the status is gone");
                }
            }
            Input::HasWorkload { workload, reply } => {
                if reply.send(self.core.spec(&workload).is_some()).is_err() {
                    tracing::debug!("whoever asked for {workload} is gone");
                }
            }
        }
        Ok(())
    }

    fn node_report(
        &mut self,
        server: &ServerName,
        report: node_report::Report,
    ) -> Result<(), ControlError> {
        let event = match report {
            node_report::Report::Hello(_) => {
                tracing::warn!("node {server} says hello twice");
                return Ok(());
            }
            node_report::Report::Probes(probes) => {
                if let Some(node) = self.registry.nodes.get_mut(server) {
                    node.probes = probes;
                }
                return Ok(());
            }
            node_report::Report::Started(started) => {
                self.started(server, &started);
                started.to_event()
            }
            node_report::Report::Ready(ready) => {
                if let Some(running) = self.registry.instance(server, ready.instance) {
                    running.ready = true;
                }
                Ok(ready.to_event())
            }
            node_report::Report::Exited(exited) => {
                if let Some(running) = self.registry.instance(server, exited.instance) {
                    running.ready = false;
                    running.pid = 0;
                    // The answer to the fence has no stamp; the death's own is kept.
                    if exited.died_monotonic_ns != 0 {
                        running.died_monotonic_ns = exited.died_monotonic_ns;
                    }
                }
                self.registry.forget_ended(server);
                exited.to_event()
            }
            node_report::Report::Resources(resources) => resources.into_event(),
        };
        match event {
            Ok(event) => self.step(event),
            Err(error) => {
                tracing::warn!("node {server}: report refused: {error}");
                Ok(())
            }
        }
    }

    /// Also of an instance that an earlier control plane started.
    fn started(&mut self, server: &ServerName, started: &v1::InstanceStarted) {
        let known = self.core.workload_and_cpus(InstanceId(started.instance));
        let Some(node) = self.registry.nodes.get_mut(server) else {
            return;
        };
        let running = node.instances.entry(started.instance).or_default();
        running.instance = started.instance;
        running.address.clone_from(&started.address);
        if running.pid != started.pid {
            running.ready = false;
        }
        running.pid = started.pid;
        if let Some((workload, cpus)) = known {
            running.workload = workload.to_string();
            running.cpus = cpus;
        }
    }

    fn status(&self) -> v1::StatusReply {
        let json = |s: &sim_core::machine::Status| serde_json::to_string(s).unwrap_or_default();
        let server = |(name, node): (&ServerName, &Node)| v1::ServerStatus {
            server: name.to_string(),
            connected: node.link.is_some(),
            probes: Some(node.probes.clone()),
            cpus: self.core.cpus(name).unwrap_or(0.0),
            cpus_allocated: self.core.cpus_allocated(name),
            instances: node.instances.values().cloned().collect(),
        };
        let proxy = |((name, workload), proxy): (&(ProxyName, String), &Proxy)| v1::ProxyStatus {
            proxy: name.to_string(),
            workload: workload.clone(),
            listen: proxy.listen.clone(),
        };
        v1::StatusReply {
            epoch: self.core.epoch(),
            workloads_json: self.core.status().iter().map(json).collect(),
            servers: self.registry.nodes.iter().map(server).collect(),
            proxies: self.registry.proxies.iter().map(proxy).collect(),
        }
    }
}

fn start_instance(spec: &WorkloadSpec, instance: InstanceId, cpus: f64) -> v1::StartInstance {
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let entry = |(name, value): &(String, String)| v1::EnvironmentEntry {
        name: name.clone(),
        value: value.clone(),
    };
    v1::StartInstance {
        instance: instance.0,
        workload: spec.name.to_string(),
        cpus,
        memory_bytes: spec.memory_bytes,
        command: spec.command.clone(),
        environment: spec.environment.iter().map(entry).collect(),
        readiness_path: spec.readiness.path.clone(),
        readiness_successes: spec.readiness.successes,
        readiness_interval_micros: micros(spec.readiness.interval),
        readiness_timeout_micros: micros(spec.readiness.timeout),
    }
}
