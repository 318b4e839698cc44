//! Any bytes, read as the fast path reads: see `sim_proxy::invariants`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sim_proxy::invariants::answer(bytes));
