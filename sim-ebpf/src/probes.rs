//! The loaded probes.

use crate::{
    Cost, Counters, DeathFlags, Group, GroupState, GroupStatus, LoadError, Losses, ProbesConfig,
    ReadError, TrackError, WatchError,
    cgroups::Cgroups,
    cost,
    error::{one_line, os_error},
    kernel_log::ToTracing,
    load::{self, Loaded},
};
use aya::{
    Ebpf, RawTracePointRunOptions, TestRun as _,
    maps::{Array, HashMap as BpfHashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray},
    util::{nr_cpus, online_cpus},
};
use aya_log::EbpfLogger;
use sim_ebpf_abi::{LOSS_KINDS, Neighbour};
use std::{
    collections::HashMap,
    fmt, fs,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

/// SIM's eBPF programs, loaded and attached for as long as this lives.
pub struct Probes {
    // Fields drop in this order: the programs are detached before their maps go.
    ebpf: Ebpf,
    status: Vec<GroupStatus>,
    cgroups: Cgroups,
    life: Option<Life>,
    losses: PerCpuArray<MapData, u64>,
    neighbours: BpfHashMap<MapData, Neighbour, u64>,
    cpus: Vec<u32>,
    logger: Option<EbpfLogger<ToTracing>>,
    /// Held open, not used: the kernel measures until it is closed.
    _measuring: Option<OwnedFd>,
}

/// Time that one cgroup waited for a CPU that another held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourWait {
    /// The cgroup that waited.
    pub waiting: u64,
    /// The cgroup that held the CPU; 1 is the root, where kernel threads are.
    pub running: u64,
    /// All waits together, in nanoseconds.
    pub wait_ns: u64,
}

/// Map side of [`Group::Life`].
struct Life {
    deaths: Array<MapData, u64>,
    watched: BpfHashMap<MapData, u32, u32>,
    flags: Arc<DeathFlags>,
    /// Process in each slot.
    slots: HashMap<u32, u32>,
}

impl Probes {
    /// Loads and attaches what this kernel allows; [`status`](Self::status) says what it doesn't.
    ///
    /// Takes 100 to 300 ms, most of it reading the kernel's BTF and in the verifier.
    ///
    /// # Errors
    /// Nothing can be loaded: no object, no privilege, or every group refused.
    pub fn load(config: &ProbesConfig) -> Result<Self, LoadError> {
        let Loaded {
            mut ebpf,
            status,
            logger,
        } = load::load(config)?;
        let unusable = |reason: String| LoadError::Unusable {
            path: config.object.clone(),
            reason,
        };
        let active = |group| {
            status
                .iter()
                .any(|one| one.group == group && one.state == GroupState::Active)
        };
        let possible_cpus =
            nr_cpus().map_err(|(what, error)| unusable(format!("{what}: {error}")))?;
        let cpus = online_cpus().map_err(|(what, error)| unusable(format!("{what}: {error}")))?;

        let life = if active(Group::Life) {
            Some(Life::new(&mut ebpf, config).map_err(unusable)?)
        } else {
            None
        };
        Ok(Self {
            cgroups: Cgroups::new(
                map(&mut ebpf, "CGROUPS").map_err(unusable)?,
                config.cgroups_max,
                possible_cpus,
            ),
            life,
            losses: map(&mut ebpf, "LOSSES").map_err(unusable)?,
            neighbours: map(&mut ebpf, "NEIGHBOURS").map_err(unusable)?,
            cpus,
            logger,
            _measuring: config.measure_cost.then(cost::measure).flatten(),
            ebpf,
            status,
        })
    }

    /// Each group, loaded or not.
    #[must_use]
    pub fn status(&self) -> &[GroupStatus] {
        &self.status
    }

    /// Whether a group is loaded.
    #[must_use]
    pub fn is_active(&self, group: Group) -> bool {
        self.status
            .iter()
            .any(|one| one.group == group && one.state == GroupState::Active)
    }

