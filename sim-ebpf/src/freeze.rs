//! Freezing a map: from then on only BPF programs write it.
#![allow(unsafe_code, reason = "aya freezes only maps of read-only data")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

const BPF_MAP_FREEZE: libc::c_int = 22;

/// The part of `union bpf_attr` that `BPF_MAP_FREEZE` reads.
#[repr(C)]
struct Freeze {
    map_fd: u32,
}

/// Freezes a map that is not mapped writable. There is no way back.
///
/// A descriptor that was *opened* read-only would not do instead: the kernel refuses to map one shared.
pub(crate) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let attribute = Freeze {
        map_fd: map.as_raw_fd().cast_unsigned(),
    };
    // SAFETY: `attribute` is the start of a `union bpf_attr` for this command; the kernel reads that many bytes of
    // it and keeps no reference.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_FREEZE,
            std::ptr::from_ref(&attribute),
            size_of::<Freeze>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
