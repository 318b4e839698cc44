//! What warnings and decisions would have been worth: a warning before any of the next 12 samples exceeds the
//! threshold, and a shadow that is asked for when the 95 % quantile passes the capacity.

use std::fmt::Write as _;

use super::numbers::mean;
use crate::folder::Series;
use crate::run::{Made, WARNING_STEPS};

/// Alarm levels tried; the best one is taken, the same for all series.
const ALARMS: [f64; 10] = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8];
/// Ticks of a shadow that cost as much as one overloaded tick.
const OVERLOAD: f64 = 19.0;
/// Ticks from asking for a shadow until it carries load, the first one aside.
const BOOT: usize = 1;
/// Ticks that must be calm before it is released.
const HOLD: usize = 3;
/// Samples at or below the threshold before a crossing is an event, and after one until it is calm.
const QUIET_BEFORE: usize = 6;
const QUIET_AFTER: usize = 3;
/// Share of the capacity at which the reactive policy asks.
const REACTIVE: f64 = 0.8;
/// The 95 % quantile among those scored.
const UPPER: usize = 4;

/// Of one series.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decisions {
    precision: f64,
    base: f64,
    brier: f64,
    events: usize,
    alarms: [Alarm; ALARMS.len()],
    cost: f64,
    reactive: f64,
    oracle: f64,
    /// Warnings given while calm, and whether a crossing followed.
    pub(crate) warned: Vec<(f64, bool)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Alarm {
    detected: usize,
    fired: usize,
    right: usize,
}

/// Scores the decisions that are asked for of a series.
pub(crate) fn decisions(series: &Series, made: &Made) -> Option<Decisions> {
    let (threshold, capacity) = (series.threshold?, series.scoring.capacity?);
    let (&(first, _), &(last, _)) = (made.warnings.first()?, made.warnings.last()?);
    let is_over = |index: usize| series.at(index).is_some_and(|y| y > threshold);
    let warned: Vec<(usize, f64, bool)> = made
        .warnings
        .iter()
        .filter(|(at, _)| !(0..QUIET_AFTER).any(|back| *at >= back && is_over(at - back)))
        .map(|&(at, p)| (at, p, (1..=WARNING_STEPS).any(|step| is_over(at + step))))
        .collect();
    let pairs: Vec<(f64, bool)> = warned.iter().map(|&(_, p, is)| (p, is)).collect();
    let is = |is: bool| f64::from(u8::from(is));

    let events: Vec<usize> = (first + QUIET_BEFORE..=last)
        .filter(|&at| is_over(at) && !(at - QUIET_BEFORE..at).any(is_over))
        .collect();
    let alarms = ALARMS.map(|level| {
        let fired: Vec<_> = warned.iter().filter(|(_, p, _)| *p >= level).collect();
        let is_in_time = |event: usize| {
            let window = event.saturating_sub(WARNING_STEPS)..event - BOOT;
            fired.iter().any(|(at, ..)| window.contains(at))
        };
        Alarm {
            detected: events.iter().filter(|event| is_in_time(**event)).count(),
            fired: fired.len(),
            right: fired.iter().filter(|(.., is)| *is).count(),
        }
    });

    // Ticks without a decision of their own go by the one before.
    let samples = &series.carried()[first..=last];
    let mut wants = vec![false; samples.len()];
    for target in made.targets.iter().filter(|t| t.is_decision) {
        if [1 + BOOT, 2 + BOOT].contains(&target.step) && target.quantiles[UPPER] > capacity {
            wants[target.origin - first] = true;
        }
    }
    let mut decided = made.warnings.iter().map(|(at, _)| at - first).peekable();
    let mut want = false;
    for (tick, place) in wants.iter_mut().enumerate() {
        if decided.next_if_eq(&tick).is_some() {
            want = *place;
        }
        *place = want;
    }
    let hot: Vec<bool> = samples.iter().map(|y| *y > REACTIVE * capacity).collect();
    let cool: Vec<bool> = hot.iter().map(|hot| !hot).collect();
    let calm: Vec<bool> = wants
        .iter()
        .zip(samples)
        .map(|(want, y)| !want && *y <= capacity)
        .collect();
    Some(Decisions {
        precision: average_precision(&pairs),
        base: mean(pairs.iter().map(|(_, crossed)| is(*crossed))),
        brier: mean(pairs.iter().map(|(p, crossed)| (p - is(*crossed)).powi(2))),
        events: events.len(),
        alarms,
        cost: cost(samples, &wants, &calm, capacity),
        reactive: cost(samples, &hot, &cool, capacity),
        oracle: oracle(samples, capacity),
        warned: pairs,
    })
}

