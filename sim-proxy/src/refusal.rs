//! Answers that the proxy gives itself: a status, a line that says what is wrong, nothing about
//! the software behind it.

use crate::grpc;
use bytes::Bytes;
use http::Method;
use http::header::CONTENT_LENGTH;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

/// The status that tells a user of `error`; 0 where the user is gone.
pub(crate) fn status_of(error: &Error) -> u16 {
    use ErrorType as E;
    match (error.etype(), error.esource()) {
        (E::HTTPStatus(code), _) => *code,
        (E::ConnectTimedout | E::ReadTimedout | E::WriteTimedout, ErrorSource::Upstream) => 504,
        (_, ErrorSource::Upstream) => 502,
        (E::ReadTimedout, ErrorSource::Downstream) => 408,
        (
            E::WriteError | E::ReadError | E::ConnectionClosed | E::WriteTimedout,
            ErrorSource::Downstream,
        ) => 0,
        (_, ErrorSource::Downstream) => 400,
        (_, ErrorSource::Internal | ErrorSource::Unset) => 500,
    }
}

fn text_of(status: u16) -> &'static str {
    match status {
        431 => "431 Request Header Fields Too Large: the head of the request is too long\n",
        400 => "400 Bad Request: the request is malformed\n",
        404 => "404 Not Found: no service is here\n",
        408 => "408 Request Timeout: the request did not arrive in time\n",
        429 => "429 Too Many Requests: there were too many requests from this address\n",
        500 => "500 Internal Server Error: the proxy failed\n",
        502 => "502 Bad Gateway: the service gave no valid answer\n",
        503 => "503 Service Unavailable: no instance of the service can take the request\n",
        504 => "504 Gateway Timeout: the service did not answer in time\n",
        _ => "",
    }
}

/// The whole answer with `status`, of which the connection doesn't stay.
pub(crate) fn page(status: u16, is_head: bool) -> String {
    let text = text_of(status);
    let title = text.split(':').next().unwrap_or_default();
    let mut page = format!("HTTP/1.1 {title}\r\nContent-Length: {}\r\n", text.len());
    for (name, value) in fields(status) {
        page.extend([name, ": ", value, "\r\n"]);
    }
    page.push_str("Connection: close\r\n\r\n");
    if !is_head {
        page.push_str(text);
    }
    page
}

/// Fields of such an answer, but for its length.
fn fields(status: u16) -> impl Iterator<Item = (&'static str, &'static str)> {
    let again = matches!(status, 429 | 503).then_some(("Retry-After", "1"));
    [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-store"),
    ]
    .into_iter()
    .chain(again)
}

/// Answers with `status` and closes the connection, unless an answer has begun. Of a call of gRPC the status is said
/// even then.
pub(crate) async fn write(session: &mut Session, status: u16) -> Result<()> {
    let text = text_of(status);
    if grpc::is_call(session) {
        return grpc::end(session, status, text).await;
    }
    let mut header = ResponseHeader::build(status, Some(4))?;
    header.insert_header(CONTENT_LENGTH, text.len())?;
    for (name, value) in fields(status) {
        header.insert_header(name, value)?;
    }
    let is_head = session.req_header().method == Method::HEAD;
    let body = if is_head {
        Bytes::new()
    } else {
        Bytes::from_static(text.as_bytes())
    };
    session.as_mut().write_error_response(header, body).await
}
