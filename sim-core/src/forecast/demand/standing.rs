//! How the forecaster stands against naive and seasonal naive, live.
//!
//! At each knot the pinball losses of what was issued are kept beside those of two references: the last value and
//! the one a day before the target, each with quantiles of its own residuals around it. Losses are discounted over as
//! many scored forecasts as there are samples in two days and 30 leads. Far knots file a forecast at each second or fourth
//! sample only, so there that is two or four times as long; divided by that, scores were no better (docs/forecast.md). Where
//! the forecaster's is more than 15 % above the better reference's, and of late too, it is demoted: weight goes to that
//! reference's quantiles, half of it at 15 % and all of it at 30 %, until the forecaster does better again. What is scored
//! is always the forecaster's own, demoted or not.
//!
//! The references are experts of the combination too, so this is the belt to its braces: it holds where the weights
//! themselves are misled. How it fails: it looks back for days, and is as late.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::quantiles::{Around, PerLevel, pinball};
use crate::forecast::output::LEVELS;

/// Memory of the losses in days' samples; at least so many; and so many leads more, since neighbouring errors of far
/// forecasts are almost the same. All are counts of scored forecasts.
const MEMORY_DAYS: f64 = 2.0;
const MEMORY_MIN: f64 = 100.0;
const MEMORY_LEADS: f64 = 30.0;
/// Forecasts that must have been scored, and so many leads more.
const SCORED_MIN: u64 = 60;
const SCORED_LEADS: u64 = 10;
/// Loss over the better reference's at which it is demoted, and at which it is restored.
const DEMOTED: f64 = 1.15;
const RESTORED: f64 = 1.0;
/// Loss over the reference's at which nothing of it is issued any more.
const REPLACED: f64 = 1.3;
/// Share of the own band that is still held then, and losses over the reference's between which that fades.
const HELD: f64 = 0.5;
const FAR: f64 = 2.0;
const FAR_OFF: f64 = 4.0;
/// The same must hold of losses with this share of the memory: what was lost to one bad day is no reason.
const RECENT: f64 = 0.2;

/// Losses below this, on the transformed scale, say nothing.
const GRAIN: f64 = 1e-6;

/// What a forecaster has to beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The last value repeated.
    Naive,
    /// The value a day before the target.
    SeasonalNaive,
}

impl Reference {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Naive, Self::SeasonalNaive];

    /// Its name in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Naive => "naive",
            Self::SeasonalNaive => "seasonal_naive",
        }
    }
}

/// How the forecaster stands at one lead.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Steps ahead.
    pub lead: usize,
    /// Recent pinball loss over that of each of [`Reference::ALL`]; below 1 is better. `None` before enough was
    /// scored, or where the reference makes no error.
    pub relative_losses: [Option<f64>; 2],
    /// Whose quantiles take weight from the forecaster's, while it loses.
    pub demoted_to: Option<Reference>,
    /// How often it was demoted.
    pub demotions: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Knot {
    lead: usize,
    scored: u64,
    loss: f64,
    references: [Around; 2],
    /// Losses of late: its own, and the references'.
    recent: [f64; 3],
    demoted_to: Option<Reference>,
    demotions: u64,
}

/// The forecaster's standing at all knots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Standings {
    day: f64,
    knots: Vec<Knot>,
}

impl Knot {
    fn new(lead: usize) -> Self {
        Self {
            lead,
            scored: 0,
            loss: 0.0,
            references: [Around::new(), Around::new()],
            recent: [0.0; 3],
            demoted_to: None,
            demotions: 0,
        }
    }

    fn enough(&self) -> u64 {
        SCORED_MIN + SCORED_LEADS * self.lead as u64
    }

    /// Loss of each reference, where it was scored often enough.
    fn losses(&self) -> [Option<f64>; 2] {
        let enough = self.enough();
        let loss = |r: &Around| (self.scored >= enough && r.scored() >= enough).then(|| r.loss());
        [loss(&self.references[0]), loss(&self.references[1])]
    }

