//! Scheduled events, known beforehand: a match, a sale, a backup.
//!
//! ```text
//! sample ─► regression: day, weekend, phases of events ─► expert at each knot ─► mixed with the engine's quantiles
//!                                                              ▲ residuals            ▲ losses, near events and else
//! ```
//!
//! A Kalman regression (`regressors`) explains the series by a day's harmonics, the weekend and the phases of events, so
//! that neither a match is taken for a habit nor a habit for a match. Its forecast for a moment to come, plus the
//! share of its present residual that lasts that long, is the centre of an expert, which gets quantiles of its own
//! residuals, near events and elsewhere apart. It is mixed with the engine's quantiles by the losses of both to the
//! power of −8, again near events and elsewhere apart and at each knot: hours ahead a kick-off is foreseen by the
//! schedule only, minutes ahead the engine knows better how strong it turned out to be.
//!
//! Source: regression on event dummies in a structural model, Harvey & Koopman, J. Business & Economic Statistics 11
//! (1993). Two simpler ways were tried on the World Cup's series and were worse than no schedule: taking a mean profile
//! out of the samples before the engine sees them (what it leaves behind is rougher than what came in), and adding
//! the engine's mean error at each phase (which vanishes as soon as the engine takes the events for a habit).
//!
//! How it fails: the first event of a kind is a surprise. Events of one kind that differ beyond their intensity are
//! forecast as their mean, minutes ahead as far as they differ already. A change of the scale in the first days starts it anew.

mod regressors;

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::quantiles::{Around, PerLevel, pinball};
use crate::forecast::output::LEVELS;
use regressors::{DAILY, PHASES, Regression};

/// How long before its start and after its end an event is felt, in seconds.
const BEFORE_S: i64 = 3_600;
const AFTER_S: i64 = 7_200;
/// Knots of a profile, in seconds from the start: before it, within, and after the end. It begins and ends at zero.
const WITHIN_AT: [i64; 7] = [-BEFORE_S, -1_800, 0, 900, 1_800, 3_600, 7_200];
const AFTER_AT: [i64; 5] = [0, 900, 1_800, 3_600, AFTER_S];
/// Intensities beyond this, either way, are read as this.
const INTENSITY_MAX: f64 = 100.0;
/// Events and kinds that are held at most.
const EVENTS_MAX: usize = 512;
const KINDS_MAX: usize = 4;
/// Events of the past are kept for so long, since samples may be told again.
const KEPT_S: i64 = 9 * 86_400;
/// Memory of the residual that is carried on, in seconds, and of how long residuals last, in days.
const RESIDUAL_S: i64 = 600;
const LASTING_DAYS: f64 = 2.0;
/// Memory of losses in days, and the time of scored samples at which the expert is trusted by half, in seconds.
const LOSS_DAYS: f64 = 1.0;
const TRUST_S: f64 = 7_200.0;
/// Share of the engine's band that is still held: of two that disagree either may be right.
const HELD: f64 = 0.5;
/// How many times the ratio of losses is squared: the power is two to it.
const SQUARINGS: u32 = 3;

/// Something that is known beforehand and changes demand.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduledEvent {
    /// Its first and its last moment, in seconds since the Unix epoch. An end before the start is read as the start.
    pub start_s: i64,
    /// See [`Self::start_s`].
    pub end_s: i64,
    /// How strong it is, against others of its kind.
    pub intensity: f64,
    /// Which kind: events of one kind share what is learned of them.
    pub kind: u16,
    /// Seconds from one start to the next (86 400: each day) until told otherwise; `None`: only once.
    pub every_s: Option<u32>,
}

/// Why an event was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventRefused {
    /// There are too many that aren't over.
    TooMany,
    /// There are too many kinds.
    TooManyKinds,
    /// Its intensity is no number.
    NoNumber,
}

impl core::fmt::Display for EventRefused {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooMany => write!(f, "more than {EVENTS_MAX} events that aren't over"),
            Self::TooManyKinds => write!(f, "more than {KINDS_MAX} kinds of events"),
            Self::NoNumber => f.write_str("an intensity that is no number"),
        }
    }
}

impl core::error::Error for EventRefused {}

