//! Reads the head of an answer, and writes the one that goes on to the user.

use super::chunks::{BadChunk, Chunks};
use super::request::{FIELDS_MAX, SWITCH, field_end, number};

use std::mem::MaybeUninit;

/// What the head of an answer says.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its bytes, the empty line included.
    pub(super) len: usize,
    pub(super) status: u16,
    pub(super) body: Rest,
    /// The instance keeps the connection.
    pub(super) keep_alive: bool,
}

/// What is still to come of a body.
#[derive(Debug)]
pub(super) enum Rest {
    Length(u64),
    Chunked(Chunks),
    /// Up to the end of the connection.
    Close,
}

impl Answer {
    /// The protocol changes.
    pub(super) fn is_switch(&self) -> bool {
        self.status == SWITCHING
    }

    /// It is no interim one.
    pub(super) fn is_final(&self) -> bool {
        self.status >= 200 || self.is_switch()
    }
}

impl Rest {
    /// Nothing is.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Length(rest) => *rest == 0,
            Self::Chunked(chunks) => chunks.is_over(),
            Self::Close => false,
        }
    }

    /// How many of `bytes` belong to it; they are taken off.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, BadChunk> {
        self.take_to(bytes, |_| {})
    }

    /// The same, and `saw` is told what of them is content and not framing.
    pub(super) fn take_to(
        &mut self,
        bytes: &[u8],
        mut saw: impl FnMut(&[u8]),
    ) -> Result<usize, BadChunk> {
        match self {
            Self::Length(rest) => {
                let taken = (*rest).min(bytes.len() as u64);
                *rest -= taken;
                saw(&bytes[..taken as usize]);
                Ok(taken as usize)
            }
            Self::Chunked(chunks) => chunks.take_to(bytes, saw),
            Self::Close => {
                saw(bytes);
                Ok(bytes.len())
            }
        }
    }
}

/// What the bytes read so far are.
#[derive(Debug)]
pub(super) enum Seen {
    Whole(Answer),
    /// The beginning of a head.
    Part,
    /// No HTTP, or HTTP that has two readings.
    Malformed,
}

/// What an answer's head becomes on its way to the user.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passing<'a> {
    /// It answers a HEAD: it has no body.
    pub(super) to_head: bool,
    /// The user is to keep the connection.
    pub(super) keep: bool,
    /// Fields that a final answer gets besides, with their line ends.
    pub(super) fields: &'a [u8],
}

/// Reads the head at the start of `bytes`. If it is whole, what the user gets is in `out`: without what is between
/// the instance and us, and with a word on whether the connection is kept if the user is not to keep it.
pub(super) fn read(bytes: &[u8], passing: Passing<'_>, out: &mut Vec<u8>) -> Seen {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX * 4];
    let mut answer = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    match parser.parse_response_with_uninit_headers(&mut answer, bytes, &mut fields) {
        Ok(httparse::Status::Complete(len)) => {
            let answer = take(bytes, len, &answer, passing, out);
            answer.map_or(Seen::Malformed, Seen::Whole)
        }
        Ok(httparse::Status::Partial) => Seen::Part,
        Err(_) => Seen::Malformed,
    }
}

