//! Tables for the documentation: what each part of the forecaster gives, and how good it is how early.

use std::fmt::Write as _;

use anyhow::Result;
use sim_core::forecast::demand::Ingredients;

use crate::folder::Series;
use crate::progress::Progress;
use crate::run::{Cost, forecaster, run, scored};
use crate::score::{
    Accuracy, Band, LEVELS, Quantiles, Scores, accuracy, geometric_mean, mean, quantile, ratio,
};

/// Samples seen before a forecast whose quality is told.
const AGES: [u64; 4] = [12, 48, 288, 2_016];
/// Places in a series where a forecaster begins anew.
const STARTS: usize = 16;
/// Differences that naive takes its quantiles from, at least.
const DIFFERENCES_MIN: usize = 6;

/// Runs the forecaster whole, and without one part after the other.
pub(crate) fn ablation(all: &[Series]) -> Result<String> {
    let sets: Vec<(String, Ingredients)> = [("nothing".to_owned(), Ingredients::ALL)]
        .into_iter()
        .chain(
            Ingredients::EACH.map(|(name, part)| (name.to_owned(), Ingredients::ALL.without(part))),
        )
        .collect();
    let samples: usize = all.iter().map(|series| series.samples.len()).sum();
    let mut progress = Progress::new(sets.len() * samples);
    let mut text =
        "| left out | relSQL to 15 min | to 1 h | to 6 h | relSQL | relMASE | calerr90 |\n\
                    |---|---|---|---|---|---|---|\n"
            .to_owned();
    for (name, ingredients) in &sets {
        let mut scores = Scores::default();
        for series in all {
            scores.add(series, &run(series, *ingredients, &mut Cost::default())?);
            progress.add(
                series.samples.len(),
                &format!("without {name}: {}", series.id),
            );
        }
        write!(text, "| {name} |").unwrap_or_default();
        for band in Band::ALL {
            // Writing to a string can't fail, here and below.
            write!(text, " {:.4} |", scores.sql(band).unwrap_or(f64::NAN)).unwrap_or_default();
        }
        let (sql, mase) = scores.all();
        writeln!(
            text,
            " {sql:.4} | {mase:.4} | {:.4} |",
            scores.calibration()
        )
        .unwrap_or_default();
    }
    progress.end();
    Ok(text)
}

/// Of one series at one age in one band: the forecaster, and the last value repeated.
struct Early {
    age: u64,
    band: Band,
    ours: Accuracy,
    naive: Accuracy,
}

/// How good forecasts are after so many samples, from starts all over each series.
pub(crate) fn age(all: &[Series]) -> Result<String> {
    let mut progress = Progress::new(all.iter().map(|series| series.samples.len()).sum());
    let mut rows = Vec::new();
    for series in all {
        let mut made = AGES.map(|_| Vec::new());
        for start in 0..STARTS {
            let start = start * series.samples.len() / STARTS;
            early(series, start, &mut made)?;
        }
        for (age, made) in AGES.into_iter().zip(&made) {
            rows.extend(Band::ALL.into_iter().filter_map(|band| {
                let of = |which: fn(&Forecast) -> Quantiles| {
                    accuracy(
                        series,
                        band,
                        made.iter().map(|f| (f.origin, f.step, which(f))),
                    )
                };
                Some(Early {
                    age,
                    band,
                    ours: of(|f| f.ours)?,
                    naive: of(|f| f.naive)?,
                })
            }));
        }
        progress.add(series.samples.len(), &series.id);
    }
    progress.end();
    Ok(early_table(&rows))
}

struct Forecast {
    origin: usize,
    step: usize,
    ours: Quantiles,
    naive: Quantiles,
}

/// Forecasts of a forecaster that begins at `start`, at each age.
fn early(series: &Series, start: usize, made: &mut [Vec<Forecast>; AGES.len()]) -> Result<()> {
    let mut forecaster = forecaster(series, Ingredients::ALL)?;
    forecaster.set_clock(series.start + i64::try_from(start)? * series.interval_s);
    let mut seen: Vec<f64> = Vec::new();
    for (index, &sample) in series.samples.iter().enumerate().skip(start) {
        forecaster.observe(sample);
        if let Some(last) = sample.or(seen.last().copied()) {
            seen.push(last);
        }
        let age = AGES.iter().position(|&age| age == forecaster.observed());
        if let (Some(age), Some(_)) = (age, sample) {
            made[age].extend(series.scoring.steps_a.iter().map(|&step| Forecast {
                origin: index,
                step,
                ours: scored(&forecaster.forecast(step).quantiles),
                naive: naive(&seen, step),
            }));
            if age + 1 == AGES.len() {
                break;
            }
        }
    }
    Ok(())
}

/// The last value, and quantiles of how far samples so far were off after as many steps (or as many as there are).
fn naive(seen: &[f64], step: usize) -> Quantiles {
    let lag = step.min(seen.len().saturating_sub(DIFFERENCES_MIN)).max(1);
    let last = seen.last().copied().unwrap_or_default();
    let mut off: Vec<f64> = seen
        .iter()
        .skip(lag)
        .zip(seen)
        .map(|(now, then)| now - then)
        .collect();
    off.sort_by(f64::total_cmp);
    if off.is_empty() {
        return [last; LEVELS.len()];
    }
    LEVELS.map(|level| last + quantile(&off, level))
}

fn early_table(rows: &[Early]) -> String {
    let mut text = "| samples seen | lead | series | inside of the 90 % band | ± | above the 95 % quantile | relSQL over naive |\n\
                    |---|---|---|---|---|---|---|\n"
        .to_owned();
    for (age, band) in AGES
        .into_iter()
        .flat_map(|age| Band::ALL.map(|band| (age, band)))
    {
        let of: Vec<_> = rows
            .iter()
            .filter(|row| row.age == age && row.band == band)
            .collect();
        let covered = || of.iter().map(|row| row.ours.covered);
        let centre = mean(covered());
        let variance = mean(covered().map(|share| (share - centre).powi(2)));
        // Twice the standard error of the mean over series.
        let error = 2.0 * (variance / of.len().saturating_sub(1).max(1) as f64).sqrt();
        writeln!(
            text,
            "| {age} | {band} | {} | {centre:.3} | {error:.3} | {:.3} | {:.3} |",
            of.len(),
            mean(of.iter().map(|row| row.ours.above)),
            geometric_mean(of.iter().map(|row| ratio(row.ours.sql, row.naive.sql))),
        )
        .unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naive_takes_what_differences_there_are() {
        let ramp: Vec<f64> = (0..20).map(f64::from).collect();
        assert_eq!(naive(&ramp, 3), [22.0; 5]);
        // Six differences are left at a lag of 14, and none at 72.
        assert_eq!(naive(&ramp, 72), [33.0; 5]);
        assert_eq!(naive(&[5.0], 1), [5.0; 5]);
    }
}
