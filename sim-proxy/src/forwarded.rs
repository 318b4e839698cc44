//! Tells the instance who asked, for which host, and whether in clear text.
//!
//! By default no word is taken for it: whatever of this comes from a user is dropped and said anew, or any user could
//! claim another's address. Who is trusted (`proxy.trusted_proxies`) is a proxy in front of this one: its lists are
//! gone on with, and its host and protocol stand.

use crate::network::Network;
use http::header::{FORWARDED, HeaderName, HeaderValue};
use pingora_error::{ErrorType, OrErr, Result};
use pingora_http::RequestHeader;
use std::fmt::{self, Display};
use std::io::Write;
use std::net::IpAddr;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const PREFIX: &str = "x-forwarded-";
/// Room for the longest address.
const ADDRESS_BYTES_MAX: usize = 64;
const FAILED: &str = "while telling the instance who asked";

/// Whose word is taken, and what is said.
#[derive(Clone, Debug, Default)]
pub struct ForwardSettings {
    /// Proxies in front of this one.
    pub trusted: Vec<Network>,
    /// `Forwarded` (RFC 7239) is said too. Where it comes from who is trusted, it is gone on with in any case.
    pub forwarded: bool,
}

impl ForwardSettings {
    pub(crate) fn trusts(&self, client: Option<IpAddr>) -> bool {
        client.is_some_and(|client| self.trusted.iter().any(|network| network.has(client)))
    }
}

/// What a field tells of the way up to here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    For,
    Host,
    Proto,
    Forwarded,
    /// Something else that is for who is trusted to say.
    Other,
    /// Nothing: but with an underscore, so that some instances take it for one of these.
    Disguised,
}

/// What a field of this name tells, if it does.
pub(crate) fn told(name: &str) -> Option<Told> {
    let bytes = name.as_bytes();
    match bytes.first().map(u8::to_ascii_lowercase)? {
        b'f' if bytes.eq_ignore_ascii_case(b"forwarded") => Some(Told::Forwarded),
        b'x' if is_like(bytes, b"x-real-ip") => Some(if bytes.contains(&b'_') {
            Told::Disguised
        } else {
            Told::Other
        }),
        b'x' if bytes.len() > PREFIX.len() => {
            let (prefix, rest) = bytes.split_at(PREFIX.len());
            if !is_like(prefix, PREFIX.as_bytes()) {
                None
            } else if bytes.contains(&b'_') {
                Some(Told::Disguised)
            } else if rest.eq_ignore_ascii_case(b"for") {
                Some(Told::For)
            } else if rest.eq_ignore_ascii_case(b"host") {
                Some(Told::Host)
            } else if rest.eq_ignore_ascii_case(b"proto") {
                Some(Told::Proto)
            } else {
                Some(Told::Other)
            }
        }
        _ => None,
    }
}

/// Whether CGI and its heirs take `name` for `other`, which is in lower case: to them `-` and `_` are the same.
fn is_like(name: &[u8], other: &[u8]) -> bool {
    let same = |(a, b): (&u8, &u8)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-');
    name.len() == other.len() && name.iter().zip(other).all(same)
}

/// Whether a host may be passed on in a field of ours: nothing in it can be read as more than a host and a port.
pub(crate) fn is_plain_host(host: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(byte);
    !host.is_empty() && host.iter().all(plain)
}

/// This hop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hop<'a> {
    pub(crate) client: IpAddr,
    pub(crate) is_tls: bool,
    /// As the user asked for it.
    pub(crate) host: &'a [u8],
}

pub(crate) fn proto(is_tls: bool) -> &'static str {
    if is_tls { "https" } else { "http" }
}

