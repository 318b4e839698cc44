//! W3C trace context (Recommendation of 23 November 2021, <https://www.w3.org/TR/trace-context/>): each request gets an
//! identity that services tell each other, so that what they log of it can be put together.
//!
//! Only if asked for. Else `traceparent` and `tracestate` pass as they came: who changes the parent and tells nobody of
//! his part tears the tree.
//!
//! A trace that comes is gone on with, with this hop as the parent of the next. One that can't be read is begun anew and
//! its `tracestate` dropped (section 4.3), and so is none.

use crate::tickets::draw;

/// Length of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// Who asks records it. The second one, of Level 2, says that the identity is random; it belongs to that, and goes on.
const SAMPLED: u8 = 1;
const KNOWN_FLAGS: u8 = SAMPLED | 2;
/// Not to be used (section 3.2.2.1).
const VERSION_INVALID: u8 = 0xff;

/// Names of the fields, in lower case.
pub(crate) const PARENT: &str = "traceparent";
pub(crate) const STATE: &str = "tracestate";

/// How traces are begun.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceSettings {
    /// Share of those begun here that whoever follows is asked to record, 0 to 1. Of the others it is not this proxy's
    /// to say.
    pub sample: f64,
}

/// The trace of a request, and this hop's place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) id: u128,
    /// This hop's.
    pub(crate) span: u64,
    /// The one that asked; none, where the trace begins here.
    pub(crate) parent: Option<u64>,
    pub(crate) flags: u8,
}

impl Trace {
    /// Of a request with `parents` as its `traceparent`.
    pub(crate) fn of<'a>(
        settings: TraceSettings,
        mut parents: impl Iterator<Item = &'a [u8]>,
    ) -> Self {
        // Two are none.
        let parent = match (parents.next(), parents.next()) {
            (Some(only), None) => parse(only.trim_ascii()),
            _ => None,
        };
        let span = draw_some();
        if let Some((id, parent, flags)) = parent {
            return Self {
                id,
                span,
                parent: Some(parent),
                flags,
            };
        }
        let sampled = (draw() as f64) < settings.sample * 2f64.powi(64);
        Self {
            id: u128::from(draw_some()) << 64 | u128::from(draw()),
            span,
            parent: None,
            flags: u8::from(sampled) * SAMPLED,
        }
    }

    /// Whether what came in `tracestate` belongs to it.
    pub(crate) fn has_state(&self) -> bool {
        self.parent.is_some()
    }

    /// What the instance is told.
    pub(crate) fn traceparent(&self) -> [u8; LENGTH] {
        let mut text = [b'-'; LENGTH];
        write_hex(&mut text[..2], &[0]);
        write_hex(&mut text[3..35], &self.id.to_be_bytes());
        write_hex(&mut text[36..52], &self.span.to_be_bytes());
        write_hex(&mut text[53..], &[self.flags]);
        text
    }
}

/// Any number but 0, which is no identity.
fn draw_some() -> u64 {
    draw().max(1)
}

fn write_hex(out: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Identity, parent and flags in the value of a `traceparent`; `None` if it can't be read.
fn parse(value: &[u8]) -> Option<(u128, u64, u8)> {
    let known: &[u8; LENGTH] = value.first_chunk()?;
    let version = hex(&known[..2])? as u8;
    let fits = match version {
        0 => value.len() == LENGTH,
        VERSION_INVALID => false,
        // A later one may have more, behind another dash (section 4.3).
        _ => matches!(value.get(LENGTH), None | Some(b'-')),
    };
    let dashes = [known[2], known[35], known[52]] == [b'-'; 3];
    let (id, parent) = (hex(&known[3..35])?, hex(&known[36..52])? as u64);
    let flags = hex(&known[53..])? as u8;
    let flags = flags & if version == 0 { KNOWN_FLAGS } else { SAMPLED };
    (fits && dashes && id != 0 && parent != 0).then_some((id, parent, flags))
}

/// In lower case alone.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |sum, &digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(sum << 4 | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEVER: TraceSettings = TraceSettings { sample: 0.0 };
    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn of(parents: &[&str]) -> (Trace, String) {
        let trace = Trace::of(NEVER, parents.iter().map(|parent| parent.as_bytes()));
        let text = String::from_utf8(trace.traceparent().to_vec()).expect("text");
        (trace, text)
    }

    #[test]
    fn a_trace_is_gone_on_with_and_this_hop_is_the_next_one_s_parent() {
        let (trace, text) = of(&[GOOD]);
        assert_eq!(trace.id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(trace.parent, Some(0xb7ad_6b71_6920_3331));
        assert!(trace.has_state());
        assert_eq!(
            text,
            format!("00-0af7651916cd43dd8448eb211c80319c-{:016x}-01", trace.span)
        );
        assert_ne!(Some(trace.span), trace.parent);
        assert_ne!(of(&[GOOD]).0.span, trace.span);
    }

    #[test]
    fn flags_that_have_no_meaning_here_don_t_go_on() {
        for (sent, passed) in [
            ("00-{}-00", 0),
            ("00-{}-ff", 3),
            ("00-{}-02", 2),
            ("01-{}-03", 1),
            ("cc-{}-01-x.y", 1),
        ] {
            let ids = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
            let (trace, text) = of(&[&sent.replace("{}", ids)]);
            assert_eq!(trace.flags, passed, "{sent}");
            assert!(trace.has_state() && text.starts_with("00-0af7"), "{sent}");
        }
    }

    #[test]
    fn what_can_t_be_read_is_begun_anew() {
        let spoilt = |from: &str, to: &str| GOOD.replace(from, to);
        let bad = [
            String::new(),
            spoilt("-01", ""),
            spoilt("-01", "-1"),
            spoilt("-01", "-01-x"),
            spoilt("-01", "-01 x"),
            spoilt("-01", "-0g"),
            spoilt("00-", "ff-"),
            spoilt("00-", "0-"),
            spoilt("00-", "01.").replace("-01", "-01.x"),
            spoilt("00-0af", "01-0af").replace("-01", "-01x"),
            spoilt("0af7", "0AF7"),
            spoilt("0af7", "0af"),
            spoilt("b7ad", "B7AD"),
            spoilt("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            spoilt("b7ad6b7169203331", &"0".repeat(16)),
            spoilt("9c-b7", "9c_b7"),
            spoilt("31-01", "31_01"),
        ];
        for bad in &bad {
            let (trace, text) = of(&[bad]);
            assert!(!trace.has_state(), "{bad}");
            assert!(!text.contains("8448eb21"), "{bad}: {text}");
        }
        assert!(!of(&[]).0.has_state());
        assert!(!of(&[GOOD, GOOD]).0.has_state(), "two are none");
        assert_ne!(of(&[]).0.id, of(&[]).0.id);
    }

    #[test]
    fn the_share_that_was_asked_for_is_sampled() {
        let sampled = |sample| {
            let begun =
                (0..10_000).map(|_| Trace::of(TraceSettings { sample }, std::iter::empty()));
            begun.filter(|trace| trace.flags == SAMPLED).count()
        };
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 10_000));
        // 6 standard deviations.
        let some = sampled(0.1);
        assert!((820..=1_180).contains(&some), "{some}");
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(id in 1_u128.., span in 1_u64.., flags in 0_u8..4) {
            let trace = Trace { id, span, parent: None, flags };
            prop_assert_eq!(parse(&trace.traceparent()), Some((id, span, flags)));
        }

        #[test]
        fn any_bytes_are_judged(value in prop::collection::vec(any::<u8>(), 0..80)) {
            parse(&value);
        }
    }
}
