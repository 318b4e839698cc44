//! The same demand met with the forecast and without it, side by side.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::screen::Screen;
use super::settings::RUN_SECONDS_MAX;
use super::verdict::{Figures, Quantiles, shown};
use crate::world::process::{Guarded, Placement};

/// Runs this program again with `arguments`, which must make it write its figures to `json`.
/// Gives the figures and whether every promise was kept.
///
/// # Errors
/// It could not be run, or came to no figures.
pub async fn run_again(arguments: &[String], json: &Path) -> Result<(Figures, bool)> {
    let own = std::env::current_exe().context("path of this program")?;
    let mut command = Command::new(own);
    command
        .args(arguments)
        .arg("--json")
        .arg(json)
        .stdin(Stdio::null());
    // It tears down itself; it gets the time of a whole teardown for it.
    let grace = Duration::from_secs(40);
    let mut child = Guarded::spawn(
        "sim-demo",
        command,
        Placement::default(),
        Signal::SIGTERM,
        grace,
    )?;
    let deadline = std::time::Instant::now() + Duration::from_secs(RUN_SECONDS_MAX + 60);
    while child.ended().is_none() && std::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ended = child.ended().context("a run did not end")?;
    let text = std::fs::read_to_string(json).with_context(|| format!("{ended}; no figures"))?;
    let figures = serde_json::from_str(&text).context("figures of a run")?;
    Ok((figures, ended.ends_with("exit status: 0")))
}

/// How a figure is shown.
type Figure<'a> = &'a dyn Fn(&Figures) -> String;

/// One row for each figure.
pub fn show(screen: &mut Screen, forecast: &Figures, reactive: &Figures) {
    let p99 = |quantiles: Option<Quantiles>| shown(quantiles.map(|q| q.p99_ms));
    let rows: [(&str, Figure<'_>); 10] = [
        ("requests sent", &|f| f.requests_sent.to_string()),
        ("failed, planned move", &|f| {
            f.failed_planned_move.to_string()
        }),
        ("failed, kill, idempotent", &|f| {
            f.failed_kill_idempotent.to_string()
        }),
        ("failed, kill, other", &|f| f.failed_kill_other.to_string()),
        ("p99 before, ms", &|f| p99(f.before)),
        ("p99 during, ms", &|f| p99(f.during)),
        ("p99 after, ms", &|f| p99(f.after)),
        ("p99 during / before", &|f| shown(f.p99_during_over_before)),
        ("lead time left, s", &|f| shown(f.lead_left_seconds)),
        ("failover, ms", &|f| shown(f.failover_ms)),
    ];
    screen.line("");
    screen.line(&format!("{:<26}{:>14}{:>14}", "", "forecast", "reactive"));
    for (name, figure) in rows {
        screen.line(&format!(
            "{name:<26}{:>14}{:>14}",
            figure(forecast),
            figure(reactive)
        ));
    }
}
