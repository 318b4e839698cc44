//! Memory per idle connection.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::peers::Peers;
use serde_json::{Map, Value, json};

use crate::contender::{Contender, Running};

/// Connections that each serves one request and then waits.
const CONNECTIONS: usize = 4_000;
/// A head like a browser's.
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench (a name as long as those of browsers)\r\n\
     Accept: text/html,application/xhtml+xml\r\nAccept-Encoding: gzip, deflate\r\n\r\n";

pub(crate) fn measure(peers: &Peers) -> Result<Map<String, Value>> {
    let mut value = json!({});
    // The floor has a connection to the instance for each.
    let proxies = Contender::ALL.into_iter();
    for contender in proxies.filter(|&contender| contender != Contender::Floor) {
        let proxy = Running::start(contender, peers).with_context(|| contender.name())?;
        // What is allocated once.
        drop(connect(&proxy, 100)?);
        std::thread::sleep(Duration::from_millis(500));
        let before = proxy.resident_bytes()?;
        let connections = connect(&proxy, CONNECTIONS)?;
        // Idle connections to the instance end meanwhile.
        std::thread::sleep(Duration::from_secs(4));
        let bytes = proxy.resident_bytes()?.saturating_sub(before) / connections.len() as u64;
        value[contender.name()] = bytes.into();
        println!("idle: {} {bytes} bytes a connection", contender.name());
    }
    Ok(Map::from_iter([(
        "bytes_per_idle_connection".to_owned(),
        value,
    )]))
}

fn connect(proxy: &Running, count: usize) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::with_capacity(count);
    let mut answer = [0; 4_096];
    for _ in 0..count {
        let mut stream = TcpStream::connect(proxy.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(REQUEST.as_bytes())?;
        let read = stream.read(&mut answer)?;
        ensure!(
            answer[..read].starts_with(b"HTTP/1.1 200"),
            "no good answer"
        );
        connections.push(stream);
    }
    Ok(connections)
}
