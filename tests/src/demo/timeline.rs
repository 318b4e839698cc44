//! The moments that divide a run, and what the requests of each stretch came to.

use sim_core::journal::Kind;
use sim_core::time::Time;

use super::sim::Entry;
use super::verdict::Quantiles;
use crate::load::record::{Latencies, Record};

/// Left out of "before": connections and the first instance are cold.
const WARM_UP_MICROS: u64 = 3_000_000;

/// Moments of a run; what was not reached is absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeline {
    /// The load began.
    pub load: Option<Time>,
    /// The shadow of the planned move was asked for.
    pub created: Option<Time>,
    /// That shadow was ready.
    pub ready: Option<Time>,
    /// The old primary was terminated.
    pub reclaimed: Option<Time>,
    /// The new primary was killed.
    pub killed: Option<Time>,
}

/// Failures, by whose they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Of the planned move, any method.
    pub planned_move: u64,
    /// Of the kill, methods that may be repeated.
    pub kill_idempotent: u64,
    /// Of the kill, other methods.
    pub kill_other: u64,
    /// Of nothing that was meant to happen.
    pub otherwise: u64,
}

impl Timeline {
    /// Adds what the journal knows: the first move after the first trigger.
    pub fn read(&mut self, entries: &[Entry]) {
        let mut moves = entries.iter().map(|entry| &entry.record);
        let mut next = |kind| {
            moves
                .find(|record| record.kind == kind)
                .map(|record| record.at)
        };
        if next(Kind::Trigger).is_some() {
            self.created = next(Kind::Creating);
            self.ready = self.created.and_then(|_| next(Kind::Ready));
            self.reclaimed = self.ready.and_then(|_| next(Kind::Reclaimed));
        }
    }

    /// Whose each failure is. A request that was in flight over a border counts for what came
    /// after it, since that is what may have broken it.
    #[must_use]
    pub fn failures(&self, records: &[Record]) -> Failures {
        let mut failures = Failures::default();
        for record in records.iter().filter(|record| record.failed()) {
            let counter = if self.killed.is_some_and(|killed| record.ended() >= killed) {
                if record.idempotent {
                    &mut failures.kill_idempotent
                } else {
                    &mut failures.kill_other
                }
            } else if self
                .created
                .is_some_and(|from| record.overlaps(from, self.reclaimed.unwrap_or(Time(u64::MAX))))
            {
                &mut failures.planned_move
            } else {
                &mut failures.otherwise
            };
            *counter += 1;
        }
        failures
    }

    /// Latencies before, during and after the move, and from the kill on.
    #[must_use]
    pub fn quantiles(&self, records: &[Record]) -> [Option<Quantiles>; 4] {
        let warm = self.load.map(|load| Time(load.0 + WARM_UP_MICROS));
        let end = Some(Time(u64::MAX));
        [
            stretch(records, warm, self.created.or(end)),
            stretch(records, self.created, self.reclaimed),
            stretch(records, self.reclaimed, self.killed.or(end)),
            stretch(records, self.killed, end),
        ]
    }
}

fn stretch(records: &[Record], from: Option<Time>, to: Option<Time>) -> Option<Quantiles> {
    let (from, to) = (from?, to?);
    let inside = records
        .iter()
        .filter(|r| r.intended >= from && r.intended < to);
    let latencies = Latencies::of(inside);
    Some(Quantiles {
        p50_ms: latencies.quantile_ms(0.50)?,
        p99_ms: latencies.quantile_ms(0.99)?,
        requests: latencies.count() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::record::Outcome;

    const SECOND: u64 = 1_000_000;

    fn timeline() -> Timeline {
        let at = |second| Some(Time(second * SECOND));
        Timeline {
            load: at(0),
            created: at(50),
            ready: at(55),
            reclaimed: at(90),
            killed: at(120),
        }
    }

    fn record(second: f64, latency_ms: u64, idempotent: bool, outcome: Outcome) -> Record {
        Record {
            intended: Time((second * SECOND as f64) as u64),
            latency_micros: latency_ms * 1_000,
            idempotent,
            outcome,
        }
    }

    #[test]
    fn failures_belong_to_what_may_have_caused_them() {
        let records = [
            record(10.0, 5, true, Outcome::Body),
            record(49.999, 5, false, Outcome::Transport),
            record(60.0, 5, true, Outcome::Status(502)),
            record(95.0, 5, true, Outcome::Timeout),
            record(119.999, 5, true, Outcome::Transport),
            record(121.0, 5, false, Outcome::Transport),
            record(122.0, 5, false, Outcome::Ok),
        ];
        let expected = Failures {
            planned_move: 2,
            kill_idempotent: 1,
            kill_other: 1,
            otherwise: 2,
        };
        assert_eq!(timeline().failures(&records), expected);
    }

    #[test]
    fn stretches_are_cut_at_the_moments_of_the_journal() {
        let records: Vec<Record> = (0..1_300)
            .map(|tick| {
                let second = f64::from(tick) / 10.0;
                let latency = if (50.0..90.0).contains(&second) {
                    20
                } else {
                    10
                };
                record(second, latency, true, Outcome::Ok)
            })
            .collect();
        let [before, during, after, kill] = timeline().quantiles(&records).map(Option::unwrap);
        assert_eq!((before.p99_ms, before.requests), (10.0, 470));
        assert_eq!((during.p50_ms, during.requests), (20.0, 400));
        assert_eq!((after.p99_ms, after.requests), (10.0, 300));
        assert_eq!(kill.requests, 100);
        let unreached = Timeline {
            created: None,
            ..timeline()
        };
        assert_eq!(unreached.quantiles(&records)[1], None);
    }
}
