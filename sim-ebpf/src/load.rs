//! From the object file to attached programs, group by group.

use crate::{
    Group, GroupState, GroupStatus, LoadError, btf, cgroup,
    error::{one_line, os_error},
    group::{FUSED_GROUPS, FUSED_PROGRAMS, Hook, ProgramSpec},
    kernel_log::{self, ToTracing},
    offsets::Found,
};
use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSkb, Program, ProgramError, RawTracePoint},
};
use aya_log::{EbpfLogger, Level};
use sim_ebpf_abi::{BLOCK_OWNER_BIO, BLOCK_OWNER_ISSUER, CGROUPS_MAX, SLOTS_MAX, TASKS_MAX};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

pub(crate) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// How to load.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProbesConfig {
    /// The object that `cargo xtask ebpf` builds.
    pub object: PathBuf,
    /// cgroup2 directory below which packets are counted; without it the net group is off.
    pub cgroup_root: Option<PathBuf>,
    /// Instances that can be watched at once, rounded up to a power of two.
    pub slots_max: u32,
    /// Number of cgroups that can be tracked at once. Kernel memory is taken per tracked cgroup
    /// (about 1.6 KiB per CPU), not in advance.
    pub cgroups_max: u32,
    /// Whom block I/O is charged to.
    pub block_owner: BlockOwner,
    /// Whether the kernel measures what the programs cost. It does so for *every* BPF program on the
    /// machine as long as the probes live.
    pub measure_cost: bool,
    /// Whether the programs log rare events, for debugging. By default they do where somebody listens to
    /// `debug` events of the target `sim_ebpf::kernel`.
    pub kernel_log: bool,
    /// Keep tasks in a table by their ids even where they can have storage of their own, which is quicker. For
    /// tests: kernels before 6.4 need it, and it is chosen there.
    pub tasks_by_pid: bool,
}

impl ProbesConfig {
    /// The usual limits, no packet counting.
    pub fn new(object: impl Into<PathBuf>) -> Self {
        Self {
            object: object.into(),
            cgroup_root: None,
            slots_max: SLOTS_MAX,
            cgroups_max: CGROUPS_MAX,
            block_owner: BlockOwner::Auto,
            measure_cost: true,
            tasks_by_pid: false,
            kernel_log: tracing::enabled!(target: kernel_log::TARGET, tracing::Level::DEBUG),
        }
    }

    pub(crate) fn slots(&self) -> u32 {
        self.slots_max.clamp(1, 1 << 20).next_power_of_two()
    }
}

/// Whom block I/O is charged to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockOwner {
    /// [`Bio`](Self::Bio) where the `io` controller is on cgroup2, else [`Issuer`](Self::Issuer).
    #[default]
    Auto,
    /// The cgroup that was current when the request went to the device: right for direct I/O and reads.
    /// Buffered writes are charged to the flusher thread (so to nobody) or to the caller of `fsync`.
    Issuer,
    /// The cgroup that the bio carries, right for buffered writes too, provided that `io` is enabled for
    /// that cgroup and it is tracked; else the issuer.
    Bio,
}

/// What [`load`] leaves to work with.
pub(crate) struct Loaded {
    pub(crate) ebpf: Ebpf,
    pub(crate) status: Vec<GroupStatus>,
    pub(crate) logger: Option<EbpfLogger<ToTracing>>,
}