/// Mean precision over the crossings, from the most certain warning down; equal ones come together. NaN without any.
fn average_precision(pairs: &[(f64, bool)]) -> f64 {
    let mut pairs = pairs.to_vec();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let all = pairs.iter().filter(|(_, is)| *is).count() as f64;
    let (mut sum, mut right, mut seen) = (0.0, 0.0, 0.0);
    for equal in pairs.chunk_by(|a, b| a.0 == b.0) {
        let more = equal.iter().filter(|(_, is)| *is).count() as f64;
        seen += equal.len() as f64;
        right += more;
        sum += more / all * (right / seen);
    }
    if all > 0.0 { sum } else { f64::NAN }
}

/// Ticks of a shadow that is asked for and released as told, and overloaded ticks without one.
fn cost(samples: &[f64], wants: &[bool], calm: &[bool], capacity: f64) -> f64 {
    let (mut total, mut calm_for) = (0.0, 0);
    // How many ticks the shadow is billed for, this one included.
    let mut running: Option<usize> = None;
    for (tick, y) in samples.iter().enumerate() {
        let is_usable = running.is_some_and(|ticks| ticks >= BOOT);
        if running.is_some() {
            total += 1.0;
        }
        if *y > capacity && !is_usable {
            total += OVERLOAD;
        }
        if let Some(ticks) = &mut running {
            *ticks += 1;
            calm_for = if calm[tick] { calm_for + 1 } else { 0 };
            if calm_for >= HOLD {
                running = None;
            }
        } else if wants[tick] {
            running = Some(0);
            calm_for = 0;
        }
    }
    total
}

/// Exactly the overloaded ticks, and one before each run of them for booting.
fn oracle(samples: &[f64], capacity: f64) -> f64 {
    let is_over = |tick: usize| samples.get(tick).is_some_and(|y| *y > capacity);
    (0..samples.len())
        .filter(|&tick| is_over(tick) || is_over(tick + BOOT))
        .count() as f64
}

/// F1 of events at the best alarm level, with recall, precision and that level.
fn best_alarm(all: &[Decisions]) -> (f64, f64, f64, f64) {
    let sum = |of: &dyn Fn(&Decisions) -> usize| all.iter().map(of).sum::<usize>() as f64;
    let events = sum(&|d| d.events).max(1.0);
    let alarms = ALARMS.iter().enumerate().map(|(i, &level)| {
        let recall = sum(&|d| d.alarms[i].detected) / events;
        let precision = sum(&|d| d.alarms[i].right) / sum(&|d| d.alarms[i].fired).max(1.0);
        let f1 = 2.0 * recall * precision / (recall + precision).max(f64::MIN_POSITIVE);
        (f1, recall, precision, level)
    });
    alarms.fold((0.0, 0.0, 0.0, 0.0), |best, alarm| {
        if alarm.0 > best.0 { alarm } else { best }
    })
}

/// All series together, as Markdown.
pub(super) fn table(all: &[Decisions]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let known = all
        .iter()
        .map(|d| d.precision)
        .filter(|precision| !precision.is_nan());
    let (f1, recall, precision, level) = best_alarm(all);
    let sum = |of: &dyn Fn(&Decisions) -> f64| all.iter().map(of).sum::<f64>();
    let mut text = "\n| warnings and decisions | |\n|---|---|\n".to_owned();
    for (name, value) in [
        ("warn_AP", mean(known)),
        ("warn_base_rate", mean(all.iter().map(|d| d.base))),
        ("warn_Brier", mean(all.iter().map(|d| d.brier))),
        ("event_F1", f1),
        ("event_recall", recall),
        ("event_precision", precision),
        ("alarm_level", level),
        ("J_vs_oracle", sum(&|d| d.cost) / sum(&|d| d.oracle)),
        ("J_vs_reactive", sum(&|d| d.cost) / sum(&|d| d.reactive)),
    ] {
        // Writing to a string can't fail.
        writeln!(text, "| {name} | {value:.4} |").unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_precision_takes_equal_warnings_together() {
        let ap = average_precision(&[(0.9, true), (0.5, false), (0.5, true), (0.1, false)]);
        assert!((ap - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-12, "{ap}");
        assert!(average_precision(&[(0.5, false)]).is_nan());
    }

    #[test]
    fn a_shadow_boots_for_a_tick_and_goes_after_three_calm_ones() {
        let samples = [0.0, 9.0, 9.0, 0.0, 0.0, 0.0, 0.0];
        let want = [true, false, false, false, false, false, false];
        let calm = samples.map(|y| y <= 5.0);
        // Billed in ticks 1 to 5; the first of them is overloaded, as it still boots.
        assert_eq!(cost(&samples, &want, &calm, 5.0), 5.0 + OVERLOAD);
        assert_eq!(cost(&samples, &[false; 7], &calm, 5.0), 2.0 * OVERLOAD);
        assert_eq!(oracle(&samples, 5.0), 3.0);
    }

    #[test]
    fn runs_that_are_one_tick_apart_boot_inside_of_the_gap() {
        assert_eq!(oracle(&[9.0, 0.0, 9.0, 0.0, 0.0, 9.0], 5.0), 5.0);
    }
}
