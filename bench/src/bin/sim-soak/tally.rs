//! What became of the requests, by kind, and why some failed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::arrivals::Arrivals;

/// How long the kernel may take to close what a killed process had open.
const DYING: Duration = Duration::from_millis(250);
/// How long the proxy may take to hear of a table.
const HEARD: Duration = Duration::from_secs(1);
/// Failures that are told in full, of each cause.
const TOLD_MAX: usize = 3;
/// Causes that are told of each kind.
const CAUSES_MAX: usize = 20;
/// Faults that are told with them.
const RECENT: usize = 3;

/// How much a kind of request may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    /// A GET whose answer is short: it is asked elsewhere whatever becomes of its instance.
    Never,
    /// What is cut where its instance, one of this workload's, dies in the middle of it, and can't be sent twice: by
    /// what SIM promises only what has reached an instance is lost with it. Never else.
    WhenKilled(usize),
}

/// A request that had an end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) name: &'static str,
    pub(crate) may: May,
    /// By which instances know it; none: it has no number.
    pub(crate) number: Option<u64>,
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// The instance that had it was killed meanwhile.
    Killed,
    /// An instance was killed meanwhile, and none says that it had the request: it was on its way, or is of a kind of
    /// which nobody says so.
    OnItsWay,
    /// It was refused, or not answered in time, which nobody's death is a reason for.
    Refused,
    /// An instance had it that was not killed meanwhile.
    Served,
    /// No instance had it, and none was killed.
    NeverCame,
}

impl Why {
    /// By what SIM promises.
    fn is_allowed(self, may: May) -> bool {
        may != May::Never && matches!(self, Self::Killed | Self::OnItsWay)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Killed => "the instance that had it was killed",
            Self::OnItsWay => "on its way when an instance was killed",
            Self::Refused => "refused or late",
            Self::Served => "its instance was not killed",
            Self::NeverCame => "no instance says that it had it, and none was killed",
        })
    }
}

/// Failures that are alike.
#[derive(Debug, Default)]
pub(crate) struct Cause {
    pub(crate) count: u64,
    pub(crate) is_allowed: bool,
    /// Some of them in full.
    pub(crate) told: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) may: May,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// Of those that failed, what no promise of SIM's lets fail.
    pub(crate) wrong: u64,
    /// By what was heard and why it was.
    pub(crate) causes: BTreeMap<(Why, String), Cause>,
}

/// A death.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kill {
    /// Of which workload.
    pub(crate) workload: usize,
    pub(crate) instance: SocketAddr,
    /// When it left the table, if it did: what began long after that should have gone to another.
    pub(crate) left: Option<Instant>,
}

/// All kinds, and when instances were killed.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    arrivals: Option<Arrivals>,
    kinds: BTreeMap<&'static str, Kind>,
    /// From just before each.
    kills: Vec<(Instant, Kill)>,
    faults: BTreeMap<&'static str, u64>,
    /// The last few, newest last.
    recent: VecDeque<(Instant, &'static str)>,
}

impl Tally {
    pub(crate) fn new(arrivals: Arrivals) -> Self {
        let inner = Inner {
            arrivals: Some(arrivals),
            ..Inner::default()
        };
        Self(Mutex::new(inner))
    }

