//! What had to be dropped is counted.

use aya_ebpf::{EbpfContext, macros::map, maps::PerCpuArray};
use aya_log_ebpf::warn;
use sim_ebpf_abi::{LOSS_KINDS, Loss};

#[map]
static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(LOSS_KINDS as u32, 0);

/// Counts a loss; the first one of its kind on each CPU is also logged, where somebody listens.
#[inline(always)]
pub fn count(ctx: &impl EbpfContext, loss: Loss) {
    let Some(count) = LOSSES.get_ptr_mut(loss as u32) else {
        return;
    };
    // SAFETY: an element of this CPU's array; a nested program on this CPU could make one count
    // vanish, which leaves the fact that there are losses standing.
    let before = unsafe { *count };
    // SAFETY: as above.
    unsafe { *count = before + 1 };
    if before == 0 {
        warn!(ctx, "first loss of kind {} on this CPU", loss as u32);
    }
}