/// The expert at one knot, near events (0) and elsewhere (1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Knot {
    lead: usize,
    around: [Around; 2],
    /// The engine's losses.
    engine: [f64; 2],
    /// How long residuals last: their product with the later ones, and their square.
    lasting: [f64; 2],
    /// What the regression said for the sample to come, and its residual then.
    pending: Vec<Option<(f32, f32)>>,
}

impl Knot {
    fn new(lead: usize) -> Self {
        Self {
            lead,
            around: [Around::new(), Around::new()],
            engine: [0.0; 2],
            lasting: [0.0; 2],
            pending: vec![None; lead],
        }
    }

    /// Share of a residual that is left after the lead.
    fn share(&self) -> f64 {
        let [product, square] = self.lasting;
        if square > 0.0 {
            (product / square).clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    fn slot(&self, step: u64) -> usize {
        (step % self.lead as u64) as usize
    }

    /// The engine's quantiles mixed with the expert's around `centre`.
    fn mix(&self, own: PerLevel, centre: f64, place: usize, trusted: f64) -> PerLevel {
        let around = &self.around[place];
        let scored = around.scored() as f64;
        let trust = scored / (scored + trusted + 2.0 * self.lead as f64);
        let grain = 1e-9;
        let mut ratio = (self.engine[place] + grain) / (around.loss() + grain);
        for _ in 0..SQUARINGS {
            ratio = (ratio * ratio).min(1e30);
        }
        let weight = trust * ratio / (1.0 + ratio);
        let expert = around.quantiles(centre);
        let mut mixed = own;
        for ((q, expert), level) in mixed.iter_mut().zip(expert).zip(LEVELS) {
            let mix = *q + weight * (expert - *q);
            let held = mix + HELD * (*q - mix);
            *q = if level < 0.5 {
                mix.min(held)
            } else if level > 0.5 {
                mix.max(held)
            } else {
                mix
            };
        }
        mixed
    }
}

/// All events of a series and what is known of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Events {
    interval_s: i64,
    events: Vec<ScheduledEvent>,
    kinds: Vec<u16>,
    regression: Regression,
    /// Residual of the regression at present, smoothed a little.
    residual: f64,
    knots: Vec<Knot>,
    /// What the regression sees of a moment.
    features: Vec<f64>,
}

impl Events {
    pub(super) fn new(interval_s: i64, leads: &[usize]) -> Self {
        Self {
            interval_s,
            events: Vec::new(),
            kinds: Vec::new(),
            regression: Regression::new(interval_s),
            residual: 0.0,
            knots: leads.iter().map(|&lead| Knot::new(lead)).collect(),
            features: vec![0.0; DAILY],
        }
    }

    /// Forgets what was learned, not what is scheduled.
    pub(super) fn reset(&mut self) {
        self.regression.reset();
        self.residual = 0.0;
        for knot in &mut self.knots {
            knot.around = [Around::new(), Around::new()];
            (knot.engine, knot.lasting) = ([0.0; 2], [0.0; 2]);
            knot.pending.fill(None);
        }
    }

    pub(super) fn add(&mut self, event: ScheduledEvent, now_s: i64) -> Result<(), EventRefused> {
        let is_over = |e: &ScheduledEvent| {
            e.every_s.is_none() && now_s.saturating_sub(e.end_s) > KEPT_S + AFTER_S
        };
        self.events.retain(|e| !is_over(e));
        if event.intensity.is_nan() {
            return Err(EventRefused::NoNumber);
        }
        if self.events.len() >= EVENTS_MAX {
            return Err(EventRefused::TooMany);
        }
        if !self.kinds.contains(&event.kind) {
            if self.kinds.len() >= KINDS_MAX {
                return Err(EventRefused::TooManyKinds);
            }
            self.kinds.push(event.kind);
            self.regression.grow();
            self.features.resize(DAILY + PHASES * self.kinds.len(), 0.0);
        }
        self.events.push(ScheduledEvent {
            end_s: event.end_s.max(event.start_s),
            intensity: event.intensity.clamp(-INTENSITY_MAX, INTENSITY_MAX),
            every_s: event.every_s.filter(|every| *every > 0),
            ..event
        });
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
    }

