//! The agent's loop: commands in, facts out. One task owns all state.

use crate::cgroup::{Detail, Group, Hierarchy};
use crate::cgroup_set::CgroupSet;
use crate::exporter;
use crate::instance::{Fact, Instance, Place};
use crate::listeners::{Listeners, Queue};
use crate::metrics::{InstanceFigures, Snapshot};
use crate::probes::Sensors;
use crate::process_tree;
use crate::readiness::Secure;
use crate::sense::Readings;
use crate::session::{self, Link};
use crate::signals::{self, Means};
use nix::fcntl::Flock;
use sim_api::v1;
use sim_core::name::{InstanceId, ServerName};
use sim_life::Offer;
use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

/// Time between SIGTERM and SIGKILL when the node itself ends.
const END_GRACE: Duration = Duration::from_secs(3);
/// Pause before what could not be done is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The probes' cost is reported once in so many ticks.
const COST_TICKS: u64 = 2;

/// What a node is told at its start. Values are validated by whoever reads the configuration.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The server it is the agent of.
    pub server: ServerName,
    /// Address that instances listen on.
    pub address: IpAddr,
    /// CPUs that the server lends: the cap of its parent cgroup.
    pub cpus: f64,
    /// Cgroup of all servers, relative to the cgroup mounts; this one's is below it.
    pub cgroup: String,
    /// Control plane's socket.
    pub control_socket: PathBuf,
    /// Object file of the kernel probes.
    pub probes_object: Option<PathBuf>,
    /// Share of the machine's CPU time that the probes may cost, in percent.
    pub probe_budget_percent: f64,
    /// `sim` itself, for `sim launch`.
    pub launcher: PathBuf,
    /// Where life flags are offered to proxies of this machine.
    pub life_socket: PathBuf,
    /// Where the metrics page is served, if it is.
    pub metrics: Option<SocketAddr>,
    /// Sample window.
    pub tick: Duration,
    /// Where instances' Unix sockets are: an absolute path.
    pub socket_dir: PathBuf,
    /// Workloads whose instances speak TLS.
    pub secured: BTreeMap<String, Arc<dyn Secure>>,
}

