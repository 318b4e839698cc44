//! Opens the log again when it is told to, by SIGHUP: what `logrotate` and its like send once they have moved the file. (A
//! file that was moved is noticed without it as well, with the next line.)

use super::AccessLog;
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Waits for the signal for the life of the process.
pub(crate) struct Rotation {
    /// None where nothing is logged: then the signal is heard, and nothing done.
    pub(crate) log: Option<Arc<AccessLog>>,
}

#[async_trait]
impl BackgroundService for Rotation {
    async fn start(&self, mut stop: ShutdownWatch) {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => return tracing::error!(%error, "SIGHUP can't be handled"),
        };
        loop {
            tokio::select! {
                _ = stop.wait_for(|&stop| stop) => return,
                hangup = hangups.recv() => match hangup {
                    Some(()) => {
                        if let Some(log) = &self.log {
                            log.reopen();
                        }
                    }
                    None => return,
                },
            }
        }
    }
}
