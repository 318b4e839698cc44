//! How a proxy hands its listeners to its successor, so that a new program takes over without a request failed or a
//! connection refused.
//!
//! ```text
//! successor                         predecessor
//! asks (T)                     ──►
//!                              ◄──  its listening sockets (SCM_RIGHTS) and the tables in force
//! serves on them, too; says so (S) ──►
//!                                   accepts no more, reports under another name
//!                              ◄──  says so (D)
//! dials the control plane,          answers what it has accepted, and ends when
//! waits for a successor             its last connection has ended
//! ```
//!
//! The sockets are shared, never closed in between: who connects at any moment is in the one queue that both accept
//! from. Until S nothing has changed for the predecessor; a successor that fails before is forgotten. The tables make
//! the successor independent of the control plane. Only the same user, and root, are heard.

use crate::workloads::Workloads;
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use prost::Message as _;
use sim_api::v1;
use sim_core::table::Version;
use sim_life::descriptors;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long either side waits for what the other says at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a successor may take until it serves.
const START_MAX: Duration = Duration::from_secs(60);
/// Longest list of tables, bytes.
const TABLES_BYTES_MAX: u32 = 64 * 1_024 * 1_024;

const ASK: u8 = b'T';
const SERVING: u8 = b'S';
const DONE: u8 = b'D';

/// What a predecessor gave.
#[derive(Debug)]
pub(crate) struct Inheritance {
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) tables: Vec<v1::RoutingTable>,
    /// Waits for us to serve.
    pub(crate) predecessor: StdStream,
}

/// Asks the proxy that listens at `path` for what it has.
pub(crate) fn take(path: &Path) -> io::Result<Inheritance> {
    let mut predecessor = StdStream::connect(path)?;
    descriptors::check_peer(&predecessor)?;
    predecessor.set_read_timeout(Some(PATIENCE))?;
    predecessor.set_write_timeout(Some(PATIENCE))?;
    predecessor.write_all(&[ASK])?;
    let mut length = [0; 4];
    let (count, received) = descriptors::receive(&predecessor, &mut length)?;
    if count == 0 {
        return Err(io::Error::other("it closed the connection"));
    }
    predecessor.read_exact(&mut length[count..])?;
    let length = u32::from_be_bytes(length);
    if length > TABLES_BYTES_MAX || received.is_empty() {
        return Err(io::Error::other("it is no proxy that can be relieved"));
    }
    let mut said = vec![0; length as usize];
    predecessor.read_exact(&mut said)?;
    let said = v1::ProxyHandover::decode(said.as_slice()).map_err(io::Error::other)?;
    Ok(Inheritance {
        listeners: received.into_iter().map(TcpListener::from).collect(),
        tables: said.tables,
        predecessor,
    })
}

/// How far the process is, as its other parts need to know.
#[derive(Debug)]
pub(crate) struct Progress {
    /// No predecessor serves any more: the control plane may be dialled.
    pub(crate) alone: watch::Sender<bool>,
    /// A successor serves.
    pub(crate) relieved: watch::Sender<bool>,
    /// Services whose listeners are open.
    pub(crate) listening: watch::Sender<usize>,
}

impl Progress {
    pub(crate) fn new(has_predecessor: bool) -> Self {
        Self {
            alone: watch::Sender::new(!has_predecessor),
            relieved: watch::Sender::new(false),
            listening: watch::Sender::new(0),
        }
    }
}

/// Relieves the predecessor, then waits for a successor.
pub(crate) struct Handover {
    /// Where a successor asks; none: it can't.
    pub(crate) path: Option<PathBuf>,
    pub(crate) predecessor: Mutex<Option<StdStream>>,
    /// The same sockets as are served.
    pub(crate) listeners: Mutex<Vec<TcpListener>>,
    /// Services with listeners.
    pub(crate) services: usize,
    pub(crate) workloads: Arc<Workloads>,
    pub(crate) progress: Arc<Progress>,
    /// The services accept no more.
    pub(crate) stopped: watch::Receiver<bool>,
}

