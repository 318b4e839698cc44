//! The access log: a line of JSON for each request, or for a sample of them, written by a thread of its own.
//!
//! A request that is logged leaves an entry of fixed size in a bounded queue (no allocation, no lock, no system call);
//! the rest pay for a random number. The writer looks at the queue every few milliseconds, since to wake it would be a
//! system call. When it can't keep up, or is blocked by who reads the log, the queue is full: the entry is dropped and
//! counted, and nobody waits.

mod entry;
mod file;
mod line;
mod rotation;
mod writer;

pub use file::Destination;

pub(crate) use entry::{Entry, Question};
pub(crate) use rotation::Rotation;
pub(crate) use writer::Writer;

use crate::clock::nanos;
use crate::counters::Ending;
use crate::tickets::{entropy, mix};
use crossbeam_queue::ArrayQueue;
use file::Output;
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Entries that wait for the writer: some 10 ms of what one worker serves at its fastest.
const QUEUED_MAX: usize = 4_096;

/// `[proxy.access_log]`, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLogSettings {
    /// Where lines go.
    pub to: Destination,
    /// Share of the requests that are logged, 0 to 1.
    pub sample: f64,
    /// Requests that failed are logged whatever the share.
    pub always_failed: bool,
    /// So are those that took at least as long.
    pub slow: Option<Duration>,
    /// The query is logged with the path. It may hold secrets.
    pub query: bool,
}

/// What becomes of entries.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Lines written.
    pub(crate) written: AtomicU64,
    /// Entries dropped, since the queue was full or the line couldn't be written.
    pub(crate) dropped: AtomicU64,
}

/// Where requests leave their entries.
#[derive(Debug)]
pub(crate) struct AccessLog {
    settings: AccessLogSettings,
    /// Of 2^64.
    sample: u64,
    slow_ns: u64,
    queue: Arc<ArrayQueue<Entry>>,
    tally: Arc<Tally>,
    reopen: Arc<AtomicBool>,
}

impl AccessLog {
    /// Opens the log; its writer ends when it is dropped.
    ///
    /// # Errors
    /// Where that is not possible.
    pub(crate) fn open(settings: AccessLogSettings) -> io::Result<(Self, Writer)> {
        let output = Output::open(&settings.to)?;
        let queue = Arc::new(ArrayQueue::new(QUEUED_MAX));
        let tally = Arc::<Tally>::default();
        let reopen = Arc::<AtomicBool>::default();
        let writer = Writer::start(output, queue.clone(), tally.clone(), reopen.clone())?;
        let log = Self {
            // 1 is all of them: a float that is 2^64 becomes the largest number.
            sample: (settings.sample * 2_f64.powi(64)) as u64,
            slow_ns: settings.slow.map_or(u64::MAX, nanos),
            settings,
            queue,
            tally,
            reopen,
        };
        Ok((log, writer))
    }

    /// Whether a request is to be logged that ended so and took so long.
    pub(crate) fn wants(&self, ending: Ending, duration_ns: u64) -> bool {
        let failed = self.settings.always_failed && ending == Ending::Failed;
        failed || duration_ns >= self.slow_ns || drawn() < self.sample || self.sample == u64::MAX
    }

    /// Whether the query is logged.
    pub(crate) fn with_query(&self) -> bool {
        self.settings.query
    }

    /// Leaves an entry for the writer.
    pub(crate) fn log(&self, entry: Entry) {
        if self.queue.push(entry).is_err() {
            self.tally.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens the file again, as after a rotation.
    pub(crate) fn reopen(&self) {
        // Relaxed: it publishes nothing, and a wish that is seen a look later is as good.
        self.reopen.store(true, Ordering::Relaxed);
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }
}

/// A number of 2^64, from a sequence of this thread.
fn drawn() -> u64 {
    thread_local! {
        static NEXT: Cell<u64> = Cell::new(entropy());
    }
    mix(NEXT.replace(NEXT.get().wrapping_add(1)))
}

#[cfg(test)]
mod tests;
