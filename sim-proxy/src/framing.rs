//! Request heads that two parsers may read in two ways.
//!
//! RFC 9112 lets a recipient make the best of many of them. A proxy has another parser behind it, and where the
//! two don't agree on where a request ends, the rest of one is taken for the next (smuggling). No honest
//! client sends any of these, so they are refused. Pingora takes them, and drops what is contradictory before
//! we see the parsed head (its issue 945), so the head is looked at as it came.

use pingora_proxy::Session;
use std::fmt;

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A line feed without carriage return, or the reverse (RFC 9112, section 2.2).
    LineEnding,
    /// A line that goes on in the next one (section 5.2).
    Folding,
    /// No name, white space in or behind it, or no colon (section 5.1).
    FieldName,
    /// A length that is no number, more than one, or one beside a transfer coding (sections 6.2, 6.3).
    Length,
    /// A transfer coding other than `chunked`, more than one, or one in HTTP/1.0 (section 6.1).
    Coding,
    /// No host in HTTP/1.1, or more than one, or one that no name or address can be (section 3.2).
    Host,
    /// Not a method, a target and a version with one space between each two (section 3), or no target.
    RequestLine,
    /// White space before or behind a value in HTTP/2, which would be none in HTTP/1.1 (RFC 9113, section 8.2.1).
    Padding,
    /// Bytes that no head has.
    Bytes,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LineEnding => "a line does not end with CR LF",
            Self::Folding => "a field is folded",
            Self::FieldName => "a field has no proper name",
            Self::Length => "the length is not one number",
            Self::Coding => "the transfer coding is not chunked alone",
            Self::Host => "there is not exactly one host",
            Self::RequestLine => "the first line is not method, target and version",
            Self::Padding => "a value begins or ends with white space",
            Self::Bytes => "it is no HTTP",
        })
    }
}

/// What is wrong with the head of a request; `None` for one that has only one reading.
pub(crate) fn fault(session: &Session) -> Option<Fault> {
    if let Some(http1) = session.as_http1() {
        return check(&http1.get_headers_raw_bytes()).err();
    }
    // Of HTTP/2 nothing else is left to us: h2 and Pingora refuse the rest.
    let mut values = session.req_header().headers.values();
    let is_padded = values.any(|value| value.as_bytes().trim_ascii().len() < value.len());
    is_padded.then_some(Fault::Padding)
}

/// Checks a whole head, from the request line to the empty line.
pub(crate) fn check(head: &[u8]) -> Result<(), Fault> {
    let mut lines = head.split_inclusive(|&byte| byte == b'\n').map(without_end);
    // Empty lines before a request are the end of the one before (section 2.2).
    let request = lines.by_ref().find(|line| *line != Ok(&[]));
    let request = request.unwrap_or(Ok(&[]))?;
    check_request_line(request)?;
    let is_1_0 = request.ends_with(b" HTTP/1.0");
    let (mut lengths, mut codings, mut hosts) = (0_u32, 0_u32, 0_u32);
    for line in lines {
        let line = line?;
        match line.first() {
            // httparse has found the end of the head; nothing follows.
            None => break,
            Some(b' ' | b'\t') => return Err(Fault::Folding),
            Some(_) => {}
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let (name, value) = line.split_at(colon.ok_or(Fault::FieldName)?);
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return Err(Fault::FieldName);
        }
        let value = value[1..].trim_ascii();
        // By length first: few names have these.
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                lengths += 1;
                if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                    return Err(Fault::Length);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                codings += 1;
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Fault::Coding);
                }
            }
            4 if name.eq_ignore_ascii_case(b"host") => {
                hosts += 1;
                if !is_host(value) {
                    return Err(Fault::Host);
                }
            }
            _ => {}
        }
    }
    if lengths > 1 || lengths + codings.min(1) > 1 {
        return Err(Fault::Length);
    }
    if codings > 1 || (is_1_0 && codings > 0) {
        return Err(Fault::Coding);
    }
    if hosts > 1 || (hosts == 0 && !is_1_0) {
        return Err(Fault::Host);
    }
    Ok(())
}

/// Pingora mends what stands for a target, and what an instance then sees is another one than users sent.
fn check_request_line(line: &[u8]) -> Result<(), Fault> {
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(_), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Fault::RequestLine);
    };
    let has_form = match target.first() {
        Some(b'/') => true,
        Some(b'*') => target.len() == 1,
        Some(_) => method == b"CONNECT" || target.windows(3).any(|three| three == b"://"),
        None => false,
    };
    if method.is_empty() || !has_form || target.iter().any(u8::is_ascii_control) {
        return Err(Fault::RequestLine);
    }
    Ok(())
}

/// Nothing, or bytes of a name, an address or a port (RFC 3986, section 3.2.2).
pub(crate) fn is_host(value: &[u8]) -> bool {
    let is_of_host =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    value.iter().all(is_of_host)
}