/// Why a node can't run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Cgroups can't be listed, made or cleared.
    #[error("cgroup {name}: {source}")]
    Cgroup {
        /// Which.
        name: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

struct Agent {
    config: NodeConfig,
    hierarchy: Option<Hierarchy>,
    parent: Option<(Group, Flock<File>)>,
    sensors: Sensors,
    instances: BTreeMap<u64, Instance>,
    facts: mpsc::Sender<Fact>,
    reports: Option<mpsc::Sender<v1::NodeReport>>,
    deadlines: BTreeMap<u64, tokio::time::Instant>,
    /// Over, but not removed yet; whether control waits to hear when the resources are back.
    leaving: BTreeMap<u64, bool>,
    reports_lost: u64,
    ticks: u64,
    /// `None` where the kernel doesn't list them.
    listeners: Option<Listeners>,
    listened_at: tokio::time::Instant,
}

/// Runs the agent until `shutdown` is done; then ends every instance and removes every cgroup.
///
/// # Errors
/// [`NodeError`] where the server's own cgroup can't be made or, at the end, not be removed.
pub async fn run(config: NodeConfig, shutdown: impl Future<Output = ()>) -> Result<(), NodeError> {
    let (questions, mut questions_in) = mpsc::channel(4);
    if let Some(address) = config.metrics {
        tokio::spawn(exporter::serve(address, questions.clone()));
    }
    let (facts, mut facts_in) = mpsc::channel(64);
    let (link, mut link_in) = mpsc::channel(64);
    let mut agent = Agent::new(config, facts)?;
    let session = tokio::spawn(session::keep(agent.config.control_socket.clone(), link));
    let mut life = agent.sensors.offer_life(&agent.config.life_socket);
    let readers = life.as_ref().map(Offer::listener).transpose();
    let readers = readers.and_then(|l| l.map(UnixListener::from_std).transpose());
    let readers = readers.unwrap_or_else(|error| {
        tracing::warn!("life flags are not offered: {error}");
        None
    });
    let mut tick = interval(agent.config.tick);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    tokio::pin!(shutdown);
    loop {
        let deadline = agent.deadlines.values().min().copied();
        tokio::select! {
            () = &mut shutdown => break,
            Some(link) = link_in.recv() => agent.take_link(link),
            Some(fact) = facts_in.recv() => agent.take_fact(fact),
            reader = next_reader(readers.as_ref()) => hand_over(life.as_mut(), reader),
            _ = tick.tick() => agent.sense(),
            Some(answer) = questions_in.recv() => {
                // A reader that left needs no answer.
                answer.send(agent.snapshot()).ok();
            }
            () = async { sleep_until(deadline.unwrap_or_else(far_future)).await } => agent.overdue(),
        }
    }
    // Whoever asks from now on is told that the node is ending.
    drop(questions_in);
    session.abort();
    agent.end(facts_in).await
}

/// The next who asks for the life flags; never, where none are offered.
async fn next_reader(listener: Option<&UnixListener>) -> std::io::Result<UnixStream> {
    match listener {
        Some(listener) => {
            let reader = listener.accept().await;
            if reader.is_err() {
                // As when descriptors have run out: not again at once.
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            reader.map(|(reader, _)| reader)
        }
        None => std::future::pending().await,
    }
}

fn hand_over(life: Option<&mut Offer>, reader: std::io::Result<UnixStream>) {
    let Some(life) = life else { return };
    let given = reader
        .and_then(UnixStream::into_std)
        .and_then(|reader| life.give(reader));
    if let Err(error) = given {
        tracing::warn!("life flags are not handed over: {error}");
    }
}

fn far_future() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(3600)
}

impl Agent {
    fn new(config: NodeConfig, facts: mpsc::Sender<Fact>) -> Result<Self, NodeError> {
        let name = format!("{}/{}", config.cgroup, config.server);
        let wrap = |source| NodeError::Cgroup {
            name: name.clone(),
            source,
        };
        let hierarchy = Hierarchy::detect().map_err(wrap)?;
        let (hierarchy, parent) = if let Some(why) = hierarchy.refusal() {
            tracing::warn!(
                "no cgroups ({why}): CPU shares are held by a duty cycle, CPU and memory are read from /proc"
            );
            let killed = process_tree::kill_orphans(&name);
            if killed > 0 {
                tracing::warn!("killed {killed} processes of an earlier run");
            }
            (None, None)
        } else {
            let lock = hierarchy.lock(&name).map_err(wrap)?;
            // What an earlier node left behind when it was killed.
            let cleared = hierarchy.clear(&name).map_err(wrap)?;
            if cleared > 0 {
                tracing::warn!("cleared {cleared} cgroups of an earlier run");
            }
            let parent = Group::create(&hierarchy, &name).map_err(wrap)?;
            parent.limit_cpu(config.cpus).map_err(wrap)?;
            (Some(hierarchy), Some((parent, lock)))
        };
        let root = hierarchy.as_ref().and_then(|h| h.unified_dir(&name));
        let sensors = Sensors::load(
            config.probes_object.as_deref(),
            root,
            config.probe_budget_percent,
        );
        Ok(Self {
            config,
            hierarchy,
            parent,
            sensors,
            instances: BTreeMap::new(),
            facts,
            reports: None,
            deadlines: BTreeMap::new(),
            leaving: BTreeMap::new(),
            reports_lost: 0,
            ticks: 0,
            listeners: Listeners::open()
                .inspect_err(|error| {
                    tracing::warn!("connections that wait to be accepted are not seen: {error}");
                })
                .ok(),
            listened_at: tokio::time::Instant::now(),
        })
    }

    fn report(&mut self, report: v1::node_report::Report) {
        let Some(reports) = &self.reports else { return };
        let report = v1::NodeReport {
            report: Some(report),
        };
        if reports.try_send(report).is_err() {
            self.reports_lost += 1;
            tracing::warn!(
                "control does not read ({} reports lost): new session",
                self.reports_lost
            );
            // The next hello tells control what runs.
            self.reports = None;
        }
    }

    fn take_link(&mut self, link: Link) {
        match link {
            Link::Up(reports) => {
                self.reports = Some(reports);
                let instances = self.instances.keys().chain(self.leaving.keys());
                let instances = instances.copied().collect();
                let server = self.config.server.to_string();
                self.report(v1::node_report::Report::Hello(v1::NodeHello {
                    server,
                    instances,
                }));
                self.tell_again();
                self.report(v1::node_report::Report::Probes(self.sensors.report()));
            }
            Link::Down => self.reports = None,
            Link::Command(command) => match command.command {
                Some(v1::node_command::Command::Start(start)) => self.start(&start),
                Some(v1::node_command::Command::Stop(stop)) => self.stop(&stop),
                None => tracing::warn!("control sent a command that this version doesn't know"),
            },
        }
    }

    /// What control may have missed: told again, it changes nothing more.
    fn tell_again(&mut self) {
        let running = self.instances.iter().filter(|(_, i)| !i.stopping);
        let known: Vec<_> = running
            .map(|(&id, i)| (id, i.address.to_string(), i.pid, i.ready))
            .collect();
        for (instance, address, pid, proof) in known {
            let started = v1::InstanceStarted {
                instance,
                address,
                pid,
            };
            self.report(v1::node_report::Report::Started(started));
            if let Some(create) = proof {
                self.report(v1::node_report::Report::Ready(ready(instance, create)));
            }
        }
    }

    fn start(&mut self, start: &v1::StartInstance) {
        let id = start.instance;
        if self.instances.contains_key(&id) {
            return;
        }
        let mark = format!("{}/{}", self.config.cgroup, self.config.server);
        let place = Place {
            mark: &mark,
            address: self.config.address,
            taken: {
                let others = self.instances.values();
                others.filter_map(|other| other.address.as_inet()).collect()
            },
            socket_dir: &self.config.socket_dir,
            cgroup: format!(
                "{}/{}/{}",
                self.config.cgroup,
                self.config.server,
                InstanceId(id)
            ),
            hierarchy: self.hierarchy.as_ref(),
            launcher: &self.config.launcher,
            facts: self.facts.clone(),
            secure: self.config.secured.get(&start.workload).cloned(),
        };
        match Instance::start(start, &place) {
            Ok(mut instance) => {
                instance.cgroups = CgroupSet::new(instance.limits.unified_dir(), &mut self.sensors);
                // What a duty cycle stops all the time is not down.
                if let Some(cgroup) = instance.limits.cgroup_id() {
                    self.sensors.watch(id, instance.pid, cgroup);
                }
                let files = instance.usage(Detail::Sample);
                instance.readings = Readings::first(instance.cgroups.read(&self.sensors), files);
                let (address, pid) = (instance.address.to_string(), instance.pid);
                tracing::info!(
                    "instance {} of {} starts at {address}",
                    InstanceId(id),
                    start.workload
                );
                self.instances.insert(id, instance);
                let started = v1::InstanceStarted {
                    instance: id,
                    address,
                    pid,
                };
                self.report(v1::node_report::Report::Started(started));
            }
            Err(error) => {
                let why = format!("{error:#}");
                tracing::warn!("instance {} can't be started: {why}", InstanceId(id));
                let why = format!("can't be started: {why}");
                self.exited(id, v1::instance_exited::Cause::NotStarted(why), false, 0);
            }
        }
    }

    fn stop(&mut self, stop: &v1::StopInstance) {
        let id = stop.instance;
        if let Some(asked) = self.leaving.get_mut(&id) {
            *asked = true;
            return;
        }
        let Some(instance) = self.instances.get_mut(&id) else {
            // It ended by itself: all that control waits for is to be told.
            return self.exited(id, v1::instance_exited::Cause::Code(0), true, 0);
        };
        instance.ask_to_end();
        let grace = Duration::from_micros(stop.grace_micros);
        self.deadlines
            .insert(id, tokio::time::Instant::now() + grace);
    }

    fn take_fact(&mut self, fact: Fact) {
        match fact {
            Fact::Ready { instance, create } => {
                if let Some(found) = self.instances.get_mut(&instance) {
                    found.ready = Some(create);
                }
                self.report(v1::node_report::Report::Ready(ready(instance, create)));
            }
            Fact::NotReady { instance, why } => {
                if self.instances.contains_key(&instance) {
                    self.remove(instance, v1::instance_exited::Cause::NotStarted(why));
                }
            }
            Fact::Ended { instance, cause } => {
                if self.instances.contains_key(&instance) {
                    self.remove(instance, cause);
                }
            }
            Fact::Gone {
                instance,
                cause,
                died_ns,
            } => self.gone(instance, cause, died_ns),
        }
    }

    /// Kills what outlived its grace.
    fn overdue(&mut self) {
        let now = tokio::time::Instant::now();
        let late: Vec<u64> = self
            .deadlines
            .iter()
            .filter(|&(_, &at)| at <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in late {
            tracing::info!("instance {} did not end in time: killed", InstanceId(id));
            self.remove(id, v1::instance_exited::Cause::Signal(9));
        }
    }

    /// The main process is over (or has to be): tell, then end the rest and give back.
    fn remove(&mut self, id: u64, cause: v1::instance_exited::Cause) {
        self.deadlines.remove(&id);
        let Some(mut instance) = self.instances.remove(&id) else {
            return;
        };
        instance.cgroups.forget(&mut self.sensors);
        let cause = match cause {
            v1::instance_exited::Cause::Signal(9) if instance.is_out_of_memory() => {
                v1::instance_exited::Cause::OutOfMemory(instance.memory_bytes)
            }
            cause => cause,
        };
        let died_ns = self.sensors.died_ns(id).unwrap_or(0);
        // A death must be heard of at once; of an end that was asked for, control wants to know
        // when the resources are back.
        if !instance.stopping {
            self.exited(id, cause.clone(), false, died_ns);
        }
        self.leaving.insert(id, instance.stopping);
        let facts = self.facts.clone();
        // Waits until the last process is gone, which must not keep other instances waiting.
        tokio::task::spawn_blocking(move || {
            // Resources are only given back once they are free.
            while let Err(error) = instance.limits.destroy(instance.pid) {
                tracing::error!("instance {} is not gone: {error}", InstanceId(id));
                if facts.is_closed() {
                    return;
                }
                std::thread::sleep(RETRY_PAUSE);
            }
            let gone = Fact::Gone {
                instance: id,
                cause,
                died_ns,
            };
            if facts.blocking_send(gone).is_err() {
                tracing::debug!("the agent is gone");
            }
        });
    }

    /// Nothing is left of it.
    fn gone(&mut self, id: u64, cause: v1::instance_exited::Cause, died_ns: u64) {
        self.sensors.unwatch(id);
        if self.leaving.remove(&id) == Some(true) {
            self.exited(id, cause, true, died_ns);
        }
    }

    fn exited(
        &mut self,
        instance: u64,
        cause: v1::instance_exited::Cause,
        expected: bool,
        died_monotonic_ns: u64,
    ) {
        let exited = v1::InstanceExited {
            instance,
            cause: Some(cause),
            expected,
            died_monotonic_ns,
        };
        self.report(v1::node_report::Report::Exited(exited));
    }

    fn sense(&mut self) {
        self.sensors.settle();
        self.ticks += 1;
        self.look_at_listeners();
        let mut samples = Vec::new();
        for (&id, instance) in &mut self.instances {
            instance.cgroups.follow(&mut self.sensors);
            let kernel = instance.cgroups.read(&self.sensors);
            let files = instance.usage(Detail::Sample);
            let sample = instance.readings.next(&self.sensors, kernel, files);
            samples.push(sim_api::resource_report(InstanceId(id), &sample));
        }
        for sample in samples {
            self.report(v1::node_report::Report::Resources(sample));
        }
        if self.ticks.is_multiple_of(COST_TICKS) {
            self.sensors.keep_budget();
            self.report(v1::node_report::Report::Probes(self.sensors.report()));
        }
    }

    fn look_at_listeners(&mut self) {
        let now = tokio::time::Instant::now();
        let window = now.duration_since(std::mem::replace(&mut self.listened_at, now));
        let Some(listeners) = &mut self.listeners else {
            return;
        };
        let found = match listeners.look() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!("connections that wait are not seen any more: {error}");
                self.listeners = None;
                return;
            }
        };
        for instance in self.instances.values_mut() {
            let mut all = Queue::default();
            for queue in instance.cgroups.ids().filter_map(|id| found.get(id)) {
                all.waiting += queue.waiting;
                all.dropped += queue.dropped;
            }
            instance.accept_queue.add(all, window);
        }
    }

    /// What the metrics page shows.
    fn snapshot(&mut self) -> Snapshot {
        self.sensors.settle();
        let groups = sim_ebpf::Group::ALL.into_iter();
        let active: Vec<_> = groups.filter(|&g| self.sensors.is_active(g)).collect();
        let has = |what: fn(&Hierarchy) -> bool| self.hierarchy.as_ref().is_some_and(what);
        let (has_memory, has_pressure) = (has(Hierarchy::has_memory), has(Hierarchy::has_pressure));
        let mut instances = Vec::new();
        for (&id, instance) in &mut self.instances {
            instances.push(InstanceFigures {
                workload: instance.workload.clone(),
                instance: InstanceId(id).to_string(),
                kernel: instance.cgroups.read(&self.sensors),
                active: active.clone(),
                has_memory,
                has_pressure,
                files: instance.cgroup_usage(),
                accept_queue: self.listeners.is_some().then_some(instance.accept_queue),
            });
        }
        let mut snapshot = Snapshot {
            server: self.config.server.to_string(),
            instances,
            signals: signals::all(Means {
                active: &|group| self.sensors.is_active(group),
                cgroups: self.hierarchy.is_some(),
                listeners: self.listeners.is_some(),
                node: true,
                memory: has_memory,
                pressure: has_pressure,
            }),
            reports_lost: self.reports_lost,
            ..Snapshot::default()
        };
        self.sensors.tell(&mut snapshot);
        snapshot
    }

    /// Ends every instance, in order, and leaves nothing behind.
    async fn end(mut self, mut facts: mpsc::Receiver<Fact>) -> Result<(), NodeError> {
        self.reports = None;
        for instance in self.instances.values_mut() {
            instance.ask_to_end();
        }
        let ending = async {
            while !self.instances.is_empty() || !self.leaving.is_empty() {
                match facts.recv().await {
                    Some(fact) => self.take_fact(fact),
                    None => break,
                }
            }
        };
        if tokio::time::timeout(END_GRACE, ending).await.is_err() {
            tracing::warn!(
                "{} instances did not end in time: killed",
                self.instances.len()
            );
        }
        // Those without a cgroup are killed here; the others go with the server's.
        for instance in std::mem::take(&mut self.instances).into_values() {
            if let Err(error) = instance.limits.destroy(instance.pid) {
                tracing::error!("pid {} is not gone: {error}", instance.pid);
            }
        }
        if let (Some(hierarchy), Some(parent)) = (&self.hierarchy, self.parent.take()) {
            let name = format!("{}/{}", self.config.cgroup, self.config.server);
            let cleared = hierarchy.clear(&name).map(drop);
            let (group, _lock) = parent;
            let removed = cleared.and_then(|()| group.destroy());
            removed.map_err(|source| NodeError::Cgroup { name, source })?;
        }
        Ok(())
    }
}

fn ready(instance: u64, create: Duration) -> v1::InstanceReady {
    let create_micros = u64::try_from(create.as_micros()).unwrap_or(u64::MAX);
    v1::InstanceReady {
        instance,
        create_micros,
    }
}
