//! `[proxy]`: how long what is left has to end.

use super::ConfigError;
use super::validate::Rules;
use sim_proxy::config::STREAM_GRACE;
use std::time::Duration;

/// `proxy.stream_grace_s`.
pub(super) fn stream_grace(rules: &Rules<'_>, given: Option<f64>) -> Result<Duration, ConfigError> {
    let key = "proxy.stream_grace_s";
    let seconds = given.unwrap_or(STREAM_GRACE.as_secs_f64());
    let is_good = |seconds| (0.0..=86_400.0).contains(&seconds);
    let seconds = rules.number(key, seconds, is_good, "0 to 86400")?;
    Ok(Duration::from_secs_f64(seconds))
}
