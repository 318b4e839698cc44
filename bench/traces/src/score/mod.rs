//! Scores by `SCORING.md`: the accuracy and calibration of quantiles by lead, and what warnings and decisions made from
//! them would have been worth.

mod accuracy;
mod decisions;
mod numbers;

pub(crate) use accuracy::{Accuracy, Band, Naive, accuracy};
pub(crate) use decisions::{Decisions, decisions};
pub(crate) use numbers::{geometric_mean, mean, quantile, ratio, share};

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::folder::Series;
use crate::run::Made;

/// The levels that are scored.
pub(crate) const LEVELS: [f64; 5] = [0.05, 0.1, 0.5, 0.9, 0.95];
/// Their forecasts.
pub(crate) type Quantiles = [f64; LEVELS.len()];

/// What was found of all series.
#[derive(Default)]
pub(crate) struct Scores {
    accuracy: Vec<Relative>,
    decisions: Vec<Decisions>,
}

/// One series in one band, beside seasonal naive.
struct Relative {
    kind: String,
    band: Band,
    ours: Accuracy,
    naive: Accuracy,
}

impl Relative {
    fn sql(&self) -> f64 {
        ratio(self.ours.sql, self.naive.sql)
    }

    fn mase(&self) -> f64 {
        ratio(self.ours.mase, self.naive.mase)
    }
}

/// Means over series.
struct Line {
    series: usize,
    sql: f64,
    mase: f64,
    calibration: f64,
    covered: f64,
    above: f64,
}

impl Scores {
    /// Adds a series and what was forecast of it.
    pub(crate) fn add(&mut self, series: &Series, made: &Made) {
        let naive = Naive::new(series);
        for band in Band::ALL {
            let targets = || made.targets.iter().filter(|target| target.is_accuracy);
            let ours = accuracy(
                series,
                band,
                targets().map(|t| (t.origin, t.step, t.quantiles)),
            );
            let theirs = targets().map(|t| (t.origin, t.step, naive.quantiles(t.origin, t.step)));
            if let (Some(ours), Some(naive)) = (ours, accuracy(series, band, theirs)) {
                self.accuracy.push(Relative {
                    kind: series.scoring.kind.clone(),
                    band,
                    ours,
                    naive,
                });
            }
        }
        self.decisions.extend(decisions(series, made));
    }

    /// relSQL and relMASE over all bands.
    pub(crate) fn all(&self) -> (f64, f64) {
        let bands: Vec<_> = Band::ALL
            .iter()
            .filter_map(|&band| self.line(band, None))
            .collect();
        (
            geometric_mean(bands.iter().map(|line| line.sql)),
            geometric_mean(bands.iter().map(|line| line.mase)),
        )
    }

    /// relSQL in one band.
    pub(crate) fn sql(&self, band: Band) -> Option<f64> {
        self.line(band, None).map(|line| line.sql)
    }

    /// Calibration error over all bands.
    pub(crate) fn calibration(&self) -> f64 {
        let bands = Band::ALL.iter().filter_map(|&band| self.line(band, None));
        mean(bands.map(|line| line.calibration))
    }

    fn line(&self, band: Band, kind: Option<&str>) -> Option<Line> {
        let rows: Vec<_> = self
            .accuracy
            .iter()
            .filter(|row| row.band == band && kind.is_none_or(|kind| row.kind == kind))
            .collect();
        (!rows.is_empty()).then(|| Line {
            series: rows.len(),
            sql: geometric_mean(rows.iter().map(|row| row.sql())),
            mase: geometric_mean(rows.iter().map(|row| row.mase())),
            calibration: mean(rows.iter().map(|row| (row.ours.covered - 0.9).abs())),
            covered: mean(rows.iter().map(|row| row.ours.covered)),
            above: mean(rows.iter().map(|row| row.ours.above)),
        })
    }

    /// All of it as Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = "| kind | lead | series | relSQL | relMASE | calerr90 | cov90 | over95 |\n\
                        |---|---|---|---|---|---|---|---|\n"
            .to_owned();
        let kinds: BTreeSet<&str> = self.accuracy.iter().map(|row| row.kind.as_str()).collect();
        let groups = std::iter::once(None).chain(kinds.into_iter().map(Some));
        for (kind, band) in groups.flat_map(|kind| Band::ALL.map(|band| (kind, band))) {
            let Some(line) = self.line(band, kind) else {
                continue;
            };
            // Writing to a string can't fail, here and below.
            writeln!(
                text,
                "| {} | {band} | {} | {:.4} | {:.4} | {:.4} | {:.4} | {:.4} |",
                kind.unwrap_or("all"),
                line.series,
                line.sql,
                line.mase,
                line.calibration,
                line.covered,
                line.above
            )
            .unwrap_or_default();
        }
        let (sql, mase) = self.all();
        writeln!(
            text,
            "| all | all | | {sql:.4} | {mase:.4} | {:.4} | | |",
            self.calibration()
        )
        .unwrap_or_default();
        text + &decisions::table(&self.decisions)
    }
}
