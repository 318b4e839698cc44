//! The gRPC face: turns streams into inputs of the driver, and its answers into streams.

use sim_api::standby_of;
use sim_api::v1::control_plane_server::ControlPlane;
use sim_api::v1::{self, node_report};
use sim_core::event::Event;
use sim_core::name::{InstanceId, ProxyName, ServerName, WorkloadName};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::registry::{NodeLink, ProxyLink};

/// Commands or tables on their way to one peer.
const OUTBOUND: usize = 64;
/// Journal records on their way to one follower.
const FOLLOWER: usize = 4096;

/// One input of the driver.
#[derive(Debug)]
pub(crate) enum Input {
    NodeUp {
        session: u64,
        server: ServerName,
        running: Vec<InstanceId>,
        link: NodeLink,
    },
    NodeDown {
        session: u64,
        server: ServerName,
    },
    NodeReport {
        server: ServerName,
        report: node_report::Report,
    },
    ProxyUp {
        session: u64,
        proxy: ProxyName,
        workload: String,
        link: ProxyLink,
    },
    ProxyDown {
        session: u64,
        proxy: ProxyName,
    },
    Event(Event),
    Journal {
        from: u64,
        follow: bool,
        reply: mpsc::Sender<Result<v1::JournalRecord, Status>>,
    },
    Status {
        reply: oneshot::Sender<v1::StatusReply>,
    },
    HasWorkload {
        workload: WorkloadName,
        reply: oneshot::Sender<bool>,
    },
}

/// The service; one for all connections.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) driver: mpsc::Sender<Input>,
    pub(crate) sessions: AtomicU64,
}

fn stopped<T>(_: T) -> Status {
    Status::unavailable("the control plane is stopping")
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

impl Service {
    fn session(&self) -> u64 {
        // Relaxed: numbers need only differ; nothing is ordered by them.
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }
}

#[tonic::async_trait]
impl ControlPlane for Service {
    type NodeStream = ReceiverStream<Result<v1::NodeCommand, Status>>;
    type ProxyStream = ReceiverStream<Result<v1::RoutingTable, Status>>;
    type JournalStream = ReceiverStream<Result<v1::JournalRecord, Status>>;

    async fn node(
        &self,
        request: Request<Streaming<v1::NodeReport>>,
    ) -> Result<Response<Self::NodeStream>, Status> {
        let mut reports = request.into_inner();
        let first = reports.next().await.transpose()?.and_then(|r| r.report);
        let Some(node_report::Report::Hello(hello)) = first else {
            return Err(invalid("the first report must be a hello"));
        };
        let server = ServerName::new(&hello.server).map_err(invalid)?;
        let running = hello.instances.into_iter().map(InstanceId).collect();
        let (link, commands) = mpsc::channel(OUTBOUND);
        let (session, driver) = (self.session(), self.driver.clone());
        let up = Input::NodeUp {
            session,
            server: server.clone(),
            running,
            link,
        };
        driver.send(up).await.map_err(stopped)?;
        tokio::spawn(async move {
            while let Some(report) = reports.next().await {
                let report = match report {
                    Ok(report) => report.report,
                    Err(status) => {
                        tracing::debug!("node {server}: {status}");
                        break;
                    }
                };
                let Some(report) = report else {
                    tracing::warn!("node {server} reports what this version doesn't know");
                    continue;
                };
                let input = Input::NodeReport {
                    server: server.clone(),
                    report,
                };
                if driver.send(input).await.is_err() {
                    return;
                }
            }
            if driver
                .send(Input::NodeDown { session, server })
                .await
                .is_err()
            {
                tracing::debug!("stopping");
            }
        });
        Ok(Response::new(ReceiverStream::new(commands)))
    }

    async fn proxy(
        &self,
        request: Request<Streaming<v1::ProxyReport>>,
    ) -> Result<Response<Self::ProxyStream>, Status> {
        let mut reports = request.into_inner();
        let first = reports.next().await.transpose()?;
        let first = first.ok_or_else(|| invalid("the first report is missing"))?;
        let proxy = ProxyName::new(&first.proxy).map_err(invalid)?;
        let (link, tables) = mpsc::channel(OUTBOUND);
        let (session, driver) = (self.session(), self.driver.clone());
        let workload = first.workload.clone();
        let up = Input::ProxyUp {
            session,
            proxy: proxy.clone(),
            workload,
            link,
        };
        driver.send(up).await.map_err(stopped)?;
        tokio::spawn(async move {
            let mut next = Some(first);
            loop {
                if let Some(report) = next.take() {
                    match report.into_event() {
                        Ok(event) => {
                            if driver.send(Input::Event(event)).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => tracing::warn!("proxy {proxy}: report refused: {error}"),
                    }
                }
                match reports.next().await {
                    Some(Ok(report)) => next = Some(report),
                    Some(Err(status)) => {
                        tracing::debug!("proxy {proxy}: {status}");
                        break;
                    }
                    None => break,
                }
            }
            if driver
                .send(Input::ProxyDown { session, proxy })
                .await
                .is_err()
            {
                tracing::debug!("stopping");
            }
        });
        Ok(Response::new(ReceiverStream::new(tables)))
    }

    async fn journal(
        &self,
        request: Request<v1::JournalRequest>,
    ) -> Result<Response<Self::JournalStream>, Status> {
        let v1::JournalRequest { from, follow } = request.into_inner();
        let (reply, records) = mpsc::channel(FOLLOWER);
        self.driver
            .send(Input::Journal {
                from,
                follow,
                reply,
            })
            .await
            .map_err(stopped)?;
        Ok(Response::new(ReceiverStream::new(records)))
    }

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        let (reply, answer) = oneshot::channel();
        self.driver
            .send(Input::Status { reply })
            .await
            .map_err(stopped)?;
        Ok(Response::new(answer.await.map_err(stopped)?))
    }

    async fn set_standby(
        &self,
        request: Request<v1::SetStandbyRequest>,
    ) -> Result<Response<v1::SetStandbyReply>, Status> {
        let v1::SetStandbyRequest { workload, standby } = request.into_inner();
        let standby = standby_of(&standby).map_err(invalid)?;
        let workload = WorkloadName::new(&workload).map_err(invalid)?;
        let (reply, known) = oneshot::channel();
        let ask = Input::HasWorkload {
            workload: workload.clone(),
            reply,
        };
        self.driver.send(ask).await.map_err(stopped)?;
        if !known.await.map_err(stopped)? {
            return Err(Status::not_found(format!("no workload {workload}")));
        }
        let event = Event::SetStandby { workload, standby };
        self.driver
            .send(Input::Event(event))
            .await
            .map_err(stopped)?;
        Ok(Response::new(v1::SetStandbyReply {}))
    }
}
