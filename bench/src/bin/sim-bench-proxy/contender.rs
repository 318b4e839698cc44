//! The proxies, each as its own users run it, with one worker.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bench::free_address;
use bench::peers::Peers;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use sim_tests::world::process::{Guarded, Placement};

/// The core of the proxy, and that of all others.
pub(crate) const PROXY_CPU: usize = 0;
pub(crate) const OTHER_CPU: usize = 1;
const PATIENCE: Duration = Duration::from_secs(30);

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Sim,
    Nginx,
    Haproxy,
    Envoy,
}

impl Contender {
    pub(crate) const ALL: [Self; 4] = [Self::Sim, Self::Nginx, Self::Haproxy, Self::Envoy];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }
}

/// A proxy that runs, with an instance behind it. Dropped, both end.
#[derive(Debug)]
pub(crate) struct Running {
    /// Where users connect.
    pub(crate) address: SocketAddr,
    proxy: Pid,
    /// In the order of their end.
    _processes: Vec<Guarded>,
    _folder: tempfile::TempDir,
}

impl Running {
    pub(crate) fn start(contender: Contender, peers: &Peers) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        let address = free_address()?;
        let mut processes = Vec::new();
        let proxy = match contender {
            Contender::Sim => {
                let run = start_sim(at, address)?;
                let proxy = role(run.pid(), "proxy")?;
                processes.push(run);
                proxy
            }
            other => {
                let upstream = free_address()?;
                let instance = spawn("instance", instance(peers, at, &upstream.to_string())?)?;
                let command = match other {
                    Contender::Haproxy => haproxy(peers, at, address, upstream)?,
                    Contender::Envoy => envoy(peers, at, address, upstream)?,
                    Contender::Nginx | Contender::Sim => nginx(peers, at, address, upstream)?,
                };
                let proxy = spawn("proxy", command)?;
                let pid = proxy.pid();
                processes.extend([proxy, instance]);
                pid
            }
        };
        for process in &mut processes {
            await_answer(process, address)?;
        }
        for process in &processes {
            pin_all(process.pid(), OTHER_CPU)?;
        }
        pin(proxy, PROXY_CPU)?;
        Ok(Self {
            address,
            proxy,
            _processes: processes,
            _folder: folder,
        })
    }

    /// CPU time of the proxy's threads so far.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        bench::cpu_ns(self.proxy.as_raw())
    }

    /// Memory that the proxy holds, bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.proxy))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
        Ok(kibibytes.context("no VmRSS")? * 1024)
    }
}

/// An nginx that answers without a look at a file, or with one of `/size/BYTES`.
pub(crate) fn instance(peers: &Peers, at: &Path, listen: &str) -> Result<Command> {
    let root = at.join("www");
    fs::create_dir_all(root.join("size"))?;
    for size in [8 * 1024, 64 * 1024] {
        fs::write(root.join(format!("size/{size}")), vec![b'x'; size])?;
    }
    let small = "x".repeat(96);
    let temp = temp_paths(at, "instance");
    let configuration = format!(
        "daemon off; master_process off; worker_processes 1; error_log stderr crit; pid {at}/instance.pid; \
         worker_rlimit_nofile 20000; events {{ worker_connections 12000; }} \
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 3600; tcp_nodelay on; {temp} \
         server {{ listen {listen} backlog=4096; \
         location /size {{ root {root}; sendfile on; open_file_cache max=10; }} \
         location / {{ default_type text/plain; return 200 '{small}'; }} }} }}",
        at = at.display(),
        root = root.display(),
    );
    nginx_by(peers, at, "instance", &configuration)
}

fn nginx_by(peers: &Peers, at: &Path, name: &str, configuration: &str) -> Result<Command> {
    let file = at.join(format!("{name}.conf"));
    fs::write(&file, configuration)?;
    let mut command = peers.command("nginx")?;
    command.args(["-e", "stderr", "-p"]).arg(at);
    command.arg("-c").arg(file);
    Ok(command)
}

