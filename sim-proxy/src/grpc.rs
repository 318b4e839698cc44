//! What gRPC says in its own words over HTTP/2: how a call ended, and how long its caller waits.
//!
//! A call that fails with a bare status of HTTP is an unknown error to many clients. So what the proxy refuses or loses
//! is told as `grpc-status`, by the table that gRPC itself gives for such answers ("HTTP to gRPC Status Code Mapping").

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use pingora_error::{ErrorType, OrErr as _, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use std::time::Duration;

const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";
const DEADLINE_EXCEEDED: u8 = 4;
const UNAVAILABLE: u8 = 14;
/// Longest deadline that is told apart from none.
const DEADLINE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Whether a request is a call of gRPC that can be answered as one.
pub(crate) fn is_call(session: &Session) -> bool {
    session.is_http2() && is_grpc(&session.req_header().headers)
}

/// Whether a message is one of gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// How long the caller waits for all of the answer, by its own word.
pub(crate) fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get("grpc-timeout")?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits
        .iter()
        .fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
    let deadline = match unit {
        b'H' => Duration::from_secs(count * 3_600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    };
    Some(deadline.clamp(Duration::from_millis(1), DEADLINE_MAX))
}

/// The status in the head or the trailers of an answer.
pub(crate) fn status_in(headers: &HeaderMap) -> Option<u8> {
    let status = headers.get(STATUS)?.to_str().ok()?;
    status.parse().ok()
}

/// Whether a status says that the instance failed, as one of 500 and above does: UNKNOWN (what a server makes of an
/// exception), INTERNAL, UNAVAILABLE and DATA_LOSS. The others tell of the call.
pub(crate) fn is_failure(status: u8) -> bool {
    matches!(status, 2 | 13..=15)
}

/// What `status` of HTTP is in gRPC. `late`: it was the caller's own deadline.
fn status_of(status: u16, late: bool) -> u8 {
    match status {
        504 if late => DEADLINE_EXCEEDED,
        400 | 431 | 500 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        _ => UNAVAILABLE,
    }
}

/// Ends a call with `status` of HTTP, said in gRPC; `text` is for people. It may have been answered in part.
pub(crate) async fn end(session: &mut Session, status: u16, text: &'static str) -> Result<()> {
    let late = deadline(&session.req_header().headers).is_some();
    let failed = || "while ending a call";
    if session.response_written().is_none() {
        let mut head = ResponseHeader::build(200, Some(1))?;
        head.insert_header(CONTENT_TYPE, "application/grpc")?;
        session.write_response_header(Box::new(head), false).await?;
    }
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(
        STATUS,
        HeaderValue::from(u16::from(status_of(status, late))),
    );
    let text = HeaderValue::from_str(text.trim_end());
    trailers.insert(MESSAGE, text.or_err_with(ErrorType::InternalError, failed)?);
    session.as_mut().write_response_trailers(trailers).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let value = HeaderValue::from_str(value).expect("valid");
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value)])
    }

    #[test]
    fn grpc_is_told_by_its_content_type_and_nothing_like_it() {
        for (kind, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&headers("content-type", kind)), is, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn deadlines_are_read_in_each_unit_and_nonsense_is_none() {
        let of = |text| deadline(&headers("grpc-timeout", text));
        assert_eq!(of("100m"), Some(Duration::from_millis(100)));
        assert_eq!(of("3S"), Some(Duration::from_secs(3)));
        assert_eq!(of("2M"), Some(Duration::from_secs(120)));
        assert_eq!(of("1H"), Some(Duration::from_secs(3_600)));
        assert_eq!(of("5000u"), Some(Duration::from_millis(5)));
        assert_eq!(of("1n"), Some(Duration::from_millis(1)));
        assert_eq!(of("99999999H"), Some(DEADLINE_MAX));
        for nonsense in ["", "m", "10", "-1m", "123456789m", "1x"] {
            assert_eq!(of(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_call_that_reached_nobody_is_unavailable_and_one_past_its_deadline_says_so() {
        assert_eq!(status_of(503, false), UNAVAILABLE);
        assert_eq!(status_of(502, true), UNAVAILABLE);
        assert_eq!(status_of(504, false), UNAVAILABLE);
        assert_eq!(status_of(504, true), DEADLINE_EXCEEDED);
        assert_eq!(status_of(400, false), 13);
    }
}
