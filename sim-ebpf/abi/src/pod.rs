//! `aya::Pod` for the types that user space reads from maps or writes into globals.
#![allow(
    unsafe_code,
    reason = "aya::Pod is an unsafe marker trait, and there is no safe way to implement it"
)]

use crate::{CgroupCounters, KernelOffsets, LifeFlag, Neighbour, Watched};

// SAFETY: `Pod` asks that every bit pattern be a valid value and that there be no padding to leak. The
// type is `repr(C)` and made of `u64`s only, all the way down; a test holds its size against their number.
unsafe impl aya::Pod for CgroupCounters {}
// SAFETY: as above, with `u32`s.
unsafe impl aya::Pod for KernelOffsets {}
// SAFETY: as above, two `u64`s.
unsafe impl aya::Pod for Neighbour {}
// SAFETY: as above, two `u64`s.
unsafe impl aya::Pod for LifeFlag {}
// SAFETY: as above, two `u64`s.
unsafe impl aya::Pod for Watched {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HISTOGRAM_BUCKETS;
    use core::mem::size_of;

    #[test]
    fn no_type_has_padding() {
        let (cpu, block, net, tcp, http, memory) = (7, 8, 4, 6, 7, 2);
        assert_eq!(
            size_of::<CgroupCounters>(),
            8 * (cpu + block + net + tcp + http + memory + 1 + 5 * HISTOGRAM_BUCKETS)
        );
        assert_eq!(size_of::<KernelOffsets>(), 4 * 29);
        assert_eq!(size_of::<Neighbour>(), 16);
        assert_eq!((size_of::<LifeFlag>(), size_of::<Watched>()), (16, 16));
    }
}
