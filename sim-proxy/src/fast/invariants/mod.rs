//! What must hold of the fast path's readers for any bytes whatever: for the property tests below, and for libFuzzer
//! (`cargo xtask fuzz`), by feature `fuzz`.
//!
//! Each is compared with readers that have nothing in common with it: one that is as simple as can be ([`Plain`]), and
//! hyper ([`by_hyper`]).

mod by_hyper;
mod plain;

use super::answer::{self, Passing, Rest};
use super::chunks::Chunks;
use super::request::{self, Framing, Reader};
use super::via::Via;
use crate::forwarded::{self, ForwardSettings};
use crate::framing;
use crate::matching::Matcher;
use by_hyper::by_hyper;
use plain::{Plain, chunked};

/// Longer bodies are not compared.
const LENGTH_MAX: u64 = 1 << 20;

/// A head that the fast path takes has one reading, its own; what goes on to the instance says the same.
///
/// # Panics
/// Where that isn't so.
pub fn request(bytes: &[u8]) {
    let client = std::net::IpAddr::from([10, 0, 0, 7]);
    let via = Via::of(Some(client), false, &ForwardSettings::default());
    let matcher = Matcher::new([[].as_slice()]);
    let reader = Reader {
        via: &via,
        sticky: None,
        matcher: &matcher,
        trace: None,
    };
    let mut out = Vec::new();
    let request::Seen::Whole(head) = request::read(bytes, reader, &mut out) else {
        return;
    };
    let (read, rest) = bytes.split_at(head.len);
    assert_eq!(framing::check(read), Ok(()));
    assert_eq!(framing::check(&out), Ok(()));
    let (came, goes) = (Plain::of(read), Plain::of(&out));
    assert_eq!(came.line, goes.line);

    let (lengths, codings) = (
        came.values("content-length"),
        came.values("transfer-encoding"),
    );
    let body = match (&lengths[..], &codings[..]) {
        ([], []) => Framing::Length(0),
        ([length], []) => Framing::Length(length.parse().expect("a number")),
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunked,
        more => panic!("two readings: {more:?}"),
    };
    assert_eq!(head.body, body);

    const HOPS: [&str; 6] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "http2-settings",
        "proxy-authorization",
    ];
    let is_ours = |name: &str| {
        forwarded::told(name).is_some() || HOPS.iter().any(|hop| name.eq_ignore_ascii_case(hop))
    };
    let kept: Vec<_> = came
        .fields
        .iter()
        .filter(|(name, _)| !is_ours(name))
        .collect();
    assert!(goes.fields.iter().take(kept.len()).eq(kept.iter().copied()));
    for (name, _) in &goes.fields[kept.len()..] {
        assert!(name.starts_with("X-Forwarded-"), "{name}");
    }

    let words: Vec<_> = came.line.split(' ').collect();
    if words[1].parse::<http::Uri>().is_err() {
        // No question of framing; hyper reads fewer targets.
        return;
    }
    let expected = match head.body {
        Framing::Length(LENGTH_MAX..) => return,
        Framing::Length(length) => rest.get(..length as usize).map(<[u8]>::to_vec),
        Framing::Chunked => {
            let (mut chunks, mut data) = (Chunks::default(), Vec::new());
            let taken = chunks.take_to(rest, |part| data.extend_from_slice(part));
            // Trailers are for the general path, and what is no chunked body is refused.
            if taken.is_err() || chunks.has_trailers() {
                return;
            }
            chunks.is_over().then_some(data)
        }
    };
    let (method, target, body) = by_hyper(bytes).expect("hyper refuses it");
    // It reads bytes of the upper half as UTF-8, and here each is a character.
    let target: String = target.bytes().map(char::from).collect();
    // And drops a fragment, which goes on as it came.
    let path = words[1].split('#').next().unwrap_or_default();
    assert_eq!((&*method, &*target), (words[0], path));
    assert_eq!(body, expected, "hyper reads another body");
}

/// A chunked body is read the same in one piece and in many, and as the plainest reader of it does.
///
/// # Panics
/// Where that isn't so.
pub fn chunks(bytes: &[u8]) {
    let Some((&step, bytes)) = bytes.split_first() else {
        return;
    };
    let read = |step: usize| {
        let (mut chunks, mut data, mut taken) = (Chunks::default(), Vec::new(), 0);
        for piece in bytes.chunks(step.max(1)) {
            taken += chunks
                .take_to(piece, |part| data.extend_from_slice(part))
                .ok()?;
        }
        Some((taken, data, chunks.is_over(), chunks.has_trailers()))
    };
    let whole = read(bytes.len());
    assert_eq!(whole, read(step.into()), "in pieces of {step}");
    let plain = chunked(bytes);
    match (whole, plain) {
        (Some((taken, data, true, _)), plain) => assert_eq!(plain, Some((taken, data))),
        (Some((taken, _, false, _)), plain) => assert_eq!((taken, plain), (bytes.len(), None)),
        // The plain one knows no limits and lets anything be an extension or a trailer.
        (None, _) => {}
    }
}

/// The head of an answer has one reading; what goes on to the user says the same, and how the connection goes on.
///
/// # Panics
/// Where that isn't so.
pub fn answer(bytes: &[u8]) {
    let Some((&flags, bytes)) = bytes.split_first() else {
        return;
    };
    let [to_head, keep, given] = [1, 2, 4].map(|flag| flags & flag != 0);
    let fields: &[u8] = if given { b"Set-Cookie: a=b\r\n" } else { b"" };
    let passing = Passing {
        to_head,
        keep,
        fields,
    };
    let mut out = Vec::new();
    let answer::Seen::Whole(answer) = answer::read(bytes, passing, &mut out) else {
        return;
    };
    let (came, goes) = (Plain::of(&bytes[..answer.len]), Plain::of(&out));
    assert_eq!(came.line["HTTP/1.x".len()..], goes.line["HTTP/1.x".len()..]);
    assert_eq!(came.line[9..12].parse(), Ok(answer.status));
    let is_final = answer.status >= 200;

    let (lengths, codings) = (
        came.values("content-length"),
        came.values("transfer-encoding"),
    );
    assert!(lengths.len() + codings.len() <= 1, "two readings");
    let bodiless = to_head || !is_final || [204, 304].contains(&answer.status);
    match (&answer.body, bodiless) {
        (Rest::Length(0), true) => {}
        (Rest::Length(length), false) => assert_eq!(lengths[0].parse(), Ok(*length)),
        (Rest::Chunked(_), false) => assert!(codings[0].eq_ignore_ascii_case("chunked")),
        (Rest::Close, false) => {
            assert!(lengths.is_empty() && codings.is_empty() && !answer.keep_alive);
        }
        (rest, true) => panic!("a body where none can be: {rest:?}"),
    }
    let closes = !keep || matches!(answer.body, Rest::Close);

    const HOPS: [&str; 4] = ["connection", "keep-alive", "proxy-connection", "upgrade"];
    let is_hop = |name: &str| HOPS.iter().any(|hop| name.eq_ignore_ascii_case(hop));
    let owned = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut expected: Vec<_> = came
        .fields
        .into_iter()
        .filter(|(name, _)| !is_hop(name))
        .collect();
    if is_final && given {
        expected.push(owned("Set-Cookie", "a=b"));
    }
    if is_final && closes {
        expected.push(owned("Connection", "close"));
    }
    assert_eq!(goes.fields, expected);
}

#[cfg(test)]
mod tests;
