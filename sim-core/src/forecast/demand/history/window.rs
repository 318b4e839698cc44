//! What regressions see of a window of steps, when they ask for the largest of it.

use super::super::lags::largest;
use super::History;

/// Features of a window.
pub(in super::super) const WINDOW: usize = 16;
pub(in super::super) type Window = [f32; WINDOW];
/// Places of those that are also forecasts by themselves.
pub(in super::super) const LONG: usize = 7;
pub(in super::super) const DAY: usize = 9;
/// Those that analogs tell.
pub(in super::super) const ANALOGS: core::ops::Range<usize> = 6..8;

impl History {
    /// Largest of `count` steps, the first of them `steps` ago.
    fn peak(&self, steps: usize, count: usize) -> f32 {
        let first = self.end - 1 - steps;
        largest(&self.samples[first..first + count])
    }

    /// Largest of the latest samples from `from` to before `to` steps ago.
    pub(in super::super) fn peak_lately(&self, from: usize, to: usize) -> f32 {
        if from < to {
            self.peak(to - 1, to - from)
        } else {
            f32::MIN
        }
    }

    /// Largest of the window of the next `lead` steps so many days before, as a distance from the newest sample.
    fn peak_ago(&self, lead: usize, days: usize) -> f32 {
        let steps = days * self.day - 1;
        if lead <= days * self.day && self.older_than(steps) {
            self.peak(steps, lead) - self.samples[self.end - 1]
        } else {
            0.0
        }
    }

    /// Largest of the day's profile over the next `lead` steps, as a distance from the newest sample.
    fn peak_of_profile(&self, lead: usize) -> f32 {
        if !self.older_than(self.day) {
            return 0.0;
        }
        let first = self.slot(1);
        let count = lead.min(self.day);
        let until = (first + count).min(self.day);
        let wrapped = first + count - until;
        let today = largest(&self.profile[first..until]);
        let most = today.max(largest(&self.profile[..wrapped]));
        most - self.last as f32
    }

    /// What regressions see of the window of the next `lead` steps, which is a knot's. `steps` are the largest median
    /// and upper quantile of the steps' own forecasts. What the largest were after each analog goes to `add`, with its
    /// weight.
    pub(in super::super) fn window(
        &self,
        knot: usize,
        lead: usize,
        steps: [f32; 2],
        add: impl FnMut(f32, f32),
    ) -> Window {
        let z = self.last;
        let from = |value: f64| (value - z) as f32;
        let recent = &self.samples[..self.end];
        let [shape, long] = self.search.peaks(knot, lead, recent, add);
        let lately = if self.older_than(lead) {
            self.peak_lately(0, lead) - z as f32
        } else {
            0.0
        };
        let mut x = [
            self.spread as f32,
            from(self.before[0]),
            from(self.fast),
            from(self.medium),
            from(self.slow),
            from(self.daily),
            shape,
            long,
            from(self.before[1]),
            self.peak_ago(lead, 1),
            self.peak_ago(lead, 7),
            self.peak_of_profile(lead),
            steps[0],
            steps[1],
            lately,
            from(self.slow).abs(),
        ];
        let scale = self.scale();
        for value in &mut x {
            *value *= scale;
        }
        x
    }
}
