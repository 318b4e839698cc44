//! A folder of traces: `manifest.csv`, `origins.csv`, and one or more files of samples.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

/// Files of the folder that hold no samples.
const OTHERS: [&str; 3] = ["manifest.csv", "origins.csv", "events.csv"];

/// One series, its samples laid on its own grid, and what is asked of it.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) id: String,
    /// Series of one recording have the same.
    pub(crate) group: String,
    pub(crate) interval_s: i64,
    pub(crate) start: i64,
    pub(crate) is_percent: bool,
    pub(crate) samples: Vec<Option<f64>>,
    /// Operator's threshold, where there is one.
    pub(crate) threshold: Option<f64>,
    /// What was public in advance: start, end, intensity.
    pub(crate) events: Vec<(i64, i64, f64)>,
    pub(crate) origins: BTreeMap<usize, Origin>,
    pub(crate) scoring: Scoring,
}

/// What is asked at one sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) steps: BTreeSet<usize>,
    /// It is one of those that accuracy is judged by.
    pub(crate) is_accuracy: bool,
    /// It is one of those that decisions are judged by, and so a warning is asked for.
    pub(crate) is_decision: bool,
}

/// What a scorer reads, and a forecaster does not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scoring {
    pub(crate) kind: String,
    /// Samples a day.
    pub(crate) day: usize,
    /// Samples before the first origin.
    pub(crate) warm_up: usize,
    /// Errors are told in this unit.
    pub(crate) scale: f64,
    pub(crate) capacity: Option<f64>,
    pub(crate) steps_a: Vec<usize>,
    pub(crate) steps_b: Vec<usize>,
}

#[derive(Deserialize)]
struct ManifestRow {
    series_id: String,
    interval_s: i64,
    start_ts: i64,
    end_ts: i64,
    unit: String,
    steps_a: String,
    #[serde(default)]
    steps_b: String,
    threshold: Option<f64>,
    capacity: Option<f64>,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    season_steps: usize,
    #[serde(default)]
    warmup_end_ts: i64,
    #[serde(default)]
    scale: f64,
    #[serde(default)]
    group: String,
}

#[derive(Deserialize)]
struct EventRow {
    series_id: String,
    event_kind: String,
    start_ts: i64,
    end_ts: i64,
    intensity: f64,
}

#[derive(Deserialize)]
struct OriginRow {
    set: String,
    series_id: String,
    origin_ts: i64,
}

#[derive(Deserialize)]
struct SampleRow {
    series_id: String,
    timestamp: i64,
    value: f64,
}

/// Reads the folder; series come in the manifest's order.
pub(crate) fn read(folder: &Path) -> Result<Vec<Series>> {
    let mut all = Vec::new();
    let mut places = HashMap::new();
    for row in rows::<ManifestRow>(&folder.join("manifest.csv"))? {
        ensure!(
            row.interval_s > 0,
            "{}: interval_s must be positive",
            row.series_id
        );
        ensure!(
            row.end_ts >= row.start_ts,
            "{}: ends before it starts",
            row.series_id
        );
        let count = usize::try_from((row.end_ts - row.start_ts) / row.interval_s + 1)?;
        places.insert(row.series_id.clone(), all.len());
        let warm_up = (row.warmup_end_ts - row.start_ts) / row.interval_s;
        let scoring = Scoring {
            kind: row.kind,
            day: row.season_steps,
            warm_up: usize::try_from(warm_up.max(0))?,
            scale: row.scale,
            capacity: row.capacity,
            steps_a: list(&row.steps_a)?,
            steps_b: list(&row.steps_b)?,
        };
        let group = Some(row.group).filter(|group| !group.is_empty());
        all.push(Series {
            group: group.unwrap_or_else(|| row.series_id.clone()),
            id: row.series_id,
            interval_s: row.interval_s,
            start: row.start_ts,
            is_percent: row.unit.starts_with("percent"),
            samples: vec![None; count],
            threshold: row.threshold,
            events: Vec::new(),
            origins: BTreeMap::new(),
            scoring,
        });
    }
    for row in rows::<OriginRow>(&folder.join("origins.csv"))? {
        let place = *places
            .get(&row.series_id)
            .with_context(|| format!("origins.csv: unknown series {}", row.series_id))?;
        let series = &mut all[place];
        let index = series.index(row.origin_ts)?;
        let is_decision = match row.set.as_str() {
            "A" => false,
            "B" => true,
            other => bail!("origins.csv: set {other}, allowed: A, B"),
        };
        series.ask(index, is_decision);
    }
    let events = folder.join("events.csv");
    if events.exists() {
        for row in rows::<EventRow>(&events)? {
            // Other kinds are hindsight.
            if let Some(&place) = places.get(&row.series_id)
                && row.event_kind == "scheduled"
            {
                let event = (row.start_ts, row.end_ts, row.intensity);
                all[place].events.push(event);
            }
        }
    }
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    for file in files {
        let is_csv = file.extension().is_some_and(|e| e == "csv");
        if !is_csv
            || file
                .file_name()
                .is_some_and(|name| OTHERS.iter().any(|other| name == *other))
        {
            continue;
        }
        for row in rows::<SampleRow>(&file)? {
            // Series that the manifest leaves out are not asked for.
            if let Some(&place) = places.get(&row.series_id) {
                let index = all[place].index(row.timestamp)?;
                all[place].samples[index] = Some(row.value);
            }
        }
    }
    Ok(all)
}

