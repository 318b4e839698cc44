//! How fast an instance has been of late, where anybody can read it. [`crate::window`] finds it out.

use sim_core::histogram::LatencyHistogram;
use std::sync::atomic::{AtomicU64, Ordering};

/// Looks that are kept; one a second.
pub(crate) const LOOKS_MAX: usize = 60;
/// The quantiles that are told, in thousandths.
pub(crate) const QUANTILES: [(f64, &str); 4] =
    [(0.5, "0.5"), (0.9, "0.9"), (0.99, "0.99"), (0.999, "0.999")];
/// Over which windows, looks.
pub(crate) const WINDOWS: [(usize, &str); 2] = [(10, "10s"), (LOOKS_MAX, "60s")];

/// Quantiles as anybody may read them, µs plus one; 0 = no request was answered in the window.
#[derive(Debug, Default)]
pub(crate) struct Quantiles([[AtomicU64; QUANTILES.len()]; WINDOWS.len()]);

// Relaxed: each is a fact of its own, and a page that shows one of this second beside one of the last is as good.
impl Quantiles {
    /// The quantile at `quantile` of the window at `window`, µs.
    pub(crate) fn micros(&self, window: usize, quantile: usize) -> Option<u64> {
        let word = self.0.get(window)?.get(quantile)?.load(Ordering::Relaxed);
        word.checked_sub(1)
    }

    pub(crate) fn set(&self, window: usize, counts: &LatencyHistogram) {
        for (word, (quantile, _)) in self.0[window].iter().zip(QUANTILES) {
            let micros = counts.quantile_micros(quantile);
            word.store(micros.map_or(0, |micros| micros + 1), Ordering::Relaxed);
        }
    }
}
