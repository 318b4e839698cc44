//! Who counts while the work is done, and what the kernel says that it took.

use anyhow::Result;
use sim_ebpf::{Cost, EmptyPrograms, Group, Probes};
use sim_tests::world::process::Guarded;

use crate::cage::Cage;
use crate::peers::Tool;
use crate::settings::Settings;
use crate::spent::{self, Readings, Spent};
use bench::peers::Peers;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    Nobody,
    Empty,
    Sim,
    Tool(Tool),
}

impl Counter {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Empty => "empty_program",
            Self::Sim => "sim",
            Self::Tool(tool) => tool.name(),
        }
    }

    /// Starts to count in the cage.
    pub(crate) fn start(self, settings: &Settings, peers: &Peers, cage: &Cage) -> Result<Running> {
        Ok(match self {
            Self::Nobody => Running::Nobody,
            Self::Empty => Running::Empty(EmptyPrograms::load(&settings.object)?),
            Self::Sim => {
                let mut config = settings.probes();
                config.cgroup_root = Some(cage.directory());
                let mut probes = Probes::load(&config)?;
                probes.track(cage.id())?;
                Running::Sim(Box::new(probes))
            }
            Self::Tool(tool) => Running::Tool(tool.start(peers)?),
        })
    }
}

/// A counter at work; it stops when this is dropped.
pub(crate) enum Running {
    Nobody,
    Empty(EmptyPrograms),
    Sim(Box<Probes>),
    Tool(Guarded),
}

impl Running {
    /// What each of its programs took so far.
    pub(crate) fn spent(&self) -> Result<Readings> {
        match self {
            Self::Nobody => Ok(Readings::new()),
            Self::Empty(programs) => Ok(of_cost(&programs.cost())),
            Self::Sim(probes) => Ok(of_cost(&probes.cost())),
            Self::Tool(tool) => spent::of_process(tool.pid().as_raw().cast_unsigned()),
        }
    }

    /// Of the switches in the cage, those that ended a wait of 131 µs or more, and those that ended one for
    /// want of quota.
    pub(crate) fn waits_shares(&self, cage: &Cage) -> (f64, f64) {
        let Self::Sim(probes) = self else {
            return (0.0, 0.0);
        };
        let Ok(counters) = probes.read(cage.id()) else {
            return (0.0, 0.0);
        };
        let buckets = counters.run_queue_hist.buckets();
        let long = buckets.filter(|(upper_ns, _)| upper_ns.is_none_or(|ns| ns > 131_072));
        let long: u64 = long.map(|(_, count)| count).sum();
        let switches = counters.switches.max(1) as f64;
        (
            long as f64 / switches,
            counters.throttled_waits as f64 / switches,
        )
    }

    /// What each of our groups took so far, in nanoseconds; empty of others.
    pub(crate) fn groups(&self) -> Vec<(Group, u64)> {
        match self {
            Self::Sim(probes) => probes.group_costs(),
            _ => Vec::new(),
        }
    }
}

fn of_cost(cost: &Cost) -> Readings {
    let spent = |program: &sim_ebpf::ProgramCost| Spent {
        name: program.name.clone(),
        size: 0,
        run_ns: program.run_ns,
        run_count: program.run_count,
    };
    let programs = cost.programs.iter();
    programs.map(|p| (p.name.clone(), spent(p))).collect()
}
