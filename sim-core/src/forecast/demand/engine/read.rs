//! What others may read of the engine.

use super::{Engine, Knot, Lanes, PerLevel, Tracker, unpack_all};

impl Engine {
    /// Forecasts scored at the first knot.
    pub(in super::super) fn scored(&self) -> u64 {
        let scored = |knot: &Knot| u64::from(knot.tracker.scored());
        self.knots.first().map_or(0, scored)
    }

    pub(in super::super) fn trackers(&self) -> impl Iterator<Item = (usize, &Tracker)> {
        self.knots
            .iter()
            .map(|knot| (knot.ahead.lead, &knot.tracker))
    }

    /// Leads of the knots.
    pub(in super::super) fn leads(&self) -> &[usize] {
        &self.leads
    }

    /// What knot `j` filed for the next sample, if it filed something: the last value then, and the quantiles that were
    /// issued.
    pub(in super::super) fn due(&self, j: usize) -> Option<(f64, PerLevel)> {
        let step = self.history.step() + u64::from(self.history.observed() > 0);
        let lead = self.leads[j] as u64;
        let made = step.checked_sub(lead)?;
        let present = &self.presents[(made % self.presents.len() as u64) as usize];
        let knot = &self.knots[j];
        let issued: Lanes = unpack_all(&knot.pending[knot.place(made)?].issued);
        let quantile = |l: usize| present.z + f64::from(issued[l]);
        present
            .filed
            .then(|| (present.z, core::array::from_fn(quantile)))
    }
}
