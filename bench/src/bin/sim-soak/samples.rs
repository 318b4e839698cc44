//! The proxy's memory, descriptors and threads, once a second.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

use crate::tally::Tally;

const INTERVAL: Duration = Duration::from_secs(1);
/// How often a line is shown.
const SHOWN: usize = 60;

/// At one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) resident_kib: u64,
    /// Of that, what no file backs: the heap and the stacks.
    pub(crate) anonymous_kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: u64,
}

impl Sample {
    /// The same with the fewest descriptors of a second: one is open now and then, for a moment.
    pub(crate) async fn settled(pid: Pid) -> Result<Self> {
        let mut least = Self::of(pid)?;
        for _ in 0..20 {
            tokio::time::sleep(INTERVAL / 20).await;
            least.descriptors = least.descriptors.min(Self::of(pid)?.descriptors);
        }
        Ok(least)
    }

    pub(crate) fn of(pid: Pid) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the proxy")?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            let number = word.and_then(|word| word.parse().ok());
            number.with_context(|| format!("no {name} of the proxy"))
        };
        Ok(Self {
            resident_kib: number("VmRSS:")?,
            anonymous_kib: number("RssAnon:")?,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: number("Threads:")?,
        })
    }
}

/// What is open, by kind: the kernel's word without the number in brackets.
pub(crate) fn open(pid: Pid) -> Result<BTreeMap<String, usize>> {
    let mut open = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may be closed meanwhile.
        let link = fs::read_link(entry?.path()).unwrap_or_default();
        let link = link.to_string_lossy();
        let kind = link.split_once(":[").map_or(&*link, |(kind, _)| kind);
        *open.entry(kind.to_owned()).or_default() += 1;
    }
    Ok(open)
}

/// What runs, by name.
pub(crate) fn threads(pid: Pid) -> Result<BTreeMap<String, usize>> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        // It may end meanwhile.
        let name = fs::read_to_string(entry?.path().join("comm")).unwrap_or_default();
        *threads.entry(name.trim().to_owned()).or_default() += 1;
    }
    Ok(threads)
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB resident, {} of them anonymous, {} descriptors, {} threads",
            self.resident_kib, self.anonymous_kib, self.descriptors, self.threads
        )
    }
}

#[derive(Debug)]
pub(crate) struct Samples {
    pid: Pid,
    tally: Arc<Tally>,
    begin: Instant,
    /// What was open then.
    pub(crate) open: BTreeMap<String, usize>,
    /// What ran then.
    pub(crate) threads: BTreeMap<String, usize>,
    /// With when it was, in minutes from the beginning.
    pub(crate) taken: Vec<(f64, Sample)>,
}

impl Samples {
    pub(crate) async fn begin(pid: Pid, tally: &Arc<Tally>) -> Result<Self> {
        let first = Sample::settled(pid).await?;
        Ok(Self {
            pid,
            tally: tally.clone(),
            begin: Instant::now(),
            open: open(pid)?,
            threads: threads(pid)?,
            taken: vec![(0.0, first)],
        })
    }

    pub(crate) fn first(&self) -> Sample {
        self.taken[0].1
    }

    /// Takes them for so long.
    pub(crate) async fn take(mut self, span: Duration) -> Result<Self> {
        let mut tick = tokio::time::interval(INTERVAL);
        while self.begin.elapsed() < span {
            tick.tick().await;
            let sample = Sample::of(self.pid)?;
            let minutes = self.begin.elapsed().as_secs_f64() / 60.0;
            self.taken.push((minutes, sample));
            if self.taken.len().is_multiple_of(SHOWN) {
                let done = self.tally.done();
                println!("soak: {minutes:.1} min: {sample}, {done} by the users of the runtime");
            }
        }
        Ok(self)
    }

    /// By how much the anonymous memory grows in a minute, over the last two thirds: in the first third the kinds of
    /// traffic and of faults fill the allocator's arenas. `None` of too few.
    pub(crate) fn slope_kib(&self) -> Option<f64> {
        let end = self.taken.last()?.0;
        let late = self.taken.iter().filter(|(at, _)| *at >= end / 3.0);
        slope(late.map(|(at, sample)| (*at, sample.anonymous_kib as f64)))
    }

    pub(crate) fn most(&self, of: impl Fn(&Sample) -> u64) -> u64 {
        let all = self.taken.iter().map(|(_, sample)| of(sample));
        all.max().unwrap_or_default()
    }
}

/// Of the line through `points` by least squares. `None` where there is none.
pub(crate) fn slope(points: impl Iterator<Item = (f64, f64)> + Clone) -> Option<f64> {
    let count = points.clone().count() as f64;
    let mean = |of: fn((f64, f64)) -> f64| points.clone().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|(x, _)| x), mean(|(_, y)| y));
    let (mut above, mut below) = (0.0, 0.0);
    for (x, y) in points {
        above += (x - mean_x) * (y - mean_y);
        below += (x - mean_x) * (x - mean_x);
    }
    (below > 0.0).then(|| above / below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_line_and_noise_around_it_is_none() {
        let line = (0..60).map(|x| (f64::from(x), 7.0 + 3.0 * f64::from(x)));
        assert!(slope(line).is_some_and(|slope| (slope - 3.0).abs() < 1e-9));
        let noise = [0.0, 5.0, 5.0, 0.0].into_iter().cycle().take(400);
        let noisy = (0_u32..).zip(noise).map(|(x, y)| (f64::from(x), y));
        assert!(slope(noisy).is_some_and(|slope| slope.abs() < 0.001));
        assert_eq!(slope([(1.0, 1.0)].into_iter()), None);
        assert_eq!(slope([].into_iter()), None);
    }

    #[test]
    fn a_process_has_memory_descriptors_and_threads() {
        let sample = Sample::of(Pid::this()).expect("this process");
        assert!(sample.resident_kib >= sample.anonymous_kib && sample.anonymous_kib > 0);
        assert!(sample.descriptors >= 3 && sample.threads >= 1);
    }
}
