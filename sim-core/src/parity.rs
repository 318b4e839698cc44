//! Parity: is the shadow as good as the primary that serves beside it?
//!
//! A sequential test over first attempts. It may be looked at again and again: look `k` spends
//! `6α/(π²k²)` of the false alarm rate, which sums to `α` (a union bound; Robbins 1970,
//! "Statistical Methods Related to the Law of the Iterated Logarithm", uses sharper ones). It has
//! three answers, since too little data is no proof of anything.

use crate::histogram::LatencyHistogram;
use crate::policy::Policy;
use alloc::format;
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// Extra error rate that doesn't matter.
const ERROR_SLACK: f64 = 0.002;
/// How many times as often as on the primary the shadow may be in the primary's own tail.
const TAIL_RATIO: f64 = 3.0;
/// The primary's tail begins at this quantile.
const TAIL_QUANTILE: f64 = 0.95;

/// First attempts of one side since the comparison began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Answered below 500.
    pub ok: u64,
    /// Answered 500 or above, or not.
    pub failed: u64,
    /// Latencies of those answered.
    pub latency: LatencyHistogram,
}

impl Arm {
    /// First attempts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ok + self.failed
    }

    /// Adds what was seen since.
    pub fn add(&mut self, ok: u64, failed: u64, latency: &LatencyHistogram) {
        self.ok = self.ok.saturating_add(ok);
        self.failed = self.failed.saturating_add(failed);
        self.latency.merge(latency);
    }

    fn error_rate(&self) -> f64 {
        self.failed as f64 / (self.total().max(1)) as f64
    }
}

/// Outcome of one look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Neither proven yet; says what is missing.
    Undecided(String),
    /// As good as the primary; says by which figures.
    Equal(String),
    /// Worse than the primary; says in what.
    Worse(String),
}

/// Upper quantile of the standard normal for a small tail probability `p` (Abramowitz & Stegun
/// 26.2.23, error below 4.5e-4).
pub(crate) fn normal_upper(p: f64) -> f64 {
    let t = libm::sqrt(-2.0 * libm::log(p.clamp(1e-12, 0.5)));
    t - (2.515_517 + 0.802_853 * t + 0.010_328 * t * t)
        / (1.0 + 1.432_788 * t + 0.189_269 * t * t + 0.001_308 * t * t * t)
}

