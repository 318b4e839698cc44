//! How often a healthy instance is taken for hung: one whose latencies have a heavy tail, and one that pauses.
//!
//! The follower, the health and the rule of the race are the ones that serve; only latencies are drawn.

use super::*;
use crate::config::EjectSettings;
use crate::health::{Failure, Standing};
use crate::tickets::mix;

const SECOND: u64 = 1_000_000_000;

/// What became of a run.
#[derive(Debug, Default)]
struct Run {
    requests: u64,
    hedged: u64,
    overtaken: u64,
    ejections: u64,
}

/// Requests to the first of two instances for `seconds`. `latency_ns` is drawn from a number in 0..1 and may depend
/// on the time.
fn run(rate: u64, seconds: u64, latency_ns: impl Fn(f64, u64) -> u64) -> Run {
    let settings = EjectSettings::default();
    let both = [1, 2].map(|id| {
        Arc::new(InstanceLive::new(
            InstanceId(id),
            ([127, 0, 0, 1], 80).into(),
        ))
    });
    let mut follower = Follower::new(HedgeSettings::default());
    let uniform = |n: u64| (mix(n) >> 11) as f64 / 9_007_199_254_740_992.0;
    let mut run = Run::default();
    let mut after_ns = u64::MAX;
    // Ends of attempts at the first instance that are yet to come: when, and whether another overtook it.
    let mut ends = std::collections::BTreeMap::<(u64, u64), bool>::new();
    for n in 0..rate * seconds {
        let now_ns = SECOND + n * SECOND / rate;
        if n % rate == 0 {
            after_ns = follower.next(&both).unwrap_or(u64::MAX);
        }
        while let Some(end) = ends.first_entry().filter(|end| end.key().0 <= now_ns) {
            let at_ns = end.key().0;
            let health = both[0].health();
            if end.remove() {
                run.overtaken += 1;
                if health.failed(Failure::Overtaken, at_ns, &settings)
                    && health.eject(at_ns, &settings)
                {
                    run.ejections += 1;
                }
            } else {
                health.succeeded(false, at_ns);
            }
        }
        // While it is out, others serve; the first that comes back finds it well.
        match both[0].health().standing(now_ns) {
            Standing::In => {}
            Standing::Out => continue,
            Standing::ProbeDue => {
                both[0].health().succeeded(true, now_ns);
            }
        }
        run.requests += 1;
        let first_ns = latency_ns(uniform(2 * n), now_ns);
        let second_ns = after_ns.saturating_add(latency_ns(uniform(2 * n + 1), 0));
        let is_overtaken = second_ns < first_ns;
        run.hedged += u64::from(first_ns > after_ns);
        let took_ns = first_ns.min(second_ns);
        both[0].record_latency(took_ns / 1_000);
        ends.insert((now_ns + took_ns, n), is_overtaken);
    }
    run
}

/// Pareto from 2 ms on: with this shape the mean is 6 ms, the variance infinite, and one in 10 000 takes a second.
fn heavy(uniform: f64) -> u64 {
    (2e6 / (1.0 - uniform).powf(1.0 / 1.5)) as u64
}

#[test]
fn a_heavy_tail_is_no_hang() {
    let run = run(500, 4_000, |uniform, _| heavy(uniform));
    eprintln!("{run:?}");
    assert_eq!(run.requests, 2_000_000);
    assert_eq!(run.ejections, 0);
    // And to follow the quantile keeps the hedges at its share.
    let share = run.hedged as f64 / run.requests as f64;
    assert!((0.005..0.015).contains(&share), "{share}");
    assert!(run.overtaken > run.hedged / 2);
}

#[test]
fn a_pause_is_no_hang() {
    // A quarter of a second in ten, as of a garbage collector; it holds all that is there.
    let pausing = |uniform: f64, now_ns: u64| {
        let into_ns = now_ns % (10 * SECOND);
        let pause_ns = (SECOND / 4).saturating_sub(into_ns);
        heavy(uniform) + if now_ns == 0 { 0 } else { pause_ns }
    };
    let run = run(500, 1_000, pausing);
    eprintln!("{run:?}");
    assert_eq!(run.ejections, 0);
}

#[test]
fn a_hang_is_one() {
    // For two seconds of a hundred nothing is answered; by the next time the ejections are forgotten.
    let hanging = |uniform: f64, now_ns: u64| {
        let into_ns = (now_ns + 50 * SECOND) % (100 * SECOND);
        heavy(uniform) + (2 * SECOND).saturating_sub(into_ns)
    };
    let run = run(500, 1_000, hanging);
    eprintln!("{run:?}");
    // Each of the ten, and again while it lasts: the probe of this run is always good.
    assert!((10..=40).contains(&run.ejections), "{run:?}");
}
