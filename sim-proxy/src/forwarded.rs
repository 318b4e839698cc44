//! Tells the instance who asked.

use http::header::{FORWARDED, HeaderName, HeaderValue};
use pingora_error::{ErrorType, OrErr, Result};
use pingora_http::RequestHeader;
use std::fmt::{self, Display};
use std::io::Write;
use std::net::IpAddr;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Room for `for="[…]";proto=https` around the longest address.
const HOP_BYTES_MAX: usize = 80;

/// Appends `client` to `X-Forwarded-For`, and to `Forwarded` (RFC 7239) where that came in, so
/// that neither list ends before this hop.
///
/// What stands in the lists already is what the user sent and as true as the user. Whoever came over TLS (`secure`) is
/// said to have in `X-Forwarded-Proto`, whatever stood there; else that passes, as somebody before us may have ended it.
pub(crate) fn append(request: &mut RequestHeader, client: IpAddr, secure: bool) -> Result<()> {
    add(request, &X_FORWARDED_FOR, client)?;
    if secure {
        let https = HeaderValue::from_static("https");
        request.insert_header(X_FORWARDED_PROTO, https)?;
    }
    if request.headers.contains_key(FORWARDED) {
        add(request, &FORWARDED, Node { client, secure })?;
    }
    Ok(())
}

/// A user as `Forwarded` names it.
pub(crate) struct Node {
    pub(crate) client: IpAddr,
    /// It came over TLS.
    pub(crate) secure: bool,
}

impl Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.client {
            IpAddr::V4(v4) => write!(f, "for={v4}")?,
            IpAddr::V6(v6) => write!(f, "for=\"[{v6}]\"")?,
        }
        f.write_str(if self.secure { ";proto=https" } else { "" })
    }
}

fn add(request: &mut RequestHeader, name: &HeaderName, hop: impl Display) -> Result<()> {
    let failed = || "while forwarding the client's address";
    let mut present = request.headers.get_all(name).iter();
    let value = if let Some(first) = present.next() {
        let mut list = first.as_bytes().to_vec();
        for value in present {
            list.extend_from_slice(b", ");
            list.extend_from_slice(value.as_bytes());
        }
        write!(list, ", {hop}").or_err_with(ErrorType::InternalError, failed)?;
        HeaderValue::from_maybe_shared(bytes::Bytes::from(list))
    } else {
        let mut buffer = [0_u8; HOP_BYTES_MAX];
        let mut rest = buffer.as_mut_slice();
        write!(rest, "{hop}").or_err_with(ErrorType::InternalError, failed)?;
        let used = HOP_BYTES_MAX - rest.len();
        HeaderValue::from_bytes(&buffer[..used])
    };
    let value = value.or_err_with(ErrorType::InternalError, failed)?;
    request.insert_header(name.clone(), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(
        sent: &[(&'static str, &'static str)],
        client: &str,
        secure: bool,
    ) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).expect("valid");
        for &(name, value) in sent {
            request.append_header(name, value).expect("valid");
        }
        append(&mut request, client.parse().expect("an address"), secure).expect("appended");
        request
    }

    fn value(request: &RequestHeader, name: &str) -> String {
        let values: Vec<_> = request.headers.get_all(name).iter().collect();
        assert_eq!(values.len(), 1);
        values[0].to_str().expect("text").to_owned()
    }

    #[test]
    fn the_client_is_named() {
        let request = forwarded(&[], "10.0.0.7", false);
        assert_eq!(value(&request, "x-forwarded-for"), "10.0.0.7");
        assert!(!request.headers.contains_key("forwarded"));
    }

    #[test]
    fn chains_are_continued() {
        let sent = [
            ("X-Forwarded-For", "1.1.1.1"),
            ("X-Forwarded-For", "2.2.2.2"),
            ("Forwarded", "for=1.1.1.1"),
        ];
        let request = forwarded(&sent, "2001:db8::1", false);
        assert_eq!(
            value(&request, "x-forwarded-for"),
            "1.1.1.1, 2.2.2.2, 2001:db8::1"
        );
        assert_eq!(
            value(&request, "forwarded"),
            "for=1.1.1.1, for=\"[2001:db8::1]\""
        );
    }

    #[test]
    fn who_came_over_tls_is_said_to_and_nobody_else_says_it() {
        let sent = [
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Proto", "ftp"),
            ("Forwarded", "for=1.1.1.1"),
        ];
        let request = forwarded(&sent, "10.0.0.7", true);
        assert_eq!(value(&request, "x-forwarded-proto"), "https");
        assert_eq!(
            value(&request, "forwarded"),
            "for=1.1.1.1, for=10.0.0.7;proto=https"
        );
        let request = forwarded(&sent[1..], "10.0.0.7", false);
        assert_eq!(value(&request, "x-forwarded-proto"), "ftp");
    }
}
