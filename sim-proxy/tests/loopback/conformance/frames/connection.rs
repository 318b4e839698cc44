//! Sections 3 to 6: frames and streams. What must be answered stands beside what must not be.

use super::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE,
    PRIORITISED, PRIORITY, PUSH_PROMISE, RST_STREAM, WINDOW_UPDATE, block, frame,
};
use super::{
    COMPRESSION, Case, ECHO, Expect, FRAME_SIZE, GET, HANG, PROTOCOL, REFUSED, STREAM_CLOSED, Step,
    case, get, head,
};

/// The RFC names this one, and h2 may say the general one.
pub(super) const SIZE: &[u32] = &[FRAME_SIZE, PROTOCOL];
const TABLE: &[u32] = &[COMPRESSION, PROTOCOL];
const CLOSED: &[u32] = &[STREAM_CLOSED, PROTOCOL];
pub(super) const BROKEN: &[u32] = &[PROTOCOL];
/// Longest payload that a peer takes which says nothing else (section 6.5.2).
pub(super) const FRAME_MAX: usize = 16_384;
/// Most streams at a time, as the proxy's SETTINGS say.
const STREAMS_MAX: u32 = 128;

pub(super) fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

pub(super) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// One that goes on for as long as its user sends.
pub(super) fn open(stream: u32) -> Vec<u8> {
    head(stream, 0, &HANG)
}

/// One whose answer is waited for.
pub(super) fn waiting(stream: u32) -> Vec<u8> {
    head(stream, END_STREAM, &HANG)
}

/// A request in three frames.
fn in_pieces(stream: u32) -> [Vec<u8>; 3] {
    let block = block(&GET);
    let (first, rest) = block.split_at(10);
    let (second, third) = rest.split_at(10);
    [
        frame(HEADERS, END_STREAM, stream, first),
        frame(CONTINUATION, 0, stream, second),
        frame(CONTINUATION, END_HEADERS, stream, third),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    let groups = [frames(), streams(), requests(), others()];
    groups.into_iter().flatten().collect()
}

/// Sections 3.4 to 4.3, and 5.5.
fn frames() -> Vec<Case> {
    use Expect::{Answer, Goaway};
    let block = block(&GET);
    vec![
        case("3.4", "the preface twice", Goaway(SIZE), [PREFACE.to_vec()]),
        case(
            "4.1",
            "a kind that nobody knows is left alone",
            Answer(1, 200),
            [
                frame(0xfb, 0xff, 0, b"whatever"),
                frame(0xfb, 0xff, 1, b""),
                get(1),
            ],
        ),
        case(
            "4.1",
            "flags that a kind doesn't have are left alone",
            Answer(1, 200),
            [frame(PING, !ACK, 0, b"12345678"), get(1)],
        ),
        case(
            "4.1",
            "the reserved bit is left alone",
            Answer(1, 200),
            [get(1 | 1 << 31)],
        ),
        case(
            "4.2",
            "DATA that is as long as it may be",
            Answer(1, 200),
            [
                head(1, 0, &ECHO),
                frame(DATA, END_STREAM, 1, &[b'x'; FRAME_MAX]),
            ],
        ),
        case(
            "4.2",
            "DATA that is longer",
            Goaway(&[FRAME_SIZE]),
            [
                head(1, 0, &ECHO),
                frame(DATA, END_STREAM, 1, &[b'x'; FRAME_MAX + 1]),
            ],
        ),
        case(
            "4.2",
            "HEADERS that are longer",
            Goaway(&[FRAME_SIZE]),
            [frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &[0; FRAME_MAX + 1],
            )],
        ),
        case(
            "4.3",
            "an index that is in no table",
            Goaway(TABLE),
            [frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &[0xff, 0x80, 0x01],
            )],
        ),
        case(
            "4.3",
            "the index 0",
            Goaway(TABLE),
            [frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x80])],
        ),
        case(
            "4.3",
            "a table larger than was allowed",
            Goaway(TABLE),
            [frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &[&[0x3f, 0xe2, 0x1f][..], &block].concat(),
            )],
        ),
        case(
            "4.3",
            "a text that ends before its length",
            Goaway(TABLE),
            [frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &block[..block.len() - 1],
            )],
        ),
        case(
            "5.5",
            "a kind that nobody knows amid a head",
            Goaway(BROKEN),
            [
                frame(HEADERS, END_STREAM, 1, &block),
                frame(0xfb, 0, 1, b""),
            ],
        ),
    ]
}

