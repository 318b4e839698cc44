//! Section 8: what is no message of HTTP. Whatever of it came to an instance might be read there in another way.

use super::wire::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, block, frame};
use super::{COMPRESSION, Case, ECHO, Expect, GET, PROTOCOL, case, head};

const BROKEN: &[u32] = &[PROTOCOL];
/// What can't be read as a field may break the table of all.
const UNREADABLE: &[u32] = &[PROTOCOL, COMPRESSION];

type Fields<'a> = &'a [(&'a str, &'a str)];

/// A GET with these fields as well.
fn with(fields: Fields<'_>) -> [Vec<u8>; 1] {
    [head(1, END_STREAM, &[&GET, fields].concat())]
}

/// A GET without this field.
fn without(name: &str) -> [Vec<u8>; 1] {
    let fields: Vec<_> = GET.into_iter().filter(|(own, _)| *own != name).collect();
    [head(1, END_STREAM, &fields)]
}

/// A GET whose field of that name is another.
fn instead(name: &str, value: &str) -> [Vec<u8>; 1] {
    let own = |(own, old)| (own, if own == name { value } else { old });
    [head(1, END_STREAM, &GET.map(own))]
}

pub(super) fn cases() -> Vec<Case> {
    [fields(), pseudo(), whole()]
        .into_iter()
        .flatten()
        .collect()
}

