//! The configuration: TOML in, validated values out. Nothing else of the program sees raw ones.

mod access_log;
mod addresses;
mod check;
mod describe;
mod drain;
mod file;
mod front;
mod hold;
mod limits;
mod mirror;
mod paths;
mod returns;
mod route;
mod tell;
mod tls;
mod upstream;
mod validate;
mod workload;

use limits::Limits;
use sim_control::ControlConfig;
use sim_core::name::ProxyName;
use sim_core::policy::Policy;
use sim_core::server::ServerSpec;
use sim_core::workload::WorkloadSpec;
use sim_node::NodeConfig;
use sim_node::cgroup::Hierarchy;
use sim_proxy::ProxyConfig;
use sim_proxy::access_log::{AccessLogSettings, Destination};
use sim_proxy::config::{
    CheckSettings, EjectSettings, HedgeSettings, HoldSettings, MirrorSettings, Protocol,
    WorkloadSettings,
};
use sim_proxy::forwarded::ForwardSettings;
use sim_proxy::matching::Condition;
use sim_proxy::sticky::Sticky;
use sim_proxy::tls::{Certificates, InstanceTlsSettings, TlsSettings};
use sim_proxy::trace::TraceSettings;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One line: which file, which key, what is allowed.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub(crate) struct ConfigError {
    pub(crate) path: String,
    pub(crate) problem: String,
}

/// A server of the pool and where its node runs.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) spec: ServerSpec,
    pub(crate) netns: Option<PathBuf>,
    /// Where its node serves metrics, if it does.
    pub(crate) metrics: Option<SocketAddr>,
}

/// The proxy.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    /// At least one of this and `tls` is there.
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) tls: Option<TlsSettings>,
    pub(crate) admin: SocketAddr,
    pub(crate) threads: usize,
    pub(crate) policy: sim_proxy::policy::Policy,
    pub(crate) sticky: Option<Sticky>,
    pub(crate) hedge: HedgeSettings,
    pub(crate) eject: EjectSettings,
    pub(crate) check: Option<CheckSettings>,
    pub(crate) hold: Option<HoldSettings>,
    pub(crate) forward: ForwardSettings,
    pub(crate) trace: Option<TraceSettings>,
    pub(crate) mirror: MirrorSettings,
    /// How long what is being answered may go on at an instance that lost its weight.
    pub(crate) stream_grace: Duration,
    /// How long a proxy that was relieved may take to end.
    pub(crate) upgrade_drain: Duration,
    pub(crate) limits: Limits,
    pub(crate) access_log: Option<AccessLogSettings>,
}

/// A workload and which requests are its.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) spec: WorkloadSpec,
    /// Without any, each that is no other's.
    pub(crate) conditions: Vec<Condition>,
    /// What its instances speak.
    pub(crate) protocol: Protocol,
    /// How they are spoken to over TLS; none: in the clear.
    pub(crate) tls: Option<InstanceTlsSettings>,
}

impl Front {
    /// Where users connect.
    pub(crate) fn urls(&self) -> String {
        let clear = self.listen.map(|listen| format!("http://{listen}"));
        let tls = self.tls.as_ref();
        let tls = tls.map(|tls| format!("https://{}", tls.listen));
        let urls: Vec<_> = clear.into_iter().chain(tls).collect();
        urls.join(" and ")
    }
}

/// A valid configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) path: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) cgroup: String,
    pub(crate) probes_object: Option<PathBuf>,
    pub(crate) probe_budget_percent: f64,
    pub(crate) front: Front,
    pub(crate) servers: Vec<Server>,
    /// At least one.
    pub(crate) workloads: Vec<Workload>,
    pub(crate) policy: Policy,
}

