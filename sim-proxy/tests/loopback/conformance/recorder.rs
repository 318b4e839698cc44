//! An instance that writes down what it understands, as strictly as it can: the last one in a row of proxies.

use httparse::{EMPTY_HEADER, Request, Status};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One request, or what was none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) body: Vec<u8>,
}

#[derive(Clone)]
pub(super) struct Recorder {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Record>>>,
}

impl Recorder {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let recorder = Self {
            address: listener.local_addr().expect("bound"),
            seen: Arc::default(),
        };
        let seen = recorder.seen.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                tokio::spawn(serve(stream, seen.clone()));
            }
        });
        recorder
    }

    /// What came since the last look.
    pub(super) fn take(&self) -> Vec<Record> {
        std::mem::take(&mut *self.seen.lock().expect("no panic"))
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Vec<Record>>>) {
    let mut bytes = Vec::new();
    loop {
        match request(&bytes) {
            Ok(Some((record, len))) => {
                let page: &[u8] = if record.method == "HEAD" { b"" } else { b"ok" };
                seen.lock().expect("no panic").push(record);
                bytes.drain(..len);
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
                if stream.write_all(&[head, page].concat()).await.is_err() {
                    return;
                }
            }
            Ok(None) => match stream.read_buf(&mut bytes).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            },
            Err(()) => {
                let what = String::from_utf8_lossy(&bytes).into_owned();
                seen.lock().expect("no panic").push(Record {
                    method: "?".to_owned(),
                    target: what,
                    body: Vec::new(),
                });
                return;
            }
        }
    }
}

/// The first request in `bytes` and its length, if it is whole.
fn request(bytes: &[u8]) -> Result<Option<(Record, usize)>, ()> {
    let mut fields = [EMPTY_HEADER; 256];
    let mut head = Request::new(&mut fields);
    let Status::Complete(len) = head.parse(bytes).map_err(|_| ())? else {
        return Ok(None);
    };
    let values = |name: &str| {
        let named = head.headers.iter();
        let named = named.filter(|field| field.name.eq_ignore_ascii_case(name));
        named
            .map(|field| String::from_utf8_lossy(field.value).into_owned())
            .collect::<Vec<_>>()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let rest = &bytes[len..];
    let (body, body_len) = match (&lengths[..], &codings[..]) {
        ([], []) => (Vec::new(), 0),
        ([length], []) => {
            let length = length.parse::<usize>().map_err(|_| ())?;
            match rest.get(..length) {
                Some(body) => (body.to_vec(), length),
                None => return Ok(None),
            }
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => match chunked(rest)? {
            Some(body) => body,
            None => return Ok(None),
        },
        // What has two readings must not come this far.
        _ => return Err(()),
    };
    let record = Record {
        method: head.method.unwrap_or_default().to_owned(),
        target: head.path.unwrap_or_default().to_owned(),
        body,
    };
    Ok(Some((record, len + body_len)))
}

/// A whole chunked body, decoded, and its length.
fn chunked(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, ()> {
    let (mut body, mut at) = (Vec::new(), 0);
    let line = |at: usize| {
        let end = bytes.get(at..)?.windows(2).position(|two| two == b"\r\n")?;
        Some(&bytes[at..at + end])
    };
    loop {
        let Some(size) = line(at) else {
            return Ok(None);
        };
        at += size.len() + 2;
        let size = size.split(|&byte| byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(size.trim_ascii()).map_err(|_| ())?;
        if size.starts_with('+') {
            return Err(());
        }
        let size = usize::from_str_radix(size, 16).map_err(|_| ())?;
        if size == 0 {
            break;
        }
        let Some(data) = bytes.get(at..at + size + 2) else {
            return Ok(None);
        };
        body.extend_from_slice(data.strip_suffix(b"\r\n").ok_or(())?);
        at += size + 2;
    }
    loop {
        let Some(trailer) = line(at) else {
            return Ok(None);
        };
        at += trailer.len() + 2;
        if trailer.is_empty() {
            return Ok(Some((body, at)));
        }
    }
}
