//! Looks whether files with certificates and keys have changed.
//!
//! By their stamps, every two seconds: that holds for files written in place, renamed over, and for the links of
//! orchestrators and ACME clients that are turned to another directory, none of which one kind of event shows. What
//! isn't good is tried again, since chain and key may be written one after the other, and changes nothing meanwhile.

use super::pem::Fault;
use crate::exposition::{Kind, Page};
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use std::fmt::Debug;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Something that was read from files.
pub(crate) trait Watched: Debug + Send + Sync {
    /// The files.
    fn paths(&self) -> Vec<PathBuf>;

    /// Their stamps before they were read for the first time.
    fn first_stamps(&self) -> Vec<Stamp>;

    /// Reads them again and puts what they hold in force, if all of it is good.
    fn read_again(&self) -> Result<(), Fault>;

    /// Counts it.
    fn reloads(&self) -> &Reloads;
}

/// How often files that had changed were read again.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    ok: AtomicU64,
    failed: AtomicU64,
}

impl Reloads {
    /// Their part of the metrics, by whom the files are for.
    pub(crate) fn render(page: &mut Page, sides: &[(&'static str, &Self)]) {
        page.family(
            "sim_proxy_tls_reloads_total",
            Kind::Counter,
            "Times that changed certificates or keys were read: ok (they are in force), failed (the last good ones stay).",
        );
        for (side, reloads) in sides {
            for (result, counter) in [("ok", &reloads.ok), ("failed", &reloads.failed)] {
                let count = counter.load(Ordering::Relaxed);
                page.sample(&[("side", side), ("result", &result)], count);
            }
        }
    }
}

/// Which file it was, when it was written, and how large it was; none: it wasn't there.
pub(crate) type Stamp = Option<(u64, u64, u64, i64, i64)>;

pub(super) fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let file = std::fs::metadata(path).ok()?;
        Some((
            file.dev(),
            file.ino(),
            file.len(),
            file.mtime(),
            file.mtime_nsec(),
        ))
    };
    paths.iter().map(stamp).collect()
}

/// Looks for the life of the process.
pub(crate) struct Watch(pub(crate) Arc<dyn Watched>);

#[async_trait]
impl BackgroundService for Watch {
    async fn start(&self, mut stop: ShutdownWatch) {
        // Of what is in force.
        let mut good = self.0.first_stamps();
        // What was wrong with which files.
        let mut said = None;
        loop {
            tokio::select! {
                _ = stop.wait_for(|&stop| stop) => return,
                () = sleep(INTERVAL) => {}
            }
            let (watched, before) = (self.0.clone(), good.clone());
            let look = move || {
                // Before they are read: what changes in between is seen at the next look.
                let now = stamps(&watched.paths());
                (now != before).then(|| (now, watched.read_again()))
            };
            let (now, read) = match spawn_blocking(look).await {
                Ok(Some(looked)) => looked,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(%error, "certificates can't be looked at");
                    continue;
                }
            };
            let reloads = self.0.reloads();
            // Relaxed: each is a fact of its own.
            match read {
                Ok(()) => {
                    reloads.ok.fetch_add(1, Ordering::Relaxed);
                    tracing::info!("changed certificates are in force");
                    (good, said) = (now, None);
                }
                Err(fault) => {
                    let saying = Some((now, fault));
                    if said == saying {
                        continue;
                    }
                    reloads.failed.fetch_add(1, Ordering::Relaxed);
                    if let Some((_, fault)) = &saying {
                        tracing::error!("{fault}; the last good certificates stay in force");
                    }
                    said = saying;
                }
            }
        }
    }
}
