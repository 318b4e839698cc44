//! The demand of the demonstration, drawn from a seed.
//!
//! A trend that grows by the same share every second, a short season, and slow noise (an AR(1)
//! process at one step a second); arrivals scatter around it as Poisson does. It is scaled by the
//! measured capacity, so one seed tells the same story on any machine. It starts at less than a
//! fifth of it: a request costs more CPU on a little-loaded server than on a busy one, so what looks a
//! fifth full from the outside looks a third full to whoever has only seen the quiet hours; and
//! from there to full it must take longer than a move does, or nobody could foresee it in time.
//! The control plane never sees any of it.

use std::f64::consts::TAU;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

use crate::load::arrivals::Rate;

/// Longest run the noise is drawn for, in seconds; the last value stays after that.
const NOISE_SECONDS: usize = 600;
/// Memory of the noise from one second to the next.
const NOISE_PERSISTENCE: f64 = 0.8;

/// What the demand does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Grows past the capacity of the first instance.
    Growing,
    /// Stays where it is.
    Flat,
}

/// The law of one run.
#[derive(Debug)]
pub struct Demand {
    base_rps: f64,
    top_rps: f64,
    trend_start_seconds: f64,
    trend_seconds: f64,
    season_seconds: f64,
    season_amplitude: f64,
    season_phase: f64,
    noise: Vec<f64>,
    /// From when on the trend stands still, in seconds; infinite while it doesn't.
    held_from_seconds: AtomicU64,
}

impl Demand {
    /// Draws the law. `capacity_rps` is what the first instance was measured to carry.
    #[must_use]
    pub fn draw(shape: Shape, capacity_rps: f64, seed: u64) -> Self {
        let mut random = Pcg64::seed_from_u64(seed ^ 0xde3a_4d00);
        let mut between = |low: f64, high: f64| low + (high - low) * random.random::<f64>();
        let base_rps = capacity_rps * between(0.17, 0.20);
        let top_rps = capacity_rps * between(1.15, 1.25);
        let trend_start_seconds = between(30.0, 35.0);
        let trend_seconds = between(122.0, 128.0);
        let season_seconds = between(15.0, 30.0);
        let season_amplitude = between(0.06, 0.10);
        let season_phase = between(0.0, TAU);
        let noise_sigma = 0.015;
        let innovation = noise_sigma * (1.0 - NOISE_PERSISTENCE * NOISE_PERSISTENCE).sqrt();
        let mut noise = vec![0.0];
        let mut value = 0.0;
        for _ in 1..NOISE_SECONDS {
            // Box-Muller; 1 - u lies in (0, 1].
            let radius = (-2.0 * (1.0 - between(0.0, 1.0)).ln()).sqrt();
            let normal = radius * (TAU * between(0.0, 1.0)).cos();
            value = NOISE_PERSISTENCE * value + innovation * normal;
            noise.push(value);
        }
        let flat = shape == Shape::Flat;
        Self {
            base_rps,
            top_rps: if flat { base_rps } else { top_rps },
            trend_start_seconds,
            trend_seconds,
            season_seconds,
            season_amplitude: if flat { 0.0 } else { season_amplitude },
            season_phase,
            noise,
            held_from_seconds: AtomicU64::new(f64::INFINITY.to_bits()),
        }
    }

    /// The law itself, as if never held, in requests per second.
    #[must_use]
    pub fn law_rps(&self, seconds: f64) -> f64 {
        self.rate_rps(seconds, seconds)
    }

    fn rate_rps(&self, seconds: f64, trend_at_seconds: f64) -> f64 {
        let trend = self.trend_rps(trend_at_seconds);
        let angle = TAU * seconds / self.season_seconds + self.season_phase;
        trend * (1.0 + self.season_amplitude * angle.sin() + self.noise_at(seconds))
    }

    /// The law without season and noise, in requests per second.
    #[must_use]
    pub fn trend_rps(&self, seconds: f64) -> f64 {
        let progress = ((seconds - self.trend_start_seconds) / self.trend_seconds).clamp(0.0, 1.0);
        self.base_rps * (self.top_rps / self.base_rps).powf(progress)
    }

    /// When the law first reaches `capacity_rps`, in seconds; none within the noise's length.
    #[must_use]
    pub fn reaches(&self, capacity_rps: f64) -> Option<f64> {
        (0..NOISE_SECONDS * 20)
            .map(|tick| tick as f64 / 20.0)
            .find(|seconds| self.law_rps(*seconds) >= capacity_rps)
    }

    /// When the trend is over, in seconds.
    #[must_use]
    pub fn trend_end_seconds(&self) -> f64 {
        self.trend_start_seconds + self.trend_seconds
    }

    /// From `seconds` on the trend stands still; season and noise go on.
    pub fn hold_at(&self, seconds: f64) {
        // Relaxed: a single word that stands for itself.
        self.held_from_seconds
            .store(seconds.to_bits(), Ordering::Relaxed);
    }

