//! Reads the head of a request, and writes the one that goes on to the instance.
//!
//! What is taken here has one reading alone: whatever could be read in two ways, or is rare, is left to the
//! general path, which refuses or serves it. So this may be stricter than [`crate::framing`], never laxer.

use super::via::{Came, Via};
use crate::forwarded::{self, Told};
use crate::framing::{self, Fault};
use crate::limits::HEADERS_MAX;
use crate::matching::{Found, Matcher};
use crate::sticky::{SessionKey, Sticky};
use crate::trace::{self, Trace, TraceSettings};
use std::mem::MaybeUninit;

/// Fields of one head; with more it is a case for the general path.
pub(super) const FIELDS_MAX: usize = 64;

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// What the head of a request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Its bytes, the empty line included.
    pub(super) len: usize,
    /// How many fields it has.
    pub(super) fields: usize,
    pub(super) body: Framing,
    /// The user wants to keep the connection.
    pub(super) keep_alive: bool,
    /// It may be sent twice (RFC 9110, section 9.2.2).
    pub(super) idempotent: bool,
    /// It changes nothing (RFC 9110, section 9.2.1), so two at once do no harm. A PUT that is still under way somewhere
    /// might undo the next one.
    pub(super) safe: bool,
    /// It is a HEAD: the answer has no body.
    pub(super) is_head: bool,
    /// What it names of its session, where a field does that.
    pub(super) session: Option<SessionKey>,
    /// Whose it is.
    pub(super) found: Found,
    /// Its trace, if traces are told.
    pub(super) trace: Option<Trace>,
}

/// What is read from a head, and written to the one that goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    pub(super) via: &'a Via,
    pub(super) sticky: Option<&'a Sticky>,
    pub(super) matcher: &'a Matcher,
    pub(super) trace: Option<TraceSettings>,
}

/// What the bytes read so far are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A whole head, for the fast path.
    Whole(Head),
    /// The beginning of a head.
    Part,
    /// A whole head that is nothing for the fast path.
    Other,
    /// More fields than the general path takes.
    Crowded,
    /// What nobody should read.
    Faulty(Fault),
}

/// Reads the head at the start of `bytes`. If it is whole, the head for the instance is in `out`.
pub(super) fn read(bytes: &[u8], reader: Reader<'_>, out: &mut Vec<u8>) -> Seen {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(len)) => {
            if let Some(head) = take(bytes, len, &request, reader, out) {
                return Seen::Whole(head);
            }
            // Rare, or worse.
            framing::check(&bytes[..len]).map_or_else(Seen::Faulty, |()| Seen::Other)
        }
        Ok(httparse::Status::Partial) => Seen::Part,
        Err(error) => odd(bytes, error),
    }
}

/// It looks like a head of HTTP/1.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// What bytes are that httparse doesn't take, or not with so few places for fields. The general path gets whole heads
/// alone: it has no deadline for the rest of one.
#[cold]
fn odd(bytes: &[u8], error: httparse::Error) -> Seen {
    use httparse::Error as E;
    // There are characters of a target that Pingora mends, and it has more places.
    let may_be_mended = match error {
        E::Token => bytes.first().is_some_and(u8::is_ascii_alphabetic),
        E::TooManyHeaders | E::Version => true,
        E::HeaderName | E::HeaderValue | E::NewLine | E::Status => false,
    };
    if !may_be_mended {
        return Seen::Faulty(Fault::Bytes);
    }
    let Some(len) = whole_len(bytes) else {
        return Seen::Part;
    };
    if bytes.starts_with(HTTP2_PREFACE) {
        return Seen::Other;
    }
    if let Err(fault) = framing::check(&bytes[..len]) {
        return Seen::Faulty(fault);
    }
    let lines = bytes[..len].iter().filter(|&&byte| byte == b'\n').count();
    // But for the first and the empty one they are fields.
    if lines.saturating_sub(2) > HEADERS_MAX {
        return Seen::Crowded;
    }
    Seen::Other
}

/// The length of the head at the start of `bytes`, if its end is there.
fn whole_len(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let line = bytes[from..].iter().position(|&byte| byte == b'\n')?;
        if from > 0 && matches!(&bytes[from..from + line], b"" | b"\r") {
            return Some(from + line + 1);
        }
        from += line + 1;
    }
}

