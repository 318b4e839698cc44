//! The demand forecaster under a made-up load: what its benchmarks and the test of its bits have in common.

mod bits;
mod demand;

pub use bits::{BITS, bits};
pub use demand::{Demand, INTERVAL_S, WARM, warm};
