//! Pictures: bands over what came, and how often what was warned of came.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::prelude::*;
use sim_core::forecast::demand::Ingredients;

use crate::folder::Series;
use crate::progress::Progress;
use crate::run::{Cost, forecaster, run, scored};
use crate::score::{Band, Naive, Quantiles, accuracy, decisions, mean, ratio, share};

/// Seconds ahead of the forecasts drawn, and days drawn.
const LEAD_S: i64 = 3_600;
const DAYS: usize = 3;
/// Samples drawn at most.
const DRAWN_MAX: usize = 864;
/// How much wider than the drawn days a picture is: the names stand there.
const LEGEND: f64 = 1.14;
/// Bounds of the chances that are looked at together.
const BINS: [f64; 12] = [
    0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0,
];
/// Fewer warnings tell nothing.
const BIN_MIN: usize = 30;

/// Told apart without red against green.
const BAND: RGBColor = RGBColor(86, 180, 233);
const MEDIAN: RGBColor = RGBColor(0, 114, 178);
const ACTUAL: RGBColor = RGBColor(213, 94, 0);

type Failure = DrawingAreaErrorKind<std::io::Error>;

/// Draws each series into the folder, and says how good each picture's forecasts are, best first.
pub(crate) fn draw(all: &[Series], folder: &Path) -> Result<Vec<(f64, String)>> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut progress = Progress::new(all.iter().map(|series| series.samples.len()).sum());
    let mut ranks = Vec::new();
    let mut warned = Vec::new();
    for series in all {
        let lead = (LEAD_S / series.interval_s).max(1) as usize;
        let (made, relative) = last_days(series, lead)?;
        let covered = share(made.iter().map(|(y, q)| q[0] <= *y && *y <= q[4]));
        let title = format!(
            "{}: {} h ahead, relSQL {relative:.2}, {:.0} % inside of the 90 % band",
            series.id,
            lead as i64 * series.interval_s / LEAD_S,
            100.0 * covered
        );
        let hours = series.interval_s as f64 / 3_600.0;
        let file = folder.join(format!("{}.svg", series.id));
        bands(&made, hours, &title, &file)
            .map_err(|error| anyhow!("{}: {error}", file.display()))?;
        ranks.push((relative, series.id.clone()));
        let made = run(series, Ingredients::ALL, &mut Cost::default())?;
        warned.extend(
            decisions(series, &made)
                .into_iter()
                .flat_map(|decisions| decisions.warned),
        );
        progress.add(series.samples.len(), &series.id);
    }
    progress.end();
    let file = folder.join("warnings.svg");
    reliability(&warned, &file).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    ranks.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(ranks)
}

/// Samples of the last days with what was forecast of them, and the loss over seasonal naive's.
fn last_days(series: &Series, lead: usize) -> Result<(Vec<(f64, Quantiles)>, f64)> {
    let count = (DAYS * series.scoring.day).min(DRAWN_MAX);
    let from = series.samples.len().saturating_sub(count + lead);
    let mut forecaster = forecaster(series, Ingredients::ALL)?;
    let mut forecasts = Vec::new();
    for (index, &sample) in series.samples.iter().enumerate() {
        forecaster.observe(sample);
        if index >= from && index + lead < series.samples.len() {
            forecasts.push((index, lead, scored(&forecaster.forecast(lead).quantiles)));
        }
    }
    let naive = Naive::new(series);
    let of = |forecasts: Vec<(usize, usize, Quantiles)>| {
        Band::ALL
            .into_iter()
            .find_map(|band| accuracy(series, band, forecasts.iter().copied()))
            .map_or(f64::NAN, |accuracy| accuracy.sql)
    };
    let theirs = forecasts
        .iter()
        .map(|&(at, step, _)| (at, step, naive.quantiles(at, step)))
        .collect();
    let relative = ratio(of(forecasts.clone()), of(theirs));
    let made = forecasts
        .into_iter()
        .map(|(at, step, quantiles)| (series.at(at + step).unwrap_or(f64::NAN), quantiles))
        .collect();
    Ok((made, relative))
}

