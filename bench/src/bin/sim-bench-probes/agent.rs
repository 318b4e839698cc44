//! What a node takes at a hundred workloads: a real `sim node`, told what to run by a control plane that
//! this program plays.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sim_api::v1::control_plane_server::{ControlPlane, ControlPlaneServer};
use sim_api::v1::{self, node_command, node_report};
use sim_tests::demo::settings::Programs;
use sim_tests::world::process::{Guarded, Placement};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::spent::round_to;

const WORKLOADS: u64 = 100;
/// How long the node is watched.
const WATCH: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(120);
const MEMORY_BYTES: u64 = 64 << 20;

/// What the node has said.
#[derive(Debug, Default)]
struct Heard {
    ready: AtomicU64,
    exited: AtomicU64,
    samples: AtomicU64,
    samples_of_kernel: AtomicU64,
}

/// Plays the control plane to one node.
struct Director {
    heard: Arc<Heard>,
    program: String,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn refused<T>() -> Result<T, Status> {
    Err(Status::unimplemented("only a node is expected here"))
}

#[tonic::async_trait]
impl ControlPlane for Director {
    type NodeStream = Messages<v1::NodeCommand>;
    type ProxyStream = Messages<v1::RoutingTable>;
    type JournalStream = Messages<v1::JournalRecord>;

    async fn node(
        &self,
        request: Request<Streaming<v1::NodeReport>>,
    ) -> Result<Response<Self::NodeStream>, Status> {
        let mut reports = request.into_inner();
        let heard = Arc::clone(&self.heard);
        let (commands, queue) = mpsc::channel(16);
        let starts: Vec<_> = (1..=WORKLOADS).map(|id| self.start(id)).collect();
        tokio::spawn(async move {
            for start in starts {
                if commands.send(Ok(start)).await.is_err() {
                    return;
                }
            }
            while let Some(Ok(report)) = reports.next().await {
                heard.take(report);
            }
            drop(commands);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
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

impl Director {
    fn start(&self, instance: u64) -> v1::NodeCommand {
        let command = [self.program.as_str(), "serve", "{address}:{port}"];
        v1::NodeCommand {
            command: Some(node_command::Command::Start(v1::StartInstance {
                instance,
                workload: format!("w{instance}"),
                cpus: 0.1,
                memory_bytes: MEMORY_BYTES,
                command: command.map(str::to_owned).to_vec(),
                environment: Vec::new(),
                readiness_path: "/".to_owned(),
                readiness_successes: 1,
                readiness_interval_micros: 200_000,
                readiness_timeout_micros: 60_000_000,
            })),
        }
    }
}

impl Heard {
    // Relaxed throughout: counts, by which nothing else is ordered.
    fn take(&self, report: v1::NodeReport) {
        let one = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
        match report.report {
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
}

pub(crate) fn measure() -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let folder = tempfile::tempdir()?;
    runtime.block_on(watch(folder.path()))
}

async fn watch(folder: &Path) -> Result<Value> {
    let heard = Arc::new(Heard::default());
    let program = std::env::current_exe()?.display().to_string();
    let director = Director {
        heard: Arc::clone(&heard),
        program,
    };
    let socket = UnixListener::bind(folder.join("control.sock"))?;
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(ControlPlaneServer::new(director))
            .serve_with_incoming(UnixListenerStream::new(socket)),
    );
    let mut node = start_node(folder)?;
    let deadline = Instant::now() + PATIENCE;
    while heard.ready.load(Ordering::Relaxed) < WORKLOADS {
        if let Some(end) = node.ended() {
            bail!("the node: {end}");
        }
        if Instant::now() > deadline || heard.exited.load(Ordering::Relaxed) > 0 {
            bail!("not all workloads become ready: {heard:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("node: {WORKLOADS} workloads run");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let pid = node.pid().as_raw();
    let samples = || {
        let all = heard.samples.load(Ordering::Relaxed);
        (all, heard.samples_of_kernel.load(Ordering::Relaxed))
    };
    let (begin, cpu_before, (before, of_kernel_before)) = (Instant::now(), cpu_ns(pid)?, samples());
    tokio::time::sleep(WATCH).await;
    let (seconds, cpu, (after, of_kernel)) = (
        begin.elapsed().as_secs_f64(),
        cpu_ns(pid)?.saturating_sub(cpu_before) as f64,
        samples(),
    );
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mebibytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kibibytes = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<f64>().ok());
        kibibytes.map(|kib| round_to(kib / 1024.0, 0.1))
    };
    let samples = (after - before) as f64;
    Ok(json!({
        "workloads": WORKLOADS,
        "samples_per_second": round_to(samples / seconds, 0.1),
        "samples_of_kernel_share":
            round_to((of_kernel - of_kernel_before) as f64 / samples.max(1.0), 0.001),
        "cpu_percent_of_a_core": round_to(cpu / 1e9 / seconds * 100.0, 0.001),
        "cpu_us_per_workload_and_tick": round_to(cpu / 1e3 / samples.max(1.0), 0.1),
        "rss_mib": mebibytes("VmRSS:"),
        "rss_anonymous_mib": mebibytes("RssAnon:"),
    }))
}

fn start_node(folder: &Path) -> Result<Guarded> {
    let at = folder.display();
    let cgroup = format!("sim-bench-{}", std::process::id());
    let configuration = format!(
        "data_dir = '{at}/data'\nruntime_dir = '{at}'\ncgroup = '{cgroup}'\n\
         [proxy]\nlisten = '127.0.0.1:8080'\n\
         [[server]]\nname = 'a'\ncpus = 16\nmemory_mib = 8192\n\
         [[workload]]\nname = 'w'\ncommand = ['none']\ncpus = 0.1\nhome = 'a'\n\
         [workload.slo]\nbound_ms = 100\n"
    );
    let file = folder.join("sim.toml");
    std::fs::write(&file, configuration)?;
    let mut command = Command::new(Programs::locate()?.sim);
    command.arg("node").arg("--config").arg(&file);
    command.args(["--server", "a"]).stdin(Stdio::null());
    Guarded::spawn(
        "sim node",
        command,
        Placement::default(),
        Signal::SIGTERM,
        Duration::from_secs(20),
    )
    .context("sim node")
}

/// CPU time of all its threads, as the scheduler accounts it.
fn cpu_ns(pid: i32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let first = text.split(' ').next().unwrap_or_default();
        sum += first.parse::<u64>().unwrap_or(0);
    }
    Ok(sum)
}

/// What each workload does: answers 200 to each connection's first request, one after the other.
pub(crate) fn serve(address: &str) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let address: SocketAddr = address.parse().context("address")?;
    let listener = std::net::TcpListener::bind(address)?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut head = [0; 1024];
        // Whoever leaves before the answer doesn't want it.
        if stream.read(&mut head).is_ok() {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                .ok();
        }
    }
    Ok(())
}
