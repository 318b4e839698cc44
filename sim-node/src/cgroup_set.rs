//! One instance as the probes see it: its cgroup and all that are nested in it.
//!
//! A service may make cgroups of its own (systemd units, container runtimes). Each is counted for itself
//! in the kernel, and added up here. One that is gone leaves its counts behind, so sums only grow and
//! nothing stays for it in any table.

use crate::probes::Sensors;
use sim_ebpf::Counters;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The kernel side, as far as it is needed here.
pub(crate) trait Tracker {
    /// Starts counting.
    fn track(&mut self, id: u64);
    /// Stops counting and forgets.
    fn untrack(&mut self, id: u64);
    /// What was counted so far.
    fn read(&self, id: u64) -> Option<Counters>;
}

impl Tracker for Sensors {
    fn track(&mut self, id: u64) {
        Sensors::track(self, Some(id));
    }

    fn untrack(&mut self, id: u64) {
        Sensors::untrack(self, Some(id));
    }

    fn read(&self, id: u64) -> Option<Counters> {
        Sensors::read(self, Some(id))
    }
}

/// The cgroups of one instance.
#[derive(Debug, Default)]
pub(crate) struct CgroupSet {
    /// Directory on the version 2 mount; none without one.
    root: Option<PathBuf>,
    tracked: BTreeSet<u64>,
    /// Counts of those that are gone.
    folded: Counters,
}

impl CgroupSet {
    /// Counts `root` and what is nested in it from now on.
    pub(crate) fn new(root: Option<PathBuf>, tracker: &mut impl Tracker) -> Self {
        let mut set = Self {
            root,
            ..Self::default()
        };
        set.follow(tracker);
        set
    }

    /// Looks for new ones, and folds away those that are gone. Once a tick.
    pub(crate) fn follow(&mut self, tracker: &mut impl Tracker) {
        let Some(root) = &self.root else { return };
        let mut found = BTreeMap::new();
        walk(root, &mut found);
        let gone: Vec<u64> = self
            .tracked
            .iter()
            .filter(|id| !found.contains_key(id))
            .copied()
            .collect();
        for id in gone {
            self.tracked.remove(&id);
            // Its counts outlive its directory until they are forgotten here.
            if let Some(last) = tracker.read(id) {
                self.folded = self.folded.plus(&last);
            }
            tracker.untrack(id);
        }
        for id in found.into_keys() {
            if self.tracked.insert(id) {
                tracker.track(id);
            }
        }
    }

    /// What all of them did so far; `None` without probes.
    pub(crate) fn read(&self, tracker: &impl Tracker) -> Option<Counters> {
        let mut sum = None;
        for &id in &self.tracked {
            if let Some(counters) = tracker.read(id) {
                sum = Some(sum.map_or(counters, |sum: Counters| sum.plus(&counters)));
            }
        }
        sum.map(|sum| sum.plus(&self.folded))
    }

    /// Ids of all that are there now.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &u64> {
        self.tracked.iter()
    }

    /// Stops counting all of them.
    pub(crate) fn forget(&mut self, tracker: &mut impl Tracker) {
        for id in std::mem::take(&mut self.tracked) {
            tracker.untrack(id);
        }
        self.root = None;
    }
}

/// Ids of `dir` and everything nested in it.
fn walk(dir: &Path, found: &mut BTreeMap<u64, ()>) {
    // One that is removed meanwhile is simply not there.
    let Ok(metadata) = fs::metadata(dir) else {
        return;
    };
    found.insert(metadata.ino(), ());
    // A directory's links are its name, its own dot, and the dots of those nested in it.
    if metadata.nlink() == 2 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts one switch more for each cgroup at each look.
    #[derive(Default)]
    struct Fake {
        counted: BTreeMap<u64, u64>,
    }

    impl Fake {
        fn work(&mut self) {
            self.counted.values_mut().for_each(|count| *count += 1);
        }
    }

    impl Tracker for Fake {
        fn track(&mut self, id: u64) {
            assert!(self.counted.insert(id, 0).is_none(), "tracked twice");
        }

        fn untrack(&mut self, id: u64) {
            assert!(self.counted.remove(&id).is_some(), "not tracked");
        }

        fn read(&self, id: u64) -> Option<Counters> {
            let switches = *self.counted.get(&id)?;
            Some(Counters {
                switches,
                ..Counters::default()
            })
        }
    }

    #[test]
    fn nested_ones_are_added_up_and_leave_their_counts_behind() {
        let dir = tempfile::tempdir().expect("dir");
        let root = dir.path().join("instance");
        let nested = root.join("a/b");
        fs::create_dir_all(&nested).expect("made");
        let mut fake = Fake::default();
        let mut set = CgroupSet::new(Some(root.clone()), &mut fake);
        assert_eq!(fake.counted.len(), 3);
        let switches = |set: &CgroupSet, fake: &Fake| set.read(fake).expect("counted").switches;
        fake.work();
        assert_eq!(switches(&set, &fake), 3);

        fs::remove_dir(&nested).expect("removed");
        fake.work();
        set.follow(&mut fake);
        assert_eq!(fake.counted.len(), 2, "nothing stays for it");
        assert_eq!(switches(&set, &fake), 6, "its last work counts too");
        fake.work();
        assert_eq!(switches(&set, &fake), 8);

        fs::create_dir(root.join("c")).expect("made");
        set.follow(&mut fake);
        fake.work();
        assert_eq!(switches(&set, &fake), 11);
        set.forget(&mut fake);
        assert!(fake.counted.is_empty());
        assert_eq!(set.read(&fake), None);
    }

    #[test]
    fn without_a_directory_there_is_nothing_to_count() {
        let mut fake = Fake::default();
        let set = CgroupSet::new(None, &mut fake);
        assert_eq!((set.read(&fake), fake.counted.len()), (None, 0));
    }
}
