//! Histograms as small bars, and figures as short words.

use sim_ebpf::Log2Histogram;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Bucket limits of a bar, in nanoseconds: powers of ten from 10 µs to 1 s, and what is beyond.
const LIMITS_NS: [u64; 6] = [
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
];

/// One character a power of ten, from under 10 µs to over a second, as high as its share; spaces
/// where nothing fell. Empty without values.
pub(crate) fn bar(histogram: &Log2Histogram) -> String {
    let mut counts = [0_u64; LIMITS_NS.len() + 1];
    for (upper_ns, count) in histogram.buckets() {
        let upper_ns = upper_ns.unwrap_or(u64::MAX);
        // By the middle of the bucket, on its own scale.
        let place = LIMITS_NS
            .iter()
            .position(|&limit| upper_ns / 4 * 3 <= limit)
            .unwrap_or(LIMITS_NS.len());
        counts[place] += count;
    }
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return String::new();
    }
    let character = |&count: &u64| {
        if count == 0 {
            ' '
        } else {
            // A single slow one must be seen beside a million quick ones.
            let share = count as f64 / total as f64;
            BARS[((share * 8.0) as usize).min(7)]
        }
    };
    counts.iter().map(character).collect()
}

/// `980 µs`, `3.4 ms`, `1.2 s`.
pub(crate) fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => String::new(),
        Some(s) if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        Some(s) if s < 1.0 => format!("{:.1} ms", s * 1e3),
        Some(s) => format!("{s:.1} s"),
    }
}

/// `0`, `512`, `3.4 k`, `1.2 M`, `7.0 G`; empty for nothing at all.
pub(crate) fn amount(value: f64) -> String {
    match value {
        v if v <= 0.0 => String::new(),
        v if v < 1e3 => format!("{v:.0}"),
        v if v < 1e6 => format!("{:.1} k", v / 1e3),
        v if v < 1e9 => format!("{:.1} M", v / 1e6),
        v => format!("{:.1} G", v / 1e9),
    }
}

/// Percent; empty for nothing at all.
pub(crate) fn percent(share: f64) -> String {
    if share <= 0.0 {
        String::new()
    } else {
        format!("{:.1}", share * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(time(Some(0.000_98)), "980 µs");
        assert_eq!(time(Some(0.003_4)), "3.4 ms");
        assert_eq!(time(Some(1.2)), "1.2 s");
        assert_eq!(time(None), "");
        assert_eq!(amount(0.0), "");
        assert_eq!(amount(3_400.0), "3.4 k");
        assert_eq!(amount(7e9), "7.0 G");
        assert_eq!(percent(0.123), "12.3");
    }

    #[test]
    fn an_empty_histogram_has_no_bar() {
        assert_eq!(bar(&Log2Histogram::default()), "");
    }
}
