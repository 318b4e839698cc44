//! Latency against rate, for people: a table and a plot.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Of one proxy: rates in requests a second, and latencies in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) p50_us: Vec<(f64, f64)>,
    pub(crate) p99_us: Vec<(f64, f64)>,
}

impl Line {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            p50_us: Vec::new(),
            p99_us: Vec::new(),
        }
    }
}

/// Told apart without red against green.
const COLOURS: [RGBColor; 6] = [
    RGBColor(120, 120, 120),
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
];

/// As Markdown: a row for each rate, median and 99th percentile of each.
pub(crate) fn table(lines: &[Line]) -> String {
    let mut text = "| requests a second |".to_owned();
    for line in lines {
        // Writing to a string can't fail, here and below.
        write!(text, " {} p50 / p99 µs |", line.name).unwrap_or_default();
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(lines.len()));
    text.push('\n');
    let rates = lines.first().map_or(0, |line| line.p50_us.len());
    for row in 0..rates {
        write!(text, "| {} |", lines[0].p50_us[row].0).unwrap_or_default();
        for line in lines {
            let (p50, p99) = (line.p50_us[row].1, line.p99_us[row].1);
            write!(text, " {p50:.0} / {p99:.0} |").unwrap_or_default();
        }
        text.push('\n');
    }
    text
}

/// Draws both quantiles side by side, latencies on a logarithmic scale.
pub(crate) fn draw(lines: &[Line], file: &Path) -> Result<()> {
    let area = SVGBackend::new(file, (1_200, 480)).into_drawing_area();
    // Its errors borrow the file's name.
    let drawn = (|| {
        area.fill(&WHITE)?;
        let halves = area.split_evenly((1, 2));
        panel(&halves[0], "median", lines, |line| &line.p50_us)?;
        panel(&halves[1], "99th percentile", lines, |line| &line.p99_us)?;
        area.present()
    })();
    drawn.map_err(|error| anyhow!("{}: {error}", file.display()))
}

type Failure = DrawingAreaErrorKind<std::io::Error>;

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    lines: &[Line],
    of: impl Fn(&Line) -> &Vec<(f64, f64)>,
) -> Result<(), Failure> {
    let points = || lines.iter().flat_map(|line| of(line).iter().copied());
    let rate_max = points().map(|(rate, _)| rate).fold(1.0, f64::max);
    let least = points().map(|(_, us)| us).fold(f64::MAX, f64::min).max(1.0);
    let most = points().map(|(_, us)| us).fold(least, f64::max);
    let (low, high) = (0.8 * least.min(most), 1.25 * most);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("Latency against rate, {title}"), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..rate_max * 1.02, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("requests a second (Poisson arrivals)")
        .y_desc("µs from when the request was due")
        .x_label_formatter(&|rate| format!("{rate:.0}"))
        .y_label_formatter(&|us| format!("{us:.0}"))
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let series = of(line).iter().copied();
        chart
            .draw_series(LineSeries::new(series, colour.stroke_width(2)))?
            .label(line.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        let dots = of(line).iter();
        chart.draw_series(dots.map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        let line = |name: &str, us: f64| Line {
            name: name.to_owned(),
            p50_us: vec![(1_000.0, us), (5_000.0, us * 2.0)],
            p99_us: vec![(1_000.0, us * 3.0), (5_000.0, us * 900.0)],
        };
        vec![line("direct", 50.0), line("sim", 84.4)]
    }

    #[test]
    fn the_table_has_a_row_for_each_rate() {
        let expected = "| requests a second | direct p50 / p99 µs | sim p50 / p99 µs |\n\
                        |---|---|---|\n\
                        | 1000 | 50 / 150 | 84 / 253 |\n\
                        | 5000 | 100 / 45000 | 169 / 75960 |\n";
        assert_eq!(table(&lines()), expected);
    }

    #[test]
    fn the_plot_shows_every_line_in_both_halves() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("plot.svg");
        draw(&lines(), &file).expect("drawn");
        let text = std::fs::read_to_string(file).expect("text");
        for (wanted, times) in [("<polyline", 4), ("direct", 2), ("sim", 2), ("median", 1)] {
            assert!(text.matches(wanted).count() >= times, "{wanted}: {text}");
        }
    }
}