/// Tells `hop` to the instance, on the general path.
pub(crate) fn tell(
    settings: &ForwardSettings,
    hop: Hop<'_>,
    request: &mut RequestHeader,
) -> Result<()> {
    let is_trusted = settings.trusts(Some(hop.client));
    let names = request.headers.keys();
    let untold = names.filter(|name| match told(name.as_str()) {
        None => false,
        Some(Told::Disguised) => true,
        Some(_) => !is_trusted,
    });
    // None as a rule, and then nothing is allocated.
    let untold: Vec<HeaderName> = untold.cloned().collect();
    for name in &untold {
        request.remove_header(name);
    }
    let mut buffer = [0_u8; ADDRESS_BYTES_MAX];
    let mut rest = buffer.as_mut_slice();
    write!(rest, "{}", hop.client).or_err(ErrorType::InternalError, FAILED)?;
    let used = ADDRESS_BYTES_MAX - rest.len();
    extend(request, &X_FORWARDED_FOR, &buffer[..used])?;
    if !request.headers.contains_key(X_FORWARDED_PROTO) {
        request.insert_header(X_FORWARDED_PROTO, proto(hop.is_tls))?;
    }
    let host = Some(hop.host).filter(|host| is_plain_host(host));
    if let Some(host) = host
        && !request.headers.contains_key(X_FORWARDED_HOST)
    {
        request.insert_header(X_FORWARDED_HOST, host)?;
    }
    if settings.forwarded || request.headers.contains_key(FORWARDED) {
        let mut element = Node(hop.client).to_string().into_bytes();
        write_element(host, hop.is_tls, &mut element);
        extend(request, &FORWARDED, &element)?;
    }
    Ok(())
}

/// What follows the user in an element of `Forwarded`. A host is in quotes: it may have a colon, and a plain one
/// nothing that would end them.
pub(crate) fn write_element(host: Option<&[u8]>, is_tls: bool, out: &mut Vec<u8>) {
    if let Some(host) = host {
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(host);
        out.push(b'"');
    }
    out.extend_from_slice(b";proto=");
    out.extend_from_slice(proto(is_tls).as_bytes());
}

/// A user as `Forwarded` names it.
pub(crate) struct Node(pub(crate) IpAddr);

impl Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(f, "for={v4}"),
            IpAddr::V6(v6) => write!(f, "for=\"[{v6}]\""),
        }
    }
}