/// Judges at look `look` (1, 2, …).
#[must_use]
pub fn judge(policy: &Policy, look: u32, primary: &Arm, shadow: &Arm) -> Verdict {
    let need = policy.parity_requests_min;
    let have = shadow.total().min(primary.total());
    if have < need {
        return Verdict::Undecided(format!("{have} of {need} requests seen"));
    }
    let look = f64::from(look.max(1));
    // Three one-sided tests share what this look may spend.
    let alpha = policy.parity_alpha * 6.0 / (9.869_604 * look * look) / 3.0;
    let z = normal_upper(alpha);
    let (n_p, n_s) = (primary.total() as f64, shadow.total() as f64);

    let (e_p, e_s) = (primary.error_rate(), shadow.error_rate());
    let pooled = (primary.failed + shadow.failed) as f64 / (n_p + n_s);
    let e_error = libm::sqrt(pooled * (1.0 - pooled) * (1.0 / n_p + 1.0 / n_s));
    if shadow.failed >= 3 && e_s - e_p > ERROR_SLACK + z * e_error {
        return Verdict::Worse(format!(
            "error rate {:.2} % against {:.2} %",
            e_s * 100.0,
            e_p * 100.0
        ));
    }

    let ((m_p, v_p), (m_s, v_s)) = (primary.latency.moments(), shadow.latency.moments());
    let (ratio, slack) = (policy.parity_mean_ratio, policy.parity_slack_ms * 1_000.0);
    let excess = m_s - ratio * m_p - slack;
    let m_error = libm::sqrt(v_s / n_s + ratio * ratio * v_p / n_p);
    let means = format!("mean {:.1} ms against {:.1} ms", m_s / 1e3, m_p / 1e3);
    if excess > z * m_error {
        return Verdict::Worse(means);
    }

    let edge = primary.latency.quantile_micros(TAIL_QUANTILE).unwrap_or(0) + slack as u64;
    let t_p = primary.latency.count_above(edge) as f64 / n_p;
    let t_s = shadow.latency.count_above(edge) as f64 / n_s;
    let allowed = (TAIL_RATIO * t_p).max(1.0 - TAIL_QUANTILE);
    let t_error = libm::sqrt(allowed * (1.0 - allowed) / n_s);
    let tails = format!(
        "{:.1} % against {:.1} % above {:.1} ms",
        t_s * 100.0,
        t_p * 100.0,
        edge as f64 / 1e3
    );
    if t_s > allowed + z * t_error {
        return Verdict::Worse(tails);
    }

    if excess > 0.0 || e_s > e_p + ERROR_SLACK + e_error || t_s > allowed + t_error {
        return Verdict::Undecided(format!("{means}, {tails}: not proven either way"));
    }
    Verdict::Equal(format!(
        "{n_s:.0} requests: {means}, {tails}, errors {} against {}",
        shadow.failed, primary.failed
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    /// Exponential latencies with mean `mean_ms`.
    fn arm(rng: &mut Pcg64, n: u64, mean_ms: f64, error_rate: f64) -> Arm {
        let mut arm = Arm::default();
        for _ in 0..n {
            let u: f64 = rng.random_range(1e-9..1.0);
            let mut one = LatencyHistogram::default();
            one.record_micros((-libm::log(u) * mean_ms * 1e3) as u64);
            let failed = u64::from(rng.random_bool(error_rate));
            arm.add(1 - failed, failed, &one);
        }
        arm
    }

    /// Runs a whole sequential test with up to 20 looks.
    fn run(rng: &mut impl Rng, shadow_mean_ms: f64, shadow_errors: f64) -> Verdict {
        let mut rng = Pcg64::seed_from_u64(rng.next_u64());
        let policy = Policy::default();
        let (mut primary, mut shadow) = (Arm::default(), Arm::default());
        let mut verdict = Verdict::Undecided(String::new());
        for look in 1..=20 {
            let p = arm(&mut rng, 400, 20.0, 0.0);
            primary.add(p.ok, p.failed, &p.latency);
            let s = arm(&mut rng, 20, shadow_mean_ms, shadow_errors);
            shadow.add(s.ok, s.failed, &s.latency);
            verdict = judge(&policy, look, &primary, &shadow);
            if !matches!(verdict, Verdict::Undecided(_)) {
                break;
            }
        }
        verdict
    }

    #[test]
    fn too_little_data_is_no_proof() {
        let mut rng = Pcg64::seed_from_u64(1);
        let (p, s) = (
            arm(&mut rng, 5_000, 20.0, 0.0),
            arm(&mut rng, 10, 20.0, 0.0),
        );
        assert!(matches!(
            judge(&Policy::default(), 1, &p, &s),
            Verdict::Undecided(_)
        ));
        assert!(matches!(
            judge(&Policy::default(), 1, &s, &p),
            Verdict::Undecided(_)
        ));
    }

    #[test]
    fn an_equal_shadow_passes_and_is_hardly_ever_called_worse() {
        let mut rng = Pcg64::seed_from_u64(2);
        let verdicts: alloc::vec::Vec<_> = (0..200).map(|_| run(&mut rng, 20.0, 0.0)).collect();
        let equal = verdicts
            .iter()
            .filter(|v| matches!(v, Verdict::Equal(_)))
            .count();
        let worse = verdicts
            .iter()
            .filter(|v| matches!(v, Verdict::Worse(_)))
            .count();
        assert!(equal >= 190 && worse <= 4, "{equal} equal, {worse} worse");
    }

    #[test]
    fn a_shadow_twice_as_slow_or_failing_does_not_pass() {
        let mut rng = Pcg64::seed_from_u64(3);
        for _ in 0..50 {
            let slow = run(&mut rng, 60.0, 0.0);
            assert!(matches!(slow, Verdict::Worse(_)), "{slow:?}");
            let failing = run(&mut rng, 20.0, 0.3);
            assert!(matches!(failing, Verdict::Worse(_)), "{failing:?}");
        }
    }
}
