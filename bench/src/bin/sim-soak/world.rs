//! A real `sim proxy`, its control plane, and instances by process.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bench::control::Control;
use bench::free_address;
use bench::secure::Certificate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::ClientConfig;
use sim_core::name::{InstanceId, WorkloadName};
use sim_core::table::{Share, Version, WeightTable};
use sim_tests::world::process::{Guarded, Placement};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The name in the certificate.
pub(crate) const NAME: &str = "soak.example";
/// Requests for it are calls of gRPC.
pub(crate) const RPC: &str = "rpc.example";
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 8_000;

/// Two workloads, by their names.
pub(crate) const WORKLOADS: [&str; 2] = ["web", "rpc"];
/// Their places.
pub(crate) const WEB: usize = 0;
pub(crate) const CALLS: usize = 1;

/// Where users go, and what they need to know.
#[derive(Clone)]
pub(crate) struct Users {
    pub(crate) clear: SocketAddr,
    pub(crate) secure: SocketAddr,
    pub(crate) tls: Arc<ClientConfig>,
}

/// An instance that runs, or is dead.
pub(crate) struct Instance {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    pub(crate) weight_bp: u16,
    process: Option<Guarded>,
}

pub(crate) struct World {
    pub(crate) version: String,
    users: Users,
    admin: SocketAddr,
    control: Option<Control>,
    proxy: Guarded,
    /// Of each workload.
    pub(crate) instances: [Vec<Instance>; 2],
    generation: u64,
    started: u64,
    /// Where instances say what came.
    tell: SocketAddr,
    folder: TempDir,
}

