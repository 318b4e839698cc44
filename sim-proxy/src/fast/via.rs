//! What this hop adds to a request, made once for a connection as far as it can be; see [`crate::forwarded`].

use crate::forwarded::{self, ForwardSettings, Node, Told};
use std::net::IpAddr;

/// The user of a connection.
#[derive(Debug, Default)]
pub(super) struct Via {
    hop: Option<Hop>,
    is_trusted: bool,
    is_tls: bool,
    /// `Forwarded` is written whether or not it came.
    forwarded: bool,
}

#[derive(Debug)]
struct Hop {
    address: Box<str>,
    /// As RFC 7239 wants it.
    node: Box<str>,
}

/// What came of it in a request, from who is trusted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Came {
    lists: bool,
    proto: bool,
    host: bool,
}

impl Via {
    /// Of a user at `client`; nothing of it is told where that isn't known.
    pub(super) fn of(client: Option<IpAddr>, is_tls: bool, settings: &ForwardSettings) -> Self {
        let hop = client.map(|client| Hop {
            address: client.to_string().into(),
            node: Node(client).to_string().into(),
        });
        Self {
            hop,
            is_trusted: settings.trusts(client),
            is_tls,
            forwarded: settings.forwarded,
        }
    }

    /// Bytes that a head may grow by, beside its host, which may stand in it twice.
    pub(super) fn room(&self) -> usize {
        const FIXED: usize =
            "X-Forwarded-For: , \r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: \r\n".len()
                + "Forwarded: , ;host=\"\";proto=https\r\n".len();
        let hop = |hop: &Hop| hop.address.len() + hop.node.len();
        FIXED + self.hop.as_ref().map_or(0, hop)
    }

    /// Whether a field that tells of the way up to here passes as it is; notes that it came.
    pub(super) fn passes(&self, told: Told, came: &mut Came) -> bool {
        match told {
            Told::Disguised => false,
            _ if !self.is_trusted => false,
            Told::For | Told::Forwarded => {
                came.lists = true;
                false
            }
            Told::Proto => {
                came.proto = true;
                true
            }
            Told::Host => {
                came.host = true;
                true
            }
            Told::Other => true,
        }
    }

    /// Writes the fields. `values` gives what came in one of the two lists.
    pub(super) fn write<'a, I: Iterator<Item = &'a [u8]>>(
        &self,
        came: Came,
        values: impl Fn(Told) -> I,
        host: &[u8],
        out: &mut Vec<u8>,
    ) {
        let Some(hop) = &self.hop else { return };
        let came_before = |told| came.lists.then(|| values(told)).into_iter().flatten();
        out.extend_from_slice(b"X-Forwarded-For: ");
        write_list(came_before(Told::For), hop.address.as_bytes(), out);
        out.extend_from_slice(b"\r\n");
        if !came.proto {
            out.extend_from_slice(b"X-Forwarded-Proto: ");
            out.extend_from_slice(forwarded::proto(self.is_tls).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        let host = Some(host).filter(|host| forwarded::is_plain_host(host));
        if let Some(host) = host
            && !came.host
        {
            out.extend_from_slice(b"X-Forwarded-Host: ");
            out.extend_from_slice(host);
            out.extend_from_slice(b"\r\n");
        }
        if self.forwarded || came_before(Told::Forwarded).next().is_some() {
            out.extend_from_slice(b"Forwarded: ");
            write_list(came_before(Told::Forwarded), hop.node.as_bytes(), out);
            forwarded::write_element(host, self.is_tls, out);
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn write_list<'a>(values: impl Iterator<Item = &'a [u8]>, last: &[u8], out: &mut Vec<u8>) {
    for value in values {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(last);
}
