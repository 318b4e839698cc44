//! Plays the control plane to one real `sim node`: tells it what to run, and hears what it says.

use std::path::Path;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use sim_api::v1::control_plane_server::{ControlPlane, ControlPlaneServer};
use sim_api::v1::{self, node_command, node_report};
use sim_node::cgroup::Hierarchy;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::demo::settings::Programs;
use crate::world::process::{Guarded, Placement};

/// What the node has said.
#[derive(Debug, Default)]
pub struct Heard {
    /// Instances that gave their proof.
    pub ready: AtomicU64,
    /// Instances that ended.
    pub exited: AtomicU64,
    /// Samples.
    pub samples: AtomicU64,
    /// Samples whose CPU figures are the probes'.
    pub samples_of_kernel: AtomicU64,
    /// Address of each instance.
    pub addresses: Mutex<Vec<(u64, String)>>,
}

impl Heard {
    // Relaxed throughout: counts, by which nothing else is ordered.
    fn take(&self, report: v1::NodeReport) {
        let one = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
        match report.report {
            Some(node_report::Report::Started(started)) => {
                let mut addresses = self
                    .addresses
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                addresses.push((started.instance, started.address));
            }
            Some(node_report::Report::Ready(_)) => drop(one(&self.ready)),
            Some(node_report::Report::Exited(_)) => drop(one(&self.exited)),
            Some(node_report::Report::Resources(sample)) => {
                one(&self.samples);
                if sample.cpu_source() == v1::SignalSource::Kernel {
                    one(&self.samples_of_kernel);
                }
            }
            _ => {}
        }
    }

    /// Address of an instance, once it is known.
    #[must_use]
    pub fn address(&self, instance: u64) -> Option<String> {
        let addresses = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let found = addresses.iter().find(|(id, _)| *id == instance);
        found.map(|(_, address)| address.clone())
    }
}

struct Service {
    heard: Arc<Heard>,
    commands: Mutex<Option<mpsc::Receiver<Result<v1::NodeCommand, Status>>>>,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn refused<T>() -> Result<T, Status> {
    Err(Status::unimplemented("only one node is expected here"))
}

#[tonic::async_trait]
impl ControlPlane for Service {
    type NodeStream = Messages<v1::NodeCommand>;
    type ProxyStream = Messages<v1::RoutingTable>;
    type JournalStream = Messages<v1::JournalRecord>;

    async fn node(
        &self,
        request: Request<Streaming<v1::NodeReport>>,
    ) -> Result<Response<Self::NodeStream>, Status> {
        let commands = self.commands.lock();
        let Some(commands) = commands.unwrap_or_else(PoisonError::into_inner).take() else {
            return refused();
        };
        let mut reports = request.into_inner();
        let heard = Arc::clone(&self.heard);
        tokio::spawn(async move {
            while let Some(Ok(report)) = reports.next().await {
                heard.take(report);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(commands))))
    }

    async fn proxy(
        &self,
        _: Request<Streaming<v1::ProxyReport>>,
    ) -> Result<Response<Self::ProxyStream>, Status> {
        refused()
    }

    async fn journal(
        &self,
        _: Request<v1::JournalRequest>,
    ) -> Result<Response<Self::JournalStream>, Status> {
        refused()
    }

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        refused()
    }

    async fn set_standby(
        &self,
        _: Request<v1::SetStandbyRequest>,
    ) -> Result<Response<v1::SetStandbyReply>, Status> {
        refused()
    }

    async fn close(
        &self,
        _: Request<v1::CloseRequest>,
    ) -> Result<Response<v1::CloseReply>, Status> {
        refused()
    }
}

/// A node that runs, and the one that tells it what to do. Dropped, the node is ended.
#[derive(Debug)]
pub struct Director {
    node: Guarded,
    commands: mpsc::Sender<Result<v1::NodeCommand, Status>>,
    /// What the node has said.
    pub heard: Arc<Heard>,
    /// Cgroup of all instances, below the mounts.
    pub cgroup: String,
}