/// Section 5.1.
fn streams() -> Vec<Case> {
    use Expect::{Answer, Either, Goaway, Reset};
    let after = |says, expect, bytes: Vec<u8>| Case {
        section: "5.1",
        says,
        steps: vec![
            Step::Send(get(1)),
            Step::Await(DATA, END_STREAM, 1),
            Step::Send(bytes),
        ],
        expect,
    };
    let many: Vec<_> = (0..=STREAMS_MAX).map(|at| waiting(at * 2 + 1)).collect();
    let too_many = STREAMS_MAX * 2 + 1;
    vec![
        case(
            "5.1",
            "DATA on an idle stream",
            Goaway(BROKEN),
            [frame(DATA, 0, 1, b"x")],
        ),
        case(
            "5.1",
            "RST_STREAM on an idle stream",
            Goaway(BROKEN),
            [reset(1)],
        ),
        case(
            "5.1",
            "WINDOW_UPDATE on an idle stream",
            Goaway(BROKEN),
            [window(1, 1)],
        ),
        case(
            "5.1",
            "PRIORITY on an idle stream is left alone",
            Answer(1, 200),
            [frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 7]), get(1)],
        ),
        case(
            "5.1",
            "DATA behind the end of a request",
            Either(1, CLOSED),
            [waiting(1), frame(DATA, 0, 1, b"x")],
        ),
        case(
            "5.1",
            "HEADERS behind the end of a request",
            Either(1, CLOSED),
            [waiting(1), waiting(1)],
        ),
        case(
            "5.1",
            "HEADERS on a stream that the user has reset",
            Either(1, CLOSED),
            [waiting(1), reset(1), waiting(1)],
        ),
        after(
            "DATA on a stream that is over",
            Either(1, CLOSED),
            frame(DATA, 0, 1, b"x"),
        ),
        after(
            "HEADERS on a stream that is over",
            Either(1, CLOSED),
            get(1),
        ),
        after(
            "WINDOW_UPDATE and RST_STREAM on a stream that is over are left alone",
            Answer(3, 200),
            [window(1, 1), reset(1), get(3)].concat(),
        ),
        case(
            "5.1.1",
            "a stream of the server's numbers",
            Goaway(BROKEN),
            [get(2)],
        ),
        case(
            "5.1.1",
            "a stream below one that was",
            Goaway(BROKEN),
            [waiting(5), get(3)],
        ),
        case(
            "5.1.2",
            "a stream more than may be open",
            Reset(too_many, &[REFUSED, PROTOCOL]),
            many,
        ),
    ]
}

