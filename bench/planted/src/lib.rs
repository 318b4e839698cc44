//! A slowdown to be found: loaded before the C library into `sim proxy` (`LD_PRELOAD`), it spins for `SIM_PLANTED_NS`
//! before each `send` and `writev`. The benchmark's proof of its gate plants it; nothing of SIM knows of it.
#![allow(
    unsafe_code,
    reason = "it stands in for functions of the C library, with their names and types"
)]

use std::hint::spin_loop;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libc::{c_int, c_void, iovec, size_t, ssize_t};

/// How long; zero in all processes but the proxy.
fn span() -> Duration {
    static SPAN: OnceLock<Duration> = OnceLock::new();
    *SPAN.get_or_init(|| {
        let is_proxy = std::env::args_os()
            .nth(1)
            .is_some_and(|role| role == "proxy");
        let wanted = std::env::var("SIM_PLANTED_NS").ok();
        let ns = wanted.and_then(|ns| ns.parse().ok()).unwrap_or(0);
        Duration::from_nanos(if is_proxy { ns } else { 0 })
    })
}

fn spin() {
    let span = span();
    if span.is_zero() {
        return;
    }
    let begin = Instant::now();
    while begin.elapsed() < span {
        spin_loop();
    }
}

/// As the C library's.
///
/// # Safety
/// As there: `bytes` has `length` of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(
    socket: c_int,
    bytes: *const c_void,
    length: size_t,
    flags: c_int,
) -> ssize_t {
    spin();
    // SAFETY: the caller's promise is handed on; without an address this is what `send` is.
    unsafe { libc::sendto(socket, bytes, length, flags, std::ptr::null(), 0) }
}

/// As the C library's.
///
/// # Safety
/// As there: `pieces` has `count` of them, each valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(file: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
    spin();
    // SAFETY: the caller's promise is handed on, to the call of the kernel that `writev` is.
    unsafe { libc::syscall(libc::SYS_writev, file, pieces, count) as ssize_t }
}
