//! Addresses that are listened on: no two may be the same.

use super::validate::Rules;
use super::{ConfigError, Front, Server};
use std::net::SocketAddr;

/// The addresses of the proxy, of which no two can be listened on at once.
pub(super) fn apart(
    rules: &Rules<'_>,
    front: &Front,
) -> Result<Vec<(&'static str, SocketAddr)>, ConfigError> {
    let clear = front.listen.map(|listen| ("proxy.listen", listen));
    let tls = front.tls.as_ref();
    let tls = tls.map(|tls| ("proxy.tls.listen", tls.listen));
    if clear.is_none() && tls.is_none() {
        let allowed = "must be there, or proxy.tls.listen";
        return Err(rules.broken("proxy.listen", "(none)", allowed));
    }
    let mut taken: Vec<(&str, SocketAddr)> = clear.into_iter().chain(tls).collect();
    taken.push(("proxy.admin", front.admin));
    for (at, (key, address)) in taken.iter().enumerate() {
        let rival =
            |(_, other): &&(&str, SocketAddr)| address.port() != 0 && collide(*other, *address);
        if let Some((other, _)) = taken[..at].iter().find(rival) {
            return Err(rules.broken(key, address, &format!("must differ from {other}")));
        }
    }
    Ok(taken)
}

/// Each node listens for itself: in one network namespace no two can have the same address.
pub(super) fn metrics_apart(
    rules: &Rules<'_>,
    servers: &[Server],
    taken: &[(&str, SocketAddr)],
) -> Result<(), ConfigError> {
    for (at, server) in servers.iter().enumerate() {
        let Some(address) = server.metrics.filter(|address| address.port() != 0) else {
            continue;
        };
        let name = &server.spec.name;
        let rival = servers[..at]
            .iter()
            .find(|other| {
                let same = other.metrics.is_some_and(|taken| collide(taken, address));
                same && other.netns == server.netns
            })
            .map(|other| format!("server {}", other.spec.name));
        // The proxy is in the namespace of whoever starts it.
        let of_proxy = taken
            .iter()
            .find(|(_, other)| server.netns.is_none() && collide(*other, address))
            .map(|(key, _)| (*key).to_owned());
        if let Some(rival) = rival.or(of_proxy) {
            let key = format!("server {name}: metrics");
            let allowed = format!("is taken by {rival}; give each its own");
            return Err(rules.broken(&key, address, &allowed));
        }
    }
    Ok(())
}

/// Whether not both can be listened on.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let (every, same) = (
        a.ip().is_unspecified() || b.ip().is_unspecified(),
        a.ip() == b.ip(),
    );
    a.port() == b.port() && (every || same)
}
