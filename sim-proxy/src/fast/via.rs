//! The user's address as the lists of forwarders name it, made once for a connection.

use crate::forwarded::Node;
use std::net::IpAddr;

/// What this hop adds to `X-Forwarded-For` and `Forwarded`; see [`crate::forwarded`].
#[derive(Debug, Default)]
pub(super) struct Via {
    hop: Option<Hop>,
    /// The user came over TLS.
    secure: bool,
}

#[derive(Debug)]
struct Hop {
    address: Box<str>,
    /// As RFC 7239 wants it.
    node: Box<str>,
}

impl Via {
    /// Of a user at `client`; nothing is added where that isn't known. `secure`: it came over TLS.
    pub(super) fn of(client: Option<IpAddr>, secure: bool) -> Self {
        let hop = client.map(|client| Hop {
            address: client.to_string().into(),
            node: Node { client, secure }.to_string().into(),
        });
        Self { hop, secure }
    }

    /// Whether this hop says how the user came, and nobody else does.
    pub(super) fn names_protocol(&self) -> bool {
        self.secure
    }

    /// Bytes that a head may grow by.
    pub(super) fn room(&self) -> usize {
        const NAMES: usize = "X-Forwarded-For: , \r\nForwarded: , \r\n".len();
        let hop = |hop: &Hop| hop.address.len() + hop.node.len();
        NAMES + FORWARDED_PROTO.len() + self.hop.as_ref().map_or(0, hop)
    }

    /// The field `X-Forwarded-For` with `values` and this hop.
    pub(super) fn write_forwarded_for<'a>(
        &'a self,
        values: impl Iterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) {
        let hop = self.hop.as_ref().map(|hop| &*hop.address);
        write(b"X-Forwarded-For: ", values, hop, out);
    }

    /// The field `X-Forwarded-Proto`, if it is for this hop to say.
    pub(super) fn write_forwarded_proto(&self, out: &mut Vec<u8>) {
        if self.secure {
            out.extend_from_slice(FORWARDED_PROTO);
        }
    }

    /// The field `Forwarded` with `values` and this hop.
    pub(super) fn write_forwarded<'a>(
        &'a self,
        values: impl Iterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) {
        let hop = self.hop.as_ref().map(|hop| &*hop.node);
        write(b"Forwarded: ", values, hop, out);
    }
}

const FORWARDED_PROTO: &[u8] = b"X-Forwarded-Proto: https\r\n";

fn write<'a>(
    name: &[u8],
    values: impl Iterator<Item = &'a [u8]>,
    hop: Option<&'a str>,
    out: &mut Vec<u8>,
) {
    let mut before = name;
    for value in values.chain(hop.map(str::as_bytes)) {
        out.extend_from_slice(before);
        out.extend_from_slice(value);
        before = b", ";
    }
    if before != name {
        out.extend_from_slice(b"\r\n");
    }
}
