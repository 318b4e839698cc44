//! The end of the process, as an idle connection hears of it.

use pingora_core::server::ShutdownWatch;
use std::pin::Pin;
use std::task::Context;

/// To listen for it takes a lock, so a connection does it once in its life; to look is one load.
pub(super) struct Stop {
    shutdown: ShutdownWatch,
    come: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    listens: bool,
}

impl Stop {
    pub(super) fn new(shutdown: &ShutdownWatch) -> Self {
        let mut heard = shutdown.clone();
        let come = async move {
            // An error is the end of who would say so.
            heard.wait_for(|&stop| stop).await.map(drop).ok();
        };
        Self {
            shutdown: shutdown.clone(),
            come: Box::pin(come),
            listens: false,
        }
    }

    /// Whether it has come.
    pub(super) fn is_on(&self) -> bool {
        !matches!(self.shutdown.has_changed(), Ok(false))
    }

    /// The same; if not, the task is woken when it comes. It must be the same task each time.
    pub(super) fn has_come(&mut self, context: &mut Context<'_>) -> bool {
        if !self.listens {
            self.listens = true;
            if self.come.as_mut().poll(context).is_ready() {
                return true;
            }
        }
        self.is_on()
    }
}
