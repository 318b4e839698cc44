//! Arrivals of an inhomogeneous Poisson process.
//!
//! By thinning (Lewis and Shedler, "Simulation of Nonhomogeneous Poisson Processes by Thinning",
//! 1979): candidates at the largest rate, each kept with probability rate / largest rate. Exact
//! for any rate law that stays under the stated maximum; a law that passes it is clipped there.

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

/// A rate of arrivals over time.
pub trait Rate: Send + Sync {
    /// Arrivals per second, `seconds` after the start; >= 0.
    fn at(&self, seconds: f64) -> f64;

    /// A bound that `at` never passes; > 0.
    fn max(&self) -> f64;
}

/// The same rate for ever, in arrivals per second.
#[derive(Clone, Copy, Debug)]
pub struct Constant(pub f64);

impl Rate for Constant {
    fn at(&self, _seconds: f64) -> f64 {
        self.0
    }

    fn max(&self) -> f64 {
        self.0
    }
}

/// Seeded arrival moments, in seconds since the start, rising, without end.
#[derive(Debug)]
pub struct Arrivals<R> {
    rate: R,
    random: Pcg64,
    seconds: f64,
}

impl<R: Rate> Arrivals<R> {
    /// The same seed and law give the same arrivals.
    #[must_use]
    pub fn new(rate: R, seed: u64) -> Self {
        Self {
            rate,
            random: Pcg64::seed_from_u64(seed),
            seconds: 0.0,
        }
    }
}

impl<R: Rate> Iterator for Arrivals<R> {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        let max = self.rate.max();
        loop {
            // 1 - u lies in (0, 1], so its logarithm is finite.
            self.seconds -= (1.0 - self.random.random::<f64>()).ln() / max;
            if self.random.random::<f64>() * max <= self.rate.at(self.seconds) {
                return Some(self.seconds);
            }
        }
    }
}

impl<R: Rate + ?Sized> Rate for std::sync::Arc<R> {
    fn at(&self, seconds: f64) -> f64 {
        (**self).at(seconds)
    }

    fn max(&self) -> f64 {
        (**self).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Step;

    impl Rate for Step {
        fn at(&self, seconds: f64) -> f64 {
            if seconds < 100.0 { 50.0 } else { 200.0 }
        }

        fn max(&self) -> f64 {
            200.0
        }
    }

    #[test]
    fn arrivals_follow_a_changing_rate_and_scatter_as_poisson_does() {
        let moments: Vec<f64> = Arrivals::new(Step, 7).take_while(|t| *t < 200.0).collect();
        let early = moments.iter().filter(|t| **t < 100.0).count() as f64;
        let late = moments.len() as f64 - early;
        // Five standard deviations: sqrt(5000) = 71, sqrt(20000) = 141.
        assert!((early - 5_000.0).abs() < 5.0 * 71.0, "{early}");
        assert!((late - 20_000.0).abs() < 5.0 * 141.0, "{late}");
        // Variance of counts in one-second bins equals their mean.
        let mut bins = [0.0_f64; 100];
        for moment in moments.iter().filter(|t| **t < 100.0) {
            bins[*moment as usize] += 1.0;
        }
        let mean = bins.iter().sum::<f64>() / 100.0;
        let variance = bins.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / 99.0;
        assert!(
            (0.5..2.0).contains(&(variance / mean)),
            "{variance} / {mean}"
        );
    }

    #[test]
    fn the_seed_decides_the_arrivals() {
        let draw = |seed| {
            Arrivals::new(Constant(10.0), seed)
                .take(50)
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}
