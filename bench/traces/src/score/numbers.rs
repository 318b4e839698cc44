//! Small sums.

/// In units of a series' scale: keeps stretches of almost no error from ruling a ratio.
const GRAIN: f64 = 0.01;
/// No series counts for more than this in a mean.
const RATIO: (f64, f64) = (0.05, 20.0);

/// One error over another.
pub(crate) fn ratio(ours: f64, theirs: f64) -> f64 {
    (ours + GRAIN) / (theirs + GRAIN)
}

pub(crate) fn geometric_mean(ratios: impl Iterator<Item = f64>) -> f64 {
    mean(ratios.map(|ratio| ratio.clamp(RATIO.0, RATIO.1).ln())).exp()
}

/// NaN of nothing.
pub(crate) fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for number in numbers {
        sum += number;
        count += 1.0;
    }
    sum / count
}

/// How many of them are so.
pub(crate) fn share(are: impl Iterator<Item = bool>) -> f64 {
    mean(are.map(|is| f64::from(u8::from(is))))
}

/// The quantile at `level` of ascending numbers, straight between neighbours.
pub(crate) fn quantile(ascending: &[f64], level: f64) -> f64 {
    let place = level * (ascending.len() - 1) as f64;
    let low = place.floor() as usize;
    let high = (low + 1).min(ascending.len() - 1);
    ascending[low] + (place - low as f64) * (ascending[high] - ascending[low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_straight_between_neighbours() {
        let numbers = [1.0, 2.0, 4.0, 8.0, 16.0];
        assert_eq!(quantile(&numbers, 0.5), 4.0);
        assert!((quantile(&numbers, 0.05) - 1.2).abs() < 1e-12);
        assert_eq!(quantile(&[3.0], 0.95), 3.0);
    }

    #[test]
    fn a_single_ratio_is_bounded_in_a_mean() {
        let mean = geometric_mean([1e9, 1.0 / 20.0].into_iter());
        assert!((mean - 1.0).abs() < 1e-12, "{mean}");
    }
}