/// Where nginx would keep what doesn't fit in memory.
fn temp_paths(at: &Path, name: &str) -> String {
    let mut paths = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        // Writing to a string can't fail.
        write!(paths, "{kind}_temp_path {}/{name}-{kind}; ", at.display()).unwrap_or_default();
    }
    paths
}

/// The whole of SIM, with the instance as its workload and nothing to move it to.
fn start_sim(at: &Path, address: SocketAddr) -> Result<Guarded> {
    let program = std::env::var_os("SIM_BIN")
        .context("SIM_BIN is not set; `cargo xtask bench proxy` sets it")?;
    // Its port is known when it starts.
    let own = std::env::current_exe()?;
    let command = [
        own.to_string_lossy().into_owned(),
        "instance".to_owned(),
        "{address}:{port}".to_owned(),
        at.to_string_lossy().into_owned(),
    ];
    let admin = free_address()?;
    let variable = |name| std::env::var(name).with_context(|| format!("{name} is not set"));
    let (root, libraries) = (variable("SIM_PEERS")?, variable("SIM_PEERS_LIBRARIES")?);
    let configuration = format!(
        "runtime_dir = {runtime:?}\ndata_dir = {state:?}\ncgroup = \"sim-bench-proxy-{own}\"\n\
         [proxy]\nlisten = \"{address}\"\nadmin = \"{admin}\"\n\
         [[server]]\nname = \"one\"\ncpus = 2.0\n\
         [[workload]]\nname = \"echo\"\nhome = \"one\"\ncpus = 2.0\nstandby = \"none\"\n\
         command = {command:?}\nenvironment = {{ SIM_PEERS = {root:?}, SIM_PEERS_LIBRARIES = {libraries:?} }}\n\
         slo = {{ bound_ms = 100 }}\n",
        runtime = at.join("run"),
        state = at.join("state"),
        own = std::process::id(),
    );
    let file = at.join("sim.toml");
    fs::write(&file, configuration)?;
    let mut run = Command::new(program);
    run.arg("run").arg("--config").arg(&file);
    let run = spawn("sim run", run)?;
    Ok(run)
}

fn nginx(peers: &Peers, at: &Path, address: SocketAddr, upstream: SocketAddr) -> Result<Command> {
    let temp = temp_paths(at, "nginx");
    let configuration = format!(
        "daemon off; master_process off; worker_processes 1; error_log stderr crit; pid {at}/nginx.pid; \
         worker_rlimit_nofile 20000; events {{ worker_connections 16000; }} \
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 3600; tcp_nodelay on; {temp} \
         upstream u {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 3600s; }} \
         server {{ listen {address} backlog=4096; location / {{ proxy_pass http://u; proxy_http_version 1.1; \
         proxy_set_header Connection ''; proxy_set_header Host $host; \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; \
         proxy_connect_timeout 1s; proxy_read_timeout 60s; proxy_next_upstream error timeout; \
         proxy_next_upstream_tries 2; }} }} }}",
        at = at.display(),
    );
    nginx_by(peers, at, "nginx", &configuration)
}

