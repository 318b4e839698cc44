//! Usable capacity: the load that an instance can carry inside its SLO.
//!
//! By the utilisation law (Denning & Buzen 1978, "The Operational Analysis of Queueing Network
//! Models", section 3) an instance with `c` CPUs and a service demand of `D` CPU-seconds a
//! request is `x·D/c` utilised at `x` requests a second. `D` is measured in the kernel. What is
//! left to learn is how far utilisation may rise before the SLO is broken; until a knee has been
//! seen that is a prior, and the capacity a lower bound.
//!
//! Failure mode: where something other than CPU saturates first (a lock, a database), `D` says
//! nothing of it; the knee is then learned from SLO violations at a low utilisation.

use serde::{Deserialize, Serialize};

/// Memory of the ratio estimate: weight of a window after one more, so about 60 windows.
const DISCOUNT: f64 = 1.0 - 1.0 / 60.0;
/// Requests that must have been seen before `D` is worth something.
pub(crate) const REQUESTS_MIN: f64 = 200.0;
/// Weight of one SLO violation or one healthy window in the learned utilisation.
const LEARN: f64 = 0.1;
/// Bounds of a learned usable utilisation.
const USABLE_MIN: f64 = 0.2;
const USABLE_MAX: f64 = 0.97;

/// One window of one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Requests answered.
    pub requests: u64,
    /// CPU seconds used.
    pub cpu_seconds: f64,
    /// CPU seconds that the quota allowed, > 0.
    pub quota_seconds: f64,
    /// The SLO was broken in it.
    pub violated: bool,
}

/// Learns service demand and usable utilisation of one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CapacityModel {
    requests: f64,
    cpu_seconds: f64,
    cpu_seconds_squared_dev: f64,
    windows: f64,
    usable: f64,
    /// Highest utilisation at which the SLO was seen to hold.
    healthy_max: f64,
    /// Whether a violation has ever been seen: else the knee is unknown and `usable` a prior.
    knee_seen: bool,
}

impl CapacityModel {
    /// With a prior for the usable utilisation, 0 < prior < 1.
    #[must_use]
    pub fn new(utilisation_prior: f64) -> Self {
        Self {
            requests: 0.0,
            cpu_seconds: 0.0,
            cpu_seconds_squared_dev: 0.0,
            windows: 0.0,
            usable: utilisation_prior,
            healthy_max: 0.0,
            knee_seen: false,
        }
    }

    /// Takes one window of one instance.
    pub fn observe(&mut self, window: Window) {
        let (requests, cpu) = (window.requests as f64, window.cpu_seconds);
        if !(cpu.is_finite() && cpu >= 0.0 && window.quota_seconds > 0.0) || window.requests == 0 {
            return;
        }
        if let Some(expected) = self.service_seconds().map(|d| d * requests) {
            let deviation = cpu - expected;
            self.cpu_seconds_squared_dev =
                DISCOUNT * self.cpu_seconds_squared_dev + deviation * deviation;
        }
        self.requests = DISCOUNT * self.requests + requests;
        self.cpu_seconds = DISCOUNT * self.cpu_seconds + cpu;
        self.windows = DISCOUNT * self.windows + 1.0;

        let utilisation = cpu / window.quota_seconds;
        if window.violated && utilisation > USABLE_MIN {
            self.knee_seen = true;
            if utilisation < self.usable {
                self.usable += LEARN * (utilisation - self.usable);
            }
            self.healthy_max = self.healthy_max.min(self.usable);
        } else if !window.violated {
            self.healthy_max = self.healthy_max.max(utilisation.min(1.0));
            if utilisation > self.usable {
                self.usable += LEARN * (utilisation - self.usable);
            }
        }
        self.usable = self.usable.clamp(USABLE_MIN, USABLE_MAX);
    }

    /// Weight of the requests seen so far; the oldest count for less.
    pub(crate) fn requests_seen(&self) -> f64 {
        self.requests
    }

    /// CPU-seconds a request at reference speed; `None` before enough requests were seen.
    #[must_use]
    pub fn service_seconds(&self) -> Option<f64> {
        (self.requests >= REQUESTS_MIN && self.cpu_seconds > 0.0)
            .then(|| self.cpu_seconds / self.requests)
    }

    /// Usable capacity of an instance with `cpus`, in requests per second: low, middle, high of
    /// its 95 % interval; `None` before service demand is known.
    #[must_use]
    pub fn usable_rps(&self, cpus: f64) -> Option<[f64; 3]> {
        let demand = self.service_seconds()?;
        // Standard error of the ratio estimate (Cochran 1977, "Sampling Techniques", 6.3).
        let error = libm::sqrt(self.cpu_seconds_squared_dev) / self.requests;
        let relative = (1.96 * error / demand).min(0.5);
        let middle = cpus * self.usable / demand;
        Some([middle * (1.0 - relative), middle, middle * (1.0 + relative)])
    }

    /// Whether the knee was ever reached: if not, the capacity is a lower bound.
    #[must_use]
    pub fn is_knee_seen(&self) -> bool {
        self.knee_seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(requests: u64, utilisation: f64, violated: bool) -> Window {
        Window {
            requests,
            cpu_seconds: 0.25 * utilisation,
            quota_seconds: 0.25,
            violated,
        }
    }

    #[test]
    fn capacity_follows_measured_service_demand() {
        let mut model = CapacityModel::new(0.8);
        assert_eq!(model.usable_rps(0.25), None, "nothing is known at first");
        // 100 requests a second at 0.5 of 0.25 CPUs: 1.25 ms each.
        (0..60).for_each(|_| model.observe(window(100, 0.5, false)));
        let [low, middle, high] = model.usable_rps(0.25).expect("known");
        assert!((middle - 160.0).abs() < 1.0, "{middle}");
        assert!(low <= middle && middle <= high);
        let doubled = model.usable_rps(0.5).expect("known")[1];
        assert!((doubled - 2.0 * middle).abs() < 1e-9);
    }

    #[test]
    fn violations_below_the_prior_lower_it_and_health_above_raises_it() {
        let mut model = CapacityModel::new(0.8);
        (0..50).for_each(|_| model.observe(window(100, 0.6, true)));
        assert!(model.is_knee_seen());
        assert!(model.usable < 0.61, "{}", model.usable);
        let mut healthy = CapacityModel::new(0.8);
        (0..50).for_each(|_| healthy.observe(window(100, 0.93, false)));
        assert!(!healthy.is_knee_seen());
        assert!(healthy.usable > 0.9, "{}", healthy.usable);
    }

    #[test]
    fn nonsense_windows_change_nothing() {
        let mut model = CapacityModel::new(0.8);
        let before = model.clone();
        model.observe(Window {
            cpu_seconds: f64::NAN,
            ..window(10, 0.5, false)
        });
        model.observe(Window {
            quota_seconds: 0.0,
            ..window(10, 0.5, false)
        });
        model.observe(window(0, 0.5, false));
        assert_eq!(model, before);
    }
}
