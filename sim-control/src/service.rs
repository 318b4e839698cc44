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
const FOLLOWER: usize = 256;

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
        listen: String,
        link: ProxyLink,
    },
    ProxyDown {
        session: u64,
        proxy: ProxyName,
        workload: String,
    },
    Event(Event),
    /// Asks for one page. Where it is empty, `follower` gets what comes from then on.
    Journal {
        from: u64,
        follower: Option<mpsc::Sender<v1::JournalRecord>>,
        page: oneshot::Sender<Vec<v1::JournalRecord>>,
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

/// Page by page, at the reader's pace. One that follows and falls behind is cut off from what
/// comes and reads pages again: it misses nothing, and holds nobody up.
async fn read_journal(
    driver: &mpsc::Sender<Input>,
    request: v1::JournalRequest,
    out: &mpsc::Sender<Result<v1::JournalRecord, Status>>,
) -> Result<(), Status> {
    let v1::JournalRequest { mut from, follow } = request;
    loop {
        let (link, mut coming) = mpsc::channel(FOLLOWER);
        let (page, records) = oneshot::channel();
        let ask = Input::Journal {
            from,
            follower: follow.then_some(link),
            page,
        };
        driver.send(ask).await.map_err(stopped)?;
        let records = records.await.map_err(stopped)?;
        let end = records.is_empty();
        for record in records {
            from = record.sequence + 1;
            if out.send(Ok(record)).await.is_err() {
                return Ok(());
            }
        }
        if !end {
            continue;
        }
        if !follow {
            return Ok(());
        }
        loop {
            let record = tokio::select! {
                record = coming.recv() => record,
                () = out.closed() => return Ok(()),
            };
            let Some(record) = record else { break };
            from = record.sequence + 1;
            if out.send(Ok(record)).await.is_err() {
                return Ok(());
            }
        }
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
        let (workload, listen) = (first.workload.clone(), first.listen.clone());
        let up = Input::ProxyUp {
            session,
            proxy: proxy.clone(),
            workload: workload.clone(),
            listen,
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
            let down = Input::ProxyDown {
                session,
                proxy,
                workload,
            };
            if driver.send(down).await.is_err() {
                tracing::debug!("stopping");
            }
        });
        Ok(Response::new(ReceiverStream::new(tables)))
    }

    async fn journal(
        &self,
        request: Request<v1::JournalRequest>,
    ) -> Result<Response<Self::JournalStream>, Status> {
        let (out, records) = mpsc::channel(OUTBOUND);
        let driver = self.driver.clone();
        tokio::spawn(async move {
            if let Err(status) = read_journal(&driver, request.into_inner(), &out).await
                && out.send(Err(status)).await.is_err()
            {
                tracing::debug!("whoever read the journal is gone");
            }
        });
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

    async fn close(
        &self,
        _: Request<v1::CloseRequest>,
    ) -> Result<Response<v1::CloseReply>, Status> {
        self.driver
            .send(Input::Event(Event::Closing))
            .await
            .map_err(stopped)?;
        // Inputs are taken in order: once this is answered, so is that.
        let (reply, answer) = oneshot::channel();
        self.driver
            .send(Input::Status { reply })
            .await
            .map_err(stopped)?;
        answer.await.map_err(stopped)?;
        Ok(Response::new(v1::CloseReply {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{ControlConfig, Driver};
    use sim_core::policy::Policy;
    use sim_core::time::Time;
    use sim_core::workload::{Readiness, Slo, Standby, WorkloadSpec};
    use std::time::Duration;

    fn workload() -> WorkloadSpec {
        WorkloadSpec {
            name: WorkloadName::new("web").expect("valid"),
            command: vec!["x".into()],
            environment: Vec::new(),
            cpus: 1.0,
            memory_bytes: 1 << 20,
            home: ServerName::new("a").expect("valid"),
            slo: Slo {
                quantile: 0.99,
                bound: Duration::from_millis(100),
                window: Duration::from_secs(60),
                error_budget: 0.001,
            },
            readiness: Readiness {
                path: "/".into(),
                successes: 1,
                interval: Duration::from_millis(100),
                timeout: Duration::from_secs(1),
            },
            standby: Standby::Predicted,
            slo_minute_price: 1.0,
        }
    }

    fn config(dir: &std::path::Path) -> ControlConfig {
        ControlConfig {
            socket: dir.join("s"),
            data_dir: dir.to_owned(),
            policy: Policy::default(),
            servers: Vec::new(),
            workloads: vec![workload()],
        }
    }

    #[test]
    fn time_goes_on_from_a_snapshot_that_is_ahead_of_the_clock() {
        let dir = tempfile::tempdir().expect("dir");
        let config = config(dir.path());
        let ahead = Time(u64::MAX / 4);
        {
            let mut driver = Driver::new(&config).expect("driver");
            driver.core.step(ahead, Event::Tick);
            driver.store.snapshot(&driver.core).expect("snapshot");
        }
        let driver = Driver::new(&config).expect("restored");
        assert!(driver.clock.now() > ahead);
    }

    #[tokio::test]
    async fn a_proxy_has_a_session_for_each_workload_and_one_s_end_is_not_the_other_s() {
        let dir = tempfile::tempdir().expect("dir");
        let mut driver = Driver::new(&config(dir.path())).expect("driver");
        let (inbox, inputs) = mpsc::channel(16);
        let driving = tokio::spawn(async move { driver.run(inputs).await });
        let proxy = ProxyName::new("p").expect("valid");
        let up = |session, workload: &str| {
            let (link, tables) = mpsc::channel(1);
            let up = Input::ProxyUp {
                session,
                proxy: proxy.clone(),
                workload: workload.to_owned(),
                listen: String::new(),
                link,
            };
            (up, tables)
        };
        let down = |session, workload: &str| Input::ProxyDown {
            session,
            proxy: proxy.clone(),
            workload: workload.to_owned(),
        };
        let served = async || {
            let (reply, answer) = oneshot::channel();
            inbox.send(Input::Status { reply }).await.expect("a driver");
            let proxies = answer.await.expect("answered").proxies;
            let served = proxies.into_iter().map(|proxy| proxy.workload);
            served.collect::<Vec<_>>()
        };
        let mut links = Vec::new();
        for (session, workload) in [(1, "web"), (2, "api"), (3, "web")] {
            let (up, tables) = up(session, workload);
            inbox.send(up).await.expect("a driver");
            links.push(tables);
        }
        assert_eq!(served().await, ["api", "web"]);
        // The end of an old session comes late.
        inbox.send(down(1, "web")).await.expect("a driver");
        assert_eq!(served().await, ["api", "web"]);
        inbox.send(down(3, "web")).await.expect("a driver");
        assert_eq!(served().await, ["api"]);
        inbox.send(down(2, "api")).await.expect("a driver");
        assert!(served().await.is_empty());
        drop(inbox);
        driving.await.expect("joined").expect("ended well");
    }

    /// Journals `count` records.
    async fn write(driver: &mpsc::Sender<Input>, count: usize) {
        for at in 0..count {
            let event = Event::SetStandby {
                workload: WorkloadName::new("web").expect("valid"),
                standby: [Standby::Always, Standby::Predicted][at % 2],
            };
            driver.send(Input::Event(event)).await.expect("a driver");
        }
    }

    /// Reads on until `count` sequence numbers were seen.
    async fn read(
        records: &mut mpsc::Receiver<Result<v1::JournalRecord, Status>>,
        seen: &mut Vec<u64>,
        count: usize,
    ) {
        while seen.len() < count {
            let record = records.recv().await.expect("more").expect("record");
            seen.push(record.sequence);
        }
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_misses_no_record_of_a_long_journal() {
        let dir = tempfile::tempdir().expect("dir");
        let config = config(dir.path());
        let mut driver = Driver::new(&config).expect("driver");
        let (inbox, inputs) = mpsc::channel(16);
        let driving = tokio::spawn(async move { driver.run(inputs).await });
        write(&inbox, 1_500).await;
        let (out, mut records) = mpsc::channel(8);
        let request = v1::JournalRequest {
            from: 0,
            follow: true,
        };
        let own = inbox.clone();
        let reading = tokio::spawn(async move { read_journal(&own, request, &out).await });
        let mut seen = Vec::new();
        read(&mut records, &mut seen, 1_500).await;
        // Far more than a follower's queue holds, and nobody reads meanwhile.
        write(&inbox, 3 * FOLLOWER).await;
        read(&mut records, &mut seen, 1_500 + 3 * FOLLOWER).await;
        let first = seen[0];
        assert!(
            (first..)
                .zip(&seen)
                .all(|(expected, found)| expected == *found)
        );
        drop(records);
        reading.await.expect("joined").expect("ended well");
        drop(inbox);
        driving.await.expect("joined").expect("ended well");
    }
}