    /// What was issued at the `j`th knot for the sample `z` of the moment `at_s` and step `step`, the engine's own quantiles
    /// being `own`; learns from it.
    pub(super) fn score(
        &mut self,
        j: usize,
        (step, at_s): (u64, i64),
        z: f64,
        own: PerLevel,
    ) -> PerLevel {
        let place = self.place(at_s);
        let day = 86_400.0 / self.interval_s as f64;
        let trusted = TRUST_S / self.interval_s as f64;
        let knot = &mut self.knots[j];
        let Some((said, residual)) = knot.pending[knot.slot(step)] else {
            return own;
        };
        let (said, residual) = (f64::from(said), f64::from(residual));
        let centre = said + knot.share() * residual;
        let issued = knot.mix(own, centre, place, trusted);
        let memory = (LOSS_DAYS * day).max(100.0);
        let around = &mut knot.around[place];
        let loss_max = around.loss_max();
        around.learn(z, centre, knot.lead, memory, loss_max);
        let rate = (1.0 / around.scored() as f64).max(1.0 / memory);
        knot.engine[place] += rate * (pinball(z, &own).min(loss_max) - knot.engine[place]);
        let rate = 1.0 / (LASTING_DAYS * day).max(100.0);
        let [product, square] = &mut knot.lasting;
        *product += rate * ((z - said) * residual - *product);
        *square += rate * (residual * residual - *square);
        issued
    }

    /// Takes the sample of a step, if there is one, and looks ahead from it.
    pub(super) fn observe(&mut self, step: u64, at_s: i64, sample: Option<f64>) {
        if let Some(z) = sample {
            let mut features = core::mem::take(&mut self.features);
            self.see(at_s, &mut features);
            let error = self.regression.learn(&features, z);
            self.features = features;
            let memory = (RESIDUAL_S / self.interval_s).max(1) as f64;
            self.residual += (error - self.residual) / memory;
        }
        let mut features = core::mem::take(&mut self.features);
        for j in 0..self.knots.len() {
            let lead = self.knots[j].lead;
            self.see(
                at_s.saturating_add(lead as i64 * self.interval_s),
                &mut features,
            );
            let said = self.regression.predict(&features);
            let knot = &mut self.knots[j];
            let slot = knot.slot(step);
            knot.pending[slot] = Some((said as f32, self.residual as f32));
        }
        self.features = features;
    }

    /// Quantiles for the moment `at_s`, `lead` steps ahead, the engine's being `own`.
    pub(super) fn issue(&self, at_s: i64, lead: usize, own: PerLevel) -> PerLevel {
        let place = self.place(at_s);
        let trusted = TRUST_S / self.interval_s as f64;
        let said = self.said(at_s);
        let at = |j: usize| {
            let knot = &self.knots[j];
            knot.mix(own, said + knot.share() * self.residual, place, trusted)
        };
        let last = self.knots.len() - 1;
        let next = self
            .knots
            .iter()
            .position(|k| k.lead >= lead)
            .unwrap_or(last);
        let high = at(next);
        if next == 0 || self.knots[next].lead <= lead {
            return high;
        }
        let ln = |lead: usize| libm::log(lead as f64);
        let (a, b) = (self.knots[next - 1].lead, self.knots[next].lead);
        let part = (ln(lead) - ln(a)) / (ln(b) - ln(a));
        let mut mixed = at(next - 1);
        for (q, high) in mixed.iter_mut().zip(high) {
            *q += part * (high - *q);
        }
        mixed
    }

    /// Where losses of the moment belong: near events or elsewhere.
    fn place(&self, at_s: i64) -> usize {
        let is_near = self.events.iter().any(|e| since_start(e, at_s).is_some());
        usize::from(!is_near)
    }

    /// What the regression says of the moment, without memory of its own.
    fn said(&self, at_s: i64) -> f64 {
        let daily = regressors::daily(at_s);
        let mut said = self.regression.daily(&daily);
        self.each_phase(at_s, |place, share| {
            said += share * self.regression.coefficient(place);
        });
        said
    }

    fn see(&self, at_s: i64, features: &mut [f64]) {
        features[..DAILY].copy_from_slice(&regressors::daily(at_s));
        features[DAILY..].fill(0.0);
        self.each_phase(at_s, |place, share| features[place] += share);
    }

