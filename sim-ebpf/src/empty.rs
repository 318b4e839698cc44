//! The measurement's own share of what the kernel says that programs cost.

use crate::{Cost, LoadError, cost, error::one_line, load::KERNEL_BTF};
use aya::{Btf, Ebpf, EbpfLoader, programs::BtfTracePoint};
use std::{fmt, fs, path::Path};

/// Programs that do nothing, attached to `sched_switch` and `sched_wakeup` for as long as this lives.
///
/// Whoever quotes [`ProgramCost::run_ns`](crate::ProgramCost::run_ns) subtracts what one run of these
/// reads, times the runs: the rest is the program's own.
pub struct EmptyPrograms {
    ebpf: Ebpf,
}

impl EmptyPrograms {
    /// Loads and attaches them from the probes' object.
    ///
    /// # Errors
    /// No object, no kernel BTF, or no privilege.
    pub fn load(object: &Path) -> Result<Self, LoadError> {
        let bytes = fs::read(object).map_err(|source| LoadError::Object {
            path: object.to_owned(),
            source,
        })?;
        let unusable = |error: &dyn std::error::Error| LoadError::Unusable {
            path: object.to_owned(),
            reason: one_line(error),
        };
        let btf = Btf::parse_file(KERNEL_BTF, aya::Endianness::default())
            .map_err(|error| unusable(&error))?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .allow_unsupported_maps()
            .load(&bytes)
            .map_err(|error| unusable(&error))?;
        for (name, tracepoint) in [
            ("empty_switch", "sched_switch"),
            ("empty_wakeup", "sched_wakeup"),
        ] {
            let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Unusable {
                path: object.to_owned(),
                reason: format!("the object has no program {name}"),
            })?;
            let program: &mut BtfTracePoint =
                program.try_into().map_err(|error| unusable(&error))?;
            program
                .load(tracepoint, &btf)
                .map_err(|error| unusable(&error))?;
            program.attach().map_err(|error| unusable(&error))?;
        }
        Ok(Self { ebpf })
    }

    /// What they took so far, if the kernel measures.
    #[must_use]
    pub fn cost(&self) -> Cost {
        cost::read(&self.ebpf)
    }
}

impl fmt::Debug for EmptyPrograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmptyPrograms").finish_non_exhaustive()
    }
}
