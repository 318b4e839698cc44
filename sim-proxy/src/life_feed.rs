//! Finds, for each instance, the flags of the node that watches it.
//!
//! Once found, a pick reads the kernel's word itself; nothing here is on a request's way. Where a node
//! offers none (no probes, another machine), ejection by failed requests is what is left.

use crate::workloads::Workloads;
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use sim_life::Taken;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Between two looks for nodes and for instances that have no flags yet.
const INTERVAL: Duration = Duration::from_millis(100);

/// Keeps looking for the life of the process.
pub(crate) struct LifeFeed {
    pub(crate) sockets: Vec<PathBuf>,
    pub(crate) workloads: Arc<Workloads>,
}

#[async_trait]
impl BackgroundService for LifeFeed {
    async fn start(&self, mut stop: ShutdownWatch) {
        let mut nodes: Vec<Node<'_>> = self.sockets.iter().map(|path| Node::new(path)).collect();
        loop {
            for node in &mut nodes {
                node.look().await;
            }
            let known = self.workloads.iter().flat_map(|of| of.routes.known());
            for live in known.filter(|live| !live.is_watched()) {
                let mut flags = nodes.iter().filter_map(|node| node.taken.as_ref());
                if let Some(node) = flags.find(|node| node.flags.life(live.id().0).is_some()) {
                    tracing::debug!("{}: its life flag is read from now on", live.id());
                    live.watch(Arc::clone(&node.flags));
                }
            }
            tokio::select! {
                _ = stop.wait_for(|&stop| stop) => return,
                () = sleep(INTERVAL) => {}
            }
        }
    }
}

/// One node's socket, and what came from it.
struct Node<'a> {
    path: &'a Path,
    taken: Option<Taken>,
    said: Option<String>,
}

impl<'a> Node<'a> {
    fn new(path: &'a Path) -> Self {
        Self {
            path,
            taken: None,
            said: None,
        }
    }

    async fn look(&mut self) {
        if self.taken.as_ref().is_some_and(|taken| !taken.is_open()) {
            self.taken = None;
        }
        if self.taken.is_some() || !self.path.exists() {
            return;
        }
        let path = self.path.to_owned();
        // It waits until the node has time for it.
        let taken = tokio::task::spawn_blocking(move || sim_life::take(&path)).await;
        match taken {
            Ok(Ok(taken)) => (self.taken, self.said) = (Some(taken), None),
            Ok(Err(error)) => {
                let error = error.to_string();
                // Once, and not ten times a second.
                if self.said.as_ref() != Some(&error) {
                    tracing::debug!("{}: no life flags: {error}", self.path.display());
                    self.said = Some(error);
                }
            }
            Err(error) => tracing::warn!("{}: {error}", self.path.display()),
        }
    }
}