fn take(
    bytes: &[u8],
    len: usize,
    answer: &httparse::Response<'_, '_>,
    passing: Passing<'_>,
    out: &mut Vec<u8>,
) -> Option<Answer> {
    let (status, version) = (answer.code?, answer.version?);
    out.clear();
    out.reserve(len + SWITCH.len() + passing.fields.len());
    let mut at = bytes.iter().position(|&byte| byte == b'\n')? + 1;
    let line = &bytes[..at];
    if !line.ends_with(b"\r\n") || !line.starts_with(b"HTTP/1.") {
        return None;
    }
    // Our own version, whatever the instance's is.
    out.extend_from_slice(b"HTTP/1.1");
    // Where what goes on begins that isn't written yet: it is, when something is left out.
    let mut kept = b"HTTP/1.1".len();
    let (mut length, mut codings, mut to_websocket) = (None, 0_u8, false);
    let mut keep_alive = version == 1;
    for field in answer.headers.iter() {
        let line = at;
        at = field_end(bytes, at, field)?;
        let is = |other: &str| field.name.eq_ignore_ascii_case(other);
        let goes_on = match field.name.len() {
            7 if is("upgrade") => {
                to_websocket = field.value.eq_ignore_ascii_case(b"websocket");
                false
            }
            10 if is("connection") => {
                // Names of other fields that end here are rare and harmless to pass on.
                let mut words = field.value.split(|&byte| byte == b',');
                keep_alive &= !words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"));
                false
            }
            10 if is("keep-alive") => false,
            16 if is("proxy-connection") => false,
            14 if is("content-length") => {
                let number = number(field.value)?;
                if length.replace(number).is_some() {
                    return None;
                }
                true
            }
            17 if is("transfer-encoding") => {
                codings += 1;
                if codings > 1 || version == 0 || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return None;
                }
                true
            }
            _ => true,
        };
        if !goes_on {
            out.extend_from_slice(&bytes[kept..line]);
            kept = at;
        }
    }
    out.extend_from_slice(&bytes[kept..at]);
    if bytes.get(at..len)? != b"\r\n" || (codings > 0 && length.is_some()) {
        return None;
    }
    if status == SWITCHING {
        // Nobody is asked for anything else.
        if !to_websocket || codings > 0 || length.is_some() {
            return None;
        }
        out.extend_from_slice(passing.fields);
        out.extend_from_slice(SWITCH);
    }
    let body = if passing.to_head || status < 200 || matches!(status, 204 | 304) {
        Rest::Length(0)
    } else if codings > 0 {
        Rest::Chunked(Chunks::default())
    } else {
        length.map_or(Rest::Close, Rest::Length)
    };
    if status >= 200 {
        out.extend_from_slice(passing.fields);
        if !passing.keep || matches!(body, Rest::Close) {
            out.extend_from_slice(CLOSE);
        }
    }
    out.extend_from_slice(b"\r\n");
    Some(Answer {
        len,
        status,
        keep_alive: keep_alive && !matches!(body, Rest::Close),
        body,
    })
}

/// The status that says that the protocol changes.
const SWITCHING: u16 = 101;
const CLOSE: &[u8] = b"Connection: close\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str, to_head: bool, keep: bool) -> (Seen, String) {
        let mut out = Vec::new();
        let passing = Passing {
            to_head,
            keep,
            fields: b"",
        };
        let seen = read(text.as_bytes(), passing, &mut out);
        (seen, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn what_is_between_the_instance_and_us_ends_here() {
        let text =
            "HTTP/1.1 200 OK\r\nconnection: close\r\nContent-Length: 3\r\nKeep-Alive: 5\r\n\r\n";
        let (Seen::Whole(answer), out) = seen(text, false, true) else {
            panic!("whole");
        };
        assert_eq!((answer.len, answer.status), (text.len(), 200));
        assert!(matches!(answer.body, Rest::Length(3)) && !answer.keep_alive);
        assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n");
        let (_, out) = seen(text, false, false);
        assert_eq!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn a_change_to_a_websocket_is_told_in_our_own_words_and_no_other_is_told() {
        let text =
            "HTTP/1.1 101 Web Socket\r\nupgrade: WebSocket\r\nX: 1\r\nconnection: upgrade\r\n\r\n";
        let (Seen::Whole(answer), out) = seen(text, false, false) else {
            panic!("whole");
        };
        assert!(answer.is_switch() && answer.is_final());
        assert_eq!(
            out,
            "HTTP/1.1 101 Web Socket\r\nX: 1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        for other in [
            text.replace("WebSocket", "h2c"),
            text.replace("upgrade: WebSocket\r\n", ""),
            text.replace("X: 1", "Content-Length: 3"),
        ] {
            let seen = seen(&other, false, true).0;
            assert!(matches!(seen, Seen::Malformed), "{other:?}");
        }
    }

    #[test]
    fn a_body_ends_where_the_head_says() {
        let body = |text: &str, to_head| match seen(text, to_head, true).0 {
            Seen::Whole(answer) => (answer.body, answer.keep_alive),
            other => panic!("{other:?}"),
        };
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(matches!(body(chunked, false), (Rest::Chunked(_), true)));
        assert!(matches!(body(chunked, true), (Rest::Length(0), true)));
        let none = "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n";
        assert!(matches!(body(none, false), (Rest::Length(0), true)));
        let open = "HTTP/1.1 200 OK\r\n\r\n";
        assert!(matches!(body(open, false), (Rest::Close, false)));
        let old = "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n";
        assert!(matches!(body(old, false), (Rest::Length(1), false)));
    }

    #[test]
    fn an_answer_with_two_readings_is_none() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: 1\r\n y\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n",
        ] {
            assert!(
                matches!(seen(text, false, true).0, Seen::Malformed),
                "{text:?}"
            );
        }
        assert!(matches!(seen("HTTP/1.1 200", false, true).0, Seen::Part));
    }
}
