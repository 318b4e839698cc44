//! The words that tell of an instance's life.
//!
//! User space maps them and reads one with a single 8-byte load, so all that a reader needs is in one
//! `u64`. The kernel side writes single *bytes* of it, each by a plain store that nothing can tear and
//! no other writer can undo: a stop that races with a death can't hide it. Byte 0: the main process is
//! dead. Byte 1: it is stopped. Byte 2: no process is left in the cgroup. The other five are the
//! instance's number, by which a reader that comes late sees that the word is another's by now.

/// One instance's slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LifeFlag {
    /// See the module.
    pub word: u64,
    /// When the main process died, by `CLOCK_MONOTONIC`; 0 while it lives. Written before the word.
    pub died_ns: u64,
}

/// What is watched, and where its word is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Watched {
    /// Number of the instance.
    pub instance: u64,
    /// Index of its [`LifeFlag`].
    pub slot: u64,
}

impl LifeFlag {
    /// Byte of the word that is set at the main process's death.
    pub const DEAD_BYTE: usize = 0;
    /// Byte that is set while it is stopped.
    pub const STOPPED_BYTE: usize = 1;
    /// Byte that is set when no process is left.
    pub const EMPTY_BYTE: usize = 2;
    /// Bits of the word that are all 0 while the main process can serve.
    pub const DOWN: u64 = 0xff_ffff;
    /// Where the instance's number begins.
    pub const INSTANCE_SHIFT: u32 = 24;
    /// Highest number of an instance.
    pub const INSTANCE_MAX: u64 = u64::MAX >> Self::INSTANCE_SHIFT;

    /// Of an instance that lives.
    #[must_use]
    pub const fn alive(instance: u64) -> Self {
        Self {
            word: instance << Self::INSTANCE_SHIFT,
            died_ns: 0,
        }
    }
}

// The kernel side addresses bytes where user space sees a number.
const _: () = assert!(
    cfg!(target_endian = "little"),
    "bytes of a word are counted from its low end"
);
