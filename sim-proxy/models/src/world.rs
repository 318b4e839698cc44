//! What the models have in common: a workload, its tables, an attempt.

use crate::clock::set_ns;
use crate::config::EjectSettings;
use crate::routes::{Entry, Routes};
use sim_core::name::{InstanceId, WorkloadName};
use sim_core::table::{Share, Version, WeightTable};

pub(crate) const ONE: InstanceId = InstanceId(1);
pub(crate) const TWO: InstanceId = InstanceId(2);

/// When a model begins, ns: long enough after the clock's start for nothing to reach back to it.
pub(crate) const START_NS: u64 = 1_000_000_000_000;

pub(crate) const FIRST: Entry = Entry {
    not: None,
    may_probe: true,
    first: true,
    session: None,
};

fn name() -> WorkloadName {
    WorkloadName::new("web").expect("valid")
}

/// The `generation`th table, by which instances get these weights.
pub(crate) fn table(generation: u64, weights: &[(InstanceId, u16)]) -> WeightTable {
    let share = |&(instance, weight_bp): &(InstanceId, u16)| Share {
        instance,
        address: ([127, 0, 0, 1], 8_080).into(),
        weight_bp,
        ready: true,
    };
    let version = Version {
        epoch: 1,
        generation,
    };
    WeightTable::new(name(), version, weights.iter().map(share).collect()).expect("a table")
}

/// Routes by a first table, at [`START_NS`].
pub(crate) fn routes(weights: &[(InstanceId, u16)]) -> Routes {
    set_ns(START_NS);
    let routes = Routes::new(name(), EjectSettings::default());
    routes.apply(&table(1, weights)).expect("the first");
    routes
}
