//! The workloads behind one proxy. Each has its own routes, retry budget and counters, and is told its tables in a
//! session of its own; a request is matched to one of them before anything else is decided.

use crate::access_log::AccessLog;
use crate::config::{ProxyConfig, WorkloadSettings};
use crate::counters::Counters;
use crate::dispatch::Dispatch;
use crate::limits::{Limits, Refusal};
use crate::matching::{Found, Matcher};
use crate::routes::Routes;
use crate::snapshot::Upstream;
use crate::tls::instances::InstanceTls;
use sim_api::v1;
use sim_core::table::{Version, WeightTable};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// All of them.
#[derive(Debug)]
pub(crate) struct Workloads {
    all: Box<[Arc<Dispatch>]>,
    matcher: Matcher,
    /// Of connections, and of requests that reached none: malformed, or nobody's.
    pub(crate) outside: Counters,
    /// Of users, whatever they ask for.
    pub(crate) limits: Limits,
    pub(crate) access_log: Option<Arc<AccessLog>>,
    unmatched: AtomicU64,
    dot_segments: AtomicU64,
}

impl Workloads {
    /// `tls`: how the instances of each workload are spoken to, by its place.
    pub(crate) fn new(config: &ProxyConfig, tls: &[Option<Arc<InstanceTls>>]) -> Self {
        let dispatch = |(place, workload): (usize, &WorkloadSettings)| {
            let routes = Routes::new(workload.name.clone(), config.eject)
                .by(config.policy)
                .with_room(config.limits.upstream_concurrency);
            let tls = tls.get(place).cloned().flatten();
            Arc::new(Dispatch::new(config, routes, workload, tls))
        };
        let conditions = config.workloads.iter().map(|w| w.conditions.as_slice());
        Self {
            all: config.workloads.iter().enumerate().map(dispatch).collect(),
            matcher: Matcher::new(conditions),
            outside: Counters::default(),
            limits: Limits::new(config.limits),
            access_log: None,
            unmatched: AtomicU64::default(),
            dot_segments: AtomicU64::default(),
        }
    }

    /// The same, and requests leave entries in `log`.
    pub(crate) fn logged_to(self, access_log: Option<Arc<AccessLog>>) -> Self {
        Self { access_log, ..self }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Dispatch>> {
        self.all.iter()
    }

    /// Puts the tables of a predecessor in force.
    pub(crate) fn inherit(&self, tables: Vec<v1::RoutingTable>) {
        for table in tables {
            let table = match WeightTable::try_from(table) {
                Ok(table) => table,
                Err(error) => {
                    let malformed = &self.outside.tables_malformed;
                    malformed.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%error, "inherited table refused");
                    continue;
                }
            };
            let own = |dispatch: &&Arc<Dispatch>| dispatch.routes.workload() == table.workload();
            // A workload that the configuration doesn't name any more is none.
            if let Some(dispatch) = self.all.iter().find(own)
                && let Err(error) = dispatch.routes.apply(&table)
            {
                tracing::error!(%error, "inherited table refused");
            }
        }
    }

    pub(crate) fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    /// One of them, by its place.
    #[inline]
    pub(crate) fn at(&self, place: usize) -> Option<&Dispatch> {
        self.shared(place).map(|found| &**found)
    }

    /// The same, to keep.
    pub(crate) fn shared(&self, place: usize) -> Option<&Arc<Dispatch>> {
        self.all.get(place)
    }

    /// The place of the one that a request goes to.
    ///
    /// # Errors
    /// Why it is refused; that is counted apart from the refusal itself.
    #[inline]
    pub(crate) fn place(&self, found: Found) -> Result<usize, Refusal> {
        // Relaxed: counts for people.
        match found {
            Found::Workload(place) => Ok(place),
            Found::None => {
                self.unmatched.fetch_add(1, Ordering::Relaxed);
                Err(Refusal::NoWorkload)
            }
            Found::DotSegment => {
                self.dot_segments.fetch_add(1, Ordering::Relaxed);
                Err(Refusal::DotSegment)
            }
        }
    }

    /// The same, itself.
    ///
    /// # Errors
    /// As for [`Workloads::place`].
    #[inline]
    pub(crate) fn of(&self, found: Found) -> Result<&Dispatch, Refusal> {
        let place = self.place(found)?;
        self.at(place).ok_or(Refusal::NoWorkload)
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

/// A request that has arrived. Dropped before it is closed, by a panic or the end of its runtime, it ends as failed: a
/// stop would wait for it for ever.
#[derive(Debug)]
pub(crate) struct Open {
    workloads: Arc<Workloads>,
    /// Of its workload, if it has one.
    place: Option<usize>,
    is_over: bool,
}

impl Open {
    pub(crate) fn new(workloads: Arc<Workloads>, place: Option<usize>) -> Self {
        let open = Self {
            workloads,
            place,
            is_over: false,
        };
        open.counters().arrived();
        open
    }

    /// Its end is counted by who calls this.
    pub(crate) fn close(&mut self) {
        self.is_over = true;
    }

    fn counters(&self) -> &Counters {
        let dispatch = self.place.and_then(|place| self.workloads.at(place));
        dispatch.map_or(&self.workloads.outside, |dispatch| &dispatch.counters)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.is_over {
            self.counters().cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Ending;
    use sim_core::name::{ProxyName, WorkloadName};

    #[test]
    fn a_request_that_a_panic_ends_is_in_flight_no_more() {
        let any = ([127, 0, 0, 1], 0).into();
        let config = ProxyConfig::new(
            ProxyName::new("p").expect("valid"),
            vec![WorkloadName::new("web").expect("valid").into()],
            any,
            any,
            "/nonexistent".into(),
        );
        let workloads = Arc::new(Workloads::new(&config, &[]));
        for place in [Some(0), None] {
            let request = Open::new(workloads.clone(), place);
            let panicked = std::thread::spawn(move || {
                let _request = request;
                panic!("as a request may");
            });
            panicked.join().expect_err("it panics");
        }
        assert_eq!(workloads.in_flight(), 0);
        for counters in [&workloads.all[0].counters, &workloads.outside] {
            assert_eq!(counters.arrivals(), 1);
            assert_eq!(counters.endings(Ending::Failed), 1);
        }
        Open::new(workloads.clone(), Some(0)).close();
        assert_eq!(workloads.in_flight(), 1);
    }
}
