//! The data plane: splits each workload's requests over its instances by the weight table, retries
//! and ejects on its own, and reports what it sees.
//!
//! Pingora carries listeners, HTTP and connection pools. Its load balancer is not used: weights
//! are part of a backend's identity there, its round robin is bursty and all-zero weights panic.
//!
//! A request's way: the [`fast`] path, or the general one ([`gateway`]) for all that is rare;
//! [`matching`] tells whose it is of the [`workloads`]; that one's [`routes`] load the one [`snapshot`], [`pick`] chooses by the turns of its
//! [`schedule`], counters go to the instance's [`live`] state, failures to its [`health`].
//! The control session swaps snapshots; a request never waits for it.

pub mod access_log;
mod admin;
pub mod attempt;
mod budget;
mod check;
mod checked;
pub mod clock;
pub mod config;
mod counters;
mod cut;
mod dial;
mod dispatch;
mod drain;
mod errors;
mod exposition;
mod fast;
pub mod forwarded;
mod framing;
mod gateway;
mod grpc;
mod handover;
pub mod health;
mod hold;
mod http2;
mod instance_metrics;
mod life_feed;
pub mod limits;
mod links;
mod listener;
pub mod live;
pub mod matching;
mod metrics;
mod mirror;
pub mod network;
mod overdue;
mod pace;
pub mod pick;
pub mod policy;
mod quantiles;
mod ramp;
mod refusal;
mod report;
mod retry;
pub mod routes;
pub mod schedule;
mod session;
pub mod snapshot;
pub mod sticky;
mod stop;
mod sync;
mod tell;
pub mod tickets;
pub mod tls;
pub mod trace;
mod waiting;
mod window;
mod workloads;

pub use config::ProxyConfig;
#[cfg(any(test, feature = "fuzz"))]
pub use fast::invariants;

use access_log::{AccessLog, Rotation, Writer};
use admin::Admin;
use check::Checks;
use fast::FastPath;
use gateway::Gateway;
use handover::{Handover, Inheritance, Progress};
use life_feed::LifeFeed;
use listener::{Bound, bind, bind_users};
use overdue::Follow;
use pingora_core::listeners::ListenerConfig;
use pingora_core::protocols::l4::stream::L4BufferSettings;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::background::background_service;
use pingora_core::services::listening;
use pingora_proxy::http_proxy;
use session::ControlSessions;
use sim_api::v1;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use stop::Stop;
use tls::accept::Door;
use tls::instances::InstanceTls;
use tls::watch::Watch;
use tokio::sync::{Mutex, watch};
use workloads::Workloads;

