//! Sine and cosine regressors for the seasons in use, shared by all structural models.

use serde::{Deserialize, Serialize};

/// Seasons that may be in use at once (a day and a week, say).
pub(super) const SEASONS_MAX: usize = 2;
/// Harmonics of one season at most. Four follow a daily profile; a short season gets fewer.
const ORDER_MAX: usize = 4;
/// Upper bound of [`Harmonics::len`].
pub(super) const REGRESSORS_MAX: usize = 2 * ORDER_MAX * SEASONS_MAX;

/// One row of regressors; entries past [`Harmonics::len`] stay zero.
pub(super) type Row = [f64; REGRESSORS_MAX];

/// One season in the regressor row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Wave {
    period_steps: f64,
    order: usize,
}

/// The harmonics of up to [`SEASONS_MAX`] seasons as functions of the step number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Harmonics {
    waves: alloc::vec::Vec<Wave>,
}

impl Harmonics {
    /// Harmonics for these periods (in steps, at least 2, may be fractional).
    pub(super) fn new(periods: &[f64]) -> Self {
        let waves = periods
            .iter()
            .take(SEASONS_MAX)
            .map(|&period_steps| Wave {
                period_steps,
                order: order(period_steps),
            })
            .collect();
        Self { waves }
    }

    /// Number of regressors: a cosine and a sine for each harmonic.
    pub(super) fn len(&self) -> usize {
        self.waves.iter().map(|w| 2 * w.order).sum()
    }

    /// For each regressor its period in steps and the number of its harmonic.
    pub(super) fn components(&self) -> impl Iterator<Item = (f64, usize)> + '_ {
        self.waves.iter().flat_map(|w| {
            (1..=w.order).flat_map(move |k| [(w.period_steps, k), (w.period_steps, k)])
        })
    }

    /// Regressors at step `t`.
    pub(super) fn row(&self, t: u64) -> Row {
        let mut row = [0.0; REGRESSORS_MAX];
        let mut at = 0;
        for wave in &self.waves {
            let cycles = t as f64 / wave.period_steps;
            let phase = (cycles - libm::floor(cycles)) * core::f64::consts::TAU;
            let (sin, cos) = libm::sincos(phase);
            // Higher harmonics by the angle sum: one sincos a season and step.
            let (mut c, mut s) = (cos, sin);
            for pair in row[at..].chunks_exact_mut(2).take(wave.order) {
                pair[0] = c;
                pair[1] = s;
                (c, s) = (c * cos - s * sin, s * cos + c * sin);
            }
            at += 2 * wave.order;
        }
        row
    }
}

/// How many harmonics a season of this length gets: short ones are nearly sinusoidal in practice
/// and each further harmonic costs noise, long ones have shape and enough samples to learn it.
fn order(period_steps: f64) -> usize {
    let wanted = if period_steps >= 100.0 {
        ORDER_MAX
    } else if period_steps >= 12.0 {
        2
    } else {
        1
    };
    // Below Nyquist, else sine and cosine are not told apart.
    let limit = ((period_steps - 1.0) / 2.0) as usize;
    wanted.min(limit).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_repeat_with_the_period() {
        let h = Harmonics::new(&[24.0, 150.0]);
        assert_eq!(h.len(), 12);
        assert_eq!(h.components().count(), 12);
        let (a, b) = (h.row(7), h.row(7 + 600));
        assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-9));
        let quarter = h.row(6);
        assert!(quarter[0].abs() < 1e-12 && (quarter[1] - 1.0).abs() < 1e-12);
        assert!((quarter[2] + 1.0).abs() < 1e-12);
    }
}
