//! The program on show, spoken to only as any operator could: its command line, its journal,
//! its proxy's metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::Value;
use sim_core::journal::Record;
use tokio::sync::mpsc;

use super::settings::STOP_GRACE;
use crate::load::request::{HttpClient, client, get};
use crate::world::leftovers::MARK;
use crate::world::process::{Guarded, Placement};

/// One line of `sim journal --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    /// Its place in the journal.
    pub sequence: u64,
    /// What it says.
    #[serde(flatten)]
    pub record: Record,
}

/// A running `sim run`, stopped when dropped.
#[derive(Debug)]
pub struct Sim {
    program: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    process: Guarded,
}

impl Sim {
    /// Starts the supervisor; its log goes to `log`. `folder` is the run's own and holds the
    /// runtime folder `run`.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(program: &Path, config: &Path, folder: &Path, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg("--config")
            .arg(config)
            .env(MARK, folder);
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let process = Guarded::spawn(
            "sim run",
            command,
            Placement::default(),
            Signal::SIGTERM,
            STOP_GRACE,
        )
        .with_context(|| program.display().to_string())?;
        Ok(Self {
            program: program.to_owned(),
            socket: folder.join("run/control.sock"),
            log: log.to_owned(),
            process,
        })
    }

    /// Waits until the control plane answers.
    ///
    /// # Errors
    /// The supervisor ended, or nothing answers in time.
    pub async fn ready(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            self.alive()?;
            let error = match self.status().await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if Instant::now() > deadline {
                return Err(error.context(format!("no control plane after {patience:?}")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the proxy whose admin listens at `admin` has tables by which `count` instances are ready.
    ///
    /// # Errors
    /// The supervisor ended, or a minute was not enough.
    pub async fn ready_in_proxy(&mut self, admin: SocketAddr, count: usize) -> Result<()> {
        let (client, deadline) = (client(), Instant::now() + Duration::from_secs(60));
        loop {
            self.alive()?;
            let page = get(&client, admin, "/metrics").await.unwrap_or_default();
            let page = String::from_utf8_lossy(&page);
            let ready = |line: &&str| line.starts_with("sim_proxy_ready{") && line.ends_with(" 1");
            if page.lines().filter(ready).count() >= count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the proxy knows of no {count} that are ready: {page}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// # Errors
    /// The supervisor ended; with the end of its log.
    pub fn alive(&mut self) -> Result<()> {
        match self.process.ended() {
            None => Ok(()),
            Some(end) => bail!("{end}\n{}", self.log_tail()),
        }
    }

    /// Last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// `sim status`.
    ///
    /// # Errors
    /// It fails, or takes more than three seconds.
    pub async fn status(&self) -> Result<Status> {
        let output = self.ask(&["status", "--socket"], &["--json"]).await?;
        Ok(Status(
            serde_json::from_str(&output).context("sim status --json")?,
        ))
    }

    /// `sim standby`.
    ///
    /// # Errors
    /// It fails.
    pub async fn standby(&self, workload: &str, policy: &str) -> Result<()> {
        self.ask(&["standby", "--socket"], &[workload, policy])
            .await
            .map(drop)
    }

    /// Follows the journal from its beginning.
    ///
    /// # Errors
    /// `sim journal` could not be started.
    pub fn journal(&self) -> Result<Journal> {
        let mut command = Command::new(&self.program);
        command
            .arg("journal")
            .arg("--socket")
            .arg(&self.socket)
            .args(["--follow", "--json"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = Guarded::spawn(
            "sim journal",
            command,
            Placement::default(),
            Signal::SIGKILL,
            Duration::from_secs(1),
        )
        .context("sim journal")?;
        let stdout = process.stdout().context("sim journal: no output")?;
        let (sender, entries) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                for line in BufReader::new(stdout).lines() {
                    let entry = line.context("sim journal").and_then(|line| {
                        serde_json::from_str(&line).with_context(|| format!("sim journal: {line}"))
                    });
                    if sender.send(entry).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Journal {
            _process: process,
            entries,
        })
    }

    /// Stops everything it runs. Says whether it did so in time.
    pub fn stop(mut self) -> bool {
        self.process.stop()
    }

    async fn ask(&self, before: &[&str], after: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(before)
            .arg(&self.socket)
            .args(after)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let name = format!("sim {}", before[0]);
        let output = tokio::time::timeout(Duration::from_secs(30), command.output())
            .await
            .with_context(|| format!("{name}: no answer in 30 s"))?
            .with_context(|| name.clone())?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{name}: {}: {}",
            output.status,
            errors.trim()
        );
        String::from_utf8(output.stdout).context(name)
    }
}

/// Journal entries as they come.
#[derive(Debug)]
pub struct Journal {
    _process: Guarded,
    entries: mpsc::UnboundedReceiver<Result<Entry>>,
}

impl Journal {
    /// The next entry. Safe to cancel.
    ///
    /// # Errors
    /// The stream ended or an entry can't be read.
    pub async fn next(&mut self) -> Result<Entry> {
        self.entries.recv().await.context("sim journal ended")?
    }
}

/// What `sim status --json` says.
#[derive(Clone, Debug)]
pub struct Status(Value);

/// A running instance, by the status.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its id.
    pub instance: u64,
    /// Server it runs on.
    pub server: String,
    /// Main process.
    pub pid: i32,
    /// `CLOCK_MONOTONIC` of its death; 0 while it lives or where unknown.
    pub died_monotonic_ns: u64,
}

impl Status {
    /// An instance by id, dead or alive.
    #[must_use]
    pub fn instance(&self, id: u64) -> Option<Running> {
        self.servers().find_map(|server| {
            let found = list(server, "instances").find(|i| identity(&i["instance"]) == Some(id))?;
            Some(Running {
                instance: id,
                server: server["server"].as_str().unwrap_or_default().to_owned(),
                pid: i32::try_from(found["pid"].as_i64()?).ok()?,
                died_monotonic_ns: found["died_monotonic_ns"].as_u64().unwrap_or(0),
            })
        })
    }

    /// The workload's primary.
    #[must_use]
    pub fn primary(&self, workload: &str) -> Option<u64> {
        identity(&self.workload(workload)?["primary"])
    }

    /// Share of the workload's shadow, in basis points.
    #[must_use]
    pub fn shadow_bp(&self, workload: &str) -> u64 {
        self.workload(workload)
            .and_then(|w| w["shadow_bp"].as_u64())
            .unwrap_or(0)
    }

    /// CPU time of the probes since they were loaded, over all nodes, in nanoseconds.
    #[must_use]
    pub fn probe_ns(&self) -> u64 {
        self.servers()
            .filter_map(|s| s["probes"]["run_ns_total"].as_u64())
            .sum()
    }

    /// Probes that don't run, one line for each reason.
    #[must_use]
    pub fn refused_probes(&self) -> Vec<String> {
        let mut names_by_reason: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for group in self
            .servers()
            .flat_map(|server| list(&server["probes"], "groups"))
            .filter(|group| group["active"] == Value::Bool(false))
        {
            let text = |key: &str| group[key].as_str().unwrap_or("?");
            names_by_reason
                .entry(text("refused"))
                .or_default()
                .insert(text("name"));
        }
        names_by_reason
            .into_iter()
            .map(|(reason, names)| {
                let names: Vec<&str> = names.into_iter().collect();
                format!("{}: {reason}", names.join(", "))
            })
            .collect()
    }

    fn servers(&self) -> impl Iterator<Item = &Value> {
        list(&self.0, "servers")
    }

    fn workload(&self, name: &str) -> Option<&Value> {
        list(&self.0, "workloads").find(|workload| workload["workload"] == name)
    }
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value[key]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
}

/// An instance id as a number or as people write it (`i7`).
fn identity(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_str()?.trim_start_matches('i').parse().ok())
}

/// When the proxy last picked this instance, in nanoseconds of `CLOCK_MONOTONIC`.
///
/// # Errors
/// No metrics are served.
pub async fn last_pick_ns(
    client: &HttpClient,
    admin: SocketAddr,
    instance: u64,
) -> Result<Option<u64>> {
    let body = get(client, admin, "/metrics").await?;
    Ok(parse_last_pick_ns(
        &String::from_utf8_lossy(&body),
        instance,
    ))
}

fn parse_last_pick_ns(metrics: &str, instance: u64) -> Option<u64> {
    let line = metrics.lines().find(|line| {
        line.starts_with("sim_proxy_last_pick_monotonic_seconds{")
            && (line.contains(&format!("instance=\"i{instance}\""))
                || line.contains(&format!("instance=\"{instance}\"")))
    })?;
    let seconds: f64 = line.rsplit(' ').next()?.parse().ok()?;
    Some((seconds * 1e9).round() as u64)
}

/// First attempts that `instance` answered, well or not; none before the proxy knows it.
///
/// # Errors
/// No metrics are served.
pub async fn answered(
    client: &HttpClient,
    admin: SocketAddr,
    instance: u64,
) -> Result<Option<u64>> {
    let body = get(client, admin, "/metrics").await?;
    Ok(parse_answered(&String::from_utf8_lossy(&body), instance))
}

fn parse_answered(metrics: &str, instance: u64) -> Option<u64> {
    let labels = format!("instance=\"i{instance}\",attempt=\"first\"");
    let counts = metrics
        .lines()
        .filter(|line| line.starts_with("sim_proxy_attempts_total{") && line.contains(&labels));
    counts
        .map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum::<Option<u64>>()
        .filter(|&sum| sum > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pick_of_one_instance_is_read_from_the_metrics() {
        let metrics = "# TYPE sim_proxy_last_pick_monotonic_seconds gauge\n\
            sim_proxy_last_pick_monotonic_seconds{workload=\"w\",instance=\"i3\"} 12.5\n\
            sim_proxy_last_pick_monotonic_seconds{workload=\"w\",instance=\"i13\"} 99.000000001\n";
        assert_eq!(parse_last_pick_ns(metrics, 3), Some(12_500_000_000));
        assert_eq!(parse_last_pick_ns(metrics, 13), Some(99_000_000_001));
        assert_eq!(parse_last_pick_ns(metrics, 1), None);
    }

    #[test]
    fn first_attempts_of_one_instance_are_added_up() {
        let line = |instance, attempt, count| {
            format!(
                "sim_proxy_attempts_total{{workload=\"w\",instance=\"{instance}\",attempt=\"{attempt}\",outcome=\"ok\"}} {count}\n"
            )
        };
        let metrics = line("i1", "first", 7) + &line("i1", "first", 2) + &line("i1", "retry", 40);
        let metrics = metrics + &line("i11", "first", 300);
        assert_eq!(parse_answered(&metrics, 1), Some(9));
        assert_eq!(parse_answered(&metrics, 2), None);
    }

    #[test]
    fn a_status_is_read_as_it_is_documented() {
        let status = Status(
            serde_json::from_str(
                r#"{"epoch":1,"servers":[{"server":"a","probes":{"groups":[
                {"name":"tcp","active":false,"refused":"no BTF"}],"run_ns_total":5},
                "instances":[{"instance":7,"pid":42,"died_monotonic_ns":0}]},
                {"server":"b","probes":{"groups":[],"run_ns_total":6},"instances":[]}],
                "workloads":[{"workload":"w","primary":7,"shadow_bp":500}]}"#,
            )
            .unwrap(),
        );
        assert_eq!(status.primary("w"), Some(7));
        assert_eq!(status.shadow_bp("w"), 500);
        assert_eq!(
            status.instance(7).map(|i| (i.pid, i.server)),
            Some((42, "a".to_owned()))
        );
        assert_eq!(status.probe_ns(), 11);
        assert_eq!(status.refused_probes(), ["tcp: no BTF"]);
    }

    #[test]
    fn a_journal_entry_is_a_record_with_its_sequence() {
        let line = r#"{"sequence":4,"at":1700000000000000,"workload":"w","kind":"standby_warm",
            "instance":3,"shadow_bp":100,"reason":"warm","report":null}"#;
        let entry: Entry = serde_json::from_str(line).unwrap();
        assert_eq!(entry.record.kind, sim_core::journal::Kind::StandbyWarm);
    }
}
