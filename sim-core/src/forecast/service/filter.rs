//! The Kalman filter of two states: base load and service demand.
//!
//! Rates and uses are taken in units of the first sample's, so that both states are near one.

use serde::{Deserialize, Serialize};

use crate::forecast::shift::ShiftDetector;

/// Prior deviations: a share of the first use may be base load, and the first sample may be off.
const BASE_PRIOR: f64 = 0.5;
const DEMAND_PRIOR: f64 = 1.0;
/// Noise at first, as a variance, and how many samples that counts for.
const NOISE_PRIOR: f64 = 0.05;
const NOISE_PRIOR_SAMPLES: f64 = 4.0;
/// Memory of the noise, in samples.
const NOISE_MEMORY: f64 = 200.0;
/// Least noise: more exact than a thousandth nothing is.
const NOISE_MIN: f64 = 1e-6;
/// Noise does not vanish where no request comes.
const RATE_MIN: f64 = 0.1;
/// Deviations that the states walk a sample, in deviations of the noise at the sample's rate: a memory of 50 samples.
const WALK: f64 = 0.02;
/// Innovations count in full up to so many deviations.
const CLIP: f64 = 4.0;
/// What a server's speed is known to, and what a base load is.
const SPEED_KNOWN: f64 = 0.1;
const BASE_KNOWN: f64 = 0.3;
/// How far costs may have changed after a shift, in their own size.
const SHIFTED: f64 = 1.0;

/// State, covariance (base, both, demand) and noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Filter {
    rate_unit: f64,
    use_unit: f64,
    window: f64,
    base: f64,
    demand: f64,
    covariance: [f64; 3],
    noise: f64,
    observed: u64,
    shift: ShiftDetector,
}

/// One sample in the filter's units.
struct Seen {
    rate: f64,
    /// Variance of the noise, in units of the filter's own.
    noisy: f64,
}

impl Filter {
    /// From the first sample, all numbers of it positive.
    pub(super) fn new(rate: f64, used: f64, seconds: f64) -> Self {
        Self {
            rate_unit: rate,
            use_unit: used,
            window: seconds,
            base: 0.0,
            demand: 1.0,
            covariance: [BASE_PRIOR * BASE_PRIOR, 0.0, DEMAND_PRIOR * DEMAND_PRIOR],
            noise: NOISE_PRIOR,
            observed: 1,
            shift: ShiftDetector::default(),
        }
    }

    pub(super) fn window(&self) -> f64 {
        self.window
    }

    pub(super) fn costs(&self) -> (f64, f64) {
        (
            self.base * self.use_unit,
            self.demand * self.use_unit / self.rate_unit,
        )
    }

    fn seen(&self, rate: f64, seconds: f64) -> Seen {
        let rate = rate / self.rate_unit;
        Seen {
            rate,
            noisy: rate.max(RATE_MIN) * self.window / seconds,
        }
    }

    /// Variance of the prediction at `rate` without noise.
    fn known(&self, rate: f64) -> f64 {
        let [base, both, demand] = self.covariance;
        (base + 2.0 * rate * both + rate * rate * demand).max(0.0)
    }

    /// Mean and variance of what is used a second.
    pub(super) fn predict(&self, rate: f64, rate_variance: f64, seconds: f64) -> (f64, f64) {
        let seen = self.seen(rate, seconds);
        let spread = rate_variance / (self.rate_unit * self.rate_unit);
        let mean = self.base + self.demand * seen.rate;
        let variance = self.known(seen.rate)
            + self.noise * seen.noisy
            + spread * (self.demand * self.demand + self.covariance[2]);
        let unit = self.use_unit;
        (mean * unit, variance * unit * unit)
    }

    /// Learns from a sample. Says whether costs have changed for good.
    pub(super) fn learn(&mut self, rate: f64, used: f64, seconds: f64) -> bool {
        let seen = self.seen(rate, seconds);
        self.walk(seen.rate);
        let innovation = used / self.use_unit - self.base - self.demand * seen.rate;
        let known = self.known(seen.rate);
        let noise = self.noise * seen.noisy;
        let deviation = libm::sqrt(known + noise);
        let clipped = innovation.clamp(-CLIP * deviation, CLIP * deviation);
        self.update(&seen, clipped, known + noise, 1.0);

        self.observed += 1;
        let count = self.observed as f64 + NOISE_PRIOR_SAMPLES;
        let seen_noise = (clipped * clipped - known) / seen.noisy;
        // An innovation smaller than what is not known tells nothing of the noise but that it is small.
        let target = seen_noise.max(0.1 * self.noise);
        self.noise += (1.0 / count).max(1.0 / NOISE_MEMORY) * (target - self.noise);
        self.noise = self.noise.max(NOISE_MIN);

        self.has_shifted(innovation / deviation)
    }

    /// Takes an innovation in its deviations. If costs have changed for good, they may be anything near again.
    fn has_shifted(&mut self, innovation: f64) -> bool {
        let has_shifted = self.shift.observe(innovation).is_some();
        if has_shifted {
            let size = (self.base + self.demand).max(1e-3) * SHIFTED;
            self.covariance[0] += BASE_PRIOR * BASE_PRIOR * size * size;
            self.covariance[2] += size * size;
        }
        has_shifted
    }

