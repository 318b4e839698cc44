//! Requests whose length can be read in two ways.

use http::header::TRANSFER_ENCODING;
use pingora_proxy::Session;

/// True where a request states both `Content-Length` and `Transfer-Encoding`. RFC 9112, section
/// 6.3 lets a proxy pick one, but the next parser may pick the other and take the rest of the body
/// for a request (smuggling); no honest client sends both. Pingora drops the length before we see
/// the header (its issue 945), so the raw head is searched, in requests with a transfer coding
/// alone.
pub(crate) fn is_ambiguous(session: &Session) -> bool {
    session.req_header().headers.contains_key(TRANSFER_ENCODING)
        && session
            .as_http1()
            .is_some_and(|h1| has_length(&h1.get_headers_raw_bytes()))
}

fn has_length(head: &[u8]) -> bool {
    head.split(|&byte| byte == b'\n').any(|line| {
        let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"content-length")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_found_however_it_is_written() {
        assert!(has_length(b"Host: a\r\ncontent-LENGTH: 4\r\n\r\n"));
        assert!(has_length(b"Host: a\nContent-Length : 4\n\n"));
        assert!(!has_length(b"Host: a\r\nX-Content-Length: 4\r\n\r\n"));
        assert!(!has_length(b"Host: content-length: 4\r\n\r\n"));
    }
}
