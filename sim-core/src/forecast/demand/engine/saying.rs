//! What the experts say of one target, and what of that waits for its sample.

use serde::{Deserialize, Serialize};

use super::super::history::{ANALOG_LONG, ANALOG_SHAPE, COMMON, DAILY, DAY_SAME, Features, OWN};
use super::super::lanes::{Lanes, unpack, unpack_all};
use super::super::tracker::{POINTS, Table, Views};
use super::super::volatility::{self, Reading};
use crate::forecast::output::LEVELS;

/// Places among the points.
pub(super) const WEEK: usize = 2;
pub(super) const REGRESSION: usize = 8;
pub(super) const STRUCTURAL: usize = 7;
pub(super) const SHAPE: usize = 9;
/// Points that are neither features nor the same at every lead: a week ago, profile, Holt-Winters,
/// structural, regression.
pub(super) const KEPT: [usize; 5] = [WEEK, 5, 6, STRUCTURAL, REGRESSION];
/// What all forecasts made at one moment have in common. Features are packed, all but `z` is relative to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Present {
    pub(super) filed: bool,
    /// State of the series.
    pub(super) state: u8,
    pub(super) z: f64,
    /// The series' own spread.
    pub(super) unit: f32,
    pub(super) simple: f32,
    pub(super) features: [u16; COMMON],
    pub(super) signs: [u16; volatility::COMMON],
}

impl Present {
    pub(super) const EMPTY: Self = Self {
        filed: false,
        state: 0,
        z: 0.0,
        unit: 1.0,
        simple: 0.0,
        features: [0; COMMON],
        signs: [0; volatility::COMMON],
    };
}

/// A forecast waiting for its sample: the part that is its knot's own, packed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) features: [u16; OWN],
    pub(super) points: [u16; KEPT.len()],
    pub(super) issued: [u16; LEVELS.len()],
    pub(super) analogs: [u16; LEVELS.len()],
    pub(super) hour: u8,
    pub(super) reading: Reading,
}

impl Pending {
    pub(super) fn empty() -> Self {
        Self {
            features: [0; OWN],
            points: [0; KEPT.len()],
            issued: [0; LEVELS.len()],
            analogs: [0; LEVELS.len()],
            hour: 0,
            reading: Reading::default(),
        }
    }

    pub(super) fn features(&self, present: &Present) -> Features {
        let mut x: Features = unpack_all(&present.features);
        for (x, &half) in x[COMMON..].iter_mut().zip(&self.features) {
            *x = unpack(half);
        }
        x
    }

    pub(super) fn views(&self, present: &Present, x: &Features) -> Views {
        let kept = unpack_all(&self.points);
        let points = points(x, present.unit, present.simple, kept);
        let moment = Moment {
            unit: present.unit,
            bins: [self.hour, present.state],
            points,
            analogs: unpack_all(&self.analogs),
        };
        moment.views(self.reading.spread)
    }
}

/// What each expert says, relative to the last value; `kept` are those that features do not tell.
pub(super) fn points(
    x: &Features,
    unit: f32,
    simple: f32,
    kept: [f32; KEPT.len()],
) -> [f32; POINTS] {
    let mut points = [
        0.0,
        x[DAY_SAME] * unit,
        0.0,
        simple,
        x[DAILY] * unit,
        0.0,
        0.0,
        0.0,
        0.0,
        x[ANALOG_SHAPE] * unit,
        x[ANALOG_LONG] * unit,
    ];
    for (place, value) in KEPT.into_iter().zip(kept) {
        points[place] = value;
    }
    points
}

/// What the experts say at one moment about one lead, relative to the last value.
pub(super) struct Moment {
    /// The series' spread.
    pub(super) unit: f32,
    /// Hour of the target, and the state of the series.
    pub(super) bins: [u8; 2],
    pub(super) points: [f32; POINTS],
    pub(super) analogs: Lanes,
}

impl Moment {
    /// How the tables see it: by hour around the daily mean, by state around the last value.
    pub(super) fn views(&self, spread: f32) -> Views {
        let [hour, state] = self.bins;
        let daily = self.points[4];
        let table = |bin: u8, centre: f32, unit: f32| Table {
            bin: usize::from(bin),
            centre,
            unit,
        };
        Views {
            points: self.points,
            spread,
            tables: [table(hour, daily, self.unit), table(state, 0.0, self.unit)],
            analogs: self.analogs,
        }
    }
}