/// Write buffer of one user connection, bytes: it stays allocated while the connection is idle. The fast path writes
/// past it; on the general one it joins what frames a chunk to the chunk.
const CLIENT_WRITE_BUFFER: usize = 1_024;

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// An address can't be listened on.
    #[error("{key} {address}: {}", reason(source))]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no proxy to relieve.
    #[error("no proxy can be relieved at {path}: {source}", path = path.display())]
    TakeOver {
        /// Where it was asked.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The access log can't be opened.
    #[error("proxy.access_log.path {}: {source}", path.display())]
    AccessLog {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Worker threads must be at least one.
    #[error("proxy.threads 0: at least 1 is needed")]
    NoThreads,
    /// Users need an address to connect to.
    #[error("proxy.listen: none, and no proxy.tls.listen; at least one is needed")]
    NoListener,
    /// A certificate or key isn't good.
    #[error(transparent)]
    Tls(#[from] tls::Fault),
}

fn reason(error: &std::io::Error) -> String {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::AddrInUse => "address already in use".to_owned(),
        K::AddrNotAvailable => "no interface of this machine has this address".to_owned(),
        K::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// Serves by `config` until SIGTERM, SIGINT or `shutdown`; see [`Proxy::run`].
///
/// # Errors
/// Where an address can't be listened on; nothing has been started then.
pub fn run(
    config: ProxyConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ProxyError> {
    Proxy::bind(config)?.run(shutdown);
    Ok(())
}

/// A proxy whose addresses are bound and that does not serve yet.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    /// By address.
    users: Vec<(String, TcpListener)>,
    admin: TcpListener,
    door: Option<Arc<Door>>,
    /// How the instances of each workload are spoken to, by its place.
    instances_tls: Vec<Option<Arc<InstanceTls>>>,
    tables: Vec<v1::RoutingTable>,
    predecessor: Option<UnixStream>,
    access_log: Option<(AccessLog, Writer)>,
}

impl Proxy {
    /// Binds the addresses of `config`.
    ///
    /// # Errors
    /// Where one can't be listened on, or a certificate isn't good.
    pub fn bind(config: ProxyConfig) -> Result<Self, ProxyError> {
        Self::with(config, None)
    }

    /// Takes the listeners and the tables of the proxy that waits at the handover socket of `config`, which serves on
    /// until this one does. Addresses that it doesn't listen on are bound.
    ///
    /// # Errors
    /// Where no proxy is there, or an address can't be listened on.
    pub fn take_over(config: ProxyConfig) -> Result<Self, ProxyError> {
        let path = config.handover_socket.clone().unwrap_or_default();
        let inheritance = handover::take(&path);
        let inheritance = inheritance.map_err(|source| ProxyError::TakeOver { path, source })?;
        Self::with(config, Some(inheritance))
    }

    /// As [`Proxy::take_over`], or as [`Proxy::bind`] where no proxy waits to be relieved.
    ///
    /// # Errors
    /// As theirs. Where one waits and can't be relieved nothing is bound.
    pub fn take_over_or_bind(config: ProxyConfig) -> Result<Self, ProxyError> {
        let bound = config.clone();
        match Self::take_over(config) {
            Err(ProxyError::TakeOver { source, .. })
                if matches!(
                    source.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                Self::bind(bound)
            }
            other => other,
        }
    }

    fn with(mut config: ProxyConfig, from: Option<Inheritance>) -> Result<Self, ProxyError> {
        let (mut inherited, tables, predecessor) = match from {
            Some(from) => (from.listeners, from.tables, Some(from.predecessor)),
            None => (Vec::new(), Vec::new(), None),
        };
        if config.threads == 0 {
            return Err(ProxyError::NoThreads);
        }
        let users = bind_users(&mut config, &mut inherited)?;
        let admin = bind("proxy.admin", config.admin, &mut inherited)?;
        // Whoever asked for port 0 got another.
        config.admin = admin.local_addr().unwrap_or(config.admin);
        let door = match &config.tls {
            Some(tls) => Some(Arc::new(Door::new(tls, config.listen.is_none())?)),
            None => None,
        };
        let instances_tls = config.workloads.iter().map(|workload| {
            let tls = workload.tls.as_ref();
            let tls = tls.map(|tls| InstanceTls::new(&workload.name, tls).map(Arc::new));
            tls.transpose()
        });
        let instances_tls = instances_tls.collect::<Result<_, _>>()?;
        let access_log = config.access_log.clone().map(|settings| {
            let path = settings.to.path();
            AccessLog::open(settings).map_err(|source| ProxyError::AccessLog { path, source })
        });
        Ok(Self {
            access_log: access_log.transpose()?,
            config,
            users,
            admin,
            door,
            instances_tls,
            tables,
            predecessor,
        })
    }

    /// Where users connect in the clear.
    #[must_use]
    pub fn listen_address(&self) -> Option<SocketAddr> {
        self.config.listen
    }

    /// Where they connect over TLS.
    #[must_use]
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.config.tls.as_ref().map(|tls| tls.listen)
    }

    /// Where metrics are served.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.config.admin
    }

    /// Serves until SIGTERM, SIGINT or `shutdown`, then lets requests in flight end, for the
    /// drain timeout at most (a second signal cuts them). Blocks; must not be called inside a
    /// Tokio runtime, as it starts its own, one for each service.
    pub fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) {
        let Self {
            config,
            users,
            admin,
            door,
            instances_tls,
            tables,
            predecessor,
            access_log,
        } = self;
        // Once all else is over, its last lines are written.
        let (access_log, _writer) = access_log.unzip();
        let access_log = access_log.map(Arc::new);
        let workloads = Workloads::new(&config, &instances_tls).logged_to(access_log.clone());
        let workloads = Arc::new(workloads);
        workloads.inherit(tables);
        let progress = Arc::new(Progress::new(predecessor.is_some()));
        let (stop, stopped) = watch::channel(false);
        let (idle, idle_closes) = watch::channel(false);
        // Where one can't be cloned there is no descriptor left, and no successor to hand it to.
        let listeners = users.iter().map(|(_, listener)| listener).chain([&admin]);
        let listeners = listeners.flat_map(TcpListener::try_clone).collect();
        // Neither daemon nor upgrade is asked for, so Pingora writes no pid file and no socket.
        let mut server = Server::new_with_opt_and_conf(
            None,
            ServerConf {
                threads: config.threads,
                // A connection stays on its thread: 1.4 times the requests per CPU second.
                work_stealing: false,
                upstream_keepalive_pool_size: config.upstream.idle_connections_max,
                // Of those we allow, see `Dispatch::may_retry`.
                max_retries: usize::from(config.retry.attempts_max) + 1,
                ..ServerConf::default()
            },
        );

        let gateway = Gateway::new(&config, workloads.clone());
        let general = Arc::new(http_proxy(&server.configuration, gateway));
        let fast = FastPath::new(
            &config,
            workloads.clone(),
            general,
            door.clone(),
            idle_closes,
        );
        let mut proxy = listening::Service::new("proxy".to_owned(), fast);
        let buffer = L4BufferSettings::unbuffered().write(CLIENT_WRITE_BUFFER);
        for (address, _) in &users {
            proxy.add_listener(ListenerConfig::tcp(address.clone()).l4_buffer(buffer));
        }
        server.add_service(Bound {
            service: proxy,
            listeners: users,
            stop: stopped.clone(),
            progress: progress.clone(),
        });

        let app = Admin {
            workloads: workloads.clone(),
            door: door.clone(),
        };
        let mut metrics = listening::Service::new("admin".to_owned(), app);
        metrics.threads = Some(1);
        let address = config.admin.to_string();
        metrics.add_tcp(&address);
        server.add_service(Bound {
            service: metrics,
            listeners: vec![(address, admin)],
            stop: stopped.clone(),
            progress: progress.clone(),
        });

        let handover = Handover {
            path: config.handover_socket.clone(),
            predecessor: predecessor.into(),
            listeners: std::sync::Mutex::new(listeners),
            services: 2,
            workloads: workloads.clone(),
            progress: progress.clone(),
            stopped,
        };
        server.add_service(background_service("handover", handover));

        if let Some(door) = &door {
            let watch = Watch(door.watched());
            server.add_service(background_service("certificates", watch));
        }
        for tls in instances_tls.into_iter().flatten() {
            server.add_service(background_service("instances' certificates", Watch(tls)));
        }

        // Also where there is no log: by default the signal would end the process.
        server.add_service(background_service("hang-ups", Rotation { log: access_log }));

        let follow = Follow {
            settings: config.hedge,
            workloads: workloads.clone(),
        };
        server.add_service(background_service("latency quantiles", follow));

        if let Some(settings) = config.check.clone() {
            let checks = Checks {
                settings,
                workloads: workloads.clone(),
            };
            server.add_service(background_service("checks", checks));
        }

        let feed = LifeFeed {
            sockets: config.life_sockets.clone(),
            workloads: workloads.clone(),
        };
        server.add_service(background_service("life flags", feed));

        let (drain_timeout, upgrade_drain_timeout) =
            (config.drain_timeout, config.upgrade_drain_timeout);
        let sessions = ControlSessions {
            config: Arc::new(config),
            workloads: workloads.clone(),
            progress: progress.clone(),
        };
        server.add_service(background_service("control sessions", sessions));

        let requested = Mutex::new(Box::pin(shutdown) as _);
        let stop = Stop {
            requested,
            services: stop,
            workloads,
            drain_timeout,
            relieved: progress.relieved.subscribe(),
            upgrade_drain_timeout,
            idle,
        };
        server.run(RunArgs {
            shutdown_signal: Box::new(stop),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_one_clean_line() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound");
        let config = ProxyConfig::new(
            sim_core::name::ProxyName::new("p").expect("valid"),
            vec![
                sim_core::name::WorkloadName::new("web")
                    .expect("valid")
                    .into(),
            ],
            address,
            SocketAddr::from(([127, 0, 0, 1], 0)),
            "/nonexistent".into(),
        );
        let error = run(config, std::future::ready(())).expect_err("in use");
        assert_eq!(
            error.to_string(),
            format!("proxy.listen {address}: address already in use")
        );
    }
}
