//! What instances are told of a request: `proxy.trusted_proxies`, `proxy.forwarded`, `[proxy.trace]`.

use super::ConfigError;
use super::validate::Rules;
use serde::Deserialize;
use sim_proxy::forwarded::ForwardSettings;
use sim_proxy::network::{Network, NoNetwork};
use sim_proxy::trace::TraceSettings;

/// `[proxy.trace]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceTable {
    sample: f64,
}

/// `[proxy.trace]`, where it is there.
pub(super) fn trace(
    rules: &Rules<'_>,
    table: Option<&TraceTable>,
) -> Result<Option<TraceSettings>, ConfigError> {
    let Some(table) = table else { return Ok(None) };
    let is_share = |share| (0.0..=1.0).contains(&share);
    let sample = rules.number("proxy.trace.sample", table.sample, is_share, "0 to 1")?;
    Ok(Some(TraceSettings { sample }))
}

/// The two others.
pub(super) fn forward(
    rules: &Rules<'_>,
    trusted: &[String],
    forwarded: bool,
) -> Result<ForwardSettings, ConfigError> {
    let network = |text: &String| {
        text.parse::<Network>().map_err(|wrong: NoNetwork| {
            let allowed = wrong.to_string();
            rules.broken("proxy.trusted_proxies", format!("{text:?}"), &allowed)
        })
    };
    Ok(ForwardSettings {
        trusted: trusted.iter().map(network).collect::<Result<_, _>>()?,
        forwarded,
    })
}
