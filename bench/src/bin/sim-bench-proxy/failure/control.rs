//! A control plane that says nothing but a table: a real server on the socket that `sim proxy` dials.

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

pub(super) struct Control {
    tables: watch::Sender<v1::RoutingTable>,
    /// Dropped, its thread ends.
    _alive: tokio::sync::oneshot::Sender<()>,
}

impl Control {
    pub(super) fn start(socket: &Path, table: &WeightTable) -> Result<Self> {
        let (tables, _) = watch::channel(v1::RoutingTable::from(table));
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

    pub(super) fn publish(&self, table: &WeightTable) {
        self.tables.send_replace(table.into());
    }
}

struct Service {
    tables: watch::Sender<v1::RoutingTable>,
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of this benchmark"))
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
        tokio::spawn(async move { while let Ok(Some(_)) = reports.message().await {} });
        let tables = WatchStream::new(self.tables.subscribe()).map(Ok);
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
