//! What the probes may cost, and which go first when they cost more.

use sim_ebpf::Group;
use std::time::Instant;

/// Looks in a row over the budget before a group is shed: one busy moment is no reason.
const PATIENCE: u32 = 5;

/// Watches the probes' share of the machine's CPU time.
#[derive(Debug)]
pub(crate) struct Budget {
    percent: f64,
    cpus: f64,
    over: u32,
    last: Option<(Instant, Vec<(Group, u64)>)>,
}

/// A group that costs too much.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shed {
    /// The dearest one.
    pub(crate) group: Group,
    /// One line: what it cost of what all may.
    pub(crate) reason: String,
}

impl Budget {
    /// Of `percent` of the CPU time of `cpus` CPUs.
    pub(crate) fn new(percent: f64, cpus: usize) -> Self {
        Self {
            percent,
            cpus: cpus.max(1) as f64,
            over: 0,
            last: None,
        }
    }

    /// Looks at what each group has cost so far, in nanoseconds. Tells which to shed, if one has to go. The
    /// life group never does: it costs next to nothing, and failover hangs on it.
    pub(crate) fn look(&mut self, now: Instant, spent_ns: Vec<(Group, u64)>) -> Option<Shed> {
        let (before, earlier) = self.last.replace((now, spent_ns))?;
        let spent_ns = &self.last.as_ref()?.1;
        let available_ns = now.duration_since(before).as_nanos() as f64 * self.cpus;
        if available_ns <= 0.0 {
            return None;
        }
        let percents: Vec<(Group, f64)> = spent_ns
            .iter()
            .map(|&(group, ns)| {
                let then = earlier.iter().find(|(g, _)| *g == group);
                let since = ns.saturating_sub(then.map_or(0, |(_, ns)| *ns));
                (group, since as f64 / available_ns * 100.0)
            })
            .collect();
        let all: f64 = percents.iter().map(|(_, percent)| percent).sum();
        self.over = if all > self.percent { self.over + 1 } else { 0 };
        if self.over < PATIENCE {
            return None;
        }
        self.over = 0;
        let (group, percent) = percents
            .into_iter()
            .filter(|(group, _)| *group != Group::Life)
            .max_by(|a, b| a.1.total_cmp(&b.1))?;
        let reason = format!(
            "shed: it cost {percent:.2} % of the CPU time, all together {all:.2} %, and the budget is {:.2} % (probe_budget_percent)",
            self.percent
        );
        Some(Shed { group, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Looks once a second at groups that cost so many milliseconds of two CPUs' second each.
    fn looks(
        budget: &mut Budget,
        seconds: std::ops::Range<u64>,
        costs: &[(Group, u64)],
    ) -> Vec<Shed> {
        let start = Instant::now();
        seconds
            .filter_map(|second| {
                let spent = costs.iter().map(|&(g, ms)| (g, ms * second * 1_000_000));
                let now = start + Duration::from_secs(second);
                budget.look(now, spent.collect())
            })
            .collect()
    }

    #[test]
    fn the_dearest_goes_after_some_looks_and_never_the_life_group() {
        let costs = [(Group::Cpu, 18), (Group::Net, 6), (Group::Life, 30)];
        let mut budget = Budget::new(1.0, 2);
        let shed = looks(&mut budget, 0..12, &costs);
        assert_eq!(shed.len(), 2, "once in five looks: {shed:?}");
        assert_eq!(shed[0].group, Group::Cpu);
        assert!(shed[0].reason.contains("0.90 %"), "{}", shed[0].reason);
        assert!(shed[0].reason.contains("2.70 %"), "{}", shed[0].reason);
        let only_life = looks(&mut Budget::new(1.0, 2), 0..30, &[(Group::Life, 900)]);
        assert_eq!(only_life, []);
    }

    #[test]
    fn a_cost_within_the_budget_or_a_lone_peak_sheds_nothing() {
        let costs = [(Group::Cpu, 10), (Group::Net, 9)];
        assert_eq!(looks(&mut Budget::new(1.0, 2), 0..60, &costs), []);
        let mut budget = Budget::new(1.0, 2);
        let start = Instant::now();
        for second in 0..40_u64 {
            // Three dear seconds in eight.
            let dear = (0..=second).filter(|s| s % 8 < 3).count() as u64;
            let spent = vec![(Group::Cpu, dear * 100_000_000)];
            let now = start + Duration::from_secs(second);
            assert_eq!(budget.look(now, spent), None);
        }
    }
}