impl Series {
    /// Asks for forecasts at a sample, beside those that were asked for before.
    pub(crate) fn ask(&mut self, index: usize, is_decision: bool) {
        let origin = self.origins.entry(index).or_default();
        if is_decision {
            origin.steps.extend(&self.scoring.steps_b);
            origin.is_decision = true;
        } else {
            origin.steps.extend(&self.scoring.steps_a);
            origin.is_accuracy = true;
        }
    }

    /// The sample at an index, which may lie outside.
    pub(crate) fn at(&self, index: usize) -> Option<f64> {
        self.samples.get(index).copied().flatten()
    }

    /// The sample at each index, and the last one before it where it is missing.
    pub(crate) fn carried(&self) -> Vec<f64> {
        let mut last = f64::NAN;
        let carry = |sample: &Option<f64>| {
            last = sample.unwrap_or(last);
            last
        };
        self.samples.iter().map(carry).collect()
    }

    fn index(&self, at: i64) -> Result<usize> {
        let index = (at - self.start).div_euclid(self.interval_s);
        usize::try_from(index)
            .ok()
            .filter(|&index| index < self.samples.len())
            .with_context(|| format!("{}: {at} lies outside of the series", self.id))
    }
}

fn list(text: &str) -> Result<Vec<usize>> {
    text.split(';')
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().with_context(|| format!("steps: {part}")))
        .collect()
}

fn rows<T: for<'a> Deserialize<'a>>(file: &Path) -> Result<Vec<T>> {
    let name = || file.display().to_string();
    csv::Reader::from_path(file)
        .with_context(name)?
        .into_deserialize()
        .collect::<Result<_, _>>()
        .with_context(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_stay_gaps_and_an_origin_of_both_sets_asks_each_step_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("written");
        };
        write(
            "manifest.csv",
            "series_id,note,interval_s,start_ts,end_ts,unit,steps_a,steps_b,threshold\n\
             a,\"x, y\",60,600,900,percent,1;2;9,1;3,5.5\nb,,60,0,60,count,1,,\n",
        );
        write(
            "origins.csv",
            "set,series_id,origin_ts\nA,a,660\nB,a,660\nB,a,720\n",
        );
        write(
            "events.csv",
            "series_id,event_kind,start_ts,end_ts,intensity,note\n\
             a,scheduled,660,720,2,x\na,anomaly_label,600,660,0,y\nz,scheduled,0,60,1,\n",
        );
        write(
            "one.csv",
            "series_id,timestamp,value\na,600,1\na,660,2.5\na,900,3\nb,0,7\nz,0,1\n",
        );
        let all = read(folder.path()).expect("read");
        let a = &all[0];
        assert_eq!(
            a.samples,
            [Some(1.0), Some(2.5), None, None, None, Some(3.0)]
        );
        assert!(a.is_percent && !all[1].is_percent);
        assert_eq!(
            (&a.events, &all[1].events),
            (&vec![(660, 720, 2.0)], &vec![])
        );
        assert_eq!((a.threshold, all[1].threshold), (Some(5.5), None));
        let steps = |index: usize| a.origins[&index].steps.iter().copied().collect::<Vec<_>>();
        assert_eq!(steps(1), [1, 2, 3, 9]);
        assert_eq!(steps(2), [1, 3]);
        assert!(a.origins[&1].is_accuracy && a.origins[&1].is_decision);
        assert!(!a.origins[&2].is_accuracy);
        assert_eq!(a.carried(), [1.0, 2.5, 2.5, 2.5, 2.5, 3.0]);
    }

    #[test]
    fn an_origin_outside_of_its_series_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("written");
        };
        write(
            "manifest.csv",
            "series_id,interval_s,start_ts,end_ts,unit,steps_a,threshold\na,60,0,60,count,1,\n",
        );
        write("origins.csv", "set,series_id,origin_ts\nA,a,120\n");
        let error = read(folder.path()).expect_err("refused");
        assert!(error.to_string().contains("a: 120 lies outside"), "{error}");
    }
}