    fn with<T>(&self, of: impl FnOnce(&mut Inner) -> T) -> T {
        of(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An instance is killed in the next moment.
    pub(crate) fn kills(&self, kill: Kill) {
        self.with(|inner| inner.kills.push((Instant::now(), kill)));
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

    /// How a request ended.
    pub(crate) fn note(&self, asked: Asked, result: Result<(), String>) {
        self.with(|inner| {
            if let Some(arrivals) = &mut inner.arrivals {
                arrivals.hear();
            }
            let failure = result.err().map(|error| inner.failure(&asked, error));
            let kind = inner.kinds.entry(asked.name).or_insert_with(|| Kind {
                may: asked.may,
                done: 0,
                failed: 0,
                wrong: 0,
                causes: BTreeMap::new(),
            });
            kind.done += 1;
            let Some((why, error, told)) = failure else {
                return;
            };
            let is_allowed = why.is_allowed(asked.may);
            kind.failed += 1;
            kind.wrong += u64::from(!is_allowed);
            let is_known = kind.causes.contains_key(&(why, error.clone()));
            let error = if is_known || kind.causes.len() < CAUSES_MAX {
                error
            } else {
                "more".to_owned()
            };
            let cause = kind.causes.entry((why, error)).or_default();
            cause.count += 1;
            cause.is_allowed = is_allowed;
            if cause.told.len() < TOLD_MAX {
                cause.told.push(told);
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

impl Inner {
    /// Why, what was heard, and all that is known of it.
    fn failure(&self, asked: &Asked, error: String) -> (Why, String, String) {
        let had = asked.number.zip(self.arrivals.as_ref());
        let had = had.and_then(|(number, arrivals)| arrivals.of(number));
        let why = self.why(asked, had, &error);
        let since = |at: Instant| asked.ended.saturating_duration_since(at).as_secs_f64();
        let recent = self.recent.iter();
        let recent = recent.map(|(at, name)| format!("{:.1} s after {name}", since(*at)));
        let recent: Vec<_> = recent.collect();
        let number = asked.number.map(|number| format!("number {number}, "));
        let had = had.map(|instance| format!("came to {instance}, "));
        let told = format!(
            "{}{}lasted {:.3} s, {}",
            number.unwrap_or_default(),
            had.unwrap_or_default(),
            since(asked.begun),
            recent.join(", ")
        );
        (why, error, told)
    }

    fn why(&self, asked: &Asked, had: Option<SocketAddr>, error: &str) -> Why {
        if is_refused(error) {
            return Why::Refused;
        }
        let under_way = self.kills.iter().filter(|(at, kill)| {
            let begun = asked.begun;
            begun <= *at + DYING
                && *at <= asked.ended
                && kill.left.is_none_or(|left| begun <= left + HEARD)
        });
        let mut under_way = under_way.map(|(_, kill)| kill);
        match (had, asked.may) {
            (Some(had), _) if under_way.any(|kill| kill.instance == had) => Why::Killed,
            (Some(_), _) => Why::Served,
            (None, May::WhenKilled(of)) if under_way.any(|kill| kill.workload == of) => {
                Why::OnItsWay
            }
            (None, May::Never) if under_way.next().is_some() => Why::OnItsWay,
            (None, _) => Why::NeverCame,
        }
    }
}

/// Whether the proxy says that it sent nothing, or had no answer in time: statuses of HTTP, as gRPC's message has them
/// too, and the users' own impatience.
fn is_refused(error: &str) -> bool {
    ["503", "504", "429", "Late", "no end"]
        .iter()
        .any(|word| error.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: usize = 0;
    const CUT: &str = "502 Bad Gateway";

    fn instance(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 80))
    }

    fn kill(workload: usize, left: Option<Instant>) -> Kill {
        Kill {
            workload,
            instance: instance(1),
            left,
        }
    }

    fn asked(may: May, begun: Instant) -> Asked {
        Asked {
            name: "it",
            may,
            number: None,
            begun,
            ended: begun + 4 * DYING,
        }
    }

    #[test]
    fn only_what_was_under_way_when_an_instance_of_its_workload_was_killed_may_have_failed() {
        let (tally, before) = (Tally::default(), Instant::now());
        tally.kills(kill(WEB, None));
        let after = Instant::now() + 2 * DYING;
        let note = |may, begun, error: &str| {
            tally.note(asked(may, begun), Err(error.to_owned()));
            tally.kinds(|kinds| kinds["it"].wrong)
        };
        assert_eq!(note(May::WhenKilled(WEB), before, CUT), 0);
        assert_eq!(note(May::WhenKilled(WEB), after, CUT), 1);
        assert_eq!(note(May::WhenKilled(WEB + 1), before, CUT), 2);
        assert_eq!(note(May::Never, before, CUT), 3);
        // Nobody's death is a reason to refuse what another could have had.
        assert_eq!(note(May::WhenKilled(WEB), before, "503 Unavailable"), 4);
        tally.note(asked(May::Never, before), Ok(()));
        tally.kinds(|kinds| assert_eq!((kinds["it"].done, kinds["it"].failed), (6, 5)));
    }

    #[test]
    fn who_had_a_request_says_whether_its_end_was_that_of_its_instance() {
        let begun = Instant::now();
        let mut inner = Inner::default();
        inner.kills.push((begun, kill(WEB, None)));
        let asked = asked(May::WhenKilled(WEB), begun);
        assert_eq!(inner.why(&asked, Some(instance(1)), CUT), Why::Killed);
        assert_eq!(inner.why(&asked, Some(instance(2)), CUT), Why::Served);
        assert_eq!(inner.why(&asked, None, CUT), Why::OnItsWay);
        inner.kills.clear();
        assert_eq!(inner.why(&asked, None, CUT), Why::NeverCame);
    }

    #[test]
    fn what_began_long_after_its_instance_had_left_the_table_should_have_gone_elsewhere() {
        let begun = Instant::now();
        let mut inner = Inner::default();
        let asked = asked(May::WhenKilled(WEB), begun + 2 * HEARD);
        let killed = asked.begun;
        inner.kills.push((killed, kill(WEB, Some(begun))));
        assert_eq!(inner.why(&asked, Some(instance(1)), CUT), Why::Served);
        inner.kills.push((killed, kill(WEB, Some(begun + HEARD))));
        assert_eq!(inner.why(&asked, Some(instance(1)), CUT), Why::Killed);
    }
}
