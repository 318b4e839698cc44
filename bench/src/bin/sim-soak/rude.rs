//! Users who leave in the middle, are slow, or speak no HTTP.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http_body_util::Full;
use hyper::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::instance::SLOW;
use crate::tally::May;
use crate::traffic::{Fleet, Kind, Way, request};
use crate::world::{NAME, Users, WEB};

/// What a slow reader takes at a time, and how long it pauses.
const SIP: usize = 32 * 1_024;
const PAUSE: Duration = Duration::from_millis(100);
const SIPPED: usize = 2 * 1_024 * 1_024;
/// More than any kernel takes for a user who reads nothing.
const MUCH: usize = 16 * 1_024 * 1_024;
/// More than twice what two workers keep buffers for.
const FILLING: usize = 600;

/// What is no request, or has two readings.
const MALFORMED: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"\0\0\0\0\0\0\0\0\r\n\r\n",
];
/// The preface of HTTP/2 and what no frame may be behind it.
const NO_FRAMES: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x05\x06\0\0\0\0\x01hello";

pub(crate) fn kinds(users: &Users) -> Vec<Kind> {
    let resetting = Arc::new(Fleet::new(users, Way::Clear));
    vec![
        Kind::new("leaves before the answer", May::Never, 4.0, {
            let users = users.clone();
            move || leave(users.clone(), "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n", 0)
        }),
        Kind::new("leaves in the middle of the answer", May::Never, 1.0, {
            let users = users.clone();
            move || {
                let request = "GET /bytes/4194304 HTTP/1.1\r\nHost: a\r\n\r\n";
                leave(users.clone(), request, SIP)
            }
        }),
        Kind::new("leaves in the middle of the body", May::Never, 2.0, {
            let users = users.clone();
            move || {
                let request =
                    "POST /echo/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc";
                leave(users.clone(), request, 0)
            }
        }),
        Kind::new("resets its stream", May::Never, 5.0, move || {
            reset(resetting.clone())
        }),
        Kind::new("reads slowly", May::WhenKilled(WEB), 0.5, {
            let users = users.clone();
            move || sip(users.clone())
        }),
        Kind::new("GET byte by byte", May::Never, 1.0, {
            let users = users.clone();
            move || byte_by_byte(users.clone())
        }),
        Kind::new("never ends its head", May::Never, 0.5, {
            let users = users.clone();
            move || endless(users.clone())
        }),
        Kind::new("sends no HTTP", May::Never, 5.0, {
            let users = users.clone();
            move || nonsense(users.clone())
        }),
        Kind::new("sends no frames", May::Never, 1.0, {
            let users = users.clone();
            move || to_the_end(users.clear, NO_FRAMES)
        }),
        Kind::new("sends no TLS", May::Never, 1.0, {
            let users = users.clone();
            move || to_the_end(users.secure, MALFORMED[0])
        }),
    ]
}

/// So many users at once ask for much and take nothing of it, until they leave: each worker of the proxy then keeps as
/// much memory for the next as it ever will (128 buffers), and what grows from here on grows without an end.
pub(crate) async fn fill(users: &Users) -> Result<()> {
    let mut asking = Vec::new();
    for _ in 0..FILLING {
        let mut stream = TcpStream::connect(users.clear).await?;
        let request = format!("GET /pieces/{MUCH} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        asking.push(stream);
    }
    sleep(Duration::from_secs(2)).await;
    Ok(())
}

/// Reads `take` bytes of the answer, and goes: with a word or, half of the time, without.
async fn leave(users: Users, request: &'static str, take: usize) -> Result<()> {
    let mut stream = TcpStream::connect(users.clear).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut taken = vec![0; take];
    // Whoever is killed meanwhile closes it: then there is nothing left to leave.
    stream.read_exact(&mut taken).await.ok();
    sleep(SLOW / 4).await;
    if stream.local_addr()?.port().is_multiple_of(2) {
        stream.set_zero_linger()?;
    }
    Ok(())
}

/// On a connection that others reset theirs on as well, until the proxy has enough of it.
async fn reset(fleet: Arc<Fleet>) -> Result<()> {
    let mut sender = fleet.sender().await?;
    let request = request(Method::GET, NAME, "/slow")?.body(Full::default())?;
    let asked = timeout(SLOW / 4, sender.send_request(request)).await;
    // Shut out with the streams that are still open, if it comes to that.
    drop(asked);
    Ok(())
}

async fn sip(users: Users) -> Result<()> {
    let mut stream = TcpStream::connect(users.clear).await?;
    let request = format!("GET /bytes/{SIPPED} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let (mut taken, mut sip) = (0, vec![0; SIP]);
    loop {
        let count = stream.read(&mut sip).await?;
        taken += count;
        if count == 0 {
            break;
        }
        sleep(PAUSE).await;
    }
    ensure!(taken > SIPPED, "{taken} bytes");
    Ok(())
}

async fn byte_by_byte(users: Users) -> Result<()> {
    let mut stream = TcpStream::connect(users.clear).await?;
    stream.set_nodelay(true)?;
    for byte in b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).await?;
        sleep(Duration::from_millis(20)).await;
    }
    let answer = read(&mut stream).await?;
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{answer:?}");
    Ok(())
}

async fn endless(users: Users) -> Result<()> {
    let mut stream = TcpStream::connect(users.clear).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX:").await?;
    let answer = read(&mut stream).await?;
    ensure!(answer.starts_with(b"HTTP/1.1 408 "), "{answer:?}");
    Ok(())
}

async fn nonsense(users: Users) -> Result<()> {
    let mut stream = TcpStream::connect(users.clear).await?;
    let at = usize::from(stream.local_addr()?.port()) / 2 % MALFORMED.len();
    stream.write_all(MALFORMED[at]).await?;
    let answer = read(&mut stream).await?;
    ensure!(answer.starts_with(b"HTTP/1.1 400 "), "{at}: {answer:?}");
    Ok(())
}

/// Whatever the answer is, it has an end.
async fn to_the_end(to: std::net::SocketAddr, bytes: &'static [u8]) -> Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(bytes).await?;
    // A reset is an end.
    stream.read_to_end(&mut vec![]).await.ok();
    Ok(())
}

/// To the end, or to the reset that follows where not all that was sent was read.
async fn read(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut answer = Vec::new();
    while stream
        .read_buf(&mut answer)
        .await
        .is_ok_and(|count| count > 0)
    {}
    (!answer.is_empty())
        .then_some(answer)
        .context("no answer, and the end")
}
