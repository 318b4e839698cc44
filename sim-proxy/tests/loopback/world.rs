//! A proxy, its control plane, and its users.

use crate::control::Control;
use crate::process::{ProxyProcess, TLS};
use crate::secure::{Connector, NAME, Way, Wire, clear, over_tls};
use crate::upstream::Upstream;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::Signal;
use sim_core::address::Address;
use sim_core::name::{InstanceId, WorkloadName};
use sim_core::table::{Share, Version, WeightTable};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tower::ServiceExt as _;

/// How long is waited for what comes in a moment, unless the machine has much else to do: only who would wait for ever
/// notices.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    /// Where users connect in the clear.
    pub(crate) proxy: SocketAddr,
    /// Where they connect over TLS, if they can.
    pub(crate) secure: Option<SocketAddr>,
    pub(crate) admin: SocketAddr,
    /// How its clients connect.
    way: Way,
    pub(crate) socket: PathBuf,
    _directory: TempDir,
    process: ProxyProcess,
}

pub(crate) fn workload() -> WorkloadName {
    WorkloadName::new("web").expect("valid")
}

/// A table of `(id, address, weight, ready)`.
pub(crate) fn table(
    epoch: u64,
    generation: u64,
    lines: &[(u64, impl Into<Address> + Clone, u16, bool)],
) -> WeightTable {
    table_of(workload(), epoch, generation, lines)
}

/// The same of any workload.
pub(crate) fn table_of(
    workload: WorkloadName,
    epoch: u64,
    generation: u64,
    lines: &[(u64, impl Into<Address> + Clone, u16, bool)],
) -> WeightTable {
    let shares = lines
        .iter()
        .map(|(id, address, weight_bp, ready)| Share {
            instance: InstanceId(*id),
            address: address.clone().into(),
            weight_bp: *weight_bp,
            ready: *ready,
        })
        .collect();
    WeightTable::new(workload, Version { epoch, generation }, shares).expect("a table")
}

impl World {
    /// A proxy and its control plane.
    pub(crate) fn start() -> (Self, Control) {
        Self::start_with(&[])
    }

    /// With settings of the proxy, by the names in [`crate::process`].
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> (Self, Control) {
        let directory = TempDir::new().expect("a directory");
        let socket = directory.path().join("control.sock");
        let control = Control::start(&socket);
        let process = ProxyProcess::start(&socket, settings);
        let [admin, proxy, secure] = process.addresses;
        let none = SocketAddr::from(([0, 0, 0, 0], 0));
        (
            Self {
                proxy: proxy.unwrap_or(none),
                secure,
                admin: admin.expect("always there"),
                way: Way::Clear,
                socket,
                _directory: directory,
                process,
            },
            control,
        )
    }

    /// Two instances, of which the first has `first_bp`.
    pub(crate) async fn with_two(first_bp: u16) -> (Self, Control, [Upstream; 2]) {
        Self::with_two_and(first_bp, &[]).await
    }

    pub(crate) async fn with_two_and(
        first_bp: u16,
        settings: &[(&str, &str)],
    ) -> (Self, Control, [Upstream; 2]) {
        Self::with_two_by(Way::Clear, first_bp, settings).await
    }

    /// Whose clients come by `way`.
    pub(crate) fn start_by(way: Way, settings: &[(&str, &str)]) -> (Self, Control) {
        let mut settings = settings.to_vec();
        let files = way.files();
        if let Some(files) = &files {
            settings.push((TLS, files));
        }
        let (mut world, control) = Self::start_with(&settings);
        world.way = way;
        (world, control)
    }

    /// Two instances, whose clients come by `way`.
    pub(crate) async fn with_two_by(
        way: Way,
        first_bp: u16,
        settings: &[(&str, &str)],
    ) -> (Self, Control, [Upstream; 2]) {
        let (world, mut control) = Self::start_by(way, settings);
        let ups = [Upstream::start("i1").await, Upstream::start("i2").await];
        control.publish(&pair(1, &ups, first_bp)).await;
        (world, control, ups)
    }

    pub(crate) fn way(&self) -> &Way {
        &self.way
    }

    fn connector(&self) -> (Connector, SocketAddr) {
        match &self.way {
            Way::Clear => (clear(), self.proxy),
            Way::Tls(certificates) => (
                over_tls(certificates.trusted(), NAME),
                self.secure.expect("a listener for TLS"),
            ),
        }
    }

    pub(crate) fn client(&self) -> User {
        let (connector, to) = self.connector();
        User::by(connector, to)
    }

    /// A user's connection on which nothing was said yet.
    pub(crate) async fn wire(&self) -> Wire {
        let (connector, to) = self.connector();
        let to = format!("http://{to}").parse().expect("valid");
        let connected = connector.oneshot(to).await;
        connected.expect("connected").into_inner()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) async fn terminate(self) -> ExitStatus {
        tokio::task::spawn_blocking(move || self.process.terminate())
            .await
            .expect("no panic")
    }

