//! Sessions that stay with an instance: what a request's session is, and which instance it belongs to.
//!
//! No session is remembered. Each has a key, and each instance runs an exponential clock seeded by both, as fast as
//! its weight; the first to ring has the session (weighted rendezvous hashing; Thaler and Ravishankar 1998, weights after
//! Schindelhauer and Schomaker 2005). So every proxy agrees, restarts included, the weights are obeyed, and when they
//! move only as many sessions move as must: in a shift from one instance to another each moves once, and none back.

use crate::health::Standing;
use crate::pick::{How, Pick};
use crate::snapshot::Upstream;
use crate::tickets::{draw, mix};
use sim_core::name::InstanceId;
use std::net::IpAddr;
use xxhash_rust::xxh3::xxh3_64;

/// What makes requests belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// The user's address.
    Source,
    /// The value of a header field; requests without it go by the weights. Lower case.
    Header(Box<str>),
    /// The value of a cookie. Who brings none is given one.
    Cookie(Box<str>),
}

impl std::fmt::Display for Sticky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Source => f.write_str("the user's address"),
            Self::Header(name) => write!(f, "the field {name}"),
            Self::Cookie(name) => write!(f, "the cookie {name}"),
        }
    }
}

impl Sticky {
    /// The session that a header field names.
    #[must_use]
    pub fn named_by(&self, field: &str, value: &[u8]) -> Option<SessionKey> {
        match self {
            Self::Source => None,
            Self::Header(name) => field
                .eq_ignore_ascii_case(name)
                .then(|| SessionKey::of(value)),
            Self::Cookie(name) if field.eq_ignore_ascii_case("cookie") => {
                cookie(value, name).map(SessionKey::of)
            }
            Self::Cookie(_) => None,
        }
    }
}

/// A session, by a hash of what names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionKey(u64);

impl SessionKey {
    /// Of a header field's or cookie's value.
    #[must_use]
    pub fn of(value: &[u8]) -> Self {
        Self(xxh3_64(value))
    }

    /// Of a user's address. One that was mapped to IPv6 is the same user.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::of(&address.octets()),
            IpAddr::V6(address) => Self::of(&address.octets()),
        }
    }

    /// Where it comes in the order in which sessions go back to an instance, of 2^64.
    fn turn(self, instance: InstanceId) -> u64 {
        mix(mix(self.0 ^ mix(instance.0)))
    }

    /// When the clock of `instance` rings, at weight 1: exponentially distributed, mean 1.
    fn clock(self, instance: InstanceId) -> f64 {
        let drawn = mix(self.0 ^ mix(instance.0));
        // 53 bits, as many as there are to a float, and never 0.
        let uniform = ((drawn >> 11) + 1) as f64 / 9_007_199_254_740_992.0;
        -uniform.ln()
    }
}

/// The cookie named `name` in the value of a `Cookie` field, if it isn't empty.
#[must_use]
pub fn cookie<'a>(value: &'a [u8], name: &str) -> Option<&'a [u8]> {
    value.split(|&byte| byte == b';').find_map(|pair| {
        let rest = pair.trim_ascii().strip_prefix(name.as_bytes())?;
        let value = rest.strip_prefix(b"=")?;
        (!value.is_empty()).then_some(value)
    })
}

/// A session for who has none: its cookie's value, 16 hexadecimal digits. No secret: it decides where a request goes
/// and nothing else.
#[must_use]
pub(crate) fn new_session() -> [u8; 16] {
    let drawn = draw();
    let mut digits = *b"0123456789abcdef";
    for (at, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(drawn >> (4 * at)) as usize & 15];
    }
    digits
}

/// The field that gives the session `value` to a user, its line end included. Of the session, since it says nothing that
/// should outlive the browser; for all paths: workloads of one host share the cookie, and each has an instance for it.
pub(crate) fn write_set_cookie(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"Set-Cookie: ");
    out.extend_from_slice(set_cookie_value(name, value).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The value of that field.
pub(crate) fn set_cookie_value(name: &str, value: &[u8]) -> String {
    let value = String::from_utf8_lossy(value);
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax")
}

/// The instance of a session. Where it is out, the one that would have been next has the session meanwhile; the others'
/// sessions stay. `None`: no instance with a weight is in.
pub(crate) fn pick(
    upstreams: &[Upstream],
    key: SessionKey,
    now_ns: u64,
    not: Option<InstanceId>,
) -> Option<Pick> {
    let usable = |u: &Upstream| u.ready && u.weight_bp > 0 && Some(u.instance) != not;
    let first = |fits: &dyn Fn(&Upstream) -> bool| {
        let rings = |u: &Upstream| key.clock(u.instance) / f64::from(u.weight_bp);
        let candidates = upstreams.iter().enumerate();
        let candidates = candidates.filter(|(_, u)| usable(u) && fits(u));
        candidates
            .map(|(at, u)| (at, rings(u)))
            .min_by(|(_, one), (_, other)| one.total_cmp(other))
            .map(|(at, _)| at)
    };
    let standing = |u: &Upstream| u.live.standing(now_ns);
    let own = first(&|_| true)?;
    let home = &upstreams[own];
    let others = |u: &Upstream| u.instance != home.instance && standing(u) == Standing::In;
    match standing(home) {
        // An instance that comes back gets its sessions back one after the other.
        Standing::In if key.turn(home.instance) > home.live.health().ramp().part(now_ns) => {
            first(&others).or(Some(own)).map(|at| (at, How::Share))
        }
        Standing::In => Some((own, How::Share)),
        // A second attempt is no probe.
        Standing::ProbeDue if not.is_none() => Some((own, How::Probe)),
        Standing::ProbeDue | Standing::Out => {
            first(&|u| standing(u) == Standing::In).map(|at| (at, How::Share))
        }
    }
    .map(|(at, how)| Pick { at, how })
}

#[cfg(test)]
mod tests;
