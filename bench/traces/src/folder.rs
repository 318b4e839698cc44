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
    pub(crate) interval_s: i64,
    pub(crate) start: i64,
    pub(crate) is_percent: bool,
    pub(crate) samples: Vec<Option<f64>>,
    /// Operator's threshold, where there is one.
    pub(crate) threshold: Option<f64>,
    /// For each index of an origin the steps that are asked for, and whether a warning is.
    pub(crate) origins: BTreeMap<usize, (BTreeSet<usize>, bool)>,
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
    let mut steps = Vec::new();
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
        steps.push([list(&row.steps_a)?, list(&row.steps_b)?]);
        all.push(Series {
            id: row.series_id,
            interval_s: row.interval_s,
            start: row.start_ts,
            is_percent: row.unit.starts_with("percent"),
            samples: vec![None; count],
            threshold: row.threshold,
            origins: BTreeMap::new(),
        });
    }
    for row in rows::<OriginRow>(&folder.join("origins.csv"))? {
        let place = *places
            .get(&row.series_id)
            .with_context(|| format!("origins.csv: unknown series {}", row.series_id))?;
        let series = &mut all[place];
        let index = series.index(row.origin_ts)?;
        let (steps, is_decision) = match row.set.as_str() {
            "A" => (&steps[place][0], false),
            "B" => (&steps[place][1], true),
            other => bail!("origins.csv: set {other}, allowed: A, B"),
        };
        let origin = series.origins.entry(index).or_default();
        origin.0.extend(steps);
        origin.1 |= is_decision;
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
        assert_eq!((a.threshold, all[1].threshold), (Some(5.5), None));
        let steps = |index: usize| a.origins[&index].0.iter().copied().collect::<Vec<_>>();
        assert_eq!(steps(1), [1, 2, 3, 9]);
        assert_eq!(steps(2), [1, 3]);
        assert!(a.origins[&1].1);
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