    /// Starts counting for a cgroup ([`cgroup_id`](crate::cgroup_id)), from zero. Its nested cgroups are
    /// cgroups of their own: track each.
    ///
    /// Tracking hundreds at once can sleep a few milliseconds at a time while the kernel fetches memory.
    ///
    /// # Errors
    /// It is tracked already, the map is full, or the kernel refuses.
    pub fn track(&mut self, cgroup_id: u64) -> Result<(), TrackError> {
        self.cgroups.track(cgroup_id)
    }

    /// Stops counting for a cgroup and forgets its counters. Of an untracked one: nothing happens.
    pub fn untrack(&mut self, cgroup_id: u64) {
        self.cgroups.untrack(cgroup_id);
        for wait in self.neighbours() {
            if wait.waiting == cgroup_id {
                self.forget_neighbour(wait.waiting, wait.running);
            }
        }
    }

    /// Who kept whom from a CPU since the load: waits of 100 µs or more of tracked cgroups, by the cgroup
    /// whose task was on the CPU just before the wait ended there. Waits for want of the own quota
    /// are not among them.
    #[must_use]
    pub fn neighbours(&self) -> Vec<NeighbourWait> {
        let wait = |entry: Result<(Neighbour, u64), MapError>| {
            // An entry that another thread removes meanwhile ends the walk; the next one is whole.
            entry.ok().map(|(pair, wait_ns)| NeighbourWait {
                waiting: pair.waiting,
                running: pair.running,
                wait_ns,
            })
        };
        self.neighbours.iter().filter_map(wait).collect()
    }

    /// Forgets a pair, as when the running cgroup is gone: the table holds 4096 of them.
    pub fn forget_neighbour(&mut self, waiting: u64, running: u64) {
        let pair = Neighbour { waiting, running };
        if let Err(error) = self.neighbours.remove(&pair)
            && os_error(&error) != Some(libc::ENOENT)
        {
            tracing::warn!(waiting, running, "can't forget: {}", one_line(&error));
        }
    }

    /// Charges every running task with the time since it was switched in, so that [`read`](Self::read) is
    /// exact up to now. Call it once per tick, before the reads.
    ///
    /// Without it a task is charged when it leaves its CPU, which a busy one alone on a CPU may not do
    /// for seconds. It interrupts each CPU once, for about a microsecond.
    pub fn settle(&self) {
        if !self.is_active(Group::Cpu) {
            return;
        }
        let Some(program) = load::settle_program(&self.ebpf) else {
            return;
        };
        for &cpu in &self.cpus {
            let mut options = RawTracePointRunOptions::new();
            options.cpu = Some(cpu);
            if let Err(error) = program.test_run(options) {
                // ENXIO: that CPU has been taken offline since, so nothing runs there.
                if os_error(&error) != Some(libc::ENXIO) {
                    tracing::debug!(cpu, "can't settle: {}", one_line(&error));
                }
            }
        }
    }

    /// What a cgroup did since it was tracked. Costs one system call.
    ///
    /// # Errors
    /// It isn't tracked, or the kernel refuses.
    pub fn read(&self, cgroup_id: u64) -> Result<Counters, ReadError> {
        self.cgroups.read(cgroup_id)
    }

    /// Watches a process (id as the initial pid namespace counts) in a slot, which is cleared first.
    ///
    /// A slot that is given to another process can still receive the old one's last word if that dies in
    /// the same instant: give a restarted instance another slot.
    ///
    /// # Errors
    /// [`WatchError::Gone`] if the process is dead or dying: no probe would tell of it any more.
    pub fn watch_process(&mut self, slot: u32, tgid: u32) -> Result<(), WatchError> {
        let life = self.life.as_mut().ok_or(WatchError::Off)?;
        life.watch(slot, tgid)
    }

    /// Stops watching whatever is in a slot and clears it.
    pub fn unwatch_process(&mut self, slot: u32) {
        if let Some(life) = &mut self.life {
            life.unwatch(slot);
        }
    }

    /// When the process in a slot died (`CLOCK_MONOTONIC`); `None` while it lives or if nobody is watched.
    #[must_use]
    pub fn death_ns(&self, slot: u32) -> Option<u64> {
        self.life.as_ref()?.flags.death_ns(slot)
    }

