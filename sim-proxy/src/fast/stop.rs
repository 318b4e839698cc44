//! The end of the process, as a connection hears of it.
//!
//! There are two moments. First this process accepts no more: who asks now is told that the connection closes, and goes
//! to whoever accepts in its place. Then idle connections are closed; where another process serves on, that is much
//! later, since a request may be on its way on each of them.

use pingora_core::server::ShutdownWatch;
use std::pin::Pin;
use std::task::Context;

/// To listen takes a lock, so a connection does it once in its life; to look is one load.
pub(super) struct Stop {
    shutdown: ShutdownWatch,
    idle: ShutdownWatch,
    come: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    listens: bool,
}

impl Stop {
    /// `shutdown` is the first moment, `idle` the second.
    pub(super) fn new(shutdown: &ShutdownWatch, idle: &ShutdownWatch) -> Self {
        let mut heard = idle.clone();
        let come = async move {
            // An error is the end of who would say so.
            heard.wait_for(|&stop| stop).await.map(drop).ok();
        };
        Self {
            shutdown: shutdown.clone(),
            idle: idle.clone(),
            come: Box::pin(come),
            listens: false,
        }
    }

    /// Whether who is answered is to come back elsewhere.
    pub(super) fn is_on(&self) -> bool {
        has_come(&self.shutdown)
    }

    /// Whether an idle connection is to be closed; if not, the task is woken when it is. It must be the same task each
    /// time.
    pub(super) fn closes_idle(&mut self, context: &mut Context<'_>) -> bool {
        if !self.listens {
            self.listens = true;
            if self.come.as_mut().poll(context).is_ready() {
                return true;
            }
        }
        has_come(&self.idle)
    }
}

fn has_come(moment: &ShutdownWatch) -> bool {
    !matches!(moment.has_changed(), Ok(false))
}