impl Drop for Director {
    fn drop(&mut self) {
        self.node.stop();
        // The node removes its own cgroup, not the one of the run around it.
        if let (Ok(hierarchy), Some(run)) = (Hierarchy::detect(), Path::new(&self.cgroup).parent())
        {
            hierarchy.remove_empty(&run.to_string_lossy());
        }
    }
}

impl Director {
    /// Starts a node of a server `a`, whose configuration gets `more` lines of its own. `folder` is the
    /// caller's.
    ///
    /// # Errors
    /// The socket or the node can't be started.
    pub fn start(folder: &Path, more: &str) -> Result<Self> {
        let heard = Arc::new(Heard::default());
        let (commands, queue) = mpsc::channel(16);
        let service = Service {
            heard: Arc::clone(&heard),
            commands: Mutex::new(Some(queue)),
        };
        let socket = UnixListener::bind(folder.join("control.sock")).context("control.sock")?;
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(ControlPlaneServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(socket)),
        );
        let at = folder.display();
        let cgroup = format!("sim-director-{}", std::process::id());
        let configuration = format!(
            "data_dir = '{at}/data'\nruntime_dir = '{at}'\ncgroup = '{cgroup}'\n\
             [proxy]\nlisten = '127.0.0.1:8080'\n\
             [[server]]\nname = 'a'\ncpus = 16\nmemory_mib = 8192\n{more}\n\
             [[workload]]\nname = 'w'\ncommand = ['none']\ncpus = 0.1\nhome = 'a'\n\
             [workload.slo]\nbound_ms = 100\n"
        );
        let file = folder.join("sim.toml");
        std::fs::write(&file, configuration)?;
        let mut command = Command::new(Programs::locate()?.sim);
        command.arg("node").arg("--config").arg(&file);
        command.args(["--server", "a"]).stdin(Stdio::null());
        let node = Guarded::spawn(
            "sim node",
            command,
            Placement::default(),
            Signal::SIGTERM,
            Duration::from_secs(20),
        )
        .context("sim node")?;
        Ok(Self {
            node,
            commands,
            heard,
            cgroup: format!("{cgroup}/a"),
        })
    }

    /// Process id of the node.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.node.pid().as_raw()
    }

    /// Has an instance started of a tenth of a CPU and 64 MiB.
    ///
    /// # Errors
    /// The node is gone.
    pub async fn run(&self, instance: u64, workload: &str, command: &[&str]) -> Result<()> {
        let start = v1::StartInstance {
            instance,
            workload: workload.to_owned(),
            cpus: 0.1,
            memory_bytes: 64 << 20,
            command: command.iter().map(|&word| word.to_owned()).collect(),
            environment: Vec::new(),
            readiness_path: "/".to_owned(),
            readiness_successes: 1,
            readiness_interval_micros: 200_000,
            readiness_timeout_micros: 60_000_000,
        };
        self.send(node_command::Command::Start(start)).await
    }

    /// Has an instance stopped.
    ///
    /// # Errors
    /// The node is gone.
    pub async fn stop(&self, instance: u64) -> Result<()> {
        let stop = v1::StopInstance {
            instance,
            grace_micros: 1_000_000,
        };
        self.send(node_command::Command::Stop(stop)).await
    }

    async fn send(&self, command: node_command::Command) -> Result<()> {
        let command = v1::NodeCommand {
            command: Some(command),
        };
        self.commands
            .send(Ok(command))
            .await
            .context("the node is gone")
    }

    /// Waits until `count` instances are ready.
    ///
    /// # Errors
    /// The node or an instance ended, or two minutes were not enough.
    pub async fn ready(&mut self, count: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.heard.ready.load(Ordering::Relaxed) < count {
            if let Some(end) = self.node.ended() {
                bail!("the node: {end}");
            }
            if Instant::now() > deadline || self.heard.exited.load(Ordering::Relaxed) > 0 {
                bail!("not all of {count} become ready: {:?}", self.heard);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
