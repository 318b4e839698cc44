//! What the control plane is told, without a count lost or told twice.
//!
//! A report is the difference between the counters now and the counters at the last report that
//! was taken over by the transport. One that wasn't is simply made again, longer. An instance that
//! left the table is reported until nothing is in flight there and its last counts are told.

use crate::counters::Counters;
use crate::live::Totals;
use crate::routes::Routes;
use sim_core::event::{InstanceTraffic, TrafficSample};
use sim_core::name::InstanceId;
use std::collections::HashMap;
use std::time::Duration;

#[derive(Debug, Default)]
struct Baseline {
    at_ns: u64,
    arrivals: u64,
    instances: HashMap<InstanceId, Totals>,
}

fn answered(totals: &Totals) -> u64 {
    totals.first.ok + totals.first.overtaken
}

/// What has been told so far.
#[derive(Debug)]
pub(crate) struct Ledger {
    told: Baseline,
    offered: Option<Offer>,
}

#[derive(Debug)]
struct Offer {
    baseline: Baseline,
    /// Gone from the table, drained, and told in full by this report.
    finished: Vec<InstanceId>,
}

impl Ledger {
    pub(crate) fn new(now_ns: u64) -> Self {
        Self {
            told: Baseline {
                at_ns: now_ns,
                ..Baseline::default()
            },
            offered: None,
        }
    }

    /// The report due at `now_ns`. To be followed by [`Ledger::taken`] or [`Ledger::lost`].
    pub(crate) fn draft(
        &mut self,
        routes: &Routes,
        counters: &Counters,
        now_ns: u64,
    ) -> TrafficSample {
        // Before the counters are read: a table that comes in between makes the report one of the
        // table before, never an early acknowledgement.
        let snapshot = routes.snapshot();
        let mut finished = vec![];
        let mut instances = vec![];
        let mut baseline = Baseline {
            at_ns: now_ns,
            arrivals: counters.arrivals(),
            instances: HashMap::new(),
        };
        let nothing = Totals::default();
        for live in routes.known() {
            let totals = live.totals();
            let told = self.told.instances.get(&live.id()).unwrap_or(&nothing);
            instances.push(InstanceTraffic {
                instance: live.id(),
                // To the user an overtaken one was answered, and when it was overtaken.
                ok: answered(&totals).saturating_sub(answered(told)),
                failed: totals.first.failed.saturating_sub(told.first.failed),
                latency: totals.latency_since(told),
                in_flight: totals.in_flight,
                ejected: live.health().is_ejected(now_ns)
                    || live.checked().is_out()
                    || live.is_down(),
            });
            if totals.in_flight == 0 && snapshot.upstream(live.id()).is_none() {
                finished.push(live.id());
            }
            baseline.instances.insert(live.id(), totals);
        }
        let sample = TrafficSample {
            window: Duration::from_nanos(now_ns.saturating_sub(self.told.at_ns)),
            arrivals: baseline.arrivals.saturating_sub(self.told.arrivals),
            applied: snapshot.version(),
            instances,
        };
        self.offered = Some(Offer { baseline, finished });
        sample
    }

    /// The last report was handed over.
    pub(crate) fn taken(&mut self, routes: &Routes) {
        if let Some(offer) = self.offered.take() {
            self.told = offer.baseline;
            for instance in offer.finished {
                routes.forget(instance);
                self.told.instances.remove(&instance);
            }
        }
    }

    /// The last report was not handed over; the next one covers its time as well.
    pub(crate) fn lost(&mut self) {
        self.offered = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EjectSettings;
    use crate::live::Outcome;
    use crate::routes::Entry;
    use sim_core::name::WorkloadName;
    use sim_core::table::{Share, Version, WeightTable};

    const FIRST: Entry = Entry {
        not: None,
        may_probe: true,
        first: true,
        session: None,
    };

    fn name() -> WorkloadName {
        WorkloadName::new("web").expect("valid")
    }

    fn apply(routes: &Routes, generation: u64, id: u64) {
        let share = Share {
            instance: InstanceId(id),
            address: ([127, 0, 0, 1], 1).into(),
            weight_bp: 10_000,
            ready: true,
        };
        let version = Version {
            epoch: 1,
            generation,
        };
        let table = WeightTable::new(name(), version, vec![share]).expect("a table");
        routes.apply(&table).expect("newer");
    }

    fn serve(routes: &Routes, counters: &Counters) {
        counters.arrived();
        routes
            .enter(FIRST)
            .expect("an instance")
            .end(Outcome::Ok, Some(700));
    }

    #[test]
    fn a_lost_report_is_told_with_the_next_and_a_taken_one_never_again() {
        let routes = Routes::new(name(), EjectSettings::default());
        let (counters, mut ledger) = (Counters::default(), Ledger::new(0));
        apply(&routes, 1, 1);
        serve(&routes, &counters);
        assert_eq!(ledger.draft(&routes, &counters, 1_000).arrivals, 1);
        ledger.lost();
        serve(&routes, &counters);
        let both = ledger.draft(&routes, &counters, 3_000);
        assert_eq!((both.arrivals, both.instances[0].ok), (2, 2));
        assert_eq!(both.instances[0].latency.count(), 2);
        assert_eq!(both.window, Duration::from_nanos(3_000));
        ledger.taken(&routes);
        let none = ledger.draft(&routes, &counters, 4_000);
        assert_eq!((none.arrivals, none.instances[0].ok), (0, 0));
        assert_eq!(none.window, Duration::from_nanos(1_000));
    }

    #[test]
    fn a_removed_instance_is_told_until_it_is_drained_and_complete() {
        let routes = Routes::new(name(), EjectSettings::default());
        let (counters, mut ledger) = (Counters::default(), Ledger::new(0));
        apply(&routes, 1, 1);
        let mut slow = routes.enter(FIRST).expect("an instance");
        apply(&routes, 2, 2);
        let told = |sample: &TrafficSample| {
            let line = sample
                .instances
                .iter()
                .find(|i| i.instance == InstanceId(1));
            line.map(|i| (i.in_flight, i.ok))
        };
        assert_eq!(told(&ledger.draft(&routes, &counters, 1)), Some((1, 0)));
        ledger.taken(&routes);
        slow.end(Outcome::Ok, Some(5));
        drop(slow);
        assert_eq!(told(&ledger.draft(&routes, &counters, 2)), Some((0, 1)));
        ledger.lost();
        assert_eq!(
            told(&ledger.draft(&routes, &counters, 3)),
            Some((0, 1)),
            "lost, so again"
        );
        ledger.taken(&routes);
        assert_eq!(told(&ledger.draft(&routes, &counters, 4)), None);
    }
}
