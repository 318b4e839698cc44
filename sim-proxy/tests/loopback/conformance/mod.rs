//! HTTP/1.1 beside other implementations, as real processes: what nginx and SIM make of the same requests
//! ([`differential`]), and whether two proxies in a row can be brought to see one request more than was sent
//! ([`smuggling`]). `cargo xtask conformance` runs more of it than
//! `cargo xtask test` does. And HTTP/2 frame by frame: by a suite of other people's ([`http2`]), and by cases
//! of our own ([`frames`]).

#![allow(
    clippy::print_stdout,
    reason = "what was compared, and what differs, is the result"
)]

mod differential;
mod frames;
mod generator;
mod http2;
mod peers;
mod recorder;
mod smuggling;

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A server that says nothing for this long waits for more. Or the machine has paused: what is found is looked at again
/// before it is believed.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for who is alone, and looked at again.
const MORE_PATIENCE: Duration = Duration::from_secs(10);

/// Sends `bytes`, and returns what comes until the other side closes the connection or waits for more.
async fn say(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    say_patiently(to, bytes, PATIENCE).await
}

async fn say_patiently(to: SocketAddr, bytes: &[u8], patience: Duration) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut stream = TcpStream::connect(to).await.expect("connected");
    // Whoever refuses the beginning may have closed already.
    let sent = stream.write_all(bytes).await;
    while let Ok(Ok(1..)) = timeout(patience, stream.read_buf(&mut answer)).await {}
    drop(sent);
    answer
}
