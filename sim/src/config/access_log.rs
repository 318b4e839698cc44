//! `[proxy.access_log]`.

use super::ConfigError;
use super::validate::Rules;
use serde::Deserialize;
use sim_proxy::access_log::{AccessLogSettings, Destination};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AccessLogTable {
    path: PathBuf,
    #[serde(default = "all")]
    sample: f64,
    #[serde(default = "yes")]
    always_failed: bool,
    slow_ms: Option<f64>,
    #[serde(default)]
    query: bool,
}

fn all() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

pub(super) fn access_log(
    rules: &Rules<'_>,
    table: AccessLogTable,
) -> Result<AccessLogSettings, ConfigError> {
    let to = match table.path.to_str() {
        Some("stdout") => Destination::Stdout,
        Some("stderr") => Destination::Stderr,
        _ if table.path.is_absolute() => Destination::File(table.path),
        _ => {
            let found = format!("{:?}", table.path);
            let allowed = "must be an absolute path, \"stdout\" or \"stderr\"";
            return Err(rules.broken("proxy.access_log.path", found, allowed));
        }
    };
    let share = |share: f64| (0.0..=1.0).contains(&share);
    let wait = |ms: f64| (0.0..=3_600_000.0).contains(&ms);
    let slow_ms = table
        .slow_ms
        .map(|ms| rules.number("proxy.access_log.slow_ms", ms, wait, "0 to 3600000"));
    Ok(AccessLogSettings {
        to,
        sample: rules.number("proxy.access_log.sample", table.sample, share, "0 to 1")?,
        always_failed: table.always_failed,
        slow: slow_ms
            .transpose()?
            .map(|ms| Duration::from_secs_f64(ms / 1e3)),
        query: table.query,
    })
}

/// What is logged, and where.
pub(super) fn words(settings: &AccessLogSettings) -> String {
    let mut also = Vec::new();
    if settings.always_failed {
        also.push("all that fail".to_owned());
    }
    if let Some(slow) = settings.slow {
        also.push(format!("all of {} ms and more", slow.as_secs_f64() * 1e3));
    }
    // Who logs every one needs no exception.
    let also = if also.is_empty() || settings.sample >= 1.0 {
        String::new()
    } else {
        format!(" and {}", also.join(" and "))
    };
    let query = if settings.query {
        ", with their queries"
    } else {
        ""
    };
    let percent = settings.sample * 100.0;
    let to = settings.to.path();
    format!("{percent} % of requests{also}{query}, to {}", to.display())
}

/// Whether this user may append to the file `path`, or make it.
pub(super) fn check(path: &Path) -> Result<(), nix::errno::Errno> {
    if path.is_dir() {
        return Err(nix::errno::Errno::EISDIR);
    }
    let there = if path.exists() {
        Some(path)
    } else {
        path.parent()
    };
    let there = there.ok_or(nix::errno::Errno::ENOENT)?;
    sim_node::cgroup::may(there, nix::unistd::AccessFlags::W_OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_told_where_not_every_request_is_logged() {
        let mut settings = AccessLogSettings {
            to: Destination::Stdout,
            sample: 1.0,
            always_failed: true,
            slow: Some(Duration::from_millis(250)),
            query: false,
        };
        assert_eq!(words(&settings), "100 % of requests, to stdout");
        (settings.sample, settings.query) = (0.25, true);
        assert_eq!(
            words(&settings),
            "25 % of requests and all that fail and all of 250 ms and more, with their queries, to stdout"
        );
        (settings.always_failed, settings.slow) = (false, None);
        assert_eq!(
            words(&settings),
            "25 % of requests, with their queries, to stdout"
        );
    }
}
