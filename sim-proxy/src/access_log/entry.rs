//! What one request leaves for the log.

use crate::counters::Ending;
use sim_core::name::{InstanceId, WorkloadName};
use std::net::IpAddr;

/// Room for what a request says: more of it isn't logged.
const TEXT_BYTES: usize = 512;
/// Of these at most for all but the path.
const WORD_BYTES_MAX: usize = 128;

/// One request. It holds no memory of its own.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// When it ended, since 1970, ns.
    pub(crate) ended_ns: u64,
    pub(crate) duration_ns: u64,
    pub(crate) client: Option<IpAddr>,
    /// None: it reached none.
    pub(crate) workload: Option<WorkloadName>,
    pub(crate) question: Question,
    pub(crate) protocol: &'static str,
    /// 0: it had no answer.
    pub(crate) status: u16,
    pub(crate) ending: Ending,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Which answered, or was asked last.
    pub(crate) instance: Option<InstanceId>,
    pub(crate) tries: u8,
    pub(crate) hedged: bool,
}

/// What a request says, one behind the other.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    bytes: [u8; TEXT_BYTES],
    used: u16,
    parts: [Text; 4],
    /// Something was too long.
    cut: bool,
}

/// A part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Text {
    from: u16,
    to: u16,
}

impl Question {
    /// Of `path` without its query, unless that is asked for; `trace` is the value of `traceparent`.
    pub(crate) fn new(
        method: &[u8],
        host: &[u8],
        path: &[u8],
        trace: &[u8],
        with_query: bool,
    ) -> Self {
        let mut question = Self {
            bytes: [0; TEXT_BYTES],
            used: 0,
            parts: Default::default(),
            cut: false,
        };
        let query = path.iter().position(|&byte| byte == b'?');
        let path = match query {
            Some(at) if !with_query => &path[..at],
            _ => path,
        };
        let parts = [
            question.put(method, WORD_BYTES_MAX),
            question.put(trace_id(trace), WORD_BYTES_MAX),
            question.put(host, WORD_BYTES_MAX),
            question.put(path, TEXT_BYTES),
        ];
        question.parts = parts;
        question
    }

    /// Of a head as it was sent; what can't be told of it is empty.
    pub(crate) fn of_head(head: &[u8], with_query: bool) -> Self {
        let mut lines = head.split(|&byte| byte == b'\n');
        let mut words = lines.next().unwrap_or_default().split(|&byte| byte == b' ');
        let method = words.next().unwrap_or_default();
        let path = words.next().unwrap_or_default().trim_ascii_end();
        let (mut host, mut trace): (&[u8], &[u8]) = (&[], &[]);
        for line in lines {
            if line.is_empty() || line == b"\r" {
                break;
            }
            let Some(colon) = line.iter().position(|&byte| byte == b':') else {
                continue;
            };
            let (name, value) = line.split_at(colon);
            if name.eq_ignore_ascii_case(b"host") {
                host = value[1..].trim_ascii();
            } else if name.eq_ignore_ascii_case(b"traceparent") {
                trace = value[1..].trim_ascii();
            }
        }
        Self::new(method, host, path, trace, with_query)
    }

    fn put(&mut self, text: &[u8], bytes_max: usize) -> Text {
        let from = usize::from(self.used);
        let count = text.len().min(bytes_max).min(TEXT_BYTES - from);
        self.cut |= count < text.len();
        self.bytes[from..from + count].copy_from_slice(&text[..count]);
        self.used += count as u16;
        Text {
            from: from as u16,
            to: self.used,
        }
    }

    fn part(&self, at: usize) -> &[u8] {
        let Text { from, to } = self.parts[at];
        &self.bytes[usize::from(from)..usize::from(to)]
    }

    pub(crate) fn method(&self) -> &[u8] {
        self.part(0)
    }

    pub(crate) fn trace_id(&self) -> &[u8] {
        self.part(1)
    }

    pub(crate) fn host(&self) -> &[u8] {
        self.part(2)
    }

    pub(crate) fn path(&self) -> &[u8] {
        self.part(3)
    }

    /// Something was too long.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }
}

/// The trace in a `traceparent` (W3C Trace Context, section 3.2): version, trace, parent and flags.
fn trace_id(traceparent: &[u8]) -> &[u8] {
    let mut fields = traceparent.split(|&byte| byte == b'-');
    let id = fields.nth(1).unwrap_or_default();
    let good = id.len() == 32 && id.iter().all(u8::is_ascii_hexdigit);
    if good { id } else { &[] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_tells_what_was_asked_and_no_query_unless_wanted() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let head = format!(
            "GET /a/b?token=secret HTTP/1.1\r\nHOST: shop.example \r\nHoster: x\r\n\
             traceparent: 00-{trace}-b7ad6b7169203331-01\r\n\r\nHost: body"
        );
        for (with_query, path) in [(false, "/a/b"), (true, "/a/b?token=secret")] {
            let question = Question::of_head(head.as_bytes(), with_query);
            assert_eq!(question.method(), b"GET");
            assert_eq!(question.host(), b"shop.example");
            assert_eq!(question.path(), path.as_bytes());
            assert_eq!(question.trace_id(), trace.as_bytes());
            assert!(!question.is_cut());
        }
    }

    #[test]
    fn what_is_no_head_or_too_long_still_fits() {
        for head in [
            "",
            "\u{16}\u{3}",
            "GET",
            "GET / HTTP/1.1\r\nHost",
            "\n\n:\n",
        ] {
            Question::of_head(head.as_bytes(), true);
        }
        let long = "x".repeat(1_000);
        let question = Question::new(
            long.as_bytes(),
            long.as_bytes(),
            long.as_bytes(),
            long.as_bytes(),
            true,
        );
        assert!(question.is_cut());
        assert_eq!(question.host().len(), WORD_BYTES_MAX);
        assert_eq!(question.path().len(), TEXT_BYTES - 2 * WORD_BYTES_MAX);
        assert_eq!(question.trace_id(), b"");
    }
}
