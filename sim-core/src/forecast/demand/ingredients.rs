//! What the forecaster is made of, as a set: to find out what each part is worth, one is left out.

use serde::{Deserialize, Serialize};

use super::tracker::{ANALOGS, EXPERTS, POINTS};

/// A set of parts. Production uses [`Ingredients::ALL`]; `cargo xtask forecast-traces --ablation` leaves out one after
/// the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingredients(u16);

impl Ingredients {
    /// Every part.
    pub const ALL: Self = Self(u16::MAX);
    /// A day ago, a week ago, averages and the day's profile.
    pub const CHEAP: Self = Self(1);
    /// Damped Holt-Winters with an additive day.
    pub const HOLT_WINTERS: Self = Self(1 << 1);
    /// Structural model: level, damped slope, harmonics.
    pub const STRUCTURAL: Self = Self(1 << 2);
    /// Kalman regressions.
    pub const REGRESSION: Self = Self(1 << 3);
    /// Search over lags, as experts and as features.
    pub const ANALOGS: Self = Self(1 << 4);
    /// Quantiles by hour and by state.
    pub const TABLES: Self = Self(1 << 5);
    /// The foretold size of residuals; without it the usual size is taken.
    pub const VOLATILITY: Self = Self(1 << 6);
    /// Weights by losses; without them all experts count alike.
    pub const WEIGHTS: Self = Self(1 << 7);
    /// The last correction of the combined quantiles by their coverage.
    pub const CORRECTION: Self = Self(1 << 8);
    /// asinh; without it samples are only scaled.
    pub const TRANSFORM: Self = Self(1 << 9);

    /// Each part with its name, for display.
    pub const EACH: [(&'static str, Self); 10] = [
        ("cheap experts", Self::CHEAP),
        ("Holt-Winters", Self::HOLT_WINTERS),
        ("structural Kalman model", Self::STRUCTURAL),
        ("Kalman regressions", Self::REGRESSION),
        ("lag search", Self::ANALOGS),
        ("tables of quantiles", Self::TABLES),
        ("foretold size of residuals", Self::VOLATILITY),
        ("weights by losses", Self::WEIGHTS),
        ("last correction", Self::CORRECTION),
        ("asinh transform", Self::TRANSFORM),
    ];

    /// All but these.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether all of these are in it.
    pub const fn has(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// One bit an expert, in the order of [`super::EXPERT_NAMES`]. The last value repeated is always one: losses are told
    /// relative to its.
    pub(super) fn experts(self) -> u32 {
        let mut out = 0_u32;
        for (part, places) in [
            (Self::CHEAP, 0b11_1110),
            (Self::HOLT_WINTERS, 1 << 6),
            (Self::STRUCTURAL, 1 << 7),
            (Self::REGRESSION, 1 << 8),
            (Self::ANALOGS, 0b11 << 9 | 1 << ANALOGS),
            (Self::TABLES, 0b11 << POINTS),
        ] {
            if !self.has(part) {
                out |= places;
            }
        }
        !out & ((1 << EXPERTS) - 1)
    }
}

impl Default for Ingredients {
    fn default() -> Self {
        Self::ALL
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::EXPERT_NAMES;
    use super::*;

    fn left(set: Ingredients) -> Vec<&'static str> {
        let experts = set.experts();
        let names = EXPERT_NAMES.iter().enumerate();
        names
            .filter(|(e, _)| experts >> e & 1 == 0)
            .map(|(_, name)| *name)
            .collect()
    }

    #[test]
    fn each_part_takes_its_own_experts_along() {
        assert!(left(Ingredients::ALL).is_empty());
        let without = |part| left(Ingredients::ALL.without(part));
        assert_eq!(without(Ingredients::HOLT_WINTERS), ["holt_winters"]);
        assert_eq!(without(Ingredients::STRUCTURAL), ["structural"]);
        assert_eq!(without(Ingredients::REGRESSION), ["regression"]);
        assert_eq!(
            without(Ingredients::ANALOGS),
            ["analog_shape", "analog_long", "analogs"]
        );
        assert_eq!(
            without(Ingredients::CHEAP),
            ["day_ago", "week_ago", "average", "day_mean", "profile"]
        );
        assert_eq!(without(Ingredients::WEIGHTS), [""; 0]);
    }

    #[test]
    fn the_last_value_is_never_left_out() {
        let nothing = Ingredients::EACH
            .iter()
            .fold(Ingredients::ALL, |set, &(_, part)| set.without(part));
        assert_eq!(nothing.experts(), 1);
    }
}