impl World {
    pub(crate) async fn start(tell: SocketAddr) -> Result<Self> {
        let program = std::env::var_os("SIM_BIN");
        let program = PathBuf::from(program.context("SIM_BIN is not set; cargo xtask sets it")?);
        let folder = TempDir::new()?;
        let at = folder.path();
        let [clear, secure, admin] = [free_address()?, free_address()?, free_address()?];
        let certificate = Certificate::of(at, [NAME.to_owned()])?;
        fs::create_dir(at.join("run"))?;
        let config = at.join("sim.toml");
        fs::write(&config, configuration(at, clear, secure, admin))?;
        let control = Control::start(&at.join("run/control.sock"), [])?;
        let said = Command::new(&program).arg("--version").output()?;
        let mut command = Command::new(&program);
        command.arg("proxy").arg("--config").arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(at.join("proxy.log"))?);
        let mut world = Self {
            version: String::from_utf8_lossy(&said.stdout).trim().to_owned(),
            users: Users {
                clear,
                secure,
                tls: certificate.users,
            },
            admin,
            control: Some(control),
            proxy: guarded("sim proxy", command)?,
            instances: [vec![], vec![]],
            generation: 0,
            started: 0,
            tell,
            folder,
        };
        for workload in 0..WORKLOADS.len() {
            for _ in 0..2 {
                let instance = world.spawn(None).await?;
                world.instances[workload].push(instance);
            }
            world.even(workload);
            world.publish(workload)?;
        }
        world.await_ready().await?;
        Ok(world)
    }

    pub(crate) fn users(&self) -> Users {
        self.users.clone()
    }

    pub(crate) fn proxy(&self) -> Pid {
        self.proxy.pid()
    }

    /// One that answers; the same as before if that is given.
    pub(crate) async fn spawn(&mut self, before: Option<(u64, SocketAddr)>) -> Result<Instance> {
        let (id, address) = match before {
            Some(before) => before,
            None => {
                self.started += 1;
                // An address of its own, which nobody else gets once it is dead.
                let [high, low] = (self.started as u16).to_be_bytes();
                let own = (std::process::id() % 200) as u8 + 20;
                let address = Ipv4Addr::new(127, own, high, low + 1);
                (self.started, SocketAddr::from((address, PORT)))
            }
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("instance").arg(address.to_string());
        command.arg(self.tell.to_string());
        command.stdin(Stdio::null());
        let process = guarded("instance", command)?;
        let mut instance = Instance {
            id,
            address,
            weight_bp: 0,
            process: Some(process),
        };
        let deadline = Instant::now() + PATIENCE;
        while get(address, "/").await.is_err() {
            let process = instance.process.as_mut().context("just started")?;
            if let Some(end) = process.ended() {
                bail!("{end}");
            }
            ensure!(Instant::now() < deadline, "an instance does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(instance)
    }

    /// All the same weight.
    pub(crate) fn even(&mut self, workload: usize) {
        let instances = &mut self.instances[workload];
        let count = instances.len() as u16;
        for (at, instance) in (0..).zip(instances) {
            instance.weight_bp = 10_000 / count + u16::from(at == 0) * (10_000 % count);
        }
    }

    /// Tells the proxy of a workload's instances.
    pub(crate) fn publish(&mut self, workload: usize) -> Result<()> {
        self.generation += 1;
        let shares = self.instances[workload].iter().map(|instance| Share {
            instance: InstanceId(instance.id),
            address: instance.address.into(),
            weight_bp: instance.weight_bp,
            ready: true,
        });
        let version = Version {
            epoch: 1,
            generation: self.generation,
        };
        let name = WorkloadName::new(WORKLOADS[workload]).context("a name")?;
        let table = WeightTable::new(name, version, shares.collect()).context("a table")?;
        let control = self.control.as_ref().context("there is one")?;
        control.publish(&table);
        Ok(())
    }

    /// Takes the control plane away for a while; the one that comes after it knows the last tables.
    pub(crate) async fn without_control(&mut self, span: Duration) -> Result<()> {
        self.control = None;
        tokio::time::sleep(span).await;
        let socket = self.folder.path().join("run/control.sock");
        fs::remove_file(&socket)?;
        self.control = Some(Control::start(&socket, [])?);
        for workload in 0..WORKLOADS.len() {
            self.publish(workload)?;
        }
        Ok(())
    }

    async fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while get(self.admin, "/ready").await.is_err() {
            if let Some(end) = self.proxy.ended() {
                let log = fs::read_to_string(self.folder.path().join("proxy.log"));
                bail!("{end}: {}", log.unwrap_or_default());
            }
            ensure!(Instant::now() < deadline, "the proxy is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// What the proxy's log says of numbered requests that failed, by their numbers: so many of them, the first.
    pub(crate) fn failures_logged(&self, most: usize) -> Result<BTreeMap<u64, String>> {
        let mut found = BTreeMap::new();
        let log = self.folder.path().join("access.log");
        for line in BufReader::new(fs::File::open(log)?).lines() {
            let line = line?;
            if found.len() < most
                && line.contains("\"outcome\":\"failed\"")
                && let Some(number) = number_in(&line)
            {
                found.insert(number, line);
            }
        }
        Ok(found)
    }

    /// The proxy's metrics.
    pub(crate) async fn metrics(&self) -> Result<String> {
        get(self.admin, "/metrics").await
    }

    /// Waits until the proxy has no user, no request and no idle connection to an instance left.
    pub(crate) async fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut before = 0;
        loop {
            // Twice what an idle connection to an instance is kept.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let page = self.metrics().await?;
            let open = |name: &str| crate::verdict::sum(&page, name, &[]);
            let idle = open("sim_proxy_connections") + open("sim_proxy_requests_in_flight") < 0.5;
            let descriptors = fs::read_dir(format!("/proc/{}/fd", self.proxy.pid()))?.count();
            if idle && descriptors == before {
                return Ok(());
            }
            before = descriptors;
            if Instant::now() > deadline {
                // What is still there is for the verdict to tell.
                return Ok(());
            }
        }
    }
}

impl Instance {
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().context("it is dead")?;
        Ok(kill(process.pid(), signal)?)
    }

    /// At once.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.process = None;
        Ok(())
    }
}

fn guarded(name: &'static str, command: Command) -> Result<Guarded> {
    let placement = Placement {
        netns: None,
        cgroups: Vec::new(),
    };
    let grace = Duration::from_secs(10);
    Ok(Guarded::spawn(
        name,
        command,
        placement,
        Signal::SIGTERM,
        grace,
    )?)
}

/// The number of the request that a line of the access log is of.
fn number_in(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("\"path\":\"")?;
    let (path, _) = rest.split_once('"')?;
    path.rsplit('/').next()?.parse().ok()
}

/// The instances it names are none of ours: who serves is said by the control plane. Every second request is logged, so
/// that each place of the log's queue has been used, and is resident, after a minute; and all that fail.
fn configuration(
    at: &std::path::Path,
    clear: SocketAddr,
    secure: SocketAddr,
    admin: SocketAddr,
) -> String {
    let at = at.display();
    let [web, rpc] = WORKLOADS;
    format!(
        r#"
data_dir = "{at}/state"
runtime_dir = "{at}/run"
[proxy]
listen = "{clear}"
admin = "{admin}"
threads = 2
[proxy.tls]
listen = "{secure}"
[[proxy.tls.certificate]]
chain = "{at}/chain.pem"
key = "{at}/key.pem"
[proxy.limits]
header_timeout_s = 3
[proxy.trace]
sample = 0.1
[proxy.access_log]
path = "{at}/access.log"
sample = 0.5
always_failed = true
[[server]]
name = "one"
cpus = 2.0
memory_mib = 2048
[[workload]]
name = "{web}"
home = "one"
cpus = 1.0
command = ["/bin/true"]
slo = {{ bound_ms = 100 }}
[[workload]]
name = "{rpc}"
home = "one"
cpus = 1.0
protocol = "h2"
command = ["/bin/true"]
route = [{{ host = "{RPC}" }}]
slo = {{ bound_ms = 100 }}
"#
    )
}

/// The body of a good answer.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok(body.to_owned())
}