pub(crate) fn load(config: &ProbesConfig) -> Result<Loaded, LoadError> {
    let path = &config.object;
    let object = fs::read(path).map_err(|source| LoadError::Object {
        path: path.clone(),
        source,
    })?;
    let kernel = Kernel::here();
    let mut offsets = kernel.found.offsets;
    if config.tasks_by_pid {
        offsets.tasks_by_pid = 1;
    }
    let tasks_by_pid = offsets.tasks_by_pid != 0;
    let by_bio = match config.block_owner {
        BlockOwner::Auto => cgroup::io_on_cgroup2(),
        BlockOwner::Issuer => false,
        BlockOwner::Bio => true,
    };
    offsets.block_owner = if by_bio && kernel.found.bio_owner {
        BLOCK_OWNER_BIO
    } else {
        BLOCK_OWNER_ISSUER
    };

    // 0 is off: the programs then skip the record's making.
    let level = if config.kernel_log {
        Level::Debug as u8
    } else {
        0
    };
    let mut loader = EbpfLoader::new();
    loader
        .btf(kernel.btf.as_ref().ok())
        // Task storage: aya has no user-space type for it, and none is needed.
        .allow_unsupported_maps()
        .override_global("OFFSETS", &offsets, true)
        .override_global("AYA_LOG_LEVEL", &level, false)
        .map_max_entries("LIFE", config.slots())
        .map_max_entries("WATCHED", config.slots())
        .map_max_entries("WATCHED_CGROUPS", config.slots())
        .map_max_entries("CGROUPS", config.cgroups_max)
        .map_max_entries("TASKS_BY_PID", if tasks_by_pid { TASKS_MAX } else { 1 });
    let mut ebpf = loader
        .load(&object)
        .map_err(|error| match os_error(&error) {
            Some(libc::EPERM | libc::EACCES) => LoadError::Permission {
                what: one_line(&error),
            },
            _ => LoadError::Unusable {
                path: path.clone(),
                reason: one_line(&error),
            },
        })?;
    // Takes its map, which must stay open until the programs are loaded.
    let logger = if config.kernel_log {
        EbpfLogger::init_with_logger(&mut ebpf, ToTracing::default())
            .inspect_err(|error| tracing::debug!("no kernel log: {}", one_line(error)))
            .ok()
    } else {
        None
    };

    let mut permitted = false;
    let status: Vec<_> = Group::ALL
        .into_iter()
        .map(|group| {
            let state = match load_group(&mut ebpf, group, &kernel, config.cgroup_root.as_deref()) {
                Ok(()) => GroupState::Active,
                Err(refusal) => {
                    permitted |= !refusal.permission;
                    GroupState::Refused {
                        reason: refusal.reason,
                    }
                }
            };
            GroupStatus { group, state }
        })
        .collect();
    let active = |group| {
        status
            .iter()
            .any(|one| one.group == group && one.state == GroupState::Active)
    };
    if FUSED_GROUPS.into_iter().all(active) {
        fuse(&mut ebpf, config.cgroup_root.as_deref());
    }
    if status.iter().all(|group| group.state != GroupState::Active) {
        return Err(if permitted {
            LoadError::NothingLoaded(status)
        } else {
            LoadError::Permission {
                what: "every program was refused".to_owned(),
            }
        });
    }
    Ok(Loaded {
        ebpf,
        status,
        logger,
    })
}

/// The running kernel as its BTF describes it.
struct Kernel {
    btf: Result<Btf, String>,
    found: Found,
}

impl Kernel {
    fn here() -> Self {
        Self::described_in(Path::new(KERNEL_BTF))
    }

    fn described_in(file: &Path) -> Self {
        let wrong = |reason: &str| {
            format!(
                "{}: {reason}; run a kernel built with CONFIG_DEBUG_INFO_BTF=y",
                file.display()
            )
        };
        let btf = Btf::parse_file(file, aya::Endianness::default())
            .map_err(|error| wrong(&one_line(&error)));
        let found = fs::read(file)
            .map_err(|error| error.to_string())
            .and_then(|bytes| btf::Btf::parse(bytes).map_err(|error| error.to_string()))
            .map(|btf| Found::in_kernel(&btf));
        match found {
            Ok(found) => Self { btf, found },
            Err(reason) => Self {
                btf: Err(wrong(&reason)),
                found: Found::default(),
            },
        }
    }
}

struct Refusal {
    reason: String,
    /// Whether it is for lack of a capability.
    permission: bool,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self {
            reason,
            permission: false,
        }
    }
}

fn load_group(
    ebpf: &mut Ebpf,
    group: Group,
    kernel: &Kernel,
    root: Option<&Path>,
) -> Result<(), Refusal> {
    if let Some(missing) = kernel.found.missing_for(group) {
        return Err(missing.to_string().into());
    }
    let btf = kernel.btf.as_ref().map_err(String::as_str);
    let result = group
        .programs()
        .iter()
        .filter(|spec| !kernel.found.makes_moot(spec.name))
        .try_for_each(|spec| load_program(ebpf, spec, btf, root));
    if result.is_err() {
        // All or nothing: half a group counts wrong.
        unload_all(ebpf, group.programs());
    }
    result
}

/// Puts one program each way in place of those of [`FUSED_GROUPS`], which all run. Where the kernel refuses,
/// all stays as it is.
fn fuse(ebpf: &mut Ebpf, root: Option<&Path>) {
    match load_packet_programs(ebpf, &FUSED_PROGRAMS, root) {
        Ok(()) => FUSED_GROUPS
            .iter()
            .for_each(|group| unload_all(ebpf, group.programs())),
        Err(refusal) => tracing::debug!("packets are looked at twice: {}", refusal.reason),
    }
}

/// Whether the fused programs run.
pub(crate) fn is_fused(ebpf: &Ebpf) -> bool {
    FUSED_PROGRAMS.iter().any(|spec| {
        ebpf.program(spec.name)
            .is_some_and(|program| program.fd().is_ok())
    })
}

