//! What a proxy is told: validated values alone. The TOML they come from is read by crate `sim`.

mod check;
mod eject;
mod hold;

pub use check::{CheckKind, CheckSettings};
pub use eject::EjectSettings;
pub use hold::HoldSettings;

use crate::access_log::AccessLogSettings;
use crate::forwarded::ForwardSettings;
use crate::limits::LimitSettings;
use crate::matching::Condition;
use crate::policy::Policy;
use crate::snapshot::MirrorTo;
use crate::sticky::Sticky;
use crate::tls::{InstanceTlsSettings, TlsSettings};
use crate::trace::TraceSettings;
use sim_core::name::{ProxyName, WorkloadName};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How long an idle user connection is kept unless told.
pub const CLIENT_IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// How long streams are left at an instance that gets no new requests, unless told: shorter than the control plane waits
/// for such an instance to have none (`policy.drain_timeout_ms`), so that it ends without any, and without that wait.
pub const STREAM_GRACE: Duration = Duration::from_secs(25);

/// Everything that one proxy process needs to know.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Names this process to the control plane.
    pub name: ProxyName,
    /// The workloads served here, at least one. No two may have a condition in common: [`crate::matching::shared`].
    pub workloads: Vec<WorkloadSettings>,
    /// Where users connect in the clear. Port 0 takes any free one, see [`crate::Proxy::listen_address`].
    pub listen: Option<SocketAddr>,
    /// How they are served over TLS.
    pub tls: Option<TlsSettings>,
    /// Where `/metrics`, `/live` and `/ready` are served.
    pub admin: SocketAddr,
    /// The control plane's Unix socket.
    pub control_socket: PathBuf,
    /// Where the nodes of this machine offer their life flags; may be none.
    pub life_sockets: Vec<PathBuf>,
    /// Worker threads of the data plane, at least 1.
    pub threads: usize,
    /// Time between two reports to the control plane.
    pub report_interval: Duration,
    /// How long requests in flight may take to end after the stop signal.
    pub drain_timeout: Duration,
    /// Where a successor asks for the listeners; none: it can't.
    pub handover_socket: Option<PathBuf>,
    /// How long what was accepted may take to end once a successor serves.
    pub upgrade_drain_timeout: Duration,
    /// How long what is being answered may go on at an instance that gets no new requests.
    pub stream_grace: Duration,
    /// How long an idle user connection is kept, at least a second.
    pub client_idle_timeout: Duration,
    /// How long a user may take nothing of an answer.
    pub client_write_timeout: Duration,
    /// What counts beyond the weights.
    pub policy: Policy,
    /// What makes requests stay with an instance; none: nothing does.
    pub sticky: Option<Sticky>,
    /// What instances are told of who asked.
    pub forward: ForwardSettings,
    /// How requests are traced; none: what comes of it passes as it is.
    pub trace: Option<TraceSettings>,
    /// Towards instances.
    pub upstream: UpstreamSettings,
    /// Second attempts.
    pub retry: RetrySettings,
    /// Asking a second instance before the first has failed.
    pub hedge: HedgeSettings,
    /// Active checks; none: nobody is asked.
    pub check: Option<CheckSettings>,
    /// Waiting while no instance is ready; none: nobody waits.
    pub hold: Option<HoldSettings>,
    /// Passive ejection.
    pub eject: EjectSettings,
    /// Copies of requests whose answers are thrown away.
    pub mirror: MirrorSettings,
    /// What one user may take.
    pub limits: LimitSettings,
    /// Which requests are logged, and where; none: nowhere.
    pub access_log: Option<AccessLogSettings>,
}

/// One workload behind the proxy.
#[derive(Clone, Debug)]
pub struct WorkloadSettings {
    /// Which.
    pub name: WorkloadName,
    /// A request for which one of them holds is its; without any, each that is no other's.
    pub conditions: Vec<Condition>,
    /// What its instances speak.
    pub protocol: Protocol,
    /// How they are spoken to over TLS; none: in the clear.
    pub tls: Option<InstanceTlsSettings>,
}

impl From<WorkloadName> for WorkloadSettings {
    /// One that asks for nothing.
    fn from(name: WorkloadName) -> Self {
        Self {
            name,
            conditions: Vec::new(),
            protocol: Protocol::default(),
            tls: None,
        }
    }
}

