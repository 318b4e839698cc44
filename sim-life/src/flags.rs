//! Life flags: reading, without a system call, what the kernel wrote when a process died or stopped.
#![allow(
    unsafe_code,
    reason = "maps kernel memory and reads it as atomics; there is no safe API for BPF_F_MMAPABLE arrays"
)]

use sim_ebpf_abi::LifeFlag;
use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

/// One word per instance, mapped read-only from the kernel's array.
///
/// Cheap enough for a proxy to read at each pick (less than a nanosecond). They may outlive the probes;
/// they then stop changing.
#[derive(Debug)]
pub struct LifeFlags {
    flags: NonNull<[AtomicU64; WORDS]>,
    /// Slots less one; slots are a power of two.
    mask: u64,
    bytes: usize,
}

const WORDS: usize = size_of::<LifeFlag>() / size_of::<AtomicU64>();

/// What the kernel knows of an instance's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// When its main process died, in nanoseconds of `CLOCK_MONOTONIC`.
    pub died_ns: Option<u64>,
    /// Its main process is stopped by SIGSTOP.
    pub stopped: bool,
    /// No process is left in its cgroup.
    pub empty: bool,
}

// SAFETY: the mapping is shared, never moves, is unmapped only by `Drop`, and is only accessed by atomic loads.
unsafe impl Send for LifeFlags {}
// SAFETY: as above; `&self` methods only load atomically.
unsafe impl Sync for LifeFlags {}

impl LifeFlags {
    /// Maps what a node handed over: a descriptor of its array, read-only or not.
    ///
    /// # Errors
    /// It is no such array, or the kernel refuses.
    pub fn from_descriptor(array: impl AsFd) -> io::Result<Self> {
        let array = array.as_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", array.as_raw_fd()))?;
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().parse::<usize>().ok()
        };
        let right = field("map_type:") == Some(BPF_MAP_TYPE_ARRAY)
            && field("value_size:") == Some(size_of::<LifeFlag>());
        match field("max_entries:").and_then(|slots| u32::try_from(slots).ok()) {
            Some(slots) if right && slots.is_power_of_two() => Self::map(array, slots),
            _ => Err(io::Error::other("no array of life flags")),
        }
    }

    /// Maps an array of `slots` flags, a power of two.
    fn map(array: BorrowedFd<'_>, slots: u32) -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
            .map_err(io::Error::other)?;
        let bytes = (slots as usize * size_of::<LifeFlag>()).next_multiple_of(page);
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
        let flags =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self {
            flags,
            mask: u64::from(slots) - 1,
            bytes,
        })
    }

    /// Slot of an instance in the array.
    #[must_use]
    pub const fn slot(&self, instance: u64) -> u64 {
        instance & self.mask
    }

    #[inline]
    fn words(&self, instance: u64) -> &[AtomicU64; WORDS] {
        let slot = self.slot(instance) as usize;
        // SAFETY: `slot <= mask`, and `map` mapped `mask + 1` flags, aligned to a page.
        unsafe { self.flags.add(slot).as_ref() }
    }

    /// Whether the kernel says that this instance can't serve: its main process is dead or stopped, or no
    /// process is left. `false` where it is not watched here, or no more.
    #[must_use]
    #[inline]
    pub fn is_down(&self, instance: u64) -> bool {
        // Relaxed: the word is the whole message. The kernel publishes no other memory with it (its bytes
        // are stored one by one, each a fact of its own), and whoever acts on it sends requests
        // elsewhere, which needs no memory of the dead process.
        let word = self.words(instance)[0].load(Ordering::Relaxed);
        let state = word.wrapping_sub(instance << LifeFlag::INSTANCE_SHIFT);
        // Another instance's word is off by more than the state's bits.
        (1..=LifeFlag::DOWN).contains(&state)
    }

    /// What the kernel knows of an instance; `None` where it is not watched here, or no more.
    #[must_use]
    pub fn life(&self, instance: u64) -> Option<Life> {
        let [word, died_ns] = self.words(instance);
        // Acquire: the time of death is stored before the byte that tells of it.
        let word = word.load(Ordering::Acquire);
        if word >> LifeFlag::INSTANCE_SHIFT != instance {
            return None;
        }
        let bytes = word.to_le_bytes();
        Some(Life {
            died_ns: (bytes[LifeFlag::DEAD_BYTE] != 0).then(|| died_ns.load(Ordering::Relaxed)),
            stopped: bytes[LifeFlag::STOPPED_BYTE] != 0,
            empty: bytes[LifeFlag::EMPTY_BYTE] != 0,
        })
    }
}

const BPF_MAP_TYPE_ARRAY: usize = 2;

impl Drop for LifeFlags {
    fn drop(&mut self) {
        // SAFETY: the address and length of the mapping that `map` made; no reference outlives `self`.
        let result = unsafe { libc::munmap(self.flags.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "munmap of an own mapping can't fail");
    }
}