/// Takes all programs of a group out of the kernel. Gives a reason for each other group that can't go on
/// without it. Where programs were shared, packets of some milliseconds count twice for the other group:
/// better than not at all.
pub(crate) fn unload_group(
    ebpf: &mut Ebpf,
    group: Group,
    root: Option<&Path>,
) -> Vec<(Group, String)> {
    let mut stopped = Vec::new();
    if FUSED_GROUPS.contains(&group) && is_fused(ebpf) {
        for other in FUSED_GROUPS.into_iter().filter(|&other| other != group) {
            if let Err(refusal) = load_packet_programs(ebpf, other.programs(), root) {
                stopped.push((other, refusal.reason));
            }
        }
        unload_all(ebpf, &FUSED_PROGRAMS);
    }
    unload_all(ebpf, group.programs());
    stopped
}

/// All of them, or none.
fn load_packet_programs(
    ebpf: &mut Ebpf,
    specs: &[ProgramSpec],
    root: Option<&Path>,
) -> Result<(), Refusal> {
    let result = specs
        .iter()
        .try_for_each(|spec| load_program(ebpf, spec, Err("packets need none"), root));
    if result.is_err() {
        unload_all(ebpf, specs);
    }
    result
}

fn unload_all(ebpf: &mut Ebpf, specs: &[ProgramSpec]) {
    for spec in specs {
        if let Some(program) = ebpf.program_mut(spec.name) {
            unload(program);
        }
    }
}

fn unload(program: &mut Program) {
    let result = match program {
        Program::BtfTracePoint(program) => program.unload(),
        Program::CgroupSkb(program) => program.unload(),
        Program::RawTracePoint(program) => program.unload(),
        _ => Ok(()),
    };
    if let Err(error) = result
        && !matches!(error, ProgramError::NotLoaded)
    {
        tracing::warn!("can't unload a program: {}", one_line(&error));
    }
}

fn load_program(
    ebpf: &mut Ebpf,
    spec: &ProgramSpec,
    btf: Result<&Btf, &str>,
    root: Option<&Path>,
) -> Result<(), Refusal> {
    let name = spec.name;
    let refused = |error: ProgramError| refusal(spec, &error);
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("the object has no program {name}"))?;
    match spec.hook {
        Hook::Tracepoint(tracepoint) => {
            let btf = btf.map_err(str::to_owned)?;
            let program: &mut BtfTracePoint = program.try_into().map_err(refused)?;
            program.load(tracepoint, btf).map_err(refused)?;
            program.attach().map_err(refused)?;
        }
        Hook::Packets(direction) => {
            let root =
                root.ok_or_else(|| "no cgroup configured whose packets to count".to_owned())?;
            let directory =
                File::open(root).map_err(|error| format!("{}: {error}", root.display()))?;
            let program: &mut CgroupSkb = program.try_into().map_err(refused)?;
            program.load().map_err(refused)?;
            // A link always shares the cgroup with other programs; its flags must be 0, which aya calls `Single`.
            program
                .attach(directory, direction, CgroupAttachMode::Single)
                .map_err(refused)?;
        }
        Hook::OnDemand => {
            let program: &mut RawTracePoint = program.try_into().map_err(refused)?;
            program.load().map_err(refused)?;
        }
    }
    Ok(())
}

fn refusal(spec: &ProgramSpec, error: &ProgramError) -> Refusal {
    let name = spec.name;
    let permission = matches!(os_error(error), Some(libc::EPERM | libc::EACCES));
    let reason = match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            tracing::debug!("verifier's log of {name}:\n{log}");
            // The log ends with statistics; the verdict stands before them.
            let verdict = log
                .lines()
                .rev()
                .map(str::trim)
                .find(|line| !line.is_empty() && !line.starts_with("processed "));
            match verdict {
                Some(verdict) => format!("the kernel refused {name}: {io_error}: {verdict}"),
                None => format!("the kernel refused {name}: {io_error}"),
            }
        }
        other => format!("{name}: {}", one_line(other)),
    };
    let reason = if permission {
        let capabilities = spec.hook.capabilities();
        format!("{reason}; give the process {capabilities}")
    } else {
        reason
    };
    Refusal { reason, permission }
}

/// A program that user space runs.
pub(crate) fn on_demand<'a>(ebpf: &'a Ebpf, name: &str) -> Option<&'a RawTracePoint> {
    match ebpf.program(name) {
        Some(Program::RawTracePoint(program)) => Some(program),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_does_not_describe_itself_is_told_what_to_do() {
        let kernel = Kernel::described_in(Path::new("/nonexistent/btf"));
        let reason = kernel.btf.err().unwrap();
        assert!(
            reason.starts_with("/nonexistent/btf: No such file"),
            "{reason}"
        );
        assert!(reason.ends_with("CONFIG_DEBUG_INFO_BTF=y"), "{reason}");
        assert!(!reason.contains('\n'));
        let all_missing = Group::ALL
            .iter()
            .any(|group| kernel.found.missing_for(*group).is_some());
        assert!(!all_missing, "the reason is the file, not a member");
        let nonsense = Kernel::described_in(Path::new("/proc/self/stat"));
        assert!(nonsense.btf.is_err());
    }
}