fn haproxy(peers: &Peers, at: &Path, address: SocketAddr, upstream: SocketAddr) -> Result<Command> {
    let configuration = format!(
        "global\n  nbthread 1\n  maxconn 9000\n\
         defaults\n  mode http\n  timeout connect 1s\n  timeout client 3600s\n  timeout server 60s\n\
         \x20 timeout http-keep-alive 3600s\n  option http-keep-alive\n  http-reuse always\n  retries 2\n\
         \x20 option redispatch 1\n  option forwardfor\n\
         \x20 retry-on conn-failure empty-response response-timeout\n\
         frontend f\n  bind {address} backlog 4096\n  default_backend b\n\
         backend b\n  balance roundrobin\n  option httpchk GET /\n\
         \x20 default-server pool-max-conn -1 pool-purge-delay 3600s check inter 1s fall 2 rise 2\n\
         \x20 server a {upstream}\n"
    );
    let file = at.join("haproxy.cfg");
    fs::write(&file, configuration)?;
    let mut command = peers.command("haproxy")?;
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

fn envoy(peers: &Peers, at: &Path, address: SocketAddr, upstream: SocketAddr) -> Result<Command> {
    let socket = |address: SocketAddr| {
        format!(
            "{{ socket_address: {{ address: {}, port_value: {} }} }}",
            address.ip(),
            address.port()
        )
    };
    let configuration = format!(
        r#"
node: {{ id: bench, cluster: bench }}
static_resources:
  listeners:
  - name: users
    address: {users}
    tcp_backlog_size: 4096
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: users
          codec_type: HTTP1
          generate_request_id: false
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route:
                  cluster: instance
                  timeout: 60s
                  retry_policy: {{ retry_on: "connect-failure,refused-stream,reset", num_retries: 2 }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: instance
    type: STATIC
    connect_timeout: 1s
    circuit_breakers: {{ thresholds: [ {{ max_connections: 16000, max_pending_requests: 16000, max_requests: 16000 }} ] }}
    outlier_detection: {{ consecutive_5xx: 5 }}
    load_assignment:
      cluster_name: instance
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {instance} }} }} ] }} ]
"#,
        users = socket(address),
        instance = socket(upstream),
    );
    let file = at.join("envoy.yaml");
    fs::write(&file, configuration)?;
    let mut command = peers.command("envoy")?;
    command.args([
        "--concurrency",
        "1",
        "--log-level",
        "error",
        "--disable-hot-restart",
        "-c",
    ]);
    command.arg(file);
    Ok(command)
}

fn spawn(name: &'static str, mut command: Command) -> Result<Guarded> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let placement = Placement {
        netns: None,
        cgroups: Vec::new(),
    };
    Ok(Guarded::spawn(
        name,
        command,
        placement,
        Signal::SIGTERM,
        Duration::from_secs(10),
    )?)
}

/// Waits for a good answer.
fn await_answer(process: &mut Guarded, address: SocketAddr) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            let asked =
                stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
            let mut answer = Vec::new();
            // It may not be ready yet.
            let read = asked.and_then(|()| stream.read_to_end(&mut answer));
            if read.is_ok() && answer.starts_with(b"HTTP/1.1 200") {
                return Ok(());
            }
        }
        if let Some(end) = process.ended() {
            bail!("{end}");
        }
        ensure!(Instant::now() < deadline, "no good answer on {address}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The process that `sim run` started for a role.
fn role(run: Pid, role: &str) -> Result<Pid> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let children = fs::read_to_string(format!("/proc/{run}/task/{run}/children"))?;
        for child in children.split_whitespace() {
            let words = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if words
                .split(|&byte| byte == 0)
                .any(|word| word == role.as_bytes())
            {
                return Ok(Pid::from_raw(child.parse()?));
            }
        }
        ensure!(Instant::now() < deadline, "no {role} below {run}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Keeps a process and all below it on one core.
fn pin_all(pid: Pid, cpu: usize) -> Result<()> {
    pin(pid, cpu)?;
    for thread in threads(pid)? {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"))?;
        for child in children.split_whitespace() {
            pin_all(Pid::from_raw(child.parse()?), cpu)?;
        }
    }
    Ok(())
}

fn threads(pid: Pid) -> Result<Vec<i32>> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&folder).with_context(|| folder.clone())?;
    let mut threads = Vec::new();
    for entry in entries {
        threads.extend(entry?.file_name().to_string_lossy().parse::<i32>().ok());
    }
    Ok(threads)
}

/// Keeps all threads of a process on one core.
fn pin(pid: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    for thread in threads(pid)? {
        sched_setaffinity(Pid::from_raw(thread), &set)?;
    }
    Ok(())
}
