//! How far off quantiles are, and how often samples lie inside, by lead.

use std::fmt;

use super::numbers::{mean, quantile, share};
use super::{LEVELS, Quantiles};
use crate::folder::Series;

const MEDIAN: usize = 2;
/// Fewer differences tell nothing of their quantiles.
const DIFFERENCES_MIN: usize = 21;

/// A range of leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Band {
    QuarterHour,
    Hour,
    SixHours,
}

impl Band {
    pub(crate) const ALL: [Self; 3] = [Self::QuarterHour, Self::Hour, Self::SixHours];

    /// That of a lead in seconds.
    fn of(lead: i64) -> Option<Self> {
        match lead {
            1..=900 => Some(Self::QuarterHour),
            901..=3_600 => Some(Self::Hour),
            3_601..=21_600 => Some(Self::SixHours),
            _ => None,
        }
    }
}

impl fmt::Display for Band {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::QuarterHour => "15 min",
            Self::Hour => "1 h",
            Self::SixHours => "6 h",
        })
    }
}

/// Of one series in one band.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accuracy {
    /// Mean pinball loss, doubled, and mean absolute error of the median, both in units of the scale.
    pub(crate) sql: f64,
    pub(crate) mase: f64,
    /// Shares of samples inside of the 90 % band and above the 95 % quantile.
    pub(crate) covered: f64,
    pub(crate) above: f64,
}

/// Scores forecasts (origin, step, quantiles) in a band; none where no sample is there to compare with.
pub(crate) fn accuracy(
    series: &Series,
    band: Band,
    forecasts: impl Iterator<Item = (usize, usize, Quantiles)>,
) -> Option<Accuracy> {
    let pairs: Vec<(f64, Quantiles)> = forecasts
        .filter(|(_, step, _)| Band::of(*step as i64 * series.interval_s) == Some(band))
        .filter_map(|(origin, step, quantiles)| Some((series.at(origin + step)?, quantiles)))
        .map(|(y, mut quantiles)| {
            quantiles.sort_by(f64::total_cmp);
            (y, quantiles)
        })
        .collect();
    let scale = series.scoring.scale;
    (!pairs.is_empty()).then(|| Accuracy {
        sql: mean(pairs.iter().map(|(y, q)| 2.0 * pinball(*y, q))) / scale,
        mase: mean(pairs.iter().map(|(y, q)| (y - q[MEDIAN]).abs())) / scale,
        covered: share(pairs.iter().map(|(y, q)| q[0] <= *y && *y <= q[4])),
        above: share(pairs.iter().map(|(y, q)| *y > q[4])),
    })
}

/// Mean over the levels.
fn pinball(y: f64, quantiles: &Quantiles) -> f64 {
    mean(quantiles.iter().zip(LEVELS).map(|(q, level)| {
        let off = y - q;
        if off >= 0.0 {
            level * off
        } else {
            (level - 1.0) * off
        }
    }))
}

/// Seasonal naive: the latest value known a whole number of days before the target; quantiles from such differences
/// during the warm-up.
pub(crate) struct Naive {
    carried: Vec<f64>,
    day: usize,
    offsets: Quantiles,
}

impl Naive {
    pub(crate) fn new(series: &Series) -> Self {
        let (day, warm_up) = (series.scoring.day.max(1), series.scoring.warm_up);
        let carried = series.carried();
        let mut differences: Vec<f64> = (day..warm_up.min(carried.len()))
            .filter_map(|index| Some(series.at(index)? - carried[index - day]))
            .filter(|difference| difference.is_finite())
            .collect();
        differences.sort_by(f64::total_cmp);
        let offsets = if differences.len() >= DIFFERENCES_MIN {
            LEVELS.map(|level| quantile(&differences, level))
        } else {
            [0.0; LEVELS.len()]
        };
        Self {
            carried,
            day,
            offsets,
        }
    }

    pub(crate) fn quantiles(&self, origin: usize, step: usize) -> Quantiles {
        let back = self.day * step.div_ceil(self.day);
        let point = self.carried[(origin + step).saturating_sub(back)];
        self.offsets.map(|offset| point + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Scoring;

    fn series(samples: Vec<Option<f64>>) -> Series {
        Series {
            id: "s".to_owned(),
            group: "s".to_owned(),
            interval_s: 300,
            start: 0,
            is_percent: false,
            samples,
            threshold: None,
            events: vec![],
            origins: Default::default(),
            scoring: Scoring {
                day: 4,
                warm_up: 60,
                scale: 2.0,
                ..Scoring::default()
            },
        }
    }

    #[test]
    fn losses_are_in_units_of_the_scale_and_missing_samples_do_not_count() {
        let s = series(vec![Some(0.0), Some(10.0), None, Some(3.0)]);
        let quantiles = [2.0, 4.0, 6.0, 8.0, 9.0];
        let made = [(0, 1, quantiles), (0, 2, quantiles), (0, 3, quantiles)];
        let a = accuracy(&s, Band::QuarterHour, made.into_iter()).expect("two targets");
        // Doubled: 10 is above all: 0.05·8 + 0.1·6 + 0.5·4 + 0.9·2 + 0.95·1 = 5.75; 3 lies between the first two:
        // 0.05·1 + 0.9·1 + 0.5·3 + 0.1·5 + 0.05·6 = 3.25. Over five levels, by two.
        assert!((a.sql - (5.75 + 3.25) / 5.0 / 2.0).abs() < 1e-12, "{a:?}");
        assert!((a.mase - (4.0 + 3.0) / 2.0 / 2.0).abs() < 1e-12);
        assert_eq!((a.covered, a.above), (0.5, 0.5));
        assert!(accuracy(&s, Band::Hour, made.into_iter()).is_none());
    }

    #[test]
    fn seasonal_naive_knows_nothing_after_its_origin() {
        let samples: Vec<Option<f64>> = (0..60).map(|t| Some(f64::from(t))).collect();
        let naive = Naive::new(&series(samples));
        // Every difference to the day before is 4.
        assert_eq!(naive.quantiles(10, 1), [11.0; 5]);
        assert_eq!(naive.quantiles(10, 4), [14.0; 5]);
        // Five steps on, one day back is not known yet.
        assert_eq!(naive.quantiles(10, 5), [11.0; 5]);
    }
}