/// Bands over what came; a missing sample leaves a gap.
fn bands(made: &[(f64, Quantiles)], hours: f64, title: &str, file: &Path) -> Result<(), Failure> {
    let area = SVGBackend::new(file, (1_000, 360)).into_drawing_area();
    area.fill(&WHITE)?;
    let all = || {
        made.iter()
            .flat_map(|(y, q)| [*y, q[0], q[4]])
            .filter(|y| y.is_finite())
    };
    let (low, high) = (
        all().fold(f64::MAX, f64::min),
        all().fold(f64::MIN, f64::max),
    );
    let reach = (0.05 * (high - low)).max(1e-9);
    let end = made.len().max(1) as f64 * hours;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end * LEGEND, low - reach..high + reach)?;
    chart
        .configure_mesh()
        .x_desc("hours")
        .x_label_formatter(&|hours| format!("{hours:.0}"))
        .y_label_formatter(&|y| {
            if high < 10.0 {
                format!("{y:.2}")
            } else {
                format!("{y:.0}")
            }
        })
        .light_line_style(WHITE)
        .draw()?;
    let at = |index: usize| index as f64 * hours;
    let line = |level: usize| {
        made.iter()
            .enumerate()
            .map(move |(i, (_, q))| (at(i), q[level]))
    };
    for (low, high, opacity) in [(0, 4, 0.3), (1, 3, 0.35)] {
        let mut outline: Vec<(f64, f64)> = line(low).collect();
        let above: Vec<(f64, f64)> = line(high).collect();
        outline.extend(above.into_iter().rev());
        let name = if low == 0 { "5 to 95 %" } else { "10 to 90 %" };
        chart
            .draw_series([Polygon::new(outline, BAND.mix(opacity))])?
            .label(name)
            .legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 18, y + 5)], BAND.mix(opacity).filled())
            });
    }
    chart
        .draw_series(LineSeries::new(line(2), MEDIAN.stroke_width(1)))?
        .label("median")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], MEDIAN.stroke_width(1)));
    let actual: Vec<(f64, f64)> = made
        .iter()
        .enumerate()
        .map(|(i, (y, _))| (at(i), *y))
        .collect();
    for (part, known) in actual.split(|(_, y)| y.is_nan()).enumerate() {
        let drawn = chart.draw_series(LineSeries::new(
            known.iter().copied(),
            ACTUAL.stroke_width(1),
        ))?;
        if part == 0 {
            drawn
                .label("what came")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], ACTUAL.stroke_width(1)));
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    area.present()
}

/// Of moments with such a chance, the share that were followed by a crossing.
fn reliability(warned: &[(f64, bool)], file: &Path) -> Result<(), Failure> {
    let area = SVGBackend::new(file, (480, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "Chance of any crossing within 12 samples",
            ("sans-serif", 18),
        )
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    chart
        .configure_mesh()
        .x_desc("forecast")
        .y_desc("share that came")
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(LineSeries::new([(0.0, 0.0), (1.0, 1.0)], BLACK.mix(0.4)))?;
    let points: Vec<(f64, f64)> = BINS
        .windows(2)
        .filter_map(|bounds| {
            let inside = |p: f64| p >= bounds[0] && (p < bounds[1] || bounds[1] >= 1.0);
            let bin: Vec<_> = warned.iter().filter(|(p, _)| inside(*p)).collect();
            let chance = mean(bin.iter().map(|(p, _)| *p));
            (bin.len() >= BIN_MIN).then(|| (chance, share(bin.iter().map(|(_, came)| *came))))
        })
        .collect();
    chart.draw_series(LineSeries::new(
        points.iter().copied(),
        MEDIAN.stroke_width(2),
    ))?;
    chart.draw_series(
        points
            .iter()
            .map(|point| Circle::new(*point, 4, MEDIAN.filled())),
    )?;
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_two_bands_a_median_and_a_line_for_each_run_of_samples() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.svg");
        let made: Vec<(f64, Quantiles)> = (0..20)
            .map(|t| {
                (
                    if t == 10 { f64::NAN } else { f64::from(t % 5) },
                    [0.0, 1.0, 2.0, 3.0, 4.0],
                )
            })
            .collect();
        bands(&made, 0.5, "a title", &file).expect("drawn");
        let text = std::fs::read_to_string(file).expect("text");
        assert_eq!(text.matches("<polygon").count(), 2, "{text}");
        for name in ["a title", "5 to 95 %", "median", "what came"] {
            assert!(text.contains(name), "{name}");
        }
        assert_eq!(
            text.matches("stroke=\"#D55E00\"").count(),
            3,
            "two runs and the legend"
        );
    }

    #[test]
    fn reliable_warnings_lie_on_the_diagonal() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("r.svg");
        let warned: Vec<(f64, bool)> = (0..100).map(|i| (0.25, i % 4 == 0)).collect();
        reliability(&warned, &file).expect("drawn");
        let text = std::fs::read_to_string(file).expect("text");
        assert_eq!(text.matches("<circle").count(), 1, "{text}");
    }
}
