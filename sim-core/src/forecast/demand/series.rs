//! A series from raw samples to forecasts: [`Intake`](super::intake::Intake), changes of the unit, and a [`DemandForecaster`].

use alloc::boxed::Box;

use serde::{Deserialize, Serialize};

use super::intake::{Cell, Counts, Intake, SampleKind};
use super::units::{UnitWatch, Verdict};
use super::{DemandConfig, DemandForecaster, EventRefused, ScheduledEvent};
use crate::time::Time;

/// Forecasts one series from samples as they come: at any times, in any order, of any value. What happens to
/// each kind is told in [`intake`](super::intake); a change of the unit is followed. Each cell of the grid tells the
/// forecaster what time it is.
///
/// Its memory grows only while a change of the unit is suspected: by a copy of the forecaster for as many samples.
///
/// ```
/// use sim_core::forecast::demand::{DemandConfig, DemandSeries, SampleKind};
/// use sim_core::time::Time;
///
/// let mut bytes = DemandSeries::new(SampleKind::Counter, DemandConfig::default());
/// for i in 0..600_u64 {
///     // Read each minute; 2 KB a second; a restart.
///     let total = if i < 300 { 7e9 } else { 0.0 } + 120_000.0 * i as f64;
///     bytes.take(Time(i * 60_000_000), total);
/// }
/// assert_eq!(bytes.counts().resets, 1);
/// assert!((bytes.forecaster().forecast(6).quantiles[2] - 2_000.0).abs() < 1.0);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DemandSeries {
    intake: Intake,
    inner: Inner,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    forecaster: DemandForecaster,
    units: UnitWatch,
    /// As it was before the first suspect sample.
    before: Option<Box<DemandForecaster>>,
}

impl DemandSeries {
    /// A series that has seen nothing.
    #[must_use]
    pub fn new(kind: SampleKind, config: DemandConfig) -> Self {
        let lower = match kind {
            SampleKind::Gauge => config.lower,
            SampleKind::Counter => Some(config.lower.unwrap_or(0.0)),
        };
        Self {
            intake: Intake::new(kind, config.interval_s, lower, config.upper),
            inner: Inner {
                units: UnitWatch::new(lower, config.upper),
                forecaster: DemandForecaster::new(DemandConfig { lower, ..config }),
                before: None,
            },
        }
    }

    /// Takes a sample of the moment `at`.
    pub fn take(&mut self, at: Time, value: f64) {
        let inner = &mut self.inner;
        self.intake.take(at, value, &mut |cell| inner.observe(cell));
    }

    /// Says that it is `now`: samples that should have come are missing.
    pub fn advance(&mut self, now: Time) {
        let inner = &mut self.inner;
        self.intake.advance(now, &mut |cell| inner.observe(cell));
    }

    /// Takes an event that is known beforehand. Its time is that of the samples.
    ///
    /// # Errors
    /// There are too many events, or its intensity is no number.
    pub fn schedule(&mut self, event: ScheduledEvent) -> Result<(), EventRefused> {
        self.inner.forecaster.schedule(event)?;
        if let Some(before) = &mut self.inner.before {
            before.schedule(event)?;
        }
        Ok(())
    }

    /// Takes all events back.
    pub fn unschedule_all(&mut self) {
        self.inner.forecaster.unschedule_all();
        if let Some(before) = &mut self.inner.before {
            before.unschedule_all();
        }
    }

    /// What forecasts, in the unit of the newest samples.
    #[must_use]
    pub fn forecaster(&self) -> &DemandForecaster {
        &self.inner.forecaster
    }

    /// What came in so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        self.intake.counts()
    }

    /// How many of today's units one unit of the series' beginning is (1000 where kilobytes became bytes), and
    /// how often the unit changed.
    #[must_use]
    pub fn unit(&self) -> (f64, u64) {
        self.inner.units.unit()
    }
}

impl Inner {
    fn observe(&mut self, Cell { start_s, sample }: Cell) {
        // Weeks may have been skipped, and the clock may have been set.
        self.forecaster.set_clock(start_s);
        match self.units.observe(sample) {
            Verdict::Usual => self.before = None,
            Verdict::Suspect => {
                if self.before.is_none() {
                    self.before = Some(Box::new(self.forecaster.clone()));
                }
            }
            Verdict::Changed(factor) => {
                if let Some(before) = self.before.take() {
                    self.forecaster = *before;
                }
                self.forecaster.change_unit(factor);
                let config = &mut self.forecaster.config;
                (config.lower, config.upper) = self.units.bounds();
                let suspects = self.units.suspects();
                for &earlier in &suspects[..suspects.len().saturating_sub(1)] {
                    self.forecaster.observe(earlier);
                }
                self.units.settle();
                self.forecaster.set_clock(start_s);
            }
        }
        self.forecaster.observe(sample);
    }
}
