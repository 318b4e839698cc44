//! What the kernel says that BPF programs took, whoever loaded them.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;

/// A program's runs and the time in them, measurement included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// As its loader called it, as far as the kernel keeps it.
    pub(crate) name: String,
    /// Instructions, translated, in bytes: tells programs of one name apart.
    pub(crate) size: u32,
    pub(crate) run_ns: u64,
    pub(crate) run_count: u64,
}

/// Programs by a name that is theirs alone.
pub(crate) type Readings = BTreeMap<String, Spent>;

/// Programs that a process holds open.
pub(crate) fn of_process(pid: u32) -> Result<Readings> {
    let mut known: HashMap<u32, (String, u32)> = HashMap::new();
    // One that goes while the list is read is none of the process's.
    for program in loaded_programs().filter_map(Result::ok) {
        let name = String::from_utf8_lossy(program.name()).into_owned();
        known.insert(program.id(), (name, program.size_translated().unwrap_or(0)));
    }
    let folder = format!("/proc/{pid}/fdinfo");
    let mut spent = Readings::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
        // A descriptor may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
                .and_then(|value| value.trim().parse::<u64>().ok())
        };
        // Links have the id of their program too, but no runs.
        let (Some(id), Some(run_ns), Some(run_count)) = (
            field("prog_id").and_then(|id| u32::try_from(id).ok()),
            field("run_time_ns"),
            field("run_cnt"),
        ) else {
            continue;
        };
        let (name, size) = known.get(&id).cloned().unwrap_or_default();
        spent.insert(
            format!("{name}#{id}"),
            Spent {
                name,
                size,
                run_ns,
                run_count,
            },
        );
    }
    Ok(spent)
}

/// What was spent between two readings.
pub(crate) fn between(before: &Readings, after: &Readings) -> Vec<Spent> {
    after
        .iter()
        .map(|(id, spent)| {
            let (ns, count) = before.get(id).map_or((0, 0), |b| (b.run_ns, b.run_count));
            Spent {
                run_ns: spent.run_ns.saturating_sub(ns),
                run_count: spent.run_count.saturating_sub(count),
                ..spent.clone()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_spent_between_the_readings_counts() {
        let spent = |run_ns, run_count| Spent {
            name: "x".into(),
            size: 8,
            run_ns,
            run_count,
        };
        let before = Readings::from([("a".into(), spent(100, 2))]);
        let after = Readings::from([("a".into(), spent(350, 7)), ("b".into(), spent(40, 1))]);
        let mut all = between(&before, &after);
        all.sort_by_key(|one| one.run_ns);
        assert_eq!(all, [spent(40, 1), spent(250, 5)]);
    }
}
