//! What became of each request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sim_core::time::Time;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Status and body are what they must be.
    Ok,
    /// Another status.
    Status(u16),
    /// Right status, wrong body.
    Body,
    /// No answer: refused, reset, closed before the end.
    Transport,
    /// No whole answer within the total timeout.
    Timeout,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Status(code) => write!(f, "status {code}"),
            Self::Body => f.write_str("wrong body"),
            Self::Transport => f.write_str("transport"),
            Self::Timeout => f.write_str("timeout"),
        }
    }
}

/// One request, accounted.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// When the law said to send it.
    pub intended: Time,
    /// From the intended moment to the last byte, in microseconds.
    pub latency_micros: u64,
    /// Its method may be repeated safely (RFC 9110, 9.2.2).
    pub idempotent: bool,
    /// How it ended.
    pub outcome: Outcome,
}

impl Record {
    /// When it ended.
    #[must_use]
    pub fn ended(&self) -> Time {
        Time(self.intended.0 + self.latency_micros)
    }

    /// True if it did not end well.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.outcome != Outcome::Ok
    }

    /// True if any part of it lies in `from <= t < to`.
    #[must_use]
    pub fn overlaps(&self, from: Time, to: Time) -> bool {
        self.ended() >= from && self.intended < to
    }
}

/// All requests of a run. `sent` counts before the first byte leaves, so a request that is
/// forgotten shows as `sent > ok + failed`.
#[derive(Debug, Default)]
pub struct Ledger {
    sent: AtomicU64,
    records: Mutex<Vec<Record>>,
}

impl Ledger {
    /// A request is about to be sent.
    pub fn send(&self) {
        // Relaxed: a count, read for display and after the sender has been joined.
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// A request ended.
    pub fn close(&self, record: Record) {
        self.lock().push(record);
    }

    /// Requests sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Requests that ended so far.
    #[must_use]
    pub fn closed(&self) -> usize {
        self.lock().len()
    }

    /// Copies what ended since the first `skip`.
    #[must_use]
    pub fn since(&self, skip: usize) -> Vec<Record> {
        self.lock().get(skip..).unwrap_or_default().to_vec()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        // A panic while pushing leaves a valid list.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Latencies of a set of requests. Quantiles are exact: a run's hundred thousand latencies are
/// sorted, since a histogram's rounding would be of the size of the differences judged here.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    sorted_micros: Vec<u64>,
}

impl Latencies {
    /// Of requests that ended well or not: a failure took its time as well.
    #[must_use]
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut sorted_micros: Vec<u64> = records.into_iter().map(|r| r.latency_micros).collect();
        sorted_micros.sort_unstable();
        Self { sorted_micros }
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sorted_micros.len()
    }

    /// Quantile by nearest rank, in milliseconds; none without requests.
    #[must_use]
    pub fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let rank = (quantile * self.count() as f64).ceil() as usize;
        let micros = self.sorted_micros.get(rank.saturating_sub(1))?;
        Some(*micros as f64 / 1e3)
    }
}

/// Failures by outcome.
#[must_use]
pub fn failures<'a>(records: impl IntoIterator<Item = &'a Record>) -> BTreeMap<Outcome, u64> {
    let mut by_outcome = BTreeMap::new();
    for record in records.into_iter().filter(|r| r.failed()) {
        *by_outcome.entry(record.outcome).or_insert(0) += 1;
    }
    by_outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(intended: u64, latency_micros: u64, outcome: Outcome) -> Record {
        Record {
            intended: Time(intended),
            latency_micros,
            idempotent: true,
            outcome,
        }
    }

    #[test]
    fn a_forgotten_request_shows_as_sent_but_not_closed() {
        let ledger = Ledger::default();
        ledger.send();
        ledger.send();
        ledger.close(record(0, 10, Outcome::Ok));
        assert_eq!((ledger.sent(), ledger.closed()), (2, 1));
    }

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let records: Vec<Record> = (1..=200)
            .map(|i| record(0, i * 1_000, Outcome::Ok))
            .collect();
        let latencies = Latencies::of(&records);
        assert_eq!(latencies.quantile_ms(0.5), Some(100.0));
        assert_eq!(latencies.quantile_ms(0.99), Some(198.0));
        assert_eq!(latencies.quantile_ms(1.0), Some(200.0));
        assert_eq!(Latencies::default().quantile_ms(0.5), None);
    }

    #[test]
    fn a_request_in_flight_over_a_border_belongs_to_both_sides() {
        let request = record(100, 50, Outcome::Transport);
        assert!(request.overlaps(Time(0), Time(120)));
        assert!(request.overlaps(Time(120), Time(200)));
        assert!(!request.overlaps(Time(151), Time(200)));
        assert!(!request.overlaps(Time(0), Time(100)));
    }

    #[test]
    fn failures_are_counted_by_class() {
        let records = [
            record(0, 1, Outcome::Ok),
            record(0, 1, Outcome::Status(502)),
            record(0, 1, Outcome::Status(502)),
            record(0, 1, Outcome::Body),
        ];
        let counted = failures(&records);
        assert_eq!(counted.get(&Outcome::Status(502)), Some(&2));
        assert_eq!(counted.values().sum::<u64>(), 3);
    }
}
