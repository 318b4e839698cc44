//! A control plane: a real tonic server on a Unix socket that sends what the test says.

use crate::world::PATIENCE;
use sim_api::v1;
use sim_api::v1::control_plane_server::{ControlPlane, ControlPlaneServer};
use sim_core::table::{Version, WeightTable};
use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The last one of each workload. One that names none goes to all.
type Tables = BTreeMap<String, v1::RoutingTable>;

pub(crate) struct Control {
    tables: watch::Sender<Tables>,
    reports: watch::Receiver<Vec<v1::ProxyReport>>,
    /// Its own, so that its end takes the connections with it.
    runtime: Option<Runtime>,
}

impl Control {
    pub(crate) fn start(socket: &Path) -> Self {
        if socket.exists() {
            std::fs::remove_file(socket).expect("left by the one before");
        }
        let (tables, _) = watch::channel(Tables::new());
        let (inbox, reports) = watch::channel(vec![]);
        let service = Service {
            tables: tables.clone(),
            inbox,
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket).expect("a socket")
        };
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(ControlPlaneServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self {
            tables,
            reports,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn send_raw(&self, table: v1::RoutingTable) {
        self.tables.send_modify(|tables| {
            tables.remove("");
            tables.insert(table.workload.clone(), table);
        });
    }

    /// Sends `table` and waits until a report acknowledges it.
    pub(crate) async fn publish(&mut self, table: &WeightTable) {
        self.send_raw(table.into());
        let workload = table.workload().as_str();
        self.report(|report| report.workload == workload && applied(report) == table.version())
            .await;
    }

    /// The first report, of all so far or to come, for which `wanted` holds.
    pub(crate) async fn report(
        &mut self,
        wanted: impl Fn(&v1::ProxyReport) -> bool,
    ) -> v1::ProxyReport {
        let arrived = self.reports.wait_for(|reports| reports.iter().any(&wanted));
        let found = tokio::time::timeout(PATIENCE, arrived).await;
        let reports = found
            .expect("the report comes in time")
            .expect("the control plane lives");
        reports
            .iter()
            .find(|report| wanted(report))
            .expect("it is there")
            .clone()
    }

    /// Waits until one more has come.
    pub(crate) async fn next_report(&mut self) {
        let more = tokio::time::timeout(PATIENCE, self.reports.changed()).await;
        more.expect("a report comes in time")
            .expect("the control plane lives");
    }

    pub(crate) fn reports(&self) -> Vec<v1::ProxyReport> {
        self.reports.borrow().clone()
    }
}

/// As by SIGKILL.
impl Drop for Control {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn applied(report: &v1::ProxyReport) -> Version {
    report.applied.map(Version::from).unwrap_or_default()
}

struct Service {
    tables: watch::Sender<Tables>,
    inbox: watch::Sender<Vec<v1::ProxyReport>>,
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of this test"))
}

#[tonic::async_trait]
impl ControlPlane for Service {
    type NodeStream = Sent<v1::NodeCommand>;
    type ProxyStream = Sent<v1::RoutingTable>;
    type JournalStream = Sent<v1::JournalRecord>;

    async fn proxy(
        &self,
        request: Request<Streaming<v1::ProxyReport>>,
    ) -> Result<Response<Self::ProxyStream>, Status> {
        let (mut reports, inbox) = (request.into_inner(), self.inbox.clone());
        let first = reports.message().await?.expect("a first report");
        let workload = first.workload.clone();
        inbox.send_modify(|all| all.push(first));
        tokio::spawn(async move {
            while let Ok(Some(report)) = reports.message().await {
                inbox.send_modify(|all| all.push(report));
            }
        });
        let tables = WatchStream::new(self.tables.subscribe()).filter_map(move |tables| {
            let table = tables.get("").or_else(|| tables.get(&workload));
            table.cloned().map(Ok)
        });
        Ok(Response::new(Box::pin(tables)))
    }

    async fn node(
        &self,
        _: Request<Streaming<v1::NodeReport>>,
    ) -> Result<Response<Self::NodeStream>, Status> {
        not_here()
    }

    async fn journal(
        &self,
        _: Request<v1::JournalRequest>,
    ) -> Result<Response<Self::JournalStream>, Status> {
        not_here()
    }

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        not_here()
    }

    async fn set_standby(
        &self,
        _: Request<v1::SetStandbyRequest>,
    ) -> Result<Response<v1::SetStandbyReply>, Status> {
        not_here()
    }

    async fn close(
        &self,
        _: Request<v1::CloseRequest>,
    ) -> Result<Response<v1::CloseReply>, Status> {
        not_here()
    }
}
