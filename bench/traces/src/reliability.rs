//! Whether chances of a crossing come true: of all the times that one in five was foretold, was it one in five?
//!
//! At each origin a threshold is what only one in five, or one in twenty, of the samples of the week before lay above:
//! nothing that was not known then. That the same holds over three steps, an hour of five minutes and the whole
//! horizon says that the time of the first crossing is calibrated, since these chances are its distribution.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use sim_core::forecast::demand::{DemandForecaster, Ingredients};

use crate::folder::Series;
use crate::run;

/// Share of the last week's samples that lie below the threshold, in per cent.
const LEVELS: [usize; 2] = [80, 95];
/// Steps within which a crossing counts, and the horizon besides.
const STEPS: [usize; 2] = [3, 12];
/// Upper ends of the bins of forecast chances.
const BINS: [f64; 13] = [
    0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9,
];
const WEEK_S: i64 = 7 * 86_400;
/// Fewer samples make no threshold.
const SAMPLES_MIN: usize = 24;

#[derive(Default)]
struct Bin {
    count: u32,
    foretold: f64,
    crossed: u32,
}

/// Chances by threshold, steps (0 for the horizon) and bin.
#[derive(Default)]
pub(crate) struct Reliability {
    bins: BTreeMap<(usize, usize, usize), Bin>,
    scratch: Vec<f64>,
}

/// What was foretold at all origins, and what came.
pub(crate) fn table(all: &[Series]) -> Result<Reliability> {
    let mut reliability = Reliability::default();
    for series in all {
        let mut forecaster = run::forecaster(series, Ingredients::ALL)?;
        for (index, &sample) in series.samples.iter().enumerate() {
            forecaster.observe(sample);
            if series.origins.contains_key(&index) {
                reliability.take(series, index, &forecaster);
            }
        }
    }
    Ok(reliability)
}

impl Reliability {
    /// Takes what is forecast at the sample of this `index`.
    fn take(&mut self, series: &Series, index: usize, forecaster: &DemandForecaster) {
        let week = usize::try_from(WEEK_S / series.interval_s).unwrap_or(usize::MAX);
        let past = &series.samples[(index + 1).saturating_sub(week)..=index];
        self.scratch.clear();
        self.scratch.extend(past.iter().flatten());
        if self.scratch.len() < SAMPLES_MIN {
            return;
        }
        let horizon = forecaster.horizon();
        for level in LEVELS {
            let place = (self.scratch.len() - 1) * level / 100;
            let (_, &mut threshold, _) = self.scratch.select_nth_unstable_by(place, f64::total_cmp);
            for steps in STEPS.into_iter().chain([0]) {
                let within = if steps == 0 { horizon } else { steps };
                let Some(next) = series.samples.get(index + 1..=index + within) else {
                    continue;
                };
                if within > horizon || next.iter().all(Option::is_none) {
                    continue;
                }
                let chance = forecaster.probability_of_any_above(threshold, within);
                let bin = BINS.iter().filter(|&&end| chance >= end).count();
                let bin = self.bins.entry((level, steps, bin)).or_default();
                bin.count += 1;
                bin.foretold += chance;
                bin.crossed += u32::from(next.iter().flatten().any(|&y| y > threshold));
            }
        }
    }

    /// One row a bin: mean chance, and the share of times that it came true.
    pub(crate) fn write(&self, out: &mut impl Write) -> Result<()> {
        writeln!(
            out,
            "threshold_percentile,steps,from,to,foretold,observed,count"
        )?;
        for (
            &(level, steps, bin),
            Bin {
                count,
                foretold,
                crossed,
            },
        ) in &self.bins
        {
            let steps = match steps {
                0 => "horizon".to_owned(),
                steps => steps.to_string(),
            };
            let from = bin.checked_sub(1).map_or(0.0, |below| BINS[below]);
            let to = BINS.get(bin).copied().unwrap_or(1.0);
            let n = f64::from(*count);
            writeln!(
                out,
                "{level},{steps},{from},{to},{:.4},{:.4},{count}",
                foretold / n,
                f64::from(*crossed) / n
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sim_core::forecast::demand::DemandConfig;

    use super::*;

    #[test]
    fn each_chance_is_counted_once_and_its_outcome_is_that_of_the_window() {
        // A spike each 10 steps: the window of 3 holds one or not, that of 12 always.
        let value = |t: usize| if t.is_multiple_of(10) { 90.0 } else { 10.0 };
        let samples = (0..400).map(|t| Some(value(t))).collect();
        let series = Series {
            group: "s".to_owned(),
            id: "spikes".into(),
            interval_s: 300,
            start: 0,
            is_percent: true,
            samples,
            threshold: None,
            events: Vec::new(),
            origins: BTreeMap::new(),
            scoring: Default::default(),
        };
        let mut forecaster = DemandForecaster::new(DemandConfig {
            horizon_steps: 24,
            ..DemandConfig::default()
        });
        let mut reliability = Reliability::default();
        for (index, &sample) in series.samples.iter().enumerate() {
            forecaster.observe(sample);
            if index >= 300 {
                reliability.take(&series, index, &forecaster);
            }
        }
        let sum = |level: usize, steps: usize| {
            let bins = reliability.bins.iter();
            bins.filter(|(key, _)| key.0 == level && key.1 == steps)
                .fold((0, 0), |sum, (_, bin)| {
                    (sum.0 + bin.count, sum.1 + bin.crossed)
                })
        };
        // The last windows reach beyond the end and are not counted; a tenth of the samples lies above 80 %.
        assert_eq!(sum(80, 3), (97, 27));
        assert_eq!(sum(80, 12), (88, 88));
        assert_eq!(sum(80, 0), (76, 76));
        let mut text = Vec::new();
        reliability.write(&mut text).expect("written");
        let text = String::from_utf8(text).expect("text");
        assert!(
            text.lines().any(|line| line.starts_with("80,12,0.9,1,")),
            "{text}"
        );
    }
}
