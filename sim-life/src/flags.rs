//! Death flags: reading, without a syscall, what the kernel wrote when a process died.
#![allow(
    unsafe_code,
    reason = "maps kernel memory and reads it as atomics; there is no safe API for BPF_F_MMAPABLE arrays"
)]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

/// One word per slot, mapped read-only from the kernel's array.
///
/// Cheap enough for a proxy to read at each pick (about a nanosecond). Clones of the `Arc` that
/// [`Probes::death_flags`](crate::Probes::death_flags) gives may outlive the probes; they then stop changing.
#[derive(Debug)]
pub struct DeathFlags {
    words: NonNull<AtomicU64>,
    slots: u32,
    bytes: usize,
}

// SAFETY: the mapping is shared, never moves, is unmapped only by `Drop`, and is only accessed by atomic loads.
unsafe impl Send for DeathFlags {}
// SAFETY: as above; `&self` methods only load atomically.
unsafe impl Sync for DeathFlags {}

impl DeathFlags {
    /// Maps an array of `slots` words.
    pub(crate) fn map(array: BorrowedFd<'_>, slots: u32) -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
            .map_err(io::Error::other)?;
        let bytes = (slots as usize * size_of::<AtomicU64>()).next_multiple_of(page);
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing of ours.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                array.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self {
            words,
            slots,
            bytes,
        })
    }

    /// When the process in `slot` died, in nanoseconds of `CLOCK_MONOTONIC`; `None` while it lives, if the
    /// slot watches nobody, or if there is no such slot.
    #[must_use]
    #[inline]
    pub fn death_ns(&self, slot: u32) -> Option<u64> {
        if slot >= self.slots {
            return None;
        }
        // SAFETY: `slot < slots`, and `map` mapped at least `slots` words, aligned to a page.
        let word = unsafe { self.words.add(slot as usize).as_ref() };
        // Relaxed: the word is the whole message. The kernel publishes no other memory with it (it is one
        // aligned 8-byte store, so never seen half-written), and whoever acts on it sends requests
        // elsewhere, which needs no memory of the dead process. Coherence of the single location gives
        // what is left to ask for: once seen dead, a slot stays dead until it is watched anew.
        match word.load(Ordering::Relaxed) {
            0 => None,
            at => Some(at),
        }
    }

    /// Number of slots.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }
}

impl Drop for DeathFlags {
    fn drop(&mut self) {
        // SAFETY: the address and length of the mapping that `map` made; no reference outlives `self`.
        let result = unsafe { libc::munmap(self.words.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "munmap of an own mapping can't fail");
    }
}
