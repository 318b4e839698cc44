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
    /// It asks for a WebSocket.
    pub(super) switches: bool,
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
    // Where what goes on begins that isn't written yet: it is, when something is left out.
    let mut kept = 0;
    let mut head = Head {
        len,
        fields: request.headers.len(),
        body: Framing::Length(0),
        keep_alive: true,
        idempotent,
        safe,
        is_head: method == "HEAD",
        switches: false,
        session: None,
        found: Found::None,
        trace: None,
    };
    let (mut lengths, mut codings, mut hosts, mut upgrades) = (0_u8, 0_u8, 0_u8, 0_u8);
    let mut host: &[u8] = b"";
    let (mut came, mut came_traced) = (Came::default(), false);
    for field in request.headers.iter() {
        let line = at;
        at = field_end(bytes, at, field)?;
        let goes_on = match kind(field.name) {
            Kind::Plain => true,
            Kind::Host => {
                if !framing::is_host(field.value) {
                    return None;
                }
                hosts = hosts.checked_add(1)?;
                host = field.value;
                true
            }
            Kind::Length => {
                lengths = lengths.checked_add(1)?;
                head.body = Framing::Length(number(field.value)?);
                true
            }
            Kind::Coding => {
                codings = codings.checked_add(1)?;
                if !field.value.eq_ignore_ascii_case(b"chunked") {
                    return None;
                }
                head.body = Framing::Chunked;
                true
            }
            Kind::Connection => {
                let asks = asks(field.value)?;
                head.keep_alive &= asks.keep;
                head.switches |= asks.upgrade;
                false
            }
            Kind::Upgrade => {
                // Other protocols are rare, and one that is HTTP again (h2c) must not get by the rest of this.
                if !field.value.eq_ignore_ascii_case(b"websocket") {
                    return None;
                }
                upgrades = upgrades.checked_add(1)?;
                false
            }
            Kind::Told(told) => via.passes(told, &mut came),
            Kind::Traced => {
                came_traced = true;
                trace.is_none()
            }
            Kind::HopByHop => false,
            Kind::Rare => return None,
        };
        if !goes_on {
            out.extend_from_slice(&bytes[kept..line]);
            kept = at;
            continue;
        }
        if let Some(sticky) = sticky
            && head.session.is_none()
        {
            head.session = sticky.named_by(field.name, field.value);
        }
    }
    out.extend_from_slice(&bytes[kept..at]);
    if bytes.get(at..len)? != b"\r\n" || hosts != 1 || lengths + codings > 1 {
        return None;
    }
    if head.switches || upgrades > 0 {
        let is_whole = head.switches && upgrades == 1;
        if !is_whole || method != "GET" || lengths + codings > 0 {
            return None;
        }
        out.extend_from_slice(SWITCH);
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

/// What asks for a WebSocket, and says that there is one (RFC 6455, section 4), between us and either side.
pub(super) const SWITCH: &[u8] = b"Connection: Upgrade\r\nUpgrade: websocket\r\n";
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
    Upgrade,
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
        7 if is("upgrade") => Kind::Upgrade,
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
    // Both are parts of `bytes`: where they are needs no comparison.
    let place = |part: &[u8]| part.as_ptr().addr().wrapping_sub(bytes.as_ptr().addr());
    let name_end = at + field.name.len();
    if place(field.name.as_bytes()) != at || *bytes.get(name_end)? != b':' {
        return None;
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let mut to = name_end + 1;
    // Where nothing is doesn't matter.
    if !field.value.is_empty() {
        let from = place(field.value);
        if !bytes.get(to..from)?.iter().all(is_blank) {
            return None;
        }
        to = from + field.value.len();
    }
    let rest = bytes.get(to..)?;
    let blanks = rest.iter().take_while(|byte| is_blank(byte)).count();
    rest[blanks..]
        .starts_with(b"\r\n")
        .then_some(to + blanks + 2)
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

/// What is asked of a connection.
#[derive(Clone, Copy, Debug)]
struct Asks {
    /// It is to stay.
    keep: bool,
    /// It is to change its protocol.
    upgrade: bool,
}

/// What a field asks of a connection; `None` if it names other fields.
fn asks(value: &[u8]) -> Option<Asks> {
    let mut asks = Asks {
        keep: true,
        upgrade: false,
    };
    if value.eq_ignore_ascii_case(b"keep-alive") {
        return Some(asks);
    }
    if value.eq_ignore_ascii_case(b"close") {
        asks.keep = false;
        return Some(asks);
    }
    for word in value.split(|&byte| byte == b',') {
        let word = word.trim_ascii();
        if word.eq_ignore_ascii_case(b"upgrade") {
            asks.upgrade = true;
        } else if !word.eq_ignore_ascii_case(b"keep-alive") {
            return None;
        }
    }
    Some(asks)
}

#[cfg(test)]
mod tests;