    async fn page(&self, path: &str) -> (StatusCode, String) {
        let admin = User::by(clear(), self.admin);
        let (status, body) = admin
            .send(Method::GET, path, "")
            .await
            .expect("the admin answers");
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    pub(crate) async fn ready(&self) -> StatusCode {
        self.page("/ready").await.0
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.metrics_page().await)
    }

    /// The same as it is written.
    pub(crate) async fn metrics_page(&self) -> String {
        self.page("/metrics").await.1
    }

    /// Reads the metrics until `wanted` holds, and holds still. A page is not of one moment: what it tells first may be
    /// older than what `wanted` saw, and the second page was begun after all of that.
    pub(crate) async fn wait_for(&self, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
        const STEP: Duration = Duration::from_millis(20);
        for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
            if wanted(&self.metrics().await) {
                let metrics = self.metrics().await;
                if wanted(&metrics) {
                    return metrics;
                }
            }
            tokio::time::sleep(STEP).await;
        }
        panic!("not within a minute: {:#?}", self.metrics().await);
    }

    /// The metrics once no request is under way: a user has its answer before the proxy has counted that.
    pub(crate) async fn settled(&self) -> Metrics {
        let is_idle = |metrics: &Metrics, family: &str| {
            !metrics.has(family) || metrics.sum(family, &[]) == 0.0
        };
        self.wait_for(|metrics| {
            let families = ["sim_proxy_requests_in_flight", "sim_proxy_in_flight"];
            families.iter().all(|family| is_idle(metrics, family))
        })
        .await
    }
}

/// A table over two instances, both ready.
pub(crate) fn pair(generation: u64, ups: &[Upstream; 2], first_bp: u16) -> WeightTable {
    let lines = [
        (1, ups[0].address, first_bp, true),
        (2, ups[1].address, 10_000 - first_bp, true),
    ];
    table(1, generation, &lines)
}

/// Samples of a metrics page by name with labels.
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl std::fmt::Debug for Metrics {
    /// What has happened: no zeros, no buckets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let told = |(name, value): &(&String, &f64)| **value != 0.0 && !name.contains("_bucket{");
        f.debug_map().entries(self.0.iter().filter(told)).finish()
    }
}

impl Metrics {
    fn parse(page: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("name and value");
            (name.to_owned(), value.parse().expect("a number"))
        };
        Self(
            page.lines()
                .filter(|line| !line.starts_with('#'))
                .map(sample)
                .collect(),
        )
    }

    /// Whether `family` has a sample.
    pub(crate) fn has(&self, family: &str) -> bool {
        let names = self.0.keys();
        names
            .into_iter()
            .any(|name| name.split('{').next() == Some(family))
    }

    /// The sum of all samples of `family` whose labels contain every one of `labels`.
    pub(crate) fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        let matches = |name: &str| {
            name.split('{').next() == Some(family) && labels.iter().all(|l| name.contains(l))
        };
        let found: Vec<_> = self.0.iter().filter(|(name, _)| matches(name)).collect();
        assert!(!found.is_empty(), "no sample of {family} {labels:?}");
        found.iter().map(|(_, value)| *value).sum()
    }
}

#[derive(Clone)]
pub(crate) struct User {
    client: Client<Connector, Full<Bytes>>,
    to: SocketAddr,
}

impl User {
    pub(crate) fn by(connector: Connector, to: SocketAddr) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { client, to }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.to))
            .body(Full::new(body.into()))?;
        let response = self.client.request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Bytes) {
        self.send(Method::GET, path, "").await.expect("an answer")
    }
}

/// Users that ask for `/` one request after another until told to stop.
pub(crate) struct Load {
    users: JoinSet<()>,
    stop: Arc<AtomicBool>,
    counts: Arc<LoadCounts>,
}

#[derive(Default)]
struct LoadCounts {
    sent: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    pub(crate) fn start(world: &World, users: usize, method: &Method) -> Self {
        let (stop, counts) = (Arc::<AtomicBool>::default(), Arc::<LoadCounts>::default());
        let mut tasks = JoinSet::new();
        for _ in 0..users {
            let (user, method) = (world.client(), method.clone());
            let (stop, counts) = (stop.clone(), counts.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let answer = user.send(method.clone(), "/", "").await;
                    let ok = matches!(answer, Ok((StatusCode::OK, _)));
                    counts.failed.fetch_add(u64::from(!ok), Ordering::SeqCst);
                    counts.sent.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self {
            users: tasks,
            stop,
            counts,
        }
    }

    /// Waits until `more` requests have been answered.
    pub(crate) async fn run(&self, more: u64) {
        let until = self.counts.sent.load(Ordering::SeqCst) + more;
        while self.counts.sent.load(Ordering::SeqCst) < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends it; requests sent and failed.
    pub(crate) async fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::SeqCst);
        self.users.join_all().await;
        (
            self.counts.sent.load(Ordering::SeqCst),
            self.counts.failed.load(Ordering::SeqCst),
        )
    }
}
