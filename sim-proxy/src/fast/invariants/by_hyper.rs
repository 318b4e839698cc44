//! What hyper makes of the same bytes.

use hyper::body::{Body, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// It has all there is at once, so this is far more than it needs.
const TURNS_MAX: usize = 10_000;

/// A user who has sent all it will, and takes any answer.
struct Sent<'a>(&'a [u8]);

impl Read for Sent<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut room: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.0.len().min(room.remaining());
        let (now, later) = self.0.split_at(count);
        room.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Sent<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Method, target and body of the first request; no body where that isn't whole.
pub(super) fn by_hyper(bytes: &[u8]) -> Option<(String, String, Option<Vec<u8>>)> {
    let seen = Rc::new(RefCell::new(None));
    let service = service_fn(|request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            let is_first = seen.borrow().is_none();
            if is_first {
                *seen.borrow_mut() = Some((head.method.to_string(), head.uri.to_string(), None));
            }
            let body = whole(body).await;
            if is_first && let Some((.., kept)) = &mut *seen.borrow_mut() {
                *kept = body;
            }
            Ok::<_, Infallible>(Response::new(String::new()))
        }
    });
    {
        // The end of what was sent is no reason to leave.
        let mut server = http1::Builder::new();
        let connection = server
            .half_close(true)
            .serve_connection(Sent(bytes), service);
        let mut connection = pin!(connection);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..TURNS_MAX {
            if connection.as_mut().poll(&mut context).is_ready() {
                break;
            }
        }
    }
    seen.take()
}

async fn whole(mut body: Incoming) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(part) = frame.ok()?.into_data() {
            data.extend_from_slice(&part);
        }
    }
    Some(data)
}