fn take(
    bytes: &[u8],
    len: usize,
    request: &httparse::Request<'_, '_>,
    reader: Reader<'_>,
    out: &mut Vec<u8>,
) -> Option<Head> {
    let Reader {
        via,
        sticky,
        matcher,
        trace,
    } = reader;
    let (method, path) = (request.method?, request.path?);
    let (idempotent, safe) = match method {
        "GET" | "HEAD" | "OPTIONS" => (true, true),
        "PUT" | "DELETE" => (true, false),
        "POST" | "PATCH" => (false, false),
        _ => return None,
    };
    // Origin form: the others name a host of their own.
    if !path.starts_with('/') {
        return None;
    }
    out.clear();
    // The client's own words, up to and with the space before the version.
    let path_end = method.len() + 1 + path.len();
    let version = bytes.get(path_end..)?;
    let same_path = bytes.get(method.len() + 1..path_end)? == path.as_bytes();
    if !same_path || !version.starts_with(VERSION_LINE) {
        return None;
    }
    let mut at = path_end + VERSION_LINE.len();
    // No host is longer than the head, and it may be told twice.
    out.reserve(3 * len + via.room() + TRACE_ROOM);
    out.extend_from_slice(&bytes[..at]);
    let mut head = Head {
        len,
        fields: request.headers.len(),
        body: Framing::Length(0),
        keep_alive: true,
        idempotent,
        safe,
        is_head: method == "HEAD",
        session: None,
        found: Found::None,
        trace: None,
    };
    let (mut lengths, mut codings, mut hosts) = (0_u8, 0_u8, 0_u8);
    let mut host: &[u8] = b"";
    let (mut came, mut came_traced) = (Came::default(), false);
    for field in request.headers.iter() {
        let end = field_end(bytes, at, field)?;
        let line = &bytes[at..end];
        at = end;
        match kind(field.name) {
            Kind::Plain => {}
            Kind::Host => {
                if !framing::is_host(field.value) {
                    return None;
                }
                hosts = hosts.checked_add(1)?;
                host = field.value;
            }
            Kind::Length => {
                lengths = lengths.checked_add(1)?;
                head.body = Framing::Length(number(field.value)?);
            }
            Kind::Coding => {
                codings = codings.checked_add(1)?;
                if !field.value.eq_ignore_ascii_case(b"chunked") {
                    return None;
                }
                head.body = Framing::Chunked;
            }
            Kind::Connection => {
                head.keep_alive &= keeps(field.value)?;
                continue;
            }
            Kind::Told(told) => {
                if !via.passes(told, &mut came) {
                    continue;
                }
            }
            Kind::Traced => {
                came_traced = true;
                if trace.is_some() {
                    continue;
                }
            }
            Kind::HopByHop => continue,
            Kind::Rare => return None,
        }
        if let Some(sticky) = sticky
            && head.session.is_none()
        {
            head.session = sticky.named_by(field.name, field.value);
        }
        out.extend_from_slice(line);
    }
    if bytes.get(at..len)? != b"\r\n" || hosts != 1 || lengths + codings > 1 {
        return None;
    }
    head.found = matcher.find(host, path.as_bytes(), |name, value| {
        let mut fields = request.headers.iter();
        fields.any(|field| field.name.eq_ignore_ascii_case(name) && field.value == value)
    });
    let told = |wanted: Told| {
        let fields = request.headers.iter();
        let of = move |field: &&httparse::Header<'_>| forwarded::told(field.name) == Some(wanted);
        fields.filter(of).map(|field| field.value)
    };
    via.write(came, told, host, out);
    if let Some(settings) = trace {
        let named = |name: &'static str| {
            let fields = request.headers.iter().filter(move |_| came_traced);
            let of = move |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case(name);
            fields.filter(of).map(|field| field.value)
        };
        let trace = Trace::of(settings, named(trace::PARENT));
        write_field(trace::PARENT, &trace.traceparent(), out);
        if trace.has_state() {
            named(trace::STATE).for_each(|state| write_field(trace::STATE, state, out));
        }
        head.trace = Some(trace);
    }
    out.extend_from_slice(b"\r\n");
    Some(head)
}

fn write_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// What a head may grow by for its trace.
const TRACE_ROOM: usize = 128;
const VERSION_LINE: &[u8] = b" HTTP/1.1\r\n";

/// What a field means to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Host,
    Length,
    Coding,
    Connection,
    /// It tells of the way up to here.
    Told(Told),
    /// It tells of the trace.
    Traced,
    /// It is for us alone, and goes no further.
    HopByHop,
    /// It asks for what the fast path doesn't do.
    Rare,
}

