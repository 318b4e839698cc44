//! An instance as Pingora is told to connect to it.

use crate::attempt::Attempt;
use crate::tls::instances::InstanceTls;
use pingora_core::upstreams::peer::{HttpPeer, PeerOptions};

/// Where `attempt` goes, over TLS if its workload says how.
pub(super) fn peer(
    attempt: &Attempt,
    options: &PeerOptions,
    tls: Option<&InstanceTls>,
) -> HttpPeer {
    let Some(tls) = tls else {
        let mut peer = HttpPeer::new(attempt.address(), false, String::new());
        peer.options = options.clone();
        return peer;
    };
    let material = tls.material();
    // With a name: without one Pingora checks no certificate.
    let name = material.name.to_str().into_owned();
    let mut peer = HttpPeer::new(attempt.address(), true, name);
    peer.options = options.clone();
    peer.options.ca = Some(material.ca.clone());
    peer.client_cert_key.clone_from(&material.identity);
    // Connections by what was read before are not used again.
    peer.group_key = material.id;
    peer
}
