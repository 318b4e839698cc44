//! A control plane that says nothing but a table: a real server on the socket that `sim proxy` dials.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;

use anyhow::{Context as _, Result};
use sim_api::v1;
use sim_api::v1::control_plane_server::{ControlPlane, ControlPlaneServer};
use sim_core::table::WeightTable;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The last table of each workload, by its name.
type Tables = BTreeMap<String, v1::RoutingTable>;

/// A control plane that runs; it ends with this.
#[derive(Debug)]
pub struct Control {
    tables: watch::Sender<Tables>,
    /// Dropped, its thread ends.
    _alive: tokio::sync::oneshot::Sender<()>,
}

impl Control {
    /// Starts it on `socket`; whoever asks gets the last table of its workload.
    ///
    /// # Errors
    /// The socket can't be listened on.
    pub fn start<'a>(
        socket: &Path,
        tables: impl IntoIterator<Item = &'a WeightTable>,
    ) -> Result<Self> {
        let tables = tables.into_iter().map(named).collect();
        let (tables, _) = watch::channel(tables);
        let (alive, over) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket).with_context(|| socket.display().to_string())?
        };
        let service = Service {
            tables: tables.clone(),
        };
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                let serving = tonic::transport::Server::builder()
                    .add_service(ControlPlaneServer::new(service))
                    .serve_with_incoming(UnixListenerStream::new(listener));
                runtime.block_on(async {
                    tokio::select! {
                        ended = serving => ended.map_err(|error| error.to_string()),
                        _ = over => Ok(()),
                    }
                })
            })?;
        Ok(Self {
            tables,
            _alive: alive,
        })
    }

    /// Sends it to every proxy of its workload.
    pub fn publish(&self, table: &WeightTable) {
        self.tables.send_modify(|tables| {
            tables.extend([named(table)]);
        });
    }
}

fn named(table: &WeightTable) -> (String, v1::RoutingTable) {
    (table.workload().to_string(), table.into())
}

#[derive(Debug)]
struct Service {
    tables: watch::Sender<Tables>,
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of this"))
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
        let mut reports = request.into_inner();
        // The first says whose session it is.
        let first = reports.message().await?;
        let workload = first.map(|report| report.workload).unwrap_or_default();
        tokio::spawn(async move { while let Ok(Some(_)) = reports.message().await {} });
        let tables = WatchStream::new(self.tables.subscribe());
        let mut sent = None;
        let tables = tables.filter_map(move |tables| {
            let table = tables.get(&workload)?;
            let is_new = sent.as_ref() != Some(table);
            sent = Some(table.clone());
            is_new.then(|| Ok(table.clone()))
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
