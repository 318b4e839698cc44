//! Adding to memory that others add to as well.

use core::arch::asm;

/// Adds to a counter that another CPU may add to at the same time, or an interrupt on this one. No
/// ordering, because no other memory is published with it.
///
/// In assembly, because `core` gives this target no `fetch_add` (it has no compare-and-swap before v3).
///
/// # Safety
/// `counter` points into a live map value.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, value: u64) {
    // SAFETY: as the caller promises; map values are 8-byte aligned.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {value}", counter = in(reg) counter, value = in(reg) value, options(nostack))
    };
}