impl ProxyConfig {
    /// A proxy with the default settings. Without `listen` it has to be given [`Self::tls`].
    #[must_use]
    pub fn new(
        name: ProxyName,
        workloads: Vec<WorkloadSettings>,
        listen: impl Into<Option<SocketAddr>>,
        admin: SocketAddr,
        control_socket: PathBuf,
    ) -> Self {
        Self {
            name,
            workloads,
            listen: listen.into(),
            tls: None,
            admin,
            control_socket,
            life_sockets: Vec::new(),
            threads: 1,
            report_interval: Duration::from_millis(200),
            drain_timeout: Duration::from_secs(5),
            stream_grace: STREAM_GRACE,
            client_idle_timeout: CLIENT_IDLE_TIMEOUT,
            client_write_timeout: Duration::from_secs(60),
            handover_socket: None,
            upgrade_drain_timeout: Duration::from_secs(600),
            policy: Policy::default(),
            sticky: None,
            forward: ForwardSettings::default(),
            trace: None,
            upstream: UpstreamSettings::default(),
            retry: RetrySettings::default(),
            hedge: HedgeSettings::default(),
            check: None,
            hold: None,
            eject: EjectSettings::default(),
            mirror: MirrorSettings::default(),
            limits: LimitSettings::default(),
            access_log: None,
        }
    }
}

/// What instances speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, by prior knowledge or, over TLS, by ALPN: what gRPC needs.
    Http2,
}

/// Protocols by the names that a configuration has for them.
pub const PROTOCOLS: [(Protocol, &str); 2] = [(Protocol::Http1, "http1"), (Protocol::Http2, "h2")];

/// Connections to instances.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamSettings {
    /// For a connection, TLS included.
    pub connect_timeout: Duration,
    /// Between two reads of an answer; also the wait for its first byte.
    pub read_timeout: Duration,
    /// For one write of a request.
    pub write_timeout: Duration,
    /// How long an idle connection may wait for the next request. Must be shorter than the
    /// instance's own keep-alive, or a request may meet a connection that the instance is just
    /// closing, and one that isn't idempotent can't be sent again. The shortest common default
    /// is gunicorn's 2 s (Node.js and uvicorn: 5 s).
    pub idle_timeout: Duration,
    /// Idle connections kept in all.
    pub idle_connections_max: usize,
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_millis(1_500),
            idle_connections_max: 1_024,
        }
    }
}

/// Second attempts at one request.
#[derive(Clone, Copy, Debug)]
pub struct RetrySettings {
    /// Attempts per request, the first included.
    pub attempts_max: u8,
    /// Retries per 100 requests of the window.
    pub budget_percent: u32,
    /// Retries per second of the window that are always allowed: at low rates a percentage is no
    /// retry at all, and the requests in flight on a dying instance fail in one burst.
    pub floor_per_second: u32,
    /// Length of the window.
    pub window: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            attempts_max: 2,
            budget_percent: 20,
            floor_per_second: 10,
            window: Duration::from_secs(10),
        }
    }
}

/// When a request that has no answer yet is sent to a second instance as well.
#[derive(Clone, Copy, Debug)]
pub struct HedgeSettings {
    /// Once it has waited longer than this share of the workload's requests of late take, 0.5 to 0.9999; 0 = never.
    pub quantile: f64,
    /// But no sooner than after this.
    pub floor: Duration,
    /// One that can't be sent to two at once is given up where it is and asked elsewhere after so many times as long; 2
    /// to 1000.
    pub late_factor: u32,
}

impl Default for HedgeSettings {
    fn default() -> Self {
        Self {
            quantile: 0.99,
            floor: Duration::from_millis(20),
            late_factor: 10,
        }
    }
}

/// What is copied, and where to.
#[derive(Clone, Debug)]
pub struct MirrorSettings {
    /// Where copies go while the table names no mirror.
    pub fixed: Option<MirrorTo>,
    /// Requests that may have effects are copied as well: all but GET, HEAD and OPTIONS.
    pub unsafe_methods: bool,
    /// What the mirror answers is compared with what the user got.
    pub compare: bool,
    /// How long a copy may take, its connection included.
    pub timeout: Duration,
}

impl Default for MirrorSettings {
    fn default() -> Self {
        Self {
            fixed: None,
            unsafe_methods: false,
            compare: false,
            timeout: Duration::from_secs(5),
        }
    }
}
