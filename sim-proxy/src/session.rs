//! The control sessions, one for each workload: reports go up, tables come down. Whatever happens to one, requests go
//! on by the last table (static fail).
//!
//! Two processes serve at once while one takes over from the other. The control plane must know of both: an instance is
//! ended once nobody has a request in flight there. So the one that was relieved goes on under a name of its own, and
//! its successor dials once that has happened.

use crate::clock::monotonic_ns;
use crate::config::ProxyConfig;
use crate::dispatch::Dispatch;
use crate::drain;
use crate::handover::Progress;
use crate::report::Ledger;
use crate::tickets::entropy;
use crate::workloads::Workloads;
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use sim_api::v1;
use sim_api::v1::control_plane_client::ControlPlaneClient;
use sim_core::name::ProxyName;
use sim_core::table::WeightTable;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A control plane that takes the connection but says nothing for so long is none.
const GREETING_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the control plane can't be reached: {0}")]
    Dial(#[from] tonic::transport::Error),
    #[error("the control plane ended the session: {0}")]
    Status(#[from] Box<tonic::Status>),
    #[error("the control plane closed the session")]
    Closed,
    #[error("the control plane does not answer")]
    Silent,
    #[error("a successor has taken over")]
    Relieved,
}

/// Keeps the sessions up for the life of the process.
pub(crate) struct ControlSessions {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) workloads: Arc<Workloads>,
    pub(crate) progress: Arc<Progress>,
}

#[async_trait]
impl BackgroundService for ControlSessions {
    async fn start(&self, stop: ShutdownWatch) {
        let mut sessions = JoinSet::new();
        for dispatch in self.workloads.iter() {
            let session = ControlSession {
                config: self.config.clone(),
                dispatch: dispatch.clone(),
                progress: self.progress.clone(),
            };
            sessions.spawn(session.keep_up(stop.clone()));
        }
        while let Some(ended) = sessions.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a control session is given up");
            }
        }
    }
}

/// One workload's.
struct ControlSession {
    config: Arc<ProxyConfig>,
    dispatch: Arc<Dispatch>,
    progress: Arc<Progress>,
}

impl ControlSession {
    async fn keep_up(self, mut stop: ShutdownWatch) {
        let mut alone = self.progress.alone.subscribe();
        // An error is the end of who would say so.
        alone.wait_for(|&alone| alone).await.map(drop).ok();
        let mut ledger = Ledger::new(monotonic_ns());
        let mut backoff = BACKOFF_MIN;
        loop {
            let begun = Instant::now();
            let error = tokio::select! {
                _ = stop.wait_for(|&stop| stop) => return,
                error = self.run(&mut ledger) => error,
            };
            let workload = self.dispatch.routes.workload();
            let connected = &self.dispatch.counters.control_connected;
            if matches!(error, SessionError::Relieved) {
                connected.store(false, Ordering::Relaxed);
                continue;
            }
            if connected.swap(false, Ordering::Relaxed) {
                tracing::warn!(%workload, %error, "control session lost; serving by the last table");
            } else {
                tracing::debug!(%workload, %error, "no control session");
            }
            if begun.elapsed() > BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            }
            // Half to all of it, so that proxies don't come back in step.
            let jitter = 0.5 + (entropy() as f64 / u64::MAX as f64) / 2.0;
            sleep(backoff.mul_f64(jitter)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// One session; returns why it ended.
    async fn run(&self, ledger: &mut Ledger) -> SessionError {
        let taken = Arc::new(AtomicU64::new(0));
        let mut offered = 0;
        let end = self.serve(ledger, &taken, &mut offered).await;
        // The channel is gone. What the transport took out of it counts as told.
        if taken.load(Ordering::Acquire) == offered {
            ledger.taken(&self.dispatch.routes);
        } else {
            ledger.lost();
        }
        match end {
            Ok(()) => SessionError::Closed,
            Err(error) => error,
        }
    }

    async fn serve(
        &self,
        ledger: &mut Ledger,
        taken: &Arc<AtomicU64>,
        offered: &mut u64,
    ) -> Result<(), SessionError> {
        let channel = sim_api::socket::dial(&self.config.control_socket).await?;
        // Room for one: it frees when the transport takes the report, so a slow control plane
        // gets fewer and longer reports instead of a queue of old ones.
        let (reports, queue) = mpsc::channel(1);
        let count = taken.clone();
        let stream = ReceiverStream::new(queue).map(move |report| {
            count.fetch_add(1, Ordering::Release);
            report
        });
        // The first report goes ahead of the call: it says who calls, and the server may answer
        // only then.
        let permit = reports.reserve().await.map_err(|_| SessionError::Closed)?;
        permit.send(self.draft(ledger));
        *offered += 1;
        let mut client = ControlPlaneClient::new(channel);
        let answer = timeout(GREETING_MAX, client.proxy(stream)).await;
        let mut tables = answer
            .map_err(|_| SessionError::Silent)?
            .map_err(Box::new)?
            .into_inner();
        let counters = &self.dispatch.counters;
        counters.control_connected.store(true, Ordering::Relaxed);
        counters.control_sessions.fetch_add(1, Ordering::Relaxed);
        tracing::info!(workload = %self.dispatch.routes.workload(), "control session up");

        let mut tick = interval(self.config.report_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = false;
        let mut relieved = self.progress.relieved.subscribe();
        let was_relieved = *relieved.borrow();
        loop {
            tokio::select! {
                biased;
                _ = relieved.wait_for(|&relieved| relieved), if !was_relieved => {
                    return Err(SessionError::Relieved);
                }
                table = tables.message() => {
                    let Some(table) = table.map_err(Box::new)? else { return Ok(()) };
                    self.apply(table);
                    // The acknowledgement.
                    due = true;
                }
                permit = reports.reserve(), if due => {
                    let Ok(permit) = permit else { return Ok(()) };
                    ledger.taken(&self.dispatch.routes);
                    permit.send(self.draft(ledger));
                    *offered += 1;
                    due = false;
                }
                _ = tick.tick(), if !due => due = true,
            }
        }
    }

    fn draft(&self, ledger: &mut Ledger) -> v1::ProxyReport {
        let Dispatch {
            routes, counters, ..
        } = &*self.dispatch;
        let sample = ledger.draft(routes, counters, monotonic_ns());
        let name = if *self.progress.relieved.borrow() {
            &self.relieved_name()
        } else {
            &self.config.name
        };
        let mut report = sim_api::proxy_report(name, routes.workload(), &sample);
        let tls = self.config.tls.as_ref().map(|tls| tls.listen);
        let users = self.config.listen.or(tls);
        report.listen = users.map_or_else(String::new, |listen| listen.to_string());
        report
    }

    /// What it is called while it only answers what it had accepted.
    fn relieved_name(&self) -> ProxyName {
        let name = format!("{}.{}", self.config.name, std::process::id());
        // One that is too long already stays as it is.
        ProxyName::new(&name).unwrap_or_else(|_| self.config.name.clone())
    }

    fn apply(&self, table: v1::RoutingTable) {
        let table = match WeightTable::try_from(table) {
            Ok(table) => table,
            Err(error) => {
                let malformed = &self.dispatch.counters.tables_malformed;
                malformed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "table refused");
                return;
            }
        };
        match drain::apply(&self.dispatch.routes, &table) {
            Ok(true) => {
                if table.shares().iter().any(|share| share.ready) {
                    self.dispatch.hold.release();
                }
                tracing::debug!(version = %table.version(), "table applied");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "table refused"),
        }
    }
}
