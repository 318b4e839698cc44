//! The map side of [`Group::Life`](crate::Group::Life): who is watched, and the array that tells of them.

use crate::{
    WatchError,
    error::{one_line, os_error},
    freeze::freeze,
    load,
    probes::map,
};
use aya::{
    Ebpf, RawTracePointRunOptions, TestRun as _,
    maps::{Array, HashMap as BpfHashMap, IterableMap as _, MapData},
};
use sim_ebpf_abi::{LifeFlag, Watched};
use sim_life::LifeFlags;
use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

/// In place of a process id that somebody else has now.
const NO_PROCESS: u32 = 0;

pub(crate) struct Watch {
    array: Array<MapData, LifeFlag>,
    processes: BpfHashMap<MapData, u32, Watched>,
    cgroups: BpfHashMap<MapData, u64, Watched>,
    pub(crate) flags: Arc<LifeFlags>,
    /// Process and cgroup of each instance.
    watched: HashMap<u64, (u32, Option<u64>)>,
    /// Whether user space can no more write the array, by any descriptor.
    frozen: io::Result<()>,
}

impl Watch {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, String> {
        let array: Array<MapData, LifeFlag> = map(ebpf, "LIFE")?;
        let flags = LifeFlags::from_descriptor(array.map().fd())
            .map_err(|error| format!("can't map the life flags: {error}"))?;
        let frozen = freeze(array.map().fd().as_fd());
        Ok(Self {
            processes: map(ebpf, "WATCHED")?,
            cgroups: map(ebpf, "WATCHED_CGROUPS")?,
            flags: Arc::new(flags),
            array,
            watched: HashMap::new(),
            frozen,
        })
    }

    /// A descriptor by which the array can be read and not written.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        match &self.frozen {
            Ok(()) => self.array.map().fd().as_fd().try_clone_to_owned(),
            Err(error) => Err(io::Error::other(format!("it can't be frozen: {error}"))),
        }
    }

    /// Gives a slot a word, by way of a program: see there.
    fn write(ebpf: &Ebpf, slot: u64, word: u64) -> Result<(), String> {
        let program = load::on_demand(ebpf, "life_write").ok_or("no program life_write")?;
        let mut options = RawTracePointRunOptions::new();
        options.args[..2].copy_from_slice(&[slot, word]);
        match program.test_run(options) {
            Ok(result) if result.return_value == 0 => Ok(()),
            Ok(result) => Err(format!("slot {slot}: {}", result.return_value)),
            Err(error) => Err(one_line(&error)),
        }
    }

    pub(crate) fn watch(
        &mut self,
        ebpf: &Ebpf,
        instance: u64,
        tgid: u32,
        cgroup: Option<u64>,
    ) -> Result<(), WatchError> {
        if instance > LifeFlag::INSTANCE_MAX {
            return Err(WatchError::NoSuchInstance(instance));
        }
        let slot = self.flags.slot(instance);
        let holds = |&(&other, &(watched, _)): &(&u64, &(u32, _))| {
            other != instance && (watched == tgid || self.flags.slot(other) == slot)
        };
        let is_dead = |other| self.flags.life(other).is_some_and(|l| l.died_ns.is_some());
        let holder = self.watched.iter().find(holds).map(|(&i, &(t, _))| (i, t));
        if let Some((other, watched)) = holder {
            if watched == tgid && self.flags.slot(other) != slot && is_dead(other) {
                // The number is used again before whoever watched the dead has let go. Its cgroup may yet
                // have others in it.
                if let Some((process, _)) = self.watched.get_mut(&other) {
                    *process = NO_PROCESS;
                }
                return self.watch(ebpf, instance, tgid, cgroup);
            }
            return Err(if watched == tgid {
                WatchError::AlreadyWatched {
                    tgid,
                    instance: other,
                }
            } else {
                WatchError::SlotTaken { instance: other }
            });
        }
        self.unwatch(instance);
        let refused = |error: aya::maps::MapError| WatchError::Map {
            tgid,
            reason: one_line(&error),
        };
        let entry = Watched { instance, slot };
        // First the word, so that nothing that is found in the maps lacks one.
        Self::write(ebpf, slot, LifeFlag::alive(instance).word)
            .map_err(|reason| WatchError::Map { tgid, reason })?;
        self.processes.insert(tgid, entry, 0).map_err(refused)?;
        self.watched.insert(instance, (tgid, cgroup));
        if let Some(cgroup) = cgroup
            && let Err(error) = self.cgroups.insert(cgroup, entry, 0)
        {
            self.unwatch(instance);
            return Err(refused(error));
        }
        // Only now: a process that begins to die after this look is seen by the probe.
        if is_dying(tgid) {
            self.unwatch(instance);
            // Nobody would ever write that it is dead.
            Self::write(ebpf, slot, 0).map_err(|reason| WatchError::Map { tgid, reason })?;
            return Err(WatchError::Gone(tgid));
        }
        Ok(())
    }

    pub(crate) fn unwatch(&mut self, instance: u64) {
        let Some((tgid, cgroup)) = self.watched.remove(&instance) else {
            return;
        };
        let absent = |error: &aya::maps::MapError| os_error(error) == Some(libc::ENOENT);
        let process = self.processes.remove(&tgid);
        let cgroup = cgroup.map_or(Ok(()), |cgroup| self.cgroups.remove(&cgroup));
        for removed in [process, cgroup] {
            if let Err(error) = removed
                && !absent(&error)
            {
                tracing::warn!(tgid, "can't unwatch: {}", one_line(&error));
            }
        }
        // The word stays: whoever still has the instance in a table must go on seeing that it is dead. The
        // next one that gets the slot writes its own.
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