impl Config {
    /// Reads and validates a file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            path: path.display().to_string(),
            problem: format!("can't be read: {error}"),
        })?;
        let mut raw = file::parse(path, &text)?;
        paths::anchor(&mut raw, path);
        validate::validate(path, raw)
    }

    fn problem(&self, problem: String) -> ConfigError {
        ConfigError {
            path: self.path.display().to_string(),
            problem,
        }
    }

    /// What only this machine can tell, before anything is started: files are there, and the addresses,
    /// the control socket and the cgroups are free.
    pub(crate) fn check_machine(&self) -> Result<(), ConfigError> {
        let socket = self.control_socket();
        if UnixStream::connect(&socket).is_ok() {
            return Err(self.problem(format!(
                "runtime_dir: SIM runs here already: another control plane listens on {}; give each run its own directory",
                socket.display()
            )));
        }
        self.check_files()?;
        let front = &self.front;
        let tls = front.tls.as_ref().map(|tls| tls.listen);
        let addresses = [
            ("listen", front.listen),
            ("tls.listen", tls),
            ("admin", Some(front.admin)),
        ];
        for (key, address) in addresses {
            let Some(address) = address else { continue };
            if let Err(error) = TcpListener::bind(address) {
                return Err(self.problem(format!(
                    "proxy.{key}: {address} can't be listened on ({error}); give a free address of this machine"
                )));
            }
        }
        let hierarchy = Hierarchy::detect().unwrap_or_default();
        let taken = self
            .servers
            .iter()
            .map(|server| format!("{}/{}", self.cgroup, server.spec.name))
            .find(|name| hierarchy.is_held(name));
        if let Some(name) = taken {
            return Err(self.problem(format!(
                "cgroup: another node runs in {name}; give each run a cgroup of its own"
            )));
        }
        Ok(())
    }

    /// Files and directories that the configuration names: the program can be executed, namespaces and
    /// the probes' object can be read, directories can be made.
    pub(crate) fn check_files(&self) -> Result<(), ConfigError> {
        for workload in &self.workloads {
            let program = workload.spec.command.first().map_or("", String::as_str);
            if is_program(program) {
                continue;
            }
            return Err(self.problem(format!(
                "workload.command: {program:?} is no program that can be executed here; give a path or a name found in PATH"
            )));
        }
        for (at, server) in self.servers.iter().enumerate() {
            if let Some(path) = &server.netns
                && let Err(error) = std::fs::File::open(path)
            {
                return Err(self.problem(format!(
                    "server[{at}].netns: {} can't be opened ({error}); give the path of a network namespace, such as /run/netns/NAME",
                    path.display()
                )));
            }
        }
        if let Some(path) = &self.probes_object
            && let Err(error) = std::fs::File::open(path)
        {
            return Err(self.problem(format!(
                "probes_object: {} can't be read ({error}); `cargo xtask ebpf` makes it, and without this key it is looked for beside the program",
                path.display()
            )));
        }
        if let Some(tls) = &self.front.tls {
            Certificates::read(tls).map_err(|fault| self.problem(fault.to_string()))?;
        }
        for Workload { spec, tls, .. } in &self.workloads {
            if let Some(tls) = tls {
                let checked = tls.check(&spec.name);
                checked.map_err(|fault| self.problem(fault.to_string()))?;
            }
        }
        let log = self.front.access_log.as_ref().map(|log| &log.to);
        if let Some(Destination::File(path)) = log
            && let Err(error) = access_log::check(path)
        {
            return Err(self.problem(format!(
                "proxy.access_log.path: {} can't be written ({error}); give a file in a directory that you may write",
                path.display()
            )));
        }
        for (key, dir) in [
            ("data_dir", &self.data_dir),
            ("runtime_dir", &self.runtime_dir),
        ] {
            if let Err(error) = can_be_made(dir) {
                return Err(self.problem(format!(
                    "{key}: {} can't be used ({error}); give a directory that you may write",
                    dir.display()
                )));
            }
        }
        Ok(())
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join("control.sock")
    }

    /// Where `sim run` is asked for an upgrade.
    pub(crate) fn run_socket(&self) -> PathBuf {
        self.runtime_dir.join("run.sock")
    }

    /// Where the proxy waits for a successor.
    pub(crate) fn handover_socket(&self) -> PathBuf {
        self.runtime_dir.join("proxy.sock")
    }

    /// Where a server's node offers its life flags.
    fn life_socket(&self, server: &Server) -> PathBuf {
        self.runtime_dir
            .join(format!("life-{}.sock", server.spec.name))
    }

    /// Makes the directories, readable by this user alone.
    pub(crate) fn make_dirs(&self) -> Result<(), ConfigError> {
        for (key, dir) in [
            ("data_dir", &self.data_dir),
            ("runtime_dir", &self.runtime_dir),
        ] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|error| {
                    self.problem(format!(
                        "{key}: {} can't be made ({error}); give a directory that you may write",
                        dir.display()
                    ))
                })?;
        }
        Ok(())
    }

    /// What all roles share and none removes alone.
    pub(crate) fn remove_leftovers(&self) {
        self.remove_sockets();
        let hierarchy = match Hierarchy::detect() {
            Ok(hierarchy) => hierarchy,
            Err(error) => return tracing::debug!("cgroup {}: {error}", self.cgroup),
        };
        for server in &self.servers {
            let name = format!("{}/{}", self.cgroup, server.spec.name);
            // A node that had to be killed could not clear its own. One of another run is locked.
            if let Err(error) = hierarchy.remove(&name) {
                tracing::error!("cgroup {name}: {error}");
            }
        }
        hierarchy.remove_empty(&self.cgroup);
    }

    /// Sockets of instances whose node had to be killed.
    fn remove_sockets(&self) {
        let Ok(files) = std::fs::read_dir(&self.runtime_dir) else {
            return;
        };
        let left = files.flatten().filter(|file| {
            let name = file.file_name();
            let name = name.to_str();
            let id = name.and_then(|name| name.strip_prefix('i')?.strip_suffix(".sock"));
            id.is_some_and(|id| id.parse::<u64>().is_ok())
        });
        for file in left {
            if let Err(error) = std::fs::remove_file(file.path()) {
                tracing::error!("{}: {error}", file.path().display());
            }
        }
    }

    /// For the control plane.
    pub(crate) fn control(&self) -> ControlConfig {
        ControlConfig {
            socket: self.control_socket(),
            data_dir: self.data_dir.clone(),
            policy: self.policy.clone(),
            servers: self.servers.iter().map(|s| s.spec.clone()).collect(),
            workloads: self.workloads.iter().map(|w| w.spec.clone()).collect(),
        }
    }

    /// For one server's node.
    pub(crate) fn node(&self, server: &Server, launcher: PathBuf) -> NodeConfig {
        NodeConfig {
            server: server.spec.name.clone(),
            address: server.spec.address,
            cpus: server.spec.cpus,
            cgroup: self.cgroup.clone(),
            control_socket: self.control_socket(),
            probes_object: self
                .probes_object
                .clone()
                .or_else(|| installed_object(&launcher)),
            launcher,
            life_socket: self.life_socket(server),
            probe_budget_percent: self.probe_budget_percent,
            metrics: server.metrics,
            tick: self.policy.step(),
            socket_dir: self.runtime_dir.clone(),
            secured: self
                .workloads
                .iter()
                .filter_map(upstream::secured)
                .collect(),
        }
    }

    /// For the proxy.
    pub(crate) fn proxy(&self) -> Result<ProxyConfig, ConfigError> {
        let name = ProxyName::new("proxy").map_err(|e| self.problem(e.to_string()))?;
        let workload = |workload: &Workload| WorkloadSettings {
            name: workload.spec.name.clone(),
            conditions: workload.conditions.clone(),
            protocol: workload.protocol,
            tls: workload.tls.clone(),
        };
        let mut proxy = ProxyConfig::new(
            name,
            self.workloads.iter().map(workload).collect(),
            self.front.listen,
            self.front.admin,
            self.control_socket(),
        );
        proxy.tls.clone_from(&self.front.tls);
        proxy.threads = self.front.threads;
        proxy.hedge = self.front.hedge;
        proxy.eject = self.front.eject;
        proxy.check.clone_from(&self.front.check);
        proxy.hold = self.front.hold;
        proxy.forward.clone_from(&self.front.forward);
        proxy.trace = self.front.trace;
        proxy.mirror.clone_from(&self.front.mirror);
        proxy.handover_socket = Some(self.handover_socket());
        proxy.stream_grace = self.front.stream_grace;
        proxy.upgrade_drain_timeout = self.front.upgrade_drain;
        proxy.access_log.clone_from(&self.front.access_log);
        proxy.limits = self.front.limits.settings;
        proxy.client_idle_timeout = self.front.limits.idle_timeout;
        proxy.policy = self.front.policy;
        proxy.sticky.clone_from(&self.front.sticky);
        proxy.life_sockets = self.servers.iter().map(|s| self.life_socket(s)).collect();
        Ok(proxy)
    }
}