#[async_trait]
impl BackgroundService for Handover {
    async fn start(&self, _: ShutdownWatch) {
        let predecessor = lock(&self.predecessor).take();
        if let Some(predecessor) = predecessor {
            let mut listening = self.progress.listening.subscribe();
            // The sender is ours.
            listening
                .wait_for(|&count| count == self.services)
                .await
                .ok();
            match relieve(predecessor).await {
                Ok(()) => tracing::info!("serving in place of the proxy before"),
                Err(error) => {
                    tracing::warn!(%error, "the proxy before does not say that it is done");
                }
            }
        }
        self.progress.alone.send_replace(true);
        let mut stopped = self.stopped.clone();
        let relieved = tokio::select! {
            biased;
            // An error is the end of who would say so.
            _ = stopped.wait_for(|&stopped| stopped && !*self.progress.relieved.borrow()) => false,
            relieved = self.wait() => relieved,
        };
        // Else whoever connects now would wait in a queue that nobody accepts from.
        lock(&self.listeners).clear();
        if let (false, Some(path)) = (relieved, &self.path) {
            // Gone already, or about to be with its directory.
            fs::remove_file(path).ok();
        }
    }
}

impl Handover {
    /// Until a successor serves.
    async fn wait(&self) -> bool {
        let Some(path) = &self.path else {
            return std::future::pending().await;
        };
        let listener = match listen(path) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "no successor can ask here");
                return std::future::pending().await;
            }
        };
        loop {
            let handed = match listener.accept().await {
                Ok((successor, _)) => self.hand_over(successor).await,
                Err(error) => Err(error),
            };
            match handed {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "not relieved; serving on"),
            }
        }
    }

    /// True: the successor serves. False: somebody just looked who is here.
    async fn hand_over(&self, mut successor: UnixStream) -> io::Result<bool> {
        descriptors::check_peer(&successor)?;
        match in_time(PATIENCE, successor.read_u8()).await {
            Ok(ASK) => {}
            Ok(_) => return Err(io::Error::other("what is asked is not known here")),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
        tracing::info!("a successor asks for the listeners");
        let tables = v1::ProxyHandover {
            tables: self.tables(),
        };
        let said = tables.encode_to_vec();
        let length = u32::try_from(said.len()).map_err(io::Error::other)?;
        let length = length.to_be_bytes();
        let sent = loop {
            successor.writable().await?;
            let sent = successor.try_io(Interest::WRITABLE, || {
                let listeners = lock(&self.listeners);
                let listeners: Vec<BorrowedFd<'_>> = listeners.iter().map(|l| l.as_fd()).collect();
                descriptors::send(&successor, &length, &listeners)
            });
            match sent {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                sent => break sent?,
            }
        };
        successor.write_all(&length[sent..]).await?;
        in_time(PATIENCE, successor.write_all(&said)).await?;
        if in_time(START_MAX, successor.read_u8()).await? != SERVING {
            return Err(io::Error::other(
                "the successor does not say that it serves",
            ));
        }
        self.progress.relieved.send_replace(true);
        let mut stopped = self.stopped.clone();
        // An error is the end of who would say so.
        stopped.wait_for(|&stopped| stopped).await.ok();
        // It serves, whether it still listens to us or not.
        successor.write_all(&[DONE]).await.ok();
        Ok(true)
    }

    /// The tables in force.
    fn tables(&self) -> Vec<v1::RoutingTable> {
        let tables = self.workloads.iter().map(|dispatch| {
            let snapshot = dispatch.routes.snapshot();
            let share = |upstream: &crate::snapshot::Upstream| v1::Share {
                instance: upstream.instance.0,
                address: upstream.live.address().to_string(),
                weight_bp: u32::from(upstream.weight_bp),
                ready: upstream.ready,
            };
            let mirror = snapshot.mirror().and_then(|mirror| {
                Some(v1::Mirror {
                    instance: mirror.instance?.0,
                    share_bp: u32::from(mirror.share_bp),
                })
            });
            v1::RoutingTable {
                workload: dispatch.routes.workload().to_string(),
                version: Some(snapshot.version().into()),
                shares: snapshot.upstreams().iter().map(share).collect(),
                mirror,
            }
        });
        let is_one = |table: &v1::RoutingTable| {
            table.version.map(Version::from).unwrap_or_default() != Version::default()
        };
        tables.filter(is_one).collect()
    }
}

/// Tells the predecessor that we serve, and waits until it accepts no more.
async fn relieve(predecessor: StdStream) -> io::Result<()> {
    predecessor.set_nonblocking(true)?;
    let mut predecessor = UnixStream::from_std(predecessor)?;
    in_time(PATIENCE, predecessor.write_all(&[SERVING])).await?;
    match in_time(PATIENCE, predecessor.read_u8()).await? {
        DONE => Ok(()),
        other => Err(io::Error::other(format!("it said {other}"))),
    }
}

/// Mode 0600. What stands there is of a predecessor.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn in_time<T>(limit: Duration, done: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, done).await.map_err(io::Error::from)?
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each holder leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
