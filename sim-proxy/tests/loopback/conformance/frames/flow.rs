//! Sections 6.5, 6.9 and 10.5: settings, windows, and what costs its sender little.

use super::connection::{BROKEN, FRAME_MAX, SIZE, open, reset, waiting, window};
use super::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, WINDOW_UPDATE,
    block, frame,
};
use super::{CALM, Case, Expect, FLOW_CONTROL, GET, PROTOCOL, Step, case, get, head};

const WINDOW: &[u32] = &[FLOW_CONTROL];
/// More of anything that costs the sender little than anybody needs.
const FLOOD: usize = 10_000;

/// Of SETTINGS: its number and a value.
fn setting(number: u16, value: u32) -> Vec<u8> {
    [&number.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

fn settings(number: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &setting(number, value))
}

pub(super) fn cases() -> Vec<Case> {
    let groups = [settings_cases(), windows(), floods()];
    groups.into_iter().flatten().collect()
}

/// Section 6.5.
fn settings_cases() -> Vec<Case> {
    use Expect::{Answer, Goaway};
    vec![
        case(
            "6.5",
            "SETTINGS on a stream",
            Goaway(BROKEN),
            [frame(SETTINGS, 0, 1, &setting(3, 100))],
        ),
        case(
            "6.5",
            "SETTINGS that acknowledge and set",
            Goaway(SIZE),
            [frame(SETTINGS, ACK, 0, &setting(3, 100))],
        ),
        case(
            "6.5",
            "SETTINGS of another length",
            Goaway(SIZE),
            [frame(SETTINGS, 0, 0, &[0, 3, 0])],
        ),
        case(
            "6.5.2",
            "ENABLE_PUSH that is neither 0 nor 1",
            Goaway(BROKEN),
            [settings(2, 2)],
        ),
        case(
            "6.5.2",
            "a window of 2^31",
            Goaway(&[FLOW_CONTROL, PROTOCOL]),
            [settings(4, 1 << 31)],
        ),
        case(
            "6.5.2",
            "frames shorter than any peer may ask for",
            Goaway(BROKEN),
            [settings(5, FRAME_MAX as u32 - 1)],
        ),
        case(
            "6.5.2",
            "frames longer than any peer may ask for",
            Goaway(BROKEN),
            [settings(5, 1 << 24)],
        ),
        case(
            "6.5.2",
            "a setting that nobody knows is left alone",
            Answer(1, 200),
            [settings(0xfafa, 7), get(1)],
        ),
        case(
            "6.5.2",
            "no table at all",
            Answer(1, 200),
            [settings(1, 0), get(1)],
        ),
        Case {
            section: "6.5.3",
            says: "SETTINGS are acknowledged, each",
            steps: vec![
                // That of the beginning.
                Step::Await(SETTINGS, ACK, 0),
                Step::Send(settings(3, 10)),
                Step::Await(SETTINGS, ACK, 0),
                Step::Send(settings(3, 11)),
                Step::Await(SETTINGS, ACK, 0),
                Step::Send(get(1)),
            ],
            expect: Answer(1, 200),
        },
    ]
}

/// Section 6.9.
fn windows() -> Vec<Case> {
    use Expect::{Answer, Either, Goaway};
    const MAX: u32 = i32::MAX as u32;
    /// Before anybody says anything.
    const FIRST: u32 = 65_535;
    let closed = |says, more: Vec<u8>| Case {
        section: "6.9.2",
        says,
        steps: vec![
            Step::Send([settings(4, 0), head(1, END_STREAM, &GET)].concat()),
            Step::Await(HEADERS, END_HEADERS, 1),
            // Nothing of the body may have come by now: what does comes by what is sent next.
            Step::Send(frame(PING, 0, 0, b"12345678")),
            Step::Await(PING, ACK, 0),
            Step::Send(more),
            Step::Await(DATA, END_STREAM, 1),
            Step::Send(get(3)),
        ],
        expect: Answer(3, 200),
    };
    vec![
        case("6.9", "a window by nothing", Goaway(BROKEN), [window(0, 0)]),
        case(
            "6.9",
            "a stream's window by nothing",
            Either(1, BROKEN),
            [waiting(1), window(1, 0)],
        ),
        case(
            "6.9",
            "WINDOW_UPDATE of another length",
            Goaway(SIZE),
            [frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1])],
        ),
        case(
            "6.9.1",
            "a window beyond 2^31 - 1",
            Goaway(WINDOW),
            [window(0, MAX), window(0, MAX)],
        ),
        case(
            "6.9.1",
            "a stream's window beyond 2^31 - 1",
            Either(1, WINDOW),
            [waiting(1), window(1, MAX), window(1, MAX)],
        ),
        case(
            "6.9.2",
            "a stream's window beyond it by SETTINGS",
            Goaway(WINDOW),
            [waiting(1), window(1, MAX - FIRST), settings(4, FIRST + 1)],
        ),
        closed("a window that is opened by WINDOW_UPDATE", window(1, 100)),
        closed("a window that is opened by SETTINGS", settings(4, 100)),
    ]
}

/// Section 10.5: what costs the sender little.
fn floods() -> Vec<Case> {
    use Expect::Goaway;
    const FLOODED: &[u32] = &[CALM];
    let heads = (0..FLOOD as u32).map(|at| at * 2 + 1);
    let head = frame(HEADERS, END_STREAM, 1, &block(&GET));
    let continued = std::iter::repeat_n(frame(CONTINUATION, 0, 1, &[]), FLOOD);
    let empty = std::iter::repeat_n(frame(DATA, 0, 1, &[]), FLOOD);
    vec![
        case("10.5", "streams that are reset at once", Goaway(FLOODED), {
            heads.flat_map(|stream| [waiting(stream), reset(stream)])
        }),
        case(
            "10.5",
            "a head without an end, in empty frames",
            Goaway(FLOODED),
            std::iter::once(head).chain(continued),
        ),
        case(
            "10.5",
            "a body of nothing, without an end",
            Goaway(FLOODED),
            std::iter::once(open(1)).chain(empty),
        ),
    ]
}