/// Section 8.2.
fn fields() -> Vec<Case> {
    use Expect::{Answer, Either, Reset};
    vec![
        case("8.2", "fields that are good", Answer(1, 200), {
            with(&[
                ("te", "trailers"),
                ("x-a", "a \t\u{fc}"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
            ])
        }),
        case(
            "8.2.1",
            "a name in capitals",
            Either(1, UNREADABLE),
            with(&[("X-A", "a")]),
        ),
        case(
            "8.2.1",
            "a name with a space",
            Either(1, UNREADABLE),
            with(&[("x a", "a")]),
        ),
        case(
            "8.2.1",
            "a name with a colon",
            Either(1, UNREADABLE),
            with(&[("x:a", "a")]),
        ),
        case(
            "8.2.1",
            "a name of nothing",
            Either(1, UNREADABLE),
            with(&[("", "a")]),
        ),
        case("8.2.1", "a value with CR LF", Either(1, UNREADABLE), {
            with(&[("x-a", "a\r\nx-b: b")])
        }),
        case(
            "8.2.1",
            "a value with LF",
            Either(1, UNREADABLE),
            with(&[("x-a", "a\nb")]),
        ),
        case(
            "8.2.1",
            "a value with NUL",
            Either(1, UNREADABLE),
            with(&[("x-a", "a\0b")]),
        ),
        case(
            "8.2.1",
            "a value that begins with a space",
            Answer(1, 400),
            with(&[("x-a", " a")]),
        ),
        case(
            "8.2.1",
            "a value that ends with a tab",
            Answer(1, 400),
            with(&[("x-a", "a\t")]),
        ),
        case(
            "8.2.2",
            "Connection",
            Reset(1, BROKEN),
            with(&[("connection", "x-a")]),
        ),
        case(
            "8.2.2",
            "Keep-Alive",
            Reset(1, BROKEN),
            with(&[("keep-alive", "max=1")]),
        ),
        case("8.2.2", "Proxy-Connection", Reset(1, BROKEN), {
            with(&[("proxy-connection", "keep-alive")])
        }),
        case("8.2.2", "Transfer-Encoding", Reset(1, BROKEN), {
            with(&[("transfer-encoding", "chunked")])
        }),
        case(
            "8.2.2",
            "Upgrade",
            Reset(1, BROKEN),
            with(&[("upgrade", "websocket")]),
        ),
        case(
            "8.2.2",
            "TE that is more than trailers",
            Reset(1, BROKEN),
            with(&[("te", "gzip")]),
        ),
    ]
}

/// Section 8.3.
fn pseudo() -> Vec<Case> {
    use Expect::{Answer, Either, Reset};
    let behind = [("x-a", "a"), GET[0], GET[1], GET[2], GET[3]];
    vec![
        case("8.3", "a pseudo-header behind a field", Reset(1, BROKEN), {
            [head(1, END_STREAM, &behind)]
        }),
        case(
            "8.3",
            "a pseudo-header of an answer",
            Reset(1, BROKEN),
            with(&[(":status", "200")]),
        ),
        case(
            "8.3",
            "a pseudo-header that nobody knows",
            Either(1, UNREADABLE),
            with(&[(":no", "such")]),
        ),
        case("8.3.1", "no method", Reset(1, BROKEN), without(":method")),
        case("8.3.1", "no scheme", Reset(1, BROKEN), without(":scheme")),
        case("8.3.1", "no path", Reset(1, BROKEN), without(":path")),
        case(
            "8.3.1",
            "a path of nothing",
            Reset(1, BROKEN),
            instead(":path", ""),
        ),
        case(
            "8.3.1",
            "a path with a space",
            Either(1, UNREADABLE),
            instead(":path", "/ HTTP/1.1"),
        ),
        case(
            "8.3.1",
            "a path with CR LF",
            Either(1, UNREADABLE),
            instead(":path", "/\r\nx: y"),
        ),
        case(
            "8.3.1",
            "a method with CR LF",
            Either(1, UNREADABLE),
            instead(":method", "GET\r\n"),
        ),
        case(
            "8.3.1",
            "two methods",
            Reset(1, BROKEN),
            with(&[(":method", "POST")]),
        ),
        case(
            "8.3.1",
            "two paths",
            Reset(1, BROKEN),
            with(&[(":path", "/other")]),
        ),
        case(
            "8.3.1",
            "two authorities",
            Reset(1, BROKEN),
            with(&[(":authority", "b.example")]),
        ),
        case("8.3.1", "a user and a password", Answer(1, 400), {
            instead(":authority", "user:word@web.example")
        }),
        case(
            "8.3.1",
            "another Host",
            Answer(1, 400),
            with(&[("host", "other.example")]),
        ),
        case("8.3.1", "no authority, and a Host", Answer(1, 200), {
            [head(
                1,
                END_STREAM,
                &[GET[0], GET[1], GET[2], ("host", "web.example")],
            )]
        }),
        case(
            "8.5",
            "CONNECT with a path",
            Reset(1, BROKEN),
            instead(":method", "CONNECT"),
        ),
    ]
}

/// Section 8.1: heads and bodies.
fn whole() -> Vec<Case> {
    use Expect::{Answer, Reset};
    const LENGTH: &str = "content-length";
    let large = "x".repeat(16_000);
    let fields: Vec<_> = (0..5).map(|_| ("x-large", &*large)).collect();
    let block = block(&[&GET[..], &fields].concat());
    let mut pieces = block.chunks(16_384);
    let first = pieces.next().expect("some");
    let mut frames = vec![frame(HEADERS, END_STREAM, 1, first)];
    frames.extend(pieces.map(|piece| frame(CONTINUATION, 0, 1, piece)));
    frames.push(frame(CONTINUATION, END_HEADERS, 1, &[]));
    vec![
        case(
            "8.1",
            "a body and trailers",
            Answer(1, 200),
            [
                head(1, 0, &ECHO),
                frame(DATA, 0, 1, b"abc"),
                head(1, END_STREAM, &[("x-sum", "1")]),
            ],
        ),
        case(
            "8.1.1",
            "a length, and no body",
            Reset(1, BROKEN),
            with(&[(LENGTH, "3")]),
        ),
        case(
            "8.1.1",
            "a length that is no number",
            Reset(1, BROKEN),
            with(&[(LENGTH, "+0")]),
        ),
        case(
            "8.1.1",
            "two lengths",
            Reset(1, BROKEN),
            with(&[(LENGTH, "0"), (LENGTH, "1")]),
        ),
        case(
            "10.5.1",
            "more fields than are taken",
            Answer(1, 431),
            frames,
        ),
    ]
}
