//! SIM's kernel side: facts of each tracked cgroup, added up where they happen.
//!
//! One file for each group of signals. A cgroup is *tracked* when user space has put a zeroed entry
//! for its id in the per-CPU hash `CGROUPS`: one lookup both tells whether to record and gives where. So
//! the programs never insert a cgroup, a stranger costs one failed lookup, and a map can't fill up
//! from here. Nothing is sent to user space per event; it reads the maps on its own tick.
//!
//! Names of programs and maps are the contract with the loader in `sim-ebpf`.
#![no_std]
#![no_main]
// Every compiler that builds this is a nightly or is told to act as one, for -Zbuild-std.
#![feature(asm_experimental_arch)]

mod atomic;
mod block;
mod cgroups;
mod empty;
mod http;
mod kernel;
mod life;
mod losses;
mod memory;
mod net;
mod packets;
mod sched;
mod storage;
mod tasks;
mod tcp;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Unreachable: the verifier refuses a program that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
