//! The loaded probes.

use crate::{
    Cost, Counters, Group, GroupState, GroupStatus, LoadError, Losses, ProbesConfig, ReadError,
    TrackError, WatchError,
    cgroups::Cgroups,
    cost,
    error::{one_line, os_error},
    group::{FUSED_PROGRAMS, ProgramSpec},
    kernel_log::ToTracing,
    life::Watch,
    load::{self, Loaded},
};
use aya::{
    Ebpf, RawTracePointRunOptions, TestRun as _,
    maps::{HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray},
    util::{nr_cpus, online_cpus},
};
use aya_log::EbpfLogger;
use sim_ebpf_abi::{LOSS_KINDS, Neighbour};
use sim_life::{Life, LifeFlags};
use std::{fmt, io, os::fd::OwnedFd, path::PathBuf, sync::Arc};

/// SIM's eBPF programs, loaded and attached for as long as this lives.
pub struct Probes {
    // Fields drop in this order: the programs are detached before their maps go.
    ebpf: Ebpf,
    status: Vec<GroupStatus>,
    cgroups: Cgroups,
    life: Option<Watch>,
    losses: PerCpuArray<MapData, u64>,
    neighbours: BpfHashMap<MapData, Neighbour, u64>,
    cpus: Vec<u32>,
    logger: Option<EbpfLogger<ToTracing>>,
    /// Time and runs of programs that were shed.
    shed: (u64, u64),
    /// Where packets are counted, if they are.
    packets_root: Option<PathBuf>,
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
            Some(Watch::new(&mut ebpf).map_err(unusable)?)
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
            shed: (0, 0),
            packets_root: config.cgroup_root.clone(),
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
        let Some(program) = load::on_demand(&self.ebpf, "settle") else {
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

    /// Watches an instance: its main process (id as the initial pid namespace counts) and, where it has
    /// one, its cgroup. Numbers of instances are never used again: a restarted one has a new one, and a
    /// late reader of the old one's flag sees that it is gone.
    ///
    /// # Errors
    /// [`WatchError::Gone`] if the process is dead or dying: no probe would tell of it any more.
    pub fn watch(
        &mut self,
        instance: u64,
        tgid: u32,
        cgroup_id: Option<u64>,
    ) -> Result<(), WatchError> {
        let life = self.life.as_mut().ok_or(WatchError::Off)?;
        life.watch(&self.ebpf, instance, tgid, cgroup_id)
    }

    /// Stops watching an instance. Its flag stays as it is until another one gets the slot.
    pub fn unwatch(&mut self, instance: u64) {
        if let Some(life) = &mut self.life {
            life.unwatch(instance);
        }
    }

    /// What the kernel knows of an instance's life; `None` if it is not watched.
    #[must_use]
    pub fn life(&self, instance: u64) -> Option<Life> {
        self.life.as_ref()?.flags.life(instance)
    }

    /// The life flags for a reader in this process; `None` if the life group is off.
    #[must_use]
    pub fn life_flags(&self) -> Option<Arc<LifeFlags>> {
        self.life.as_ref().map(|life| Arc::clone(&life.flags))
    }

    /// A descriptor to hand to another process, by which it can read the life flags
    /// ([`LifeFlags::from_descriptor`]) and write none.
    ///
    /// # Errors
    /// The life group is off, or the kernel did not freeze the array.
    pub fn life_descriptor(&self) -> io::Result<OwnedFd> {
        match &self.life {
            Some(life) => life.descriptor(),
            None => Err(io::Error::other(WatchError::Off)),
        }
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
        let mut cost = cost::read(&self.ebpf);
        cost.run_ns_total = cost.run_ns_total.saturating_add(self.shed.0);
        cost.run_count_total = cost.run_count_total.saturating_add(self.shed.1);
        cost
    }

    /// What each active group cost so far, in nanoseconds. Of two that share programs, the one that can be
    /// missed more easily has it all.
    #[must_use]
    pub fn group_costs(&self) -> Vec<(Group, u64)> {
        let cost = cost::read(&self.ebpf);
        let sum = |specs: &[ProgramSpec]| {
            let named = |name: &str| specs.iter().any(|spec| spec.name == name);
            let programs = cost.programs.iter().filter(|p| named(&p.name));
            programs.map(|p| p.run_ns).fold(0, u64::saturating_add)
        };
        let of = |group: Group| {
            let own = sum(group.programs());
            if group == Group::Http {
                own.saturating_add(sum(&FUSED_PROGRAMS))
            } else {
                own
            }
        };
        let active = Group::ALL.into_iter().filter(|&g| self.is_active(g));
        active.map(|group| (group, of(group))).collect()
    }

    /// Takes a group's programs out of the kernel; `reason` is told as the kernel's own refusal would be.
    /// Its counters stand still from then on. The life group can't be shed.
    ///
    /// Gives each group that had to stop with it, and why: one that shared its programs, where the kernel
    /// then refuses its own.
    pub fn shed(&mut self, group: Group, reason: String) -> Vec<(Group, String)> {
        if group == Group::Life || !self.is_active(group) {
            return Vec::new();
        }
        let before = cost::read(&self.ebpf);
        let stopped = load::unload_group(&mut self.ebpf, group, self.packets_root.as_deref());
        let after = cost::read(&self.ebpf);
        // What they cost is not forgotten with them.
        self.shed.0 += before.run_ns_total.saturating_sub(after.run_ns_total);
        self.shed.1 += before.run_count_total.saturating_sub(after.run_count_total);
        for (group, reason) in stopped.iter().chain([&(group, reason)]) {
            for status in self.status.iter_mut().filter(|one| one.group == *group) {
                status.state = GroupState::Refused {
                    reason: reason.clone(),
                };
            }
        }
        stopped
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

pub(crate) fn map<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &str,
) -> Result<M, String> {
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| format!("the object has no map {name}"))?;
    map.try_into()
        .map_err(|error: MapError| format!("map {name}: {}", one_line(&error)))
}