/// Whether `program` is a path to, or names in PATH, an executable file.
fn is_program(program: &str) -> bool {
    let executable = |path: &Path| {
        path.is_file() && sim_node::cgroup::may(path, nix::unistd::AccessFlags::X_OK).is_ok()
    };
    if program.contains('/') {
        return executable(Path::new(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    !program.is_empty() && std::env::split_paths(&path).any(|dir| executable(&dir.join(program)))
}

/// Whether this user may make `dir`, or write it where it is there.
fn can_be_made(dir: &Path) -> Result<(), nix::errno::Errno> {
    let there = dir.ancestors().find(|path| path.exists());
    let there = there.filter(|path| !path.as_os_str().is_empty());
    let there = there.unwrap_or(Path::new("."));
    if !there.is_dir() {
        return Err(nix::errno::Errno::ENOTDIR);
    }
    sim_node::cgroup::may(there, nix::unistd::AccessFlags::W_OK)
}

/// The probes' object where it is installed: beside the program, or where packages put it.
pub(crate) fn installed_object(program: &Path) -> Option<PathBuf> {
    let named = std::env::var_os("SIM_EBPF_OBJECT").map(PathBuf::from);
    let beside = program.parent().map(|dir| dir.join("sim-ebpf.o"));
    let packaged = Some(PathBuf::from("/usr/lib/sim/sim-ebpf.o"));
    [named, beside, packaged]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
}