/// By length first: few names have these.
fn kind(name: &str) -> Kind {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        2 if is("te") => Kind::HopByHop,
        4 if is("host") => Kind::Host,
        6 if is("expect") => Kind::Rare,
        7 if is("upgrade") => Kind::Rare,
        7 if is("trailer") => Kind::Plain,
        10 if is("connection") => Kind::Connection,
        10 if is("keep-alive") => Kind::HopByHop,
        10 if is(trace::STATE) => Kind::Traced,
        11 if is(trace::PARENT) => Kind::Traced,
        14 if is("content-length") => Kind::Length,
        14 if is("http2-settings") => Kind::HopByHop,
        16 if is("proxy-connection") => Kind::HopByHop,
        17 if is("transfer-encoding") => Kind::Coding,
        19 if is("proxy-authorization") => Kind::HopByHop,
        _ => forwarded::told(name).map_or(Kind::Plain, Kind::Told),
    }
}

/// Where the line of `field` ends that must begin at `at`; `None` if it has a second reading: a line that doesn't
/// end with CR LF, or white space where none belongs.
pub(super) fn field_end(bytes: &[u8], at: usize, field: &httparse::Header<'_>) -> Option<usize> {
    let name_end = at + field.name.len();
    if bytes.get(at..name_end)? != field.name.as_bytes() || *bytes.get(name_end)? != b':' {
        return None;
    }
    let mut from = name_end + 1;
    let blank = |at: usize| matches!(bytes.get(at), Some(b' ' | b'\t'));
    while blank(from) {
        from += 1;
    }
    let mut to = from + field.value.len();
    if bytes.get(from..to)? != field.value {
        return None;
    }
    while blank(to) {
        to += 1;
    }
    bytes[to..].starts_with(b"\r\n").then_some(to + 2)
}

