//! Where an answer ends, and the little that is wanted of it.

use anyhow::{Context as _, Result, bail};

/// Fields of an answer's head at most.
const FIELDS_MAX: usize = 64;

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) instance: u32,
    /// No other follows on this connection.
    pub(super) close: bool,
}

/// An answer as it comes.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// What came and isn't understood yet.
    bytes: Vec<u8>,
    body: Option<(Answer, Body)>,
}

#[derive(Debug)]
enum Body {
    /// Bytes that are left.
    Length(u64),
    Chunked,
}

impl Reader {
    /// Takes the next bytes; the answer, once it is whole.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Option<Answer>> {
        if let Some((answer, Body::Length(left))) = &mut self.body {
            *left = left
                .checked_sub(bytes.len() as u64)
                .context("more than was said")?;
            return Ok((*left == 0).then_some(*answer));
        }
        self.bytes.extend_from_slice(bytes);
        while self.body.is_none() {
            let Some((answer, body, length)) = head(&self.bytes)? else {
                return Ok(None);
            };
            self.bytes.drain(..length);
            // "100 Continue" and the like go before the answer.
            if answer.status >= 200 {
                self.body = Some((answer, body));
            }
        }
        match &mut self.body {
            Some((answer, Body::Length(left))) => {
                let came = std::mem::take(&mut self.bytes).len() as u64;
                *left = left.checked_sub(came).context("more than was said")?;
                Ok((*left == 0).then_some(*answer))
            }
            Some((answer, Body::Chunked)) => Ok(last_chunk(&mut self.bytes)?.then_some(*answer)),
            None => Ok(None),
        }
    }
}

/// The head, what its body is, and its length; none where it isn't whole.
fn head(bytes: &[u8]) -> Result<Option<(Answer, Body, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = response.parse(bytes)? else {
        return Ok(None);
    };
    let mut answer = Answer {
        status: response.code.context("no status")?,
        instance: 0,
        close: false,
    };
    let mut body = None;
    for field in response.headers.iter() {
        let text = || std::str::from_utf8(field.value).map(str::trim);
        if field.name.eq_ignore_ascii_case("content-length") {
            body = Some(Body::Length(text()?.parse()?));
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            body = Some(Body::Chunked);
        } else if field.name.eq_ignore_ascii_case("connection") {
            answer.close = text()?.eq_ignore_ascii_case("close");
        } else if field.name.eq_ignore_ascii_case("x-instance") {
            answer.instance = text()?.parse().unwrap_or(0);
        }
    }
    let bodiless = answer.status < 200 || matches!(answer.status, 204 | 304);
    let body = if bodiless {
        Body::Length(0)
    } else {
        body.context("an answer that ends with the connection")?
    };
    Ok(Some((answer, body, length)))
}

/// Drops whole chunks from the front of `bytes`; true once the last one has come. Trailers are none of ours: an empty
/// line follows the last chunk.
fn last_chunk(bytes: &mut Vec<u8>) -> Result<bool> {
    loop {
        let parsed = httparse::parse_chunk_size(bytes);
        let Ok(parsed) = parsed else {
            bail!("no chunk")
        };
        let httparse::Status::Complete((begin, size)) = parsed else {
            return Ok(false);
        };
        let end = begin + usize::try_from(size)? + 2;
        if bytes.len() < end {
            return Ok(false);
        }
        bytes.drain(..end);
        if size == 0 {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nX-Instance: 7\r\n";

    /// What comes of `text` in pieces of `size` bytes.
    fn read(text: &str, size: usize) -> Vec<Option<Answer>> {
        let mut reader = Reader::default();
        let pieces = text.as_bytes().chunks(size);
        pieces
            .map(|piece| reader.take(piece).expect("HTTP"))
            .collect()
    }

    #[test]
    fn an_answer_ends_where_its_framing_says_however_it_is_cut() {
        let length = format!("{HEAD}Content-Length: 11\r\n\r\nhello world");
        let chunked = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        let none = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nX-Instance: 7\r\n\r\n";
        for (text, status) in [(&*length, 200), (&*chunked, 200), (none, 204)] {
            for size in 1..=text.len() {
                let mut came = read(text, size);
                let last = came.pop().flatten().expect("whole at the end");
                assert_eq!((last.status, last.instance, last.close), (status, 7, false));
                assert!(came.iter().all(Option::is_none), "{text} by {size}");
            }
        }
    }

    #[test]
    fn what_is_no_answer_or_more_than_one_is_an_error() {
        for text in [
            "HELLO\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nup to the end",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nthree",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ] {
            assert!(Reader::default().take(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn who_wants_to_close_is_heard() {
        let answer = read(
            "HTTP/1.1 502 Bad\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            4_096,
        );
        assert!(answer[0].is_some_and(|answer| answer.close && answer.status == 502));
    }
}
