//! Holds the benchmarks in `benches/`; there is no library here.
