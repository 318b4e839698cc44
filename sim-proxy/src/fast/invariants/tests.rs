use super::*;
use proptest::prelude::*;

/// Pieces of heads and bodies; what they are joined to is mostly wrong, and often nearly right.
const PIECES: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: x\r\n",
    "POST /a?b HTTP/1.1\r\nHost: x\r\n",
    "HEAD /%41 HTTP/1.1\r\nHost: x\r\n",
    "PUT /a HTTP/1.0\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 103 Early Hints\r\n",
    "HTTP/1.0 200 OK\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 0\r\n",
    "Content-Length:\t10 \r\n",
    "content-LENGTH: 18446744073709551616\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Connection: X-A\r\n",
    "Keep-Alive: 5\r\n",
    "Upgrade: x\r\n",
    "TE: trailers\r\n",
    "X-Forwarded-For: 1.2.3.4\r\n",
    "X_Forwarded_For: 1.2.3.4\r\n",
    "Forwarded: for=a\r\n",
    "X-A: b\r\n",
    "Empty:\r\n",
    "3\r\nabc\r\n",
    "3;x=y\r\nabc\r\n",
    "3 ;x\r\nabc\r\n",
    "0\r\n",
    "00\r\n\r\n",
    "a\r\n0123456789\r\n",
    "abc",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    ":",
    "\u{0}",
    "\u{fc}",
];

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec());
    let junk = prop::collection::vec(any::<u8>(), 1..4);
    let part = prop_oneof![20 => piece, 1 => junk];
    prop::collection::vec(part, 0..9).prop_map(|parts| parts.concat())
}

fn sample(bytes: impl AsRef<[u8]>, of: fn(&[u8])) {
    of(bytes.as_ref());
}

#[test]
fn what_is_compared_is_reached() {
    let body =
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(
        by_hyper(body.as_bytes()),
        Some(("POST".to_owned(), "/".to_owned(), Some(b"abc".to_vec())))
    );
    assert_eq!(
        by_hyper(b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc"),
        None
    );
    assert_eq!(
        chunked(b"3;x\r\nabc\r\n0\r\n\r\nGET"),
        Some((15, b"abc".to_vec()))
    );
    sample(body, request);
    sample("GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", request);
    sample("GET /\u{15d} HTTP/1.1\r\nHost: x\r\n\r\n", request);
    sample("\u{2}3;x\r\nabc\r\n0\r\n\r\n", chunks);
    sample("\u{6}HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", answer);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200_000))]

    #[test]
    fn any_request_is_read_in_one_way(start in prop::sample::select(&PIECES[..4]), bytes in bytes()) {
        request(&[start.as_bytes(), &bytes].concat());
        request(&bytes);
    }

    #[test]
    fn any_chunked_body_is_read_in_one_way(step: u8, bytes in bytes()) {
        chunks(&[&[step], &bytes[..]].concat());
    }

    #[test]
    fn any_answer_is_read_in_one_way(
        flags: u8,
        start in prop::sample::select(&PIECES[4..8]),
        bytes in bytes(),
    ) {
        answer(&[&[flags], start.as_bytes(), &bytes].concat());
    }
}
