//! The thread that writes.

use super::entry::Entry;
use super::file::Output;
use super::{Tally, line};
use crossbeam_queue::ArrayQueue;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Between two looks at the queue.
const LOOK: Duration = Duration::from_millis(10);
/// Lines that are written at once, bytes.
const BATCH_BYTES: usize = 64 * 1_024;
/// How long the end of the process waits for the last lines: whoever reads them may be stuck.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Dropped to end it.
    stop: Option<SyncSender<()>>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(
        output: Output,
        queue: Arc<ArrayQueue<Entry>>,
        tally: Arc<Tally>,
        reopen: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let (stop, stopped) = sync_channel(0);
        let (ends, ended) = sync_channel(1);
        let mut work = Work {
            output,
            queue,
            tally,
            reopen,
            lines: Vec::with_capacity(BATCH_BYTES),
            troubled: false,
        };
        let thread = Builder::new().name("access log".into()).spawn(move || {
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                work.write_all();
            }
            work.write_all();
            drop(ends);
        })?;
        Ok(Self {
            stop: Some(stop),
            ended,
            thread: Some(thread),
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop = None;
        let ended = self.ended.recv_timeout(LAST_WORDS);
        if ended == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("access log: the last lines could not be written in time");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("access log: its writer has panicked");
        }
    }
}

struct Work {
    output: Output,
    queue: Arc<ArrayQueue<Entry>>,
    tally: Arc<Tally>,
    reopen: Arc<AtomicBool>,
    lines: Vec<u8>,
    /// The last batch couldn't be written, which was said.
    troubled: bool,
}

impl Work {
    fn write_all(&mut self) {
        let anyway = self.reopen.swap(false, Ordering::Relaxed);
        if self.queue.is_empty() && !anyway {
            return;
        }
        if let Err(error) = self.output.follow(anyway) {
            // The old file is better than none.
            self.tell(&error);
        }
        loop {
            let mut count = 0;
            self.lines.clear();
            while self.lines.len() < BATCH_BYTES
                && let Some(entry) = self.queue.pop()
            {
                line::write(&entry, &mut self.lines);
                count += 1;
            }
            if count == 0 {
                return;
            }
            // Relaxed: counts, which publish nothing.
            match self.output.write(&self.lines) {
                Ok(()) => {
                    self.troubled = false;
                    self.tally.written.fetch_add(count, Ordering::Relaxed);
                }
                Err(error) => {
                    self.tell(&error);
                    self.tally.dropped.fetch_add(count, Ordering::Relaxed);
                }
            }
        }
    }

    /// Says once that there is trouble, until a batch is written again.
    fn tell(&mut self, error: &io::Error) {
        if !self.troubled {
            self.troubled = true;
            tracing::error!(%error, "access log");
        }
    }
}
