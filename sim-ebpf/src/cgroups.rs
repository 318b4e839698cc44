//! User side of the `CGROUPS` map: which cgroups are tracked, and their counters.

use crate::{
    Counters, ReadError, TrackError,
    error::{one_line, os_error},
};
use aya::maps::{MapData, MapError, PerCpuHashMap, PerCpuValues};
use nix::time::{ClockId, clock_gettime};
use sim_ebpf_abi::CgroupCounters;
use std::{collections::HashSet, thread, time::Duration};

/// `BPF_NOEXIST`: only create an entry, never overwrite one.
const NO_EXIST: u64 = 1;

/// Entries come from a kernel cache that is refilled in the background; whoever empties it is told
/// "no memory" and must come back a little later.
const REFILL: Duration = Duration::from_millis(1);
const REFILLS_MAX: u32 = 250;

pub(crate) struct Cgroups {
    map: PerCpuHashMap<MapData, u64, CgroupCounters>,
    tracked: HashSet<u64>,
    limit: u32,
    cpus: usize,
}

impl Cgroups {
    /// `cpus`: number of possible CPUs.
    pub(crate) fn new(
        map: PerCpuHashMap<MapData, u64, CgroupCounters>,
        limit: u32,
        cpus: usize,
    ) -> Self {
        Self {
            map,
            tracked: HashSet::new(),
            limit,
            cpus,
        }
    }

    pub(crate) fn track(&mut self, id: u64) -> Result<(), TrackError> {
        if self.tracked.contains(&id) {
            return Err(TrackError::AlreadyTracked(id));
        }
        let mut refills = 0;
        while let Err(error) = self.insert(id) {
            match os_error(&error) {
                Some(libc::ENOMEM) if refills < REFILLS_MAX => {
                    refills += 1;
                    thread::sleep(REFILL);
                }
                Some(libc::E2BIG) => {
                    return Err(TrackError::Full {
                        id,
                        limit: self.limit,
                    });
                }
                _ => {
                    return Err(TrackError::Map {
                        id,
                        reason: one_line(&error),
                    });
                }
            }
        }
        self.tracked.insert(id);
        Ok(())
    }

    fn insert(&mut self, id: u64) -> Result<(), MapError> {
        let zero = CgroupCounters {
            tracked_ns: monotonic_ns(),
            ..CgroupCounters::default()
        };
        let zeros = PerCpuValues::try_from(vec![zero; self.cpus])?;
        self.map.insert(id, zeros, NO_EXIST)
    }

    pub(crate) fn untrack(&mut self, id: u64) {
        if self.tracked.remove(&id)
            && let Err(error) = self.map.remove(&id)
        {
            tracing::warn!(
                cgroup_id = id,
                "can't remove counters: {}",
                one_line(&error)
            );
        }
    }

    pub(crate) fn read(&self, id: u64) -> Result<Counters, ReadError> {
        if !self.tracked.contains(&id) {
            return Err(ReadError::Untracked(id));
        }
        let per_cpu = self.map.get(&id, 0).map_err(|error| ReadError::Map {
            id,
            reason: one_line(&error),
        })?;
        let mut counters = Counters::default();
        per_cpu.iter().for_each(|one| counters.add(one));
        Ok(counters)
    }

    pub(crate) const fn tracked(&self) -> &HashSet<u64> {
        &self.tracked
    }
}

/// What `bpf_ktime_get_ns` and the times of birth of tasks count by.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
    })
}
