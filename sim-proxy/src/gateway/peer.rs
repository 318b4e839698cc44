//! An instance as Pingora is told to connect to it.

use crate::attempt::Attempt;
use crate::tls::instances::InstanceTls;
use pingora_core::upstreams::peer::{HttpPeer, PeerOptions};
use pingora_error::Result;
use sim_core::address::Address;

/// Where `attempt` goes, over TLS if its workload says how.
pub(super) fn peer(
    attempt: &Attempt,
    options: &PeerOptions,
    tls: Option<&InstanceTls>,
) -> Result<HttpPeer> {
    let at = |secured: bool, name: String| match attempt.address() {
        Address::Inet(address) => Ok(HttpPeer::new(address, secured, name)),
        Address::Unix(path) => HttpPeer::new_uds(path, secured, name),
    };
    let Some(tls) = tls else {
        let mut peer = at(false, String::new())?;
        peer.options = options.clone();
        return Ok(peer);
    };
    let material = tls.material();
    // With a name: without one Pingora checks no certificate.
    let mut peer = at(true, material.name.to_str().into_owned())?;
    peer.options = options.clone();
    peer.options.ca = Some(material.ca.clone());
    peer.client_cert_key.clone_from(&material.identity);
    // Connections by what was read before are not used again.
    peer.group_key = material.id;
    Ok(peer)
}