    /// Learns from a sample that tells only a lower bound. Says whether costs have risen for good.
    pub(super) fn censored(&mut self, rate: f64, used: f64, seconds: f64) -> bool {
        let seen = self.seen(rate, seconds);
        self.walk(seen.rate);
        let variance = self.known(seen.rate) + self.noise * seen.noisy;
        let deviation = libm::sqrt(variance);
        let bound = used / self.use_unit - self.base - self.demand * seen.rate;
        let alpha = (bound / deviation).min(CLIP);
        let hazard = hazard(alpha);
        let told = (hazard * (hazard - alpha)).clamp(0.0, 1.0);
        self.update(&seen, deviation * hazard, variance, told);
        // A bound below what was foretold is no innovation.
        bound > 0.0 && self.has_shifted(bound / deviation)
    }

    /// Joseph's form; `told` says how much of the sample counts for the covariance.
    fn update(&mut self, seen: &Seen, innovation: f64, variance: f64, told: f64) {
        let x = seen.rate;
        let [a, b, c] = self.covariance;
        let gain = [(a + b * x) / variance, (b + c * x) / variance];
        self.base = (self.base + gain[0] * innovation).max(0.0);
        self.demand = (self.demand + gain[1] * innovation).max(0.0);
        // P' = (I − K h) P (I − K h)ᵀ + K R Kᵀ with h = (1, x).
        let [f, g] = [[1.0 - gain[0], -gain[0] * x], [-gain[1], 1.0 - gain[1] * x]];
        let times =
            |l: [f64; 2], r: [f64; 2]| l[0] * (a * r[0] + b * r[1]) + l[1] * (b * r[0] + c * r[1]);
        let noise = self.noise * seen.noisy;
        let after = [
            times(f, f) + noise * gain[0] * gain[0],
            times(f, g) + noise * gain[0] * gain[1],
            times(g, g) + noise * gain[1] * gain[1],
        ];
        for (p, after) in self.covariance.iter_mut().zip(after) {
            *p += told * (after - *p);
        }
    }

    /// The states walk before a sample at `rate`. The gain on demand grows with rate² × walk / noise, and noise with the
    /// rate: divided by it, the memory is as long at any multiple of the rate that happened to come first.
    fn walk(&mut self, rate: f64) {
        let step = WALK * WALK * self.noise;
        // What is not told by any sample must not grow for ever.
        self.covariance[0] = (self.covariance[0] + step).min(1e3 * BASE_PRIOR);
        self.covariance[2] = (self.covariance[2] + step / rate.max(1.0)).min(1e3 * DEMAND_PRIOR);
        let most = libm::sqrt(self.covariance[0] * self.covariance[2]);
        self.covariance[1] = self.covariance[1].clamp(-most, most);
    }

    pub(super) fn loosen(&mut self) {
        let [base, demand] = [BASE_KNOWN * self.base, SPEED_KNOWN * self.demand];
        self.covariance[0] += base * base;
        self.covariance[2] += demand * demand;
    }
}

/// Density over upper tail of the standard normal distribution: the mean of what lies above `alpha`.
fn hazard(alpha: f64) -> f64 {
    if alpha > 6.0 {
        return alpha + 1.0 / alpha;
    }
    let density = libm::exp(-0.5 * alpha * alpha) / libm::sqrt(2.0 * core::f64::consts::PI);
    let tail = 0.5 * libm::erfc(alpha * core::f64::consts::FRAC_1_SQRT_2);
    density / tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hazard_is_what_tables_say() {
        // Mean of a standard normal above 0 is √(2/π); above 2 it is 2.3732; far below all, it is 0.
        assert!((hazard(0.0) - 0.797_884_560_8).abs() < 1e-9);
        assert!((hazard(2.0) - 2.373_215_533).abs() < 1e-6);
        assert!(hazard(-9.0) < 1e-15 && hazard(-40.0) == 0.0);
        assert!((hazard(6.0) - hazard(6.000_001)).abs() < 1e-2);
    }

    #[test]
    fn memory_is_as_long_where_the_first_rate_was_a_thousandth_of_the_usual_one() {
        // Noise of a fifth either way must be averaged out, whatever the units are.
        let worst = |first: f64| {
            let mut filter = Filter::new(first, 0.005 * first, 15.0);
            let mut worst = 0.0_f64;
            let mut x = 1_u64;
            for i in 0..3_000 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let noise = 0.4 * ((x >> 40) as f64 / 16_777_216.0 - 0.5);
                filter.learn(100.0, 0.5 * (1.0 + noise), 15.0);
                if i >= 1_000 {
                    let (mean, _) = filter.predict(100.0, 0.0, 15.0);
                    worst = worst.max((mean / 0.5 - 1.0).abs());
                }
            }
            worst
        };
        let (usual, small) = (worst(100.0), worst(0.1));
        assert!(small < 1.5 * usual && usual < 0.1, "{usual} {small}");
    }

    #[test]
    fn the_covariance_stays_positive_over_a_million_samples_of_one_rate() {
        let mut filter = Filter::new(100.0, 0.5, 15.0);
        for i in 0..1_000_000_u32 {
            let wobble = f64::from(i % 7) * 0.001;
            if i % 5 == 0 {
                filter.censored(100.0, 0.5 + wobble, 15.0);
            } else {
                filter.learn(100.0, 0.5 + wobble, 15.0);
            }
            let [a, b, c] = filter.covariance;
            assert!(
                a > 0.0 && c > 0.0 && b * b <= a * c * (1.0 + 1e-9),
                "{i}: {:?}",
                filter.covariance
            );
        }
    }
}
