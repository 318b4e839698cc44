//! What became of the requests, by kind.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the kernel may take to close what a killed process had open.
const DYING: Duration = Duration::from_millis(250);
/// Failures that are told in full, of each kind.
const TOLD_MAX: usize = 5;
/// Faults that are told with them.
const RECENT: usize = 3;

/// How much a kind of request may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    /// A GET whose answer is short: it is asked elsewhere whatever becomes of its instance.
    Never,
    /// What is cut where its instance dies in the middle of it, or what can't be sent twice. Never else.
    WhenKilled,
}

#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) may: May,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// Of those that failed, while no instance was being killed.
    pub(crate) unexplained: u64,
    pub(crate) told: Vec<String>,
}

/// All kinds, and when instances were killed.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    kinds: BTreeMap<&'static str, Kind>,
    /// From just before each kill.
    kills: Vec<Instant>,
    faults: BTreeMap<&'static str, u64>,
    /// The last few, newest last.
    recent: VecDeque<(Instant, &'static str)>,
}

impl Tally {
    fn with<T>(&self, of: impl FnOnce(&mut Inner) -> T) -> T {
        of(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An instance is killed in the next moment.
    pub(crate) fn kills(&self) {
        self.with(|inner| inner.kills.push(Instant::now()));
    }

    pub(crate) fn fault(&self, name: &'static str) {
        self.with(|inner| {
            *inner.faults.entry(name).or_default() += 1;
            inner.recent.push_back((Instant::now(), name));
            if inner.recent.len() > RECENT {
                inner.recent.pop_front();
            }
        });
    }

    pub(crate) fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.with(|inner| inner.faults.clone())
    }

    /// How a request ended that was begun at `begun`.
    pub(crate) fn note(
        &self,
        name: &'static str,
        may: May,
        begun: Instant,
        ended: Instant,
        result: Result<(), impl Display>,
    ) {
        self.with(|inner| {
            let is_explained = may == May::WhenKilled
                && inner
                    .kills
                    .iter()
                    .any(|&killed| begun <= killed + DYING && killed <= ended);
            let kind = inner.kinds.entry(name).or_insert_with(|| Kind {
                may,
                done: 0,
                failed: 0,
                unexplained: 0,
                told: Vec::new(),
            });
            kind.done += 1;
            if let Err(error) = result {
                kind.failed += 1;
                kind.unexplained += u64::from(!is_explained);
                if !is_explained && kind.told.len() < TOLD_MAX {
                    let recent = inner.recent.iter().map(|(at, name)| {
                        let since = ended.saturating_duration_since(*at);
                        format!("{:.1} s after {name}", since.as_secs_f64())
                    });
                    let recent: Vec<_> = recent.collect();
                    let lasted = ended.saturating_duration_since(begun);
                    let recent = recent.join(", ");
                    kind.told
                        .push(format!("{error} (lasted {lasted:.1?}; {recent})"));
                }
            }
        });
    }

    /// The rows so far.
    pub(crate) fn kinds<T>(&self, of: impl FnOnce(&BTreeMap<&'static str, Kind>) -> T) -> T {
        self.with(|inner| of(&inner.kinds))
    }

    pub(crate) fn done(&self) -> u64 {
        self.with(|inner| inner.kinds.values().map(|kind| kind.done).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_under_way_when_an_instance_was_killed_may_have_failed() {
        let tally = Tally::default();
        let before = Instant::now();
        tally.kills();
        let after = Instant::now() + 2 * DYING;
        let broken = || Err::<(), _>("broken");
        tally.note("stream", May::WhenKilled, before, after, broken());
        tally.note("stream", May::WhenKilled, after, after + DYING, broken());
        tally.note("get", May::Never, before, after, broken());
        tally.note("get", May::Never, before, after, Ok::<_, &str>(()));
        tally.kinds(|kinds| {
            let row = |name| {
                let kind: &Kind = &kinds[name];
                (kind.done, kind.failed, kind.unexplained)
            };
            assert_eq!(row("stream"), (2, 2, 1));
            assert_eq!(row("get"), (2, 1, 1));
        });
    }
}
