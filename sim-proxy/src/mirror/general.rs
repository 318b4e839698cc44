//! A copy of a request of the general path, taken as it passes to the instance.

use super::{BODY_BYTES_MAX, Copying, Dropped, MARK, Mirror, NAME};
use crate::routes::Routes;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING, UPGRADE};
use pingora_http::RequestHeader;
use std::sync::Arc;

/// Fields that end here, and those that a copy has of its own: its body is whole.
const NOT_COPIED: [&str; 12] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "content-length",
    "upgrade",
    "expect",
    "http2-settings",
    "sim-mirror",
];

/// A request that is to be copied, as far as it has come.
#[derive(Debug)]
pub(crate) struct Taking {
    pub(crate) copying: Box<Copying>,
    /// Without its end.
    head: Vec<u8>,
    has_body: bool,
    body: Vec<u8>,
    /// The body that has passed, whether it is kept or not.
    body_bytes: usize,
    is_whole: bool,
}

impl Taking {
    /// Whether a request that goes to an instance with this head is to be copied.
    pub(crate) fn begin(
        mirror: &Mirror,
        routes: &Routes,
        head: &RequestHeader,
    ) -> Option<Box<Self>> {
        mirror.to(routes, |_| Some(()))?;
        let has = |name: &str| head.headers.contains_key(name);
        // A change of protocol is a conversation, and so is gRPC: nothing that can be asked twice.
        let kind = head.headers.get(CONTENT_TYPE);
        let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if has(UPGRADE.as_str()) || is_grpc {
            return None;
        }
        let method = head.method.as_str().as_bytes();
        let is_marked = || {
            head.headers
                .keys()
                .any(|name| name.as_str().as_bytes() == NAME)
        };
        let copying = mirror.to(routes, |to| mirror.draw_for(to, method, is_marked))?;
        let has_body = has(CONTENT_LENGTH.as_str()) || has(TRANSFER_ENCODING.as_str());
        Some(Box::new(Self {
            copying,
            head: written(head),
            has_body,
            body: Vec::new(),
            body_bytes: 0,
            is_whole: false,
        }))
    }

    /// The request goes to another instance, from its beginning.
    pub(crate) fn again(&mut self) {
        self.body.clear();
        self.body_bytes = 0;
        self.is_whole = false;
    }

    /// A piece of the body passed, maybe its last.
    pub(crate) fn took(&mut self, piece: Option<&Bytes>, is_last: bool) {
        if let Some(piece) = piece {
            self.body_bytes += piece.len();
            if self.body_bytes <= BODY_BYTES_MAX {
                self.body.extend_from_slice(piece);
            } else {
                self.body = Vec::new();
            }
        }
        self.is_whole |= is_last;
    }

    /// Queues the copy: the request is over.
    pub(crate) fn offer(self, mirror: &Arc<Mirror>) {
        if self.body_bytes > BODY_BYTES_MAX {
            return mirror.counts().dropped(Dropped::TooLarge);
        }
        if !self.is_whole {
            return mirror.counts().dropped(Dropped::Incomplete);
        }
        let length = if self.has_body || !self.body.is_empty() {
            format!("Content-Length: {}\r\n\r\n", self.body.len())
        } else {
            "\r\n".to_owned()
        };
        mirror.offer(*self.copying, &[&self.head, length.as_bytes(), &self.body]);
    }
}

/// The head as HTTP/1.1 has it, with the mark and without its end.
fn written(head: &RequestHeader) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    let mut line = |parts: [&[u8]; 4]| parts.iter().for_each(|part| out.extend_from_slice(part));
    let method = head.method.as_str().as_bytes();
    line([method, b" ", head.raw_path(), b" HTTP/1.1\r\n"]);
    line([MARK, b"", b"", b""]);
    if let Some(authority) = head.uri.authority()
        && !head.headers.contains_key(HOST)
    {
        line([b"Host: ", authority.as_str().as_bytes(), b"\r\n", b""]);
    }
    for (name, value) in &head.headers {
        if !NOT_COPIED.contains(&name.as_str()) {
            line([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_one_length_and_nothing_that_ends_here() {
        let mut head = RequestHeader::build("POST", b"/a?b=%20", None).expect("a head");
        for (name, value) in [
            ("Host", "a"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "keep-alive"),
            ("Expect", "100-continue"),
            ("X-A", "1"),
            ("X-A", "2"),
        ] {
            head.append_header(name, value).expect("a field");
        }
        let text = String::from_utf8(written(&head)).expect("text");
        assert_eq!(
            text,
            "POST /a?b=%20 HTTP/1.1\r\nSim-Mirror: 1\r\nhost: a\r\nx-a: 1\r\nx-a: 2\r\n"
        );
    }
}
