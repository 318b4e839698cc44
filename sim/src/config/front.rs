//! `[proxy]` beyond its addresses: what decides where a request goes.

use super::ConfigError;
use super::file::{HedgeTable, StickyTable};
use super::validate::Rules;
use sim_proxy::config::HedgeSettings;
use sim_proxy::policy::{POLICIES, Policy};
use sim_proxy::sticky::Sticky;
use std::time::Duration;

/// Longest name of a header field or cookie, bytes.
const NAME_BYTES_MAX: usize = 128;

/// `proxy.policy`.
pub(super) fn policy(rules: &Rules<'_>, name: &str) -> Result<Policy, ConfigError> {
    let known = POLICIES.iter().find(|(_, known)| *known == name);
    known.map(|&(policy, _)| policy).ok_or_else(|| {
        let names: Vec<_> = POLICIES.iter().map(|(_, name)| *name).collect();
        let allowed = format!("must be one of {}", names.join(", "));
        rules.broken("proxy.policy", format!("{name:?}"), &allowed)
    })
}

/// `[proxy.sticky]`.
pub(super) fn sticky(rules: &Rules<'_>, table: StickyTable) -> Result<Sticky, ConfigError> {
    let name = || match &table.name {
        Some(name) if is_token(name) => Ok(name.as_str()),
        Some(name) => {
            let allowed =
                format!("must be 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9 and !#$%&'*+-.^_`|~");
            Err(rules.broken("proxy.sticky.name", format!("{name:?}"), &allowed))
        }
        None => {
            let allowed = format!("must be there with proxy.sticky.by = {:?}", table.by);
            Err(rules.broken("proxy.sticky.name", "(none)", &allowed))
        }
    };
    match table.by.as_str() {
        "source" if table.name.is_some() => {
            let allowed = "must not be there with proxy.sticky.by = \"source\"";
            let found = format!("{:?}", table.name.unwrap_or_default());
            Err(rules.broken("proxy.sticky.name", found, allowed))
        }
        "source" => Ok(Sticky::Source),
        "header" => Ok(Sticky::Header(name()?.to_ascii_lowercase().into())),
        "cookie" => Ok(Sticky::Cookie(name()?.into())),
        other => {
            let allowed = "must be one of cookie, header, source";
            Err(rules.broken("proxy.sticky.by", format!("{other:?}"), allowed))
        }
    }
}

/// `[proxy.hedge]`.
pub(super) fn hedge(rules: &Rules<'_>, table: &HedgeTable) -> Result<HedgeSettings, ConfigError> {
    let quantile = rules.number(
        "proxy.hedge.quantile",
        table.quantile,
        |q| q == 0.0 || (0.5..=0.9999).contains(&q),
        "0.5 to 0.9999, or 0 for no hedging",
    )?;
    let floor_ms = rules.number(
        "proxy.hedge.floor_ms",
        table.floor_ms,
        |ms| (1.0..=60_000.0).contains(&ms),
        "1 to 60000",
    )?;
    let late_factor = table.late_factor;
    if !(2..=1_000).contains(&late_factor) {
        return Err(rules.broken("proxy.hedge.late_factor", late_factor, "must be 2 to 1000"));
    }
    Ok(HedgeSettings {
        quantile,
        floor: Duration::from_secs_f64(floor_ms / 1e3),
        late_factor,
    })
}

/// A token (RFC 9110, section 5.6.2), as names of fields and of cookies are.
fn is_token(name: &str) -> bool {
    let is_token_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_token_byte)
}
