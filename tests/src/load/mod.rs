//! An open-loop load: arrivals come when the law says, whatever became of the ones before.
//!
//! Latency counts from the intended moment, so a stall of the service, of the network or of this
//! program shows in it (no coordinated omission). Two threads: the *pacer* sleeps to each
//! arrival and hands it over; the *engine* runs one task per request on its own connections.

pub mod arrivals;
pub mod record;
pub mod request;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use rand::SeedableRng as _;
use rand_pcg::Pcg64;
use tokio::sync::mpsc;

use crate::clock::Clock;
use arrivals::{Arrivals, Rate};
use record::{Ledger, Outcome, Record};
use request::{Mix, Shot};

/// A request without its whole answer after this has failed.
pub const TIMEOUT_TOTAL: Duration = Duration::from_secs(10);

/// Sends what pacers hand over, and accounts for it.
#[derive(Debug)]
pub struct Engine {
    shots: mpsc::UnboundedSender<(Instant, Shot)>,
    ledger: Arc<Ledger>,
    mix: Mix,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts a thread of its own, with its own connections to `target`.
    ///
    /// # Errors
    /// No thread or runtime could be made.
    pub fn start(clock: Clock, target: SocketAddr, mix: Mix) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (shots, incoming) = mpsc::unbounded_channel();
        let ledger = Arc::new(Ledger::default());
        let books = Arc::clone(&ledger);
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || runtime.block_on(serve(clock, target, incoming, books)))
            .context("load thread")?;
        Ok(Self {
            shots,
            ledger,
            mix,
            thread: Some(thread),
        })
    }

    /// What was sent and what became of it.
    #[must_use]
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Begins to send at `rate`, whose time starts now, until stopped or for `span`.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn pace(
        &self,
        rate: impl Rate + 'static,
        seed: u64,
        span: Option<Duration>,
    ) -> Result<Pacer> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let shots = self.shots.clone();
        let mix = self.mix.clone();
        let origin = Instant::now();
        let thread = std::thread::Builder::new()
            .name("pacer".to_owned())
            .spawn(move || {
                let mut random = Pcg64::seed_from_u64(seed ^ 0x5eed_b0d1);
                for seconds in Arrivals::new(rate, seed) {
                    let offset = Duration::from_secs_f64(seconds);
                    if span.is_some_and(|span| offset >= span) {
                        return;
                    }
                    // Drawn before the sleep: its cost is not the request's.
                    let shot = mix.draw(&mut random);
                    let intended = origin + offset;
                    std::thread::sleep(intended.saturating_duration_since(Instant::now()));
                    // Relaxed: only a request to end; nothing else is read because of it.
                    if stopped.load(Ordering::Relaxed) || shots.send((intended, shot)).is_err() {
                        return;
                    }
                }
            })
            .context("pacer thread")?;
        Ok(Pacer {
            origin,
            stop,
            thread: Some(thread),
        })
    }

    /// Waits until every request has ended; the total timeout bounds it. Pacers must be stopped.
    pub async fn settle(&self) {
        let deadline = Instant::now() + TIMEOUT_TOTAL + Duration::from_secs(2);
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let closed = self.ledger.closed() as u64;
            if closed == self.ledger.sent() || Instant::now() > deadline {
                return;
            }
        }
    }

    /// Ends the engine after its last request. Pacers must be stopped.
    ///
    /// # Errors
    /// Its thread panicked.
    pub fn finish(mut self) -> Result<Arc<Ledger>> {
        let thread = self.thread.take();
        let ledger = Arc::clone(&self.ledger);
        drop(self);
        match thread.map(JoinHandle::join) {
            Some(Err(_)) => Err(anyhow!("the load thread panicked")),
            _ => Ok(ledger),
        }
    }
}

/// A running arrival process.
#[derive(Debug)]
pub struct Pacer {
    origin: Instant,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    /// When its law's time began.
    #[must_use]
    pub fn origin(&self) -> Instant {
        self.origin
    }

    /// Ends it; returns once nothing more will be sent.
    ///
    /// # Errors
    /// Its thread panicked.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    /// Waits for the end of its span without stalling other tasks.
    ///
    /// # Errors
    /// Its thread panicked.
    pub async fn wait(mut self) -> Result<()> {
        while self
            .thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(anyhow!("the pacer thread panicked")),
            _ => Ok(()),
        }
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn serve(
    clock: Clock,
    target: SocketAddr,
    mut incoming: mpsc::UnboundedReceiver<(Instant, Shot)>,
    ledger: Arc<Ledger>,
) {
    let client = request::client();
    let mut tasks = tokio::task::JoinSet::new();
    while let Some((intended, shot)) = incoming.recv().await {
        ledger.send();
        let client = client.clone();
        let ledger = Arc::clone(&ledger);
        tasks.spawn(async move {
            let idempotent = shot.idempotent();
            let deadline = tokio::time::Instant::from_std(intended + TIMEOUT_TOTAL);
            let outcome = tokio::time::timeout_at(deadline, shot.fire(&client, target))
                .await
                .unwrap_or(Outcome::Timeout);
            let latency = intended.elapsed();
            ledger.close(Record {
                intended: clock.time_of(intended),
                latency_micros: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
                idempotent,
                outcome,
            });
        });
        // Finished tasks are let go of as we pass; each has closed its own account.
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}