/// Digits alone, and no more of them than fit.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, &digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        sum.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Whether a connection is to stay; `None` if the field names others.
fn keeps(value: &[u8]) -> Option<bool> {
    if value.eq_ignore_ascii_case(b"keep-alive") {
        Some(true)
    } else if value.eq_ignore_ascii_case(b"close") {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarded::ForwardSettings;
    use proptest::prelude::*;

    fn seen(text: &str) -> (Seen, String) {
        seen_with(text, "192.0.2.7", None)
    }

    fn seen_with(text: &str, client: &str, trace: Option<TraceSettings>) -> (Seen, String) {
        let mut out = Vec::new();
        let settings = ForwardSettings {
            trusted: vec!["10.0.0.0/8".parse().expect("a network")],
            forwarded: false,
        };
        let via = Via::of(client.parse().ok(), false, &settings);
        let reader = Reader {
            via: &via,
            sticky: None,
            matcher: &Matcher::new([&[][..]]),
            trace,
        };
        let seen = read(text.as_bytes(), reader, &mut out);
        (seen, String::from_utf8(out).expect("text"))
    }

    fn whole(text: &str) -> (Head, String) {
        match seen(text) {
            (Seen::Whole(head), out) => (head, out),
            (other, _) => panic!("{other:?}: {text:?}"),
        }
    }

    #[test]
    fn the_head_goes_on_as_it_came_but_for_what_is_ours() {
        let text = "POST /a?b HTTP/1.1\r\nhOST: x\r\nConnection: keep-alive\r\nTE: trailers\r\n\
                    Proxy-Authorization: Basic x\r\n\
                    Content-Length: 3 \r\nX-Forwarded-For: 1.1.1.1\r\nEmpty:\r\n\r\n";
        let (head, out) = whole(&format!("{text}abcGET"));
        assert_eq!(head.len, text.len());
        assert_eq!(head.body, Framing::Length(3));
        assert!(head.keep_alive && !head.idempotent && !head.safe && !head.is_head);
        assert_eq!(
            out,
            "POST /a?b HTTP/1.1\r\nhOST: x\r\nContent-Length: 3 \r\nEmpty:\r\n\
             X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: x\r\n\r\n"
        );
    }

    const CLAIMS: &str = "GET / HTTP/1.1\r\nHost: x:8\r\nForwarded: for=a\r\nX-Forwarded-For: a\r\n\
        forwarded: for=b\r\nX-Forwarded-For: b\r\nX-Forwarded-Proto: https\r\nx-forwarded-host: y\r\n\
        X-Forwarded-Port: 443\r\nX_Forwarded_For: c\r\nX-Real-IP: d\r\n\r\n";

    #[test]
    fn a_user_s_word_is_not_taken_for_who_asked() {
        let (_, out) = whole(CLAIMS);
        assert_eq!(
            out,
            "GET / HTTP/1.1\r\nHost: x:8\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n\
             X-Forwarded-Host: x:8\r\n\r\n"
        );
        let (_, out) = whole("GET / HTTP/1.1\r\nHost: x,y\r\n\r\n");
        assert!(!out.contains("X-Forwarded-Host"), "{out}");
    }

    #[test]
    fn a_trusted_proxy_s_chains_are_continued_in_one_field() {
        let (_, out) = seen_with(CLAIMS, "10.0.0.7", None);
        assert_eq!(
            out,
            "GET / HTTP/1.1\r\nHost: x:8\r\nX-Forwarded-Proto: https\r\nx-forwarded-host: y\r\n\
             X-Forwarded-Port: 443\r\nX-Real-IP: d\r\nX-Forwarded-For: a, b, 10.0.0.7\r\n\
             Forwarded: for=a, for=b, for=10.0.0.7;host=\"x:8\";proto=http\r\n\r\n"
        );
    }

    #[test]
    fn a_trace_passes_untouched_or_is_gone_on_with() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        let fields = format!(
            "TraceState: a=1\r\ntraceparent: 00-{id}-b7ad6b7169203331-01\r\nTracestate: b=2\r\n"
        );
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        let (head, out) = whole(&text);
        assert!(out.contains(&fields) && head.trace.is_none(), "{out}");
        let of = |text: &str| {
            let settings = TraceSettings { sample: 1.0 };
            match seen_with(text, "192.0.2.7", Some(settings)) {
                (Seen::Whole(head), out) => (head.trace.expect("a trace"), out),
                (other, _) => panic!("{other:?}"),
            }
        };
        let (trace, out) = of(&text);
        let passed = format!(
            "traceparent: 00-{id}-{:016x}-01\r\ntracestate: a=1\r\ntracestate: b=2\r\n\r\n",
            trace.span
        );
        assert!(out.ends_with(&passed), "{out}");
        assert_eq!(out.to_ascii_lowercase().matches("traceparent").count(), 1);
        for broken in [text.replace("-01", "-1"), text.replace("traceparent", "x")] {
            let (trace, out) = of(&broken);
            let begun = format!(
                "traceparent: 00-{:032x}-{:016x}-01\r\n\r\n",
                trace.id, trace.span
            );
            assert!(out.ends_with(&begun), "{out}");
            assert!(!out.to_ascii_lowercase().contains("tracestate"), "{out}");
        }
    }

    #[test]
    fn what_is_rare_or_has_two_readings_is_left_to_others() {
        let of = |fields: &str| seen(&format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")).0;
        for fields in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: +1\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Host: y\r\n",
            "X: 1\n",
            "X : 1\r\n",
            "X: 1\r\n y\r\n",
            "X: \u{1}\r\n",
        ] {
            assert!(matches!(of(fields), Seen::Faulty(_)), "{fields:?}");
        }
        for fields in [
            "Content-Length: 18446744073709551616\r\n",
            "Connection: X-Secret\r\n",
            "Connection: upgrade\r\n",
            "Upgrade: websocket\r\n",
            "Expect: 100-continue\r\n",
        ] {
            assert_eq!(of(fields), Seen::Other, "{fields:?}");
        }
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n\n",
            "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
            "\u{16}\u{3}\u{1}",
        ] {
            assert!(matches!(seen(text).0, Seen::Faulty(_)), "{text:?}");
        }
        for text in [
            "GET / HTTP/1.0\r\nHost: x\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            assert_eq!(seen(text).0, Seen::Other, "{text:?}");
        }
        assert_eq!(seen("GET / HTTP/1.1\r\nHost: x\r\n").0, Seen::Part);
    }

    #[test]
    fn no_part_of_a_head_is_left_to_others() {
        let head = |fields: usize| {
            let fields = "A: 1\r\n".repeat(fields);
            format!("GET /ab HTTP/1.2\r\nHost: x\r\n{fields}\r\n")
        };
        for (fields, whole) in [
            (0, Seen::Other),
            (FIELDS_MAX, Seen::Other),
            (HEADERS_MAX - 1, Seen::Other),
            (HEADERS_MAX, Seen::Crowded),
        ] {
            let text = head(fields);
            assert_eq!(seen(&text).0, whole, "{fields}");
            for (at, _) in text.char_indices().skip(7) {
                assert_eq!(seen(&text[..at]).0, Seen::Part, "{:?}", &text[..at]);
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_has_one_reading(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "GET / HTTP/1.1", "POST / HTTP/1.0", "\r\n", "\n", "\r", " ", "\t", ":", "Host: x",
                    "Content-Length: 1", "Content-Length:", "Transfer-Encoding: chunked", "a", "\u{0}",
                ]),
                0..16,
            )
        ) {
            for start in ["", "GET / HTTP/1.1\r\nHost: x\r\n"] {
                let text = format!("{start}{}\r\n\r\n", parts.concat());
                if let (Seen::Whole(head), out) = seen(&text) {
                    prop_assert_eq!(crate::framing::check(&text.as_bytes()[..head.len]), Ok(()));
                    prop_assert_eq!(crate::framing::check(out.as_bytes()), Ok(()));
                }
            }
        }
    }
}