    fn learn(&mut self, z: f64, issued: &PerLevel, centres: [Option<f64>; 2], day: f64) {
        let memory = (MEMORY_DAYS * day).max(MEMORY_MIN) + MEMORY_LEADS * self.lead as f64;
        let loss_max = self.references[0].loss_max();
        self.scored += 1;
        let share = (1.0 / self.scored as f64).max(1.0 / memory);
        let loss = pinball(z, issued).min(loss_max);
        self.loss += share * (loss - self.loss);
        let recently = (1.0 / self.scored as f64).max(1.0 / (RECENT * memory));
        let [own, recent @ ..] = &mut self.recent;
        *own += recently * (loss - *own);
        for ((reference, centre), recent) in self.references.iter_mut().zip(centres).zip(recent) {
            if let Some(centre) = centre {
                let loss = reference.learn(z, centre, self.lead, memory, loss_max);
                *recent += recently * (loss - *recent);
            }
        }
        self.judge();
    }

    fn judge(&mut self) {
        let losses = self.losses();
        let better = Reference::ALL
            .into_iter()
            .zip(losses)
            .zip(self.recent[1..].iter())
            .filter_map(|((reference, loss), recent)| Some((reference, loss?, *recent)))
            .min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((reference, loss, recent)) = better else {
            return;
        };
        let own = self.recent[0];
        if self.demoted_to.is_none() {
            if self.loss > DEMOTED * loss + GRAIN && own > DEMOTED * recent + GRAIN {
                self.demoted_to = Some(reference);
                self.demotions += 1;
            }
        } else if self.loss < RESTORED * loss || own < RESTORED * recent {
            self.demoted_to = None;
        } else {
            self.demoted_to = Some(reference);
        }
    }

    fn standing(&self) -> Standing {
        Standing {
            lead: self.lead,
            relative_losses: self
                .losses()
                .map(|loss| loss.filter(|loss| *loss > 0.0).map(|loss| self.loss / loss)),
            demoted_to: self.demoted_to,
            demotions: self.demotions,
        }
    }

    /// What is issued at this knot, the forecaster's own being `own` and the references' centres these.
    fn issue(&self, own: PerLevel, centres: [f64; 2]) -> PerLevel {
        let (reference, centre) = match self.demoted_to {
            None => return own,
            Some(Reference::Naive) => (&self.references[0], centres[0]),
            Some(Reference::SeasonalNaive) => (&self.references[1], centres[1]),
        };
        let ratio = self.loss / reference.loss().max(GRAIN);
        let weight = ((ratio - 1.0) / (REPLACED - 1.0)).clamp(0.0, 1.0);
        // Of two that disagree either may be right: the band still holds half of what it held, unless that was far off.
        let holds = HELD * ((FAR_OFF - ratio) / (FAR_OFF - FAR)).clamp(0.0, 1.0);
        let mut issued = own;
        let reference = reference.quantiles(centre);
        for ((q, reference), level) in issued.iter_mut().zip(reference).zip(LEVELS) {
            let mixed = *q + weight * (reference - *q);
            let held = mixed + holds * (*q - mixed);
            *q = if level < 0.5 {
                mixed.min(held)
            } else if level > 0.5 {
                mixed.max(held)
            } else {
                mixed
            };
        }
        issued
    }
}

impl Standings {
    pub(super) fn new(day: usize, leads: &[usize]) -> Self {
        Self {
            day: day as f64,
            knots: leads.iter().map(|&lead| Knot::new(lead)).collect(),
        }
    }

    pub(super) fn reset(&mut self) {
        for knot in &mut self.knots {
            *knot = Knot::new(knot.lead);
        }
    }

    /// Scores what was issued at knot `j` for the sample `z`; `centres` are the last value then, and the one a day
    /// before the sample.
    pub(super) fn learn(&mut self, j: usize, z: f64, issued: &PerLevel, centres: [Option<f64>; 2]) {
        self.knots[j].learn(z, issued, centres, self.day);
    }

    pub(super) fn is_demoted(&self) -> bool {
        self.knots.iter().any(|knot| knot.demoted_to.is_some())
    }