    /// The death flags for a reader of its own, such as the proxy of the same process; `None` if the life
    /// group is off.
    #[must_use]
    pub fn death_flags(&self) -> Option<Arc<DeathFlags>> {
        self.life.as_ref().map(|life| Arc::clone(&life.flags))
    }

    /// What the programs had to drop. See also [`ProgramCost::missed_count`](crate::ProgramCost::missed_count).
    #[must_use]
    pub fn losses(&self) -> Losses {
        let mut kinds = [0_u64; LOSS_KINDS];
        for (kind, sum) in (0_u32..).zip(&mut kinds) {
            match self.losses.get(&kind, 0) {
                Ok(per_cpu) => {
                    *sum = per_cpu
                        .iter()
                        .fold(0, |sum, &count| sum.saturating_add(count));
                }
                Err(error) => tracing::warn!("losses can't be read: {}", one_line(&error)),
            }
        }
        Losses::from_kinds(&kinds)
    }

    /// What the programs cost so far.
    #[must_use]
    pub fn cost(&self) -> Cost {
        cost::read(&self.ebpf)
    }

    /// Hands what the programs logged since the last call to `tracing`, target `sim_ebpf::kernel`.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes")
            .field("status", &self.status)
            .field("tracked", self.cgroups.tracked())
            .finish_non_exhaustive()
    }
}

impl Life {
    fn new(ebpf: &mut Ebpf, config: &ProbesConfig) -> Result<Self, String> {
        let deaths: Array<MapData, u64> = map(ebpf, "DEATHS")?;
        let flags = DeathFlags::map(deaths.map().fd().as_fd(), config.slots_max)
            .map_err(|error| format!("can't map the death flags: {error}"))?;
        Ok(Self {
            watched: map(ebpf, "WATCHED")?,
            flags: Arc::new(flags),
            deaths,
            slots: HashMap::new(),
        })
    }

    fn watch(&mut self, slot: u32, tgid: u32) -> Result<(), WatchError> {
        let slots = self.flags.slots();
        if slot >= slots {
            return Err(WatchError::NoSuchSlot { slot, slots });
        }
        if let Some((&slot, _)) = self
            .slots
            .iter()
            .find(|&(&other, &watched)| watched == tgid && other != slot)
        {
            return Err(WatchError::AlreadyWatched { tgid, slot });
        }
        self.unwatch(slot);
        self.watched
            .insert(tgid, slot, 0)
            .map_err(|error| WatchError::Map {
                tgid,
                reason: one_line(&error),
            })?;
        self.slots.insert(slot, tgid);
        // Only now: a process that begins to die after this look is seen by the probe.
        if is_dying(tgid) {
            self.unwatch(slot);
            return Err(WatchError::Gone(tgid));
        }
        Ok(())
    }

    fn unwatch(&mut self, slot: u32) {
        if let Some(tgid) = self.slots.remove(&slot) {
            if let Err(error) = self.watched.remove(&tgid)
                && os_error(&error) != Some(libc::ENOENT)
            {
                tracing::warn!(tgid, "can't unwatch: {}", one_line(&error));
            }
            if let Err(error) = self.deaths.set(slot, 0, 0) {
                tracing::warn!(slot, "can't clear the death flag: {}", one_line(&error));
            }
        }
    }
}

/// Whether a process has begun to exit, or is gone.
fn is_dying(tgid: u32) -> bool {
    const PF_EXITING: u32 = 4;
    let Ok(stat) = fs::read_to_string(format!("/proc/{tgid}/stat")) else {
        return true;
    };
    // The command name may hold anything, parentheses too; what follows the last one is numbers.
    let Some((_, fields)) = stat.rsplit_once(") ") else {
        return true;
    };
    let mut fields = fields.split(' ');
    let state = fields.next();
    let flags: Option<u32> = fields.nth(5).and_then(|flags| flags.parse().ok());
    matches!(state, None | Some("Z" | "X" | "x"))
        || flags.is_none_or(|flags| flags & PF_EXITING != 0)
}

fn map<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M, String> {
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| format!("the object has no map {name}"))?;
    map.try_into()
        .map_err(|error: MapError| format!("map {name}: {}", one_line(&error)))
}