/// A line without its CR LF.
fn without_end(line: &[u8]) -> Result<&[u8], Fault> {
    match line.strip_suffix(b"\r\n") {
        Some(text) if !text.contains(&b'\r') => Ok(text),
        _ => Err(Fault::LineEnding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(fields: &str) -> Result<(), Fault> {
        check(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes())
    }

    #[test]
    fn a_head_with_one_reading_passes() {
        assert_eq!(of(""), Ok(()));
        assert_eq!(of("content-LENGTH: 4\r\nX: a:b\r\nY:\r\n"), Ok(()));
        assert_eq!(of("Transfer-Encoding:\tChunked \r\n"), Ok(()));
        assert_eq!(of("X-Content-Length: 4\r\nX-Content-Length: 5\r\n"), Ok(()));
        assert_eq!(check(b"\r\n\r\nGET / HTTP/1.1\r\nhost:\r\n\r\n"), Ok(()));
        assert_eq!(check(b"GET / HTTP/1.0\r\n\r\n"), Ok(()));
    }

    #[test]
    fn a_first_line_is_three_words_and_its_target_is_one() {
        let of = |line: &str| check(format!("{line}\r\nHost: a\r\n\r\n").as_bytes());
        for line in [
            "GET /a?b#c HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "GET http://a/b HTTP/1.1",
            "CONNECT a:80 HTTP/1.1",
            "BREW /\u{fc} HTTP/1.1",
        ] {
            assert_eq!(of(line), Ok(()), "{line:?}");
        }
        for line in [
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET /a b HTTP/1.1",
            " GET / HTTP/1.1",
            "GET /",
            "GET a HTTP/1.1",
            "GET a/b HTTP/1.1",
            "GET *a HTTP/1.1",
            "GET /\t HTTP/1.1",
            "GET /\0 HTTP/1.1",
            "GET\t/ HTTP/1.1",
        ] {
            assert_eq!(of(line), Err(Fault::RequestLine), "{line:?}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        let of = |host: &str| check(format!("GET / HTTP/1.1\r\nHost:{host}\r\n\r\n").as_bytes());
        for host in ["", " a", "A.b:80", "[::1]:80", "a_b%20", "xn--4ca"] {
            assert_eq!(of(host), Ok(()), "{host:?}");
        }
        for host in ["a b", "a/b", "a@b", "a?b", "a\tb", "\u{fc}", "a\u{0}"] {
            assert_eq!(of(host), Err(Fault::Host), "{host:?}");
        }
    }

    #[test]
    fn each_way_to_be_read_in_two_ways_is_told() {
        for (fields, fault) in [
            (
                "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
                Fault::Length,
            ),
            ("Content-Length: 4\r\nContent-Length: 4\r\n", Fault::Length),
            ("Content-Length: 4, 4\r\n", Fault::Length),
            ("Content-Length: +4\r\n", Fault::Length),
            ("Content-Length: 0x4\r\n", Fault::Length),
            ("Content-Length:\r\n", Fault::Length),
            ("Content-Length : 4\r\n", Fault::FieldName),
            ("Content Length: 4\r\n", Fault::FieldName),
            (": 4\r\n", Fault::FieldName),
            ("Content-Length 4\r\n", Fault::FieldName),
            ("Transfer-Encoding: gzip, chunked\r\n", Fault::Coding),
            ("Transfer-Encoding: xchunked\r\n", Fault::Coding),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Fault::Coding,
            ),
            ("X: a\r\n b\r\n", Fault::Folding),
            ("X: a\r\n\tb\r\n", Fault::Folding),
            ("X: a\nY: b\r\n", Fault::LineEnding),
            ("X: a\rY: b\r\n", Fault::LineEnding),
            ("Host: b\r\n", Fault::Host),
        ] {
            assert_eq!(of(fields), Err(fault), "{fields:?}");
        }
        assert_eq!(check(b"GET / HTTP/1.1\r\n\r\n"), Err(Fault::Host));
        let coded = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(check(coded), Err(Fault::Coding));
        assert_eq!(
            check(b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
            Err(Fault::LineEnding)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(head in prop::collection::vec(any::<u8>(), 0..400)) {
            check(&head).ok();
        }

        /// However it is written, a length beside a coding doesn't pass.
        #[test]
        fn no_disguise_hides_a_second_framing(
            case in prop::collection::vec(any::<bool>(), 40),
            space in "[ \t]{0,3}",
            between in "(X[a-z]{0,9}: [a-z :,]{0,20}\r\n){0,3}",
            swapped: bool,
        ) {
            let cased = |name: &str| -> String {
                let letters = name.chars().zip(&case);
                letters
                    .map(|(c, &upper)| if upper { c.to_ascii_uppercase() } else { c })
                    .collect()
            };
            let length = format!("{}:{space}4{space}\r\n", cased("content-length"));
            let coding = format!("{}:{space}{}\r\n", cased("transfer-encoding"), cased("chunked"));
            let (one, two) = if swapped { (&coding, &length) } else { (&length, &coding) };
            prop_assert_eq!(of(&format!("{one}{between}{two}")), Err(Fault::Length));
        }
    }
}
