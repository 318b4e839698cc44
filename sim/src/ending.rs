//! Waiting for the signal to end.

use tokio::signal::unix::{SignalKind, signal};

/// Done at the first SIGTERM or SIGINT.
pub(crate) async fn asked() {
    match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        (Err(error), _) | (_, Err(error)) => {
            // Better to end at once than not to end when asked.
            tracing::error!("signals can't be waited for: {error}");
        }
    }
}