    pub(super) fn demotions(&self) -> u64 {
        self.knots.iter().map(|knot| knot.demotions).sum()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Standing> {
        self.knots.iter().map(Knot::standing)
    }

    /// What is issued `lead` steps ahead in place of `own`; `centres` are the last value, and the one a day before
    /// the target.
    pub(super) fn issue(&self, lead: usize, own: PerLevel, centres: [f64; 2]) -> PerLevel {
        if !self.is_demoted() {
            return own;
        }
        let next = self.knots.iter().position(|knot| knot.lead >= lead);
        let next = next.unwrap_or(self.knots.len() - 1);
        let high = self.knots[next].issue(own, centres);
        if next == 0 || self.knots[next].lead <= lead {
            return high;
        }
        let ln = |lead: usize| libm::log(lead as f64);
        let (a, b) = (self.knots[next - 1].lead, self.knots[next].lead);
        let part = (ln(lead) - ln(a)) / (ln(b) - ln(a));
        let mut out = self.knots[next - 1].issue(own, centres);
        for (q, high) in out.iter_mut().zip(high) {
            *q += part * (high - *q);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DemandConfig, DemandForecaster};
    use super::*;

    fn wide(centre: f64) -> PerLevel {
        [-2.0, -1.5, 0.0, 1.5, 2.0, 3.0, 5.0].map(|x| centre + x)
    }

    #[test]
    fn who_loses_over_a_window_is_demoted_and_who_wins_again_is_restored() {
        let mut knot = Knot::new(1);
        let mut z = 0.0;
        let mut step = |knot: &mut Knot, t: u32, off: f64| {
            let last = z;
            z += f64::from(t * 37 % 11) - 5.0;
            knot.learn(z, &wide(z + off), [Some(last), None], 50.0);
        };
        // Far off, for as long as is scored before anything is said.
        (0..60).for_each(|t| step(&mut knot, t, 30.0));
        assert_eq!(knot.demoted_to, None);
        (60..80).for_each(|t| step(&mut knot, t, 30.0));
        assert_eq!(knot.demoted_to, Some(Reference::Naive));
        let issued = knot.issue(wide(500.0), [7.0, 99.0]);
        assert!(
            issued[0] < 7.0 && issued[4] > 7.0 && issued[4] < 20.0,
            "{issued:?}"
        );
        // Exact again.
        (80..1000).for_each(|t| step(&mut knot, t, 0.0));
        assert_eq!((knot.demoted_to, knot.demotions), (None, 1));
        assert_eq!(knot.issue(wide(500.0), [7.0, 99.0]), wide(500.0));
    }

    #[test]
    fn the_better_reference_takes_over_and_its_band_holds_what_it_promises() {
        let mut knot = Knot::new(1);
        let (mut inside, mut compared) = (0, 0);
        let mut last = 0.0;
        for t in 0..4000_u32 {
            // A sharp day, whose values repeat but for a ripple.
            let season = if t % 24 < 12 { 10.0 } else { -10.0 };
            let ripple = f64::from(t.wrapping_mul(2_654_435_761) >> 16) / 65_536.0;
            let z = season + ripple;
            let centres = [last, season + 0.5];
            let issued = knot.issue(wide(40.0), centres);
            if t > 1000 {
                compared += 1;
                inside += i32::from(issued[0] <= z && z <= issued[4]);
            }
            knot.learn(z, &wide(40.0), centres.map(Some), 24.0);
            last = z;
        }
        assert_eq!(knot.demoted_to, Some(Reference::SeasonalNaive));
        let share = f64::from(inside) / f64::from(compared);
        assert!((0.86..=0.94).contains(&share), "{share}");
    }

    #[test]
    fn between_a_demoted_knot_and_another_quantiles_are_between() {
        let mut all = Standings::new(24, &[1, 4]);
        (all.knots[1].demoted_to, all.knots[1].loss) = (Some(Reference::Naive), 100.0);
        // One that was off by 1.
        all.knots[1].references[0].learn(1.0, 0.0, 4, 100.0, f64::MAX);
        let own = wide(0.0);
        assert_eq!(all.issue(1, own, [10.0, 0.0]), own);
        let far = all.issue(4, own, [10.0, 0.0]);
        let between = all.issue(2, own, [10.0, 0.0]);
        for l in 0..LEVELS.len() {
            assert!((between[l] - 0.5 * (own[l] + far[l])).abs() < 1e-9);
        }
    }

    const STEPS: [f64; 8] = [-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0];

    /// Each sample is the one of some steps from the last that hurts the forecaster most at knots of at least this lead,
    /// naive being spared. Where none of these is to be scored it stays.
    fn worst(f: &DemandForecaster, last: f64, least: usize) -> f64 {
        let is_due = |(j, knot): (usize, &Knot)| knot.lead >= least && f.engine.due(j).is_some();
        if !f.standings.knots.iter().enumerate().any(is_due) {
            return last;
        }
        let gain = |y: &f64| {
            let z = libm::asinh(y / f.scale);
            let all = f.standings.knots.iter().enumerate();
            let knots = all.filter(|(_, knot)| knot.lead >= least);
            let gains = knots.filter_map(|(j, knot)| {
                let (before, issued) = f.engine.due(j)?;
                let naive = knot.references[0].quantiles(before);
                Some(pinball(z, &issued) - pinball(z, &naive))
            });
            gains.sum::<f64>()
        };
        let steps = STEPS.map(|step| last + step);
        let within = steps.into_iter().filter(|y| (80.0..120.0).contains(y));
        within
            .max_by(|a, b| gain(a).total_cmp(&gain(b)))
            .unwrap_or(last)
    }

    /// What came of a series made to hurt it.
    struct Fought {
        f: DemandForecaster,
        /// Losses at the furthest knot: its own, and of what was issued.
        own: f64,
        issued: f64,
        /// How often it was demoted anywhere.
        demoted: usize,
    }

    /// Fights it for so many samples at knots of at least this lead; losses count after the first ones.
    fn fight(config: DemandConfig, least: usize, first: usize, samples: usize) -> Fought {
        let mut f = DemandForecaster::new(config);
        let lead = f.horizon();
        let mut last = 100.0;
        let mut made: Vec<[PerLevel; 2]> = Vec::new();
        let (mut own, mut issued, mut demoted) = (0.0, 0.0, 0);
        for t in 0..samples {
            let y = if t < 3 { last } else { worst(&f, last, least) };
            if t >= first {
                let [was_own, was_issued] = made[t - lead];
                own += pinball(y, &was_own);
                issued += pinball(y, &was_issued);
                demoted += usize::from(f.is_demoted());
            }
            f.observe(Some(y));
            let furthest = f.engine.quantiles(lead).map(|z| f.value(z));
            made.push([furthest, f.forecast(lead).quantiles]);
            last = y;
        }
        Fought {
            f,
            own,
            issued,
            demoted,
        }
    }

    #[test]
    fn a_series_made_to_defeat_the_forecaster_gets_it_demoted_and_is_then_forecast_by_naive() {
        let hourly = DemandConfig {
            interval_s: 3_600,
            ..DemandConfig::default()
        };
        let Fought {
            f,
            own,
            issued,
            demoted,
        } = fight(hourly, 1, 500, 1_500);
        let furthest = f.standings().last().expect("there is a knot");
        assert_eq!(furthest.demoted_to, Some(Reference::Naive), "{furthest:?}");
        // It was over the bound of a demotion, and is over that of its end.
        assert!(furthest.relative_losses[0] > Some(RESTORED), "{furthest:?}");
        assert!(demoted > 500 && f.demotions() > 0, "{demoted}");
        assert!(issued < own, "{issued} {own}");
        // A crossing is as likely as what is issued says, which is no longer what the engine says.
        let threshold = f.forecast(1).quantiles[3];
        let chances =
            || (1..=f.horizon()).map(|step| f.forecast(step).probability_above(threshold));
        let any = f.probability_of_any_above(threshold, f.horizon());
        let (most, sum) = (chances().fold(0.0, f64::max), chances().sum::<f64>());
        assert!((most..=sum).contains(&any), "{most} {any} {sum}");
    }

    #[test]
    fn a_knot_that_files_a_forecast_at_each_fourth_sample_only_is_demoted_too() {
        let config = DemandConfig {
            interval_s: 300,
            horizon_steps: 12,
            ..DemandConfig::default()
        };
        let Fought { f, own, issued, .. } = fight(config, 12, 1_000, 4_000);
        let furthest = f.standings().last().expect("there is a knot");
        assert_eq!(furthest.demoted_to, Some(Reference::Naive), "{furthest:?}");
        assert!(issued < own, "{issued} {own}");
    }
}