    /// One line for people.
    #[must_use]
    pub fn describe(&self) -> String {
        if self.top_rps <= self.base_rps {
            return format!(
                "{:.0} requests a second, constant, with noise",
                self.base_rps
            );
        }
        format!(
            "{:.0} to {:.0} requests a second between {:.0} s and {:.0} s of load, season of \
             {:.0} s and ±{:.0} %, noise",
            self.base_rps,
            self.top_rps,
            self.trend_start_seconds,
            self.trend_end_seconds(),
            self.season_seconds,
            self.season_amplitude * 100.0
        )
    }

    fn noise_at(&self, seconds: f64) -> f64 {
        let index = seconds.max(0.0) as usize;
        let last = self.noise.last().copied().unwrap_or(0.0);
        let from = self.noise.get(index).copied().unwrap_or(last);
        let to = self.noise.get(index + 1).copied().unwrap_or(last);
        from + (to - from) * (seconds.max(0.0) - index as f64).min(1.0)
    }
}

impl Rate for Demand {
    fn at(&self, seconds: f64) -> f64 {
        let held = f64::from_bits(self.held_from_seconds.load(Ordering::Relaxed));
        self.rate_rps(seconds, seconds.min(held))
    }

    fn max(&self) -> f64 {
        // Four standard deviations of the noise above the season's crest.
        self.top_rps * (1.0 + self.season_amplitude + 0.06)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(demand: &Demand, from: f64, to: f64) -> f64 {
        let ticks = 4_000;
        let step = (to - from) / f64::from(ticks);
        (0..ticks)
            .map(|tick| demand.law_rps(from + step * f64::from(tick)))
            .sum::<f64>()
            / f64::from(ticks)
    }

    #[test]
    fn it_starts_at_a_fifth_of_the_capacity_and_ends_past_it() {
        for seed in 0..50 {
            let demand = Demand::draw(Shape::Growing, 300.0, seed);
            let start = mean(&demand, 0.0, demand.season_seconds) / 300.0;
            let top = mean(&demand, 200.0, 200.0 + 10.0 * demand.season_seconds) / 300.0;
            assert!((0.15..0.23).contains(&start), "seed {seed}: {start}");
            assert!((1.12..1.28).contains(&top), "seed {seed}: {top}");
            let reached = demand.reaches(300.0).unwrap();
            assert!(
                (50.0..demand.trend_end_seconds()).contains(&reached),
                "{seed}: {reached}"
            );
        }
    }

    #[test]
    fn the_season_repeats_around_the_mean() {
        let mut demand = Demand::draw(Shape::Growing, 300.0, 5);
        demand.noise = vec![0.0];
        let period = demand.season_seconds;
        let flat = demand.trend_end_seconds();
        let (a, b) = (
            demand.law_rps(flat + 3.0),
            demand.law_rps(flat + 3.0 + period),
        );
        assert!((a - b).abs() < 1e-6);
        let crest = (0..1_000)
            .map(|tick| demand.law_rps(flat + period * f64::from(tick) / 1_000.0))
            .fold(0.0, f64::max);
        assert!((crest / demand.top_rps - 1.0 - demand.season_amplitude).abs() < 1e-3);
    }

    #[test]
    fn flat_demand_keeps_its_mean_and_never_reaches_capacity() {
        for seed in 0..50 {
            let demand = Demand::draw(Shape::Flat, 300.0, seed);
            assert!(
                (mean(&demand, 0.0, 90.0) / 300.0 - 0.185).abs() < 0.025,
                "seed {seed}"
            );
            assert_eq!(demand.reaches(200.0), None, "seed {seed}");
        }
    }

    #[test]
    fn the_seed_decides_the_law() {
        let at = |seed| Demand::draw(Shape::Growing, 300.0, seed).law_rps(77.7);
        assert!((at(1) - at(1)).abs() < f64::EPSILON);
        assert!((at(1) - at(2)).abs() > 1e-3);
    }

    #[test]
    fn the_rate_stays_under_its_bound_and_the_trend_holds_when_told() {
        for seed in 0..50 {
            let demand = Demand::draw(Shape::Growing, 300.0, seed);
            let highest = (0..6_000)
                .map(|t| demand.at(f64::from(t) / 20.0))
                .fold(0.0, f64::max);
            assert!(
                highest <= demand.max(),
                "seed {seed}: {highest} > {}",
                demand.max()
            );
            demand.hold_at(60.0);
            let expected = demand.law_rps(100.0) * demand.trend_rps(60.0) / demand.trend_rps(100.0);
            assert!((demand.at(100.0) - expected).abs() < 1e-9);
            assert!((demand.at(59.0) - demand.law_rps(59.0)).abs() < f64::EPSILON);
        }
    }
}