/// Puts `hop` at the end of a list.
fn extend(request: &mut RequestHeader, name: &HeaderName, hop: &[u8]) -> Result<()> {
    let mut present = request.headers.get_all(name).iter();
    let value = if let Some(first) = present.next() {
        let mut list = first.as_bytes().to_vec();
        for value in present.map(HeaderValue::as_bytes).chain([hop]) {
            list.extend_from_slice(b", ");
            list.extend_from_slice(value);
        }
        HeaderValue::from_maybe_shared(bytes::Bytes::from(list))
    } else {
        HeaderValue::from_bytes(hop)
    };
    let value = value.or_err(ErrorType::InternalError, FAILED)?;
    request.insert_header(name.clone(), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(forwarded: bool) -> ForwardSettings {
        ForwardSettings {
            trusted: vec!["10.0.0.0/8".parse().expect("a network")],
            forwarded,
        }
    }

    fn told_to_instance(
        forwarded: bool,
        sent: &[(&'static str, &'static str)],
        client: &str,
    ) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).expect("valid");
        for &(name, value) in sent {
            request.append_header(name, value).expect("valid");
        }
        let hop = Hop {
            client: client.parse().expect("an address"),
            is_tls: client.contains(':'),
            host: b"shop.example:81",
        };
        tell(&settings(forwarded), hop, &mut request).expect("told");
        request
    }

    fn value(request: &RequestHeader, name: &str) -> String {
        let values: Vec<_> = request.headers.get_all(name).iter().collect();
        assert_eq!(values.len(), 1, "{name}");
        values[0].to_str().expect("text").to_owned()
    }

    const CLAIMS: [(&str, &str); 9] = [
        ("X-Forwarded-For", "1.1.1.1"),
        ("X-Forwarded-For", "2.2.2.2"),
        ("Forwarded", "for=1.1.1.1"),
        ("X-Forwarded-Proto", "gopher"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Prefix", "/evil"),
        ("X-Real-IP", "1.1.1.1"),
        ("X_Forwarded_For", "1.1.1.1"),
        ("X-Forwarded_Host", "evil.example"),
    ];

    #[test]
    fn nobody_s_word_is_taken_for_who_asked() {
        let request = told_to_instance(true, &CLAIMS, "192.0.2.7");
        assert_eq!(value(&request, "x-forwarded-for"), "192.0.2.7");
        assert_eq!(value(&request, "x-forwarded-proto"), "http");
        assert_eq!(value(&request, "x-forwarded-host"), "shop.example:81");
        let element = "for=192.0.2.7;host=\"shop.example:81\";proto=http";
        assert_eq!(value(&request, "forwarded"), element);
        assert_eq!(request.headers.len(), 4, "{:?}", request.headers);
        assert!(
            !told_to_instance(false, &CLAIMS, "192.0.2.7")
                .headers
                .contains_key("forwarded")
        );
    }

    #[test]
    fn what_a_trusted_proxy_says_is_gone_on_with() {
        let request = told_to_instance(false, &CLAIMS, "10.9.9.9");
        assert_eq!(
            value(&request, "x-forwarded-for"),
            "1.1.1.1, 2.2.2.2, 10.9.9.9"
        );
        assert_eq!(value(&request, "x-forwarded-proto"), "gopher");
        assert_eq!(value(&request, "x-forwarded-host"), "evil.example");
        assert_eq!(value(&request, "x-forwarded-prefix"), "/evil");
        assert_eq!(value(&request, "x-real-ip"), "1.1.1.1");
        let list = "for=1.1.1.1, for=10.9.9.9;host=\"shop.example:81\";proto=http";
        assert_eq!(value(&request, "forwarded"), list);
        assert_eq!(request.headers.len(), 6, "{:?}", request.headers);
        assert!(
            !told_to_instance(false, &[], "10.9.9.9")
                .headers
                .contains_key("forwarded")
        );
    }

    #[test]
    fn addresses_of_ipv6_are_written_as_each_list_has_them() {
        let request = told_to_instance(true, &[], "2001:db8::1");
        assert_eq!(value(&request, "x-forwarded-for"), "2001:db8::1");
        assert_eq!(value(&request, "x-forwarded-proto"), "https");
        let element = "for=\"[2001:db8::1]\";host=\"shop.example:81\";proto=https";
        assert_eq!(value(&request, "forwarded"), element);
    }

    #[test]
    fn a_field_is_told_by_its_name() {
        for (name, expected) in [
            ("X-Forwarded-For", Some(Told::For)),
            ("x-forwarded-HOST", Some(Told::Host)),
            ("X-Forwarded-Proto", Some(Told::Proto)),
            ("X-Forwarded-Port", Some(Told::Other)),
            ("x-real-ip", Some(Told::Other)),
            ("FORWARDED", Some(Told::Forwarded)),
            ("x_real-ip", Some(Told::Disguised)),
            ("X_FORWARDED_FOR", Some(Told::Disguised)),
            ("X-Forwarded-", None),
            ("X-Forwarded", None),
            ("X-Forward-For-It", None),
            ("From", None),
            ("", None),
        ] {
            assert_eq!(told(name), expected, "{name}");
        }
    }

    #[test]
    fn a_host_that_could_be_read_as_more_is_not_passed_on() {
        for host in ["shop.example", "shop.example:81", "[::1]:81", "a_b"] {
            assert!(is_plain_host(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            "a, b",
            "a;proto=https",
            "a\"",
            "a b",
            "a/b",
            "a@b",
            "\u{e4}",
        ] {
            assert!(!is_plain_host(host.as_bytes()), "{host}");
        }
    }
}
