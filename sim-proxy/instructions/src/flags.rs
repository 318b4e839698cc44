//! An array of life flags as a node has one, in which nobody is dead.
#![allow(
    unsafe_code,
    reason = "makes a BPF array by the system call; a loader of programs is a large thing to build for that"
)]

use sim_ebpf_abi::LifeFlag;
use sim_life::LifeFlags;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

const MAP_CREATE: libc::c_int = 0;
const TYPE_ARRAY: u32 = 2;
const MMAPABLE: u32 = 1 << 10;

/// The part of the kernel's `bpf_attr` that says what array is wanted.
#[repr(C)]
struct Wanted {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
    map_ifindex: u32,
}

pub(crate) fn new() -> io::Result<LifeFlags> {
    let wanted = Wanted {
        map_type: TYPE_ARRAY,
        key_size: size_of::<u32>() as u32,
        value_size: size_of::<LifeFlag>() as u32,
        max_entries: 64,
        map_flags: MMAPABLE,
        inner_map_fd: 0,
        numa_node: 0,
        map_name: [0; 16],
        map_ifindex: 0,
    };
    // SAFETY: the kernel reads `wanted`, of the size given, and keeps no pointer to it.
    let made = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            MAP_CREATE,
            &raw const wanted,
            size_of::<Wanted>(),
        )
    };
    let made = RawFd::try_from(made).map_err(io::Error::other)?;
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for this process; nobody else knows of it.
    LifeFlags::from_descriptor(unsafe { OwnedFd::from_raw_fd(made) })
}