    /// Tells `take` the places of the phases that the moment lies in, and their shares.
    fn each_phase(&self, at_s: i64, mut take: impl FnMut(usize, f64)) {
        for event in &self.events {
            let Some(since) = since_start(event, at_s) else {
                continue;
            };
            let kind = self
                .kinds
                .iter()
                .position(|k| *k == event.kind)
                .unwrap_or(0);
            let first = DAILY + PHASES * kind;
            for (phase, share) in phases(since, event.end_s.saturating_sub(event.start_s)) {
                take(first + phase, share * event.intensity);
            }
        }
    }
}

/// Seconds since the start of an event that is near; of two neighbouring ones of a recurring event the next is told from
/// an hour before its start, but not while the one before is on or in the first half of the time between starts.
fn since_start(event: &ScheduledEvent, at_s: i64) -> Option<i64> {
    let since = at_s.saturating_sub(event.start_s);
    let length = event.end_s.saturating_sub(event.start_s);
    let since = match event.every_s.map(i64::from) {
        Some(every) => {
            let pause = every.saturating_sub(length).max(0);
            let before = BEFORE_S.min(every / 2).min(pause);
            if since >= -before {
                since.saturating_add(before) % every - before
            } else {
                since
            }
        }
        None => since,
    };
    (since > -BEFORE_S && since.saturating_sub(length) < AFTER_S).then_some(since)
}

/// The phases that a moment lies between, `since` seconds after the start, with their shares. Phases are the inner knots of
/// [`WITHIN_AT`] and its last, then those of [`AFTER_AT`] but the last.
fn phases(since: i64, length: i64) -> [(usize, f64); 2] {
    let after = since.saturating_sub(length);
    let is_after = after >= 0 && length > 0;
    let (knots, at): (&[i64], i64) = if is_after {
        (&AFTER_AT, after)
    } else {
        (&WITHIN_AT, since)
    };
    let last = knots.len() - 1;
    let next = knots.iter().position(|&k| k > at).unwrap_or(last).max(1);
    let (a, b) = (knots[next - 1], knots[next]);
    let part = ((at - a) as f64 / (b - a) as f64).clamp(0.0, 1.0);
    // The first knot of the one list and the last of the other are zero, and have no phase.
    let phase = |knot: usize, share: f64| match (is_after, knot) {
        (false, 0) => (0, 0.0),
        (false, knot) => (knot - 1, share),
        (true, knot) if knot == last => (0, 0.0),
        (true, knot) => (WITHIN_AT.len() - 1 + knot, share),
    };
    [phase(next - 1, 1.0 - part), phase(next, part)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(start_s: i64, every_s: Option<u32>) -> ScheduledEvent {
        ScheduledEvent {
            start_s,
            end_s: start_s + 5_400,
            intensity: 1.0,
            kind: 0,
            every_s,
        }
    }

    /// A level of 2, and 1.5 more within events.
    fn taught(every_s: Option<u32>) -> Events {
        let mut events = Events::new(300, &[1, 4]);
        for i in 0..8 {
            let start = 100_000 + i * 200_000;
            events.add(event(start, None), 0).expect("taken");
        }
        if every_s.is_some() {
            events.add(event(2_000_000, every_s), 0).expect("taken");
        }
        for step in 0..6_000_u64 {
            let at_s = step as i64 * 300;
            let into = (at_s - 100_000).rem_euclid(200_000);
            let is_on = (0..5_400).contains(&into) && at_s >= 100_000;
            events.observe(step, at_s, Some(if is_on { 3.5 } else { 2.0 }));
        }
        events
    }

    #[test]
    fn the_profile_is_learned_and_ends_with_the_event() {
        let events = taught(None);
        for (since, truth) in [
            (-3_000, 2.0),
            (600, 3.5),
            (5_000, 3.5),
            (6_600, 2.0),
            (90_000, 2.0),
        ] {
            let said = events.said(1_500_000 + since);
            assert!((said - truth).abs() < 0.25, "{since}: {said}");
        }
    }

    #[test]
    fn what_recurs_is_foretold_each_time_and_never_before_the_first() {
        let events = taught(Some(86_400));
        for day in 0..30 {
            let at = 2_000_000 + day * 86_400;
            let (on, off) = (events.said(at + 2_000), events.said(at + 20_000));
            assert!(
                (on - 3.5).abs() < 0.25 && (off - 2.0).abs() < 0.25,
                "{day}: {on} {off}"
            );
        }
        assert!((events.said(2_000_000 - 86_400 + 2_000) - 2.0).abs() < 0.25);
    }

    #[test]
    fn what_recurs_each_hour_is_on_and_off_each_hour() {
        for (every, length) in [(3_600, 600), (3_600, 2_700), (1_800, 300), (7_200, 3_600)] {
            let e = ScheduledEvent {
                end_s: i64::from(length),
                ..event(0, Some(every))
            };
            for at in 0..20 * i64::from(every) {
                let into = at % i64::from(every);
                let since = since_start(&e, at);
                let is_on = since.is_some_and(|since| (0..i64::from(length)).contains(&since));
                assert_eq!(is_on, into < i64::from(length), "{every} {at}: {since:?}");
            }
        }
        let mut events = Events::new(60, &[1, 4]);
        let batch = ScheduledEvent {
            end_s: 600,
            ..event(0, Some(3_600))
        };
        events.add(batch, 0).expect("taken");
        let is_on = |at: i64| at % 3_600 < 600;
        for step in 0..6_000_u64 {
            let at = step as i64 * 60;
            events.observe(step, at, Some(if is_on(at) { 3.5 } else { 2.0 }));
        }
        for hour in 100..110 {
            let (on, off) = (
                events.said(hour * 3_600 + 300),
                events.said(hour * 3_600 + 2_400),
            );
            assert!(on - off > 1.0, "{hour}: {on} {off}");
        }
    }

    #[test]
    fn a_stronger_one_is_taken_for_as_much_stronger_and_kinds_are_learned_apart() {
        let mut events = taught(None);
        let strong = ScheduledEvent {
            intensity: 2.0,
            ..event(5_000_000, None)
        };
        events.add(strong, 0).expect("taken");
        assert!((events.said(5_002_000) - 5.0).abs() < 0.4);
        let other = ScheduledEvent {
            kind: 9,
            ..event(6_000_000, None)
        };
        events.add(other, 0).expect("taken");
        assert!((events.said(6_002_000) - 2.0).abs() < 0.25);
    }

    #[test]
    fn what_is_too_much_is_refused_until_others_are_over() {
        let mut events = Events::new(300, &[1]);
        let nan = ScheduledEvent {
            intensity: f64::NAN,
            ..event(0, None)
        };
        assert_eq!(events.add(nan, 0), Err(EventRefused::NoNumber));
        for kind in 0..KINDS_MAX as u16 {
            let of_kind = ScheduledEvent {
                kind,
                ..event(0, None)
            };
            events.add(of_kind, 0).expect("taken");
        }
        let another = ScheduledEvent {
            kind: 99,
            ..event(0, None)
        };
        assert_eq!(events.add(another, 0), Err(EventRefused::TooManyKinds));
        for _ in KINDS_MAX..EVENTS_MAX {
            events.add(event(0, None), 0).expect("taken");
        }
        assert_eq!(events.add(event(0, None), 0), Err(EventRefused::TooMany));
        assert_eq!(events.add(event(9_000_000, None), 9_000_000), Ok(()));
    }

    #[test]
    fn shares_of_phases_sum_to_one_within_an_event_and_fade_around_it() {
        for length in [0, 60, 5_400, 400_000] {
            for since in (-4_000..length + 9_000).step_by(37) {
                let e = ScheduledEvent {
                    end_s: length,
                    ..event(0, None)
                };
                let sum: f64 = phases(since, length).iter().map(|p| p.1).sum();
                assert!((0.0..=1.0 + 1e-9).contains(&sum));
                assert!(phases(since, length).iter().all(|p| p.0 < PHASES));
                if (0..length).contains(&since) {
                    assert!((sum - 1.0).abs() < 1e-9, "{length} {since}: {sum}");
                }
                let is_near = since_start(&e, since).is_some();
                assert_eq!(is_near, since > -BEFORE_S && since - length < AFTER_S);
            }
        }
    }

    #[test]
    fn times_and_lengths_beyond_all_reason_are_no_panic() {
        let mut events = Events::new(60, &[1]);
        for (start_s, end_s) in [(i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (0, 0)] {
            let wild = ScheduledEvent {
                start_s,
                end_s,
                every_s: Some(u32::MAX),
                intensity: f64::INFINITY,
                kind: 1,
            };
            events.add(wild, 0).expect("taken");
        }
        for (step, at) in [i64::MIN, -1, 0, 1, i64::MAX].into_iter().enumerate() {
            events.observe(step as u64, at, Some(70.0));
            assert!(events.said(at).is_finite());
        }
    }
}