/// Sections 6.1 to 6.4.
fn requests() -> Vec<Case> {
    use Expect::{Answer, Either, Goaway};
    let block = block(&GET);
    let depends = |on: u32| [&on.to_be_bytes()[..], &[16], &block].concat();
    vec![
        case(
            "6.1",
            "DATA on no stream",
            Goaway(BROKEN),
            [frame(DATA, 0, 0, b"x")],
        ),
        case(
            "6.1",
            "DATA with padding",
            Answer(1, 200),
            [
                head(1, 0, &ECHO),
                frame(DATA, END_STREAM | PADDED, 1, b"\x03abc\0\0\0"),
            ],
        ),
        case(
            "6.1",
            "DATA with more padding than there is",
            Goaway(BROKEN),
            [open(1), frame(DATA, PADDED, 1, b"\x07abc")],
        ),
        case("6.2", "HEADERS on no stream", Goaway(BROKEN), [get(0)]),
        case(
            "6.2",
            "HEADERS with padding and a priority",
            Answer(1, 200),
            [frame(
                HEADERS,
                END_HEADERS | END_STREAM | PADDED | PRIORITISED,
                1,
                &[&[2][..], &depends(0), &[0, 0]].concat(),
            )],
        ),
        case(
            "6.2",
            "HEADERS with more padding than there is",
            Goaway(BROKEN),
            [frame(
                HEADERS,
                END_HEADERS | END_STREAM | PADDED,
                1,
                &[&[0xff][..], &block].concat(),
            )],
        ),
        case(
            "6.2",
            "DATA of another stream amid a head",
            Goaway(BROKEN),
            [
                open(1),
                frame(HEADERS, END_STREAM, 3, &block),
                frame(DATA, 0, 1, b"x"),
            ],
        ),
        case(
            "6.2",
            "HEADERS of another stream amid a head",
            Goaway(BROKEN),
            [frame(HEADERS, END_STREAM, 1, &block), get(3)],
        ),
        case(
            "5.3.1 of RFC 7540",
            "HEADERS that depend on themselves",
            Either(1, BROKEN),
            [frame(
                HEADERS,
                END_HEADERS | END_STREAM | PRIORITISED,
                1,
                &depends(1),
            )],
        ),
        case(
            "6.3",
            "PRIORITY on no stream",
            Goaway(BROKEN),
            [frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 7])],
        ),
        case(
            "6.3",
            "PRIORITY of another length",
            Either(1, SIZE),
            [waiting(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 1])],
        ),
        case("6.4", "RST_STREAM on no stream", Goaway(BROKEN), [reset(0)]),
        case(
            "6.4",
            "RST_STREAM of another length",
            Goaway(SIZE),
            [waiting(1), frame(RST_STREAM, 0, 1, &[0, 0, 8])],
        ),
        case(
            "6.4",
            "RST_STREAM, and others go on",
            Answer(3, 200),
            [waiting(1), reset(1), get(3)],
        ),
    ]
}

/// Sections 6.6 to 6.8, and 6.10.
fn others() -> Vec<Case> {
    use Expect::{Answer, Goaway};
    let block = block(&GET);
    let promise = [&2_u32.to_be_bytes()[..], &block].concat();
    vec![
        case(
            "6.6",
            "PUSH_PROMISE of a user",
            Goaway(BROKEN),
            [waiting(1), frame(PUSH_PROMISE, END_HEADERS, 1, &promise)],
        ),
        case(
            "6.7",
            "PING on a stream",
            Goaway(BROKEN),
            [frame(PING, 0, 1, b"12345678")],
        ),
        case(
            "6.7",
            "PING of another length",
            Goaway(SIZE),
            [frame(PING, 0, 0, b"1234567")],
        ),
        case(
            "6.7",
            "the answer to no PING is left alone",
            Answer(1, 200),
            [frame(PING, ACK, 0, b"12345678"), get(1)],
        ),
        Case {
            section: "6.7",
            says: "PING is answered while a request waits",
            steps: vec![
                Step::Send([waiting(1), frame(PING, 0, 0, b"12345678")].concat()),
                Step::Await(PING, ACK, 0),
                Step::Send(get(3)),
            ],
            expect: Answer(3, 200),
        },
        case(
            "6.8",
            "GOAWAY on a stream",
            Goaway(BROKEN),
            [frame(GOAWAY, 0, 1, &[0; 8])],
        ),
        case(
            "6.8",
            "what was asked before GOAWAY is answered",
            Answer(1, 200),
            [get(1), frame(GOAWAY, 0, 0, &[0; 8])],
        ),
        case(
            "6.10",
            "a head in three frames",
            Answer(1, 200),
            in_pieces(1),
        ),
        case(
            "6.10",
            "CONTINUATION on no stream",
            Goaway(BROKEN),
            [
                frame(HEADERS, END_STREAM, 1, &block),
                frame(CONTINUATION, END_HEADERS, 0, &[]),
            ],
        ),
        case(
            "6.10",
            "CONTINUATION on another stream",
            Goaway(BROKEN),
            [
                frame(HEADERS, END_STREAM, 1, &block),
                frame(CONTINUATION, END_HEADERS, 3, &[]),
            ],
        ),
        case(
            "6.10",
            "CONTINUATION of nothing",
            Goaway(BROKEN),
            [frame(CONTINUATION, END_HEADERS, 1, &block)],
        ),
        case(
            "6.10",
            "CONTINUATION behind the end of a head",
            Goaway(BROKEN),
            [waiting(1), frame(CONTINUATION, END_HEADERS, 1, &block)],
        ),
    ]
}
