//! The workloads behind one proxy. Each has its own routes, retry budget and counters, and is told its tables in a
//! session of its own; a request is matched to one of them before anything else is decided.

use crate::config::{ProxyConfig, WorkloadSettings};
use crate::counters::Counters;
use crate::dispatch::Dispatch;
use crate::matching::{Found, Matcher};
use crate::routes::Routes;
use crate::snapshot::Upstream;
use sim_core::table::Version;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// All of them.
#[derive(Debug)]
pub(crate) struct Workloads {
    all: Box<[Arc<Dispatch>]>,
    matcher: Matcher,
    /// Of connections, and of requests that reached none: malformed, or nobody's.
    pub(crate) outside: Counters,
    unmatched: AtomicU64,
    dot_segments: AtomicU64,
}

impl Workloads {
    pub(crate) fn new(config: &ProxyConfig) -> Self {
        let dispatch = |workload: &WorkloadSettings| {
            let routes = Routes::new(workload.name.clone(), config.eject).by(config.policy);
            Arc::new(Dispatch::new(config, routes))
        };
        let conditions = config.workloads.iter().map(|w| w.conditions.as_slice());
        Self {
            all: config.workloads.iter().map(dispatch).collect(),
            matcher: Matcher::new(conditions),
            outside: Counters::default(),
            unmatched: AtomicU64::default(),
            dot_segments: AtomicU64::default(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Dispatch>> {
        self.all.iter()
    }

    pub(crate) fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    /// One of them, by its place.
    #[inline]
    pub(crate) fn at(&self, place: usize) -> Option<&Dispatch> {
        self.all.get(place).map(|found| &**found)
    }

    /// The place of the one that a request goes to.
    ///
    /// # Errors
    /// The status that it is refused with; that is counted.
    #[inline]
    pub(crate) fn place(&self, found: Found) -> Result<usize, u16> {
        // Relaxed: counts for people.
        match found {
            Found::Workload(place) => Ok(place),
            Found::None => {
                self.unmatched.fetch_add(1, Ordering::Relaxed);
                Err(404)
            }
            Found::DotSegment => {
                self.dot_segments.fetch_add(1, Ordering::Relaxed);
                Err(400)
            }
        }
    }

    /// The same, itself.
    ///
    /// # Errors
    /// As for [`Workloads::place`].
    #[inline]
    pub(crate) fn of(&self, found: Found) -> Result<&Dispatch, u16> {
        let place = self.place(found)?;
        self.at(place).ok_or(404)
    }

    /// Requests that no condition held for, and requests for a path with a dot segment.
    pub(crate) fn refused(&self) -> [(&'static str, u64); 2] {
        [
            ("no_workload", self.unmatched.load(Ordering::Relaxed)),
            ("dot_segment", self.dot_segments.load(Ordering::Relaxed)),
        ]
    }

    /// Requests in flight; see [`Counters::in_flight`].
    pub(crate) fn in_flight(&self) -> u64 {
        let counters = self.all.iter().map(|dispatch| &dispatch.counters);
        counters
            .chain([&self.outside])
            .map(Counters::in_flight)
            .sum()
    }

    /// Each has had a table, and one has an instance that is ready. The failure of one is not the others'.
    pub(crate) fn are_ready(&self) -> bool {
        let snapshots = || self.all.iter().map(|dispatch| dispatch.routes.snapshot());
        let is_ready = |upstream: &Upstream| upstream.ready;
        snapshots().all(|snapshot| snapshot.version() != Version::default())
            && snapshots().any(|snapshot| snapshot.upstreams().iter().any(is_ready))
    }
}
