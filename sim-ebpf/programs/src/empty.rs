//! Programs that do nothing, attached where the dearest ones are: what the kernel says that these take is
//! what its measurement adds to every other figure.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

#[btf_tracepoint(function = "sched_switch")]
pub fn empty_switch(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "sched_wakeup")]
pub fn empty_wakeup(_: BtfTracePointContext) -> i32 {
    0
}
