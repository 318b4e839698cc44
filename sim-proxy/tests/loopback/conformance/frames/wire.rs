//! Frames as bytes, and a connection on which they are sent and read: nothing of it knows what a good frame is.

use crate::secure::{NAME, Way, Wire};
use crate::world::World;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A proxy that says nothing for this long will say nothing any more; the test has failed then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Kinds of frames (RFC 9113, section 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Flags of them.
pub(super) const ACK: u8 = 0x1;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITISED: u8 = 0x20;

/// Any frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("no frame is that long");
    let [_, length @ ..] = length.to_be_bytes();
    let head = [&length[..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A request's fields with no compression (RFC 7541, section 6.2.2): each is said in full.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            number(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A length behind a bit that is not set (RFC 7541, section 5.1).
fn number(block: &mut Vec<u8>, mut value: usize) {
    const PREFIX_MAX: usize = 127;
    if value < PREFIX_MAX {
        return block.push(value as u8);
    }
    block.push(PREFIX_MAX as u8);
    value -= PREFIX_MAX;
    while value >= 128 {
        block.push((value % 128 + 128) as u8);
        value /= 128;
    }
    block.push(value as u8);
}

/// The status that a block of fields begins with, where it is said as h2 says it.
fn status(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // Behind changes of the table's size.
    let begin = block.iter().position(|byte| byte >> 5 != 1)?;
    match block.get(begin..)? {
        [byte @ 0x88..=0x8e, ..] => INDEXED.get(usize::from(byte - 0x88)).copied(),
        // Its name by index, its value by Huffman's code.
        [0x48, length, rest @ ..] if length & 0x80 != 0 => {
            digits(rest.get(..usize::from(length & 0x7f))?)
        }
        _ => None,
    }
}

/// Three digits in the code of RFC 7541, appendix B: five bits for each of 0, 1 and 2, six for the rest.
fn digits(bytes: &[u8]) -> Option<u16> {
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1));
    let mut number = 0;
    for _ in 0..3 {
        let five = bits
            .by_ref()
            .take(5)
            .fold(0, |code, bit| code << 1 | u16::from(bit));
        let digit = match five {
            0..=2 => five,
            _ => (five << 1 | u16::from(bits.next()?)).checked_sub(0b01_1001)? + 3,
        };
        number = number * 10 + digit;
    }
    Some(number)
}

/// A frame that came.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// Of GOAWAY and RST_STREAM: why.
    pub(super) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        let code = self.payload.get(at..at + 4).expect("a code");
        u32::from_be_bytes(code.try_into().expect("four bytes"))
    }

    /// Of HEADERS.
    pub(super) fn status(&self) -> Option<u16> {
        status(&self.payload)
    }
}

/// A user's connection.
pub(super) struct Connection {
    reader: ReadHalf<Wire>,
    writer: WriteHalf<Wire>,
    came: Vec<u8>,
}

impl Connection {
    /// One on which nothing was said, in the clear or over TLS, where HTTP/2 is agreed on.
    pub(super) async fn silent(world: &World) -> Self {
        let (to, authority) = match (world.way(), world.secure) {
            (Way::Tls(authority), Some(secure)) => (secure, Some(authority)),
            _ => (world.proxy, None),
        };
        let stream = TcpStream::connect(to).await.expect("connected");
        stream.set_nodelay(true).expect("nodelay");
        let wire = match authority {
            None => Wire::new(stream),
            Some(authority) => {
                let mut config = authority.trusted();
                config.alpn_protocols = vec![b"h2".to_vec()];
                let name = ServerName::try_from(NAME).expect("a name");
                let connector = TlsConnector::from(Arc::new(config));
                Wire::new(connector.connect(name, stream).await.expect("TLS"))
            }
        };
        let (reader, writer) = split(wire);
        Self {
            reader,
            writer,
            came: Vec::new(),
        }
    }

    /// One whose both sides know the settings of the other.
    pub(super) async fn begun(world: &World) -> Self {
        let mut connection = Self::silent(world).await;
        let settings = frame(SETTINGS, 0, 0, &[]);
        connection.send(&[PREFACE, &settings].concat()).await;
        let is_settings = |frame: &Frame| frame.kind == SETTINGS && frame.flags & ACK == 0;
        connection.wait_for(is_settings).await.expect("SETTINGS");
        connection.send(&frame(SETTINGS, ACK, 0, &[])).await;
        connection
    }

    /// Sends `bytes`, or as many as the other side takes: it may have closed already, which is read then.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let sent = async {
            self.writer.write_all(bytes).await?;
            self.writer.flush().await
        };
        sent.await.unwrap_or_default();
    }

    /// The next frame; `None` at the end, in order or not.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        const HEAD: usize = 9;
        loop {
            if let Some((&[a, b, c, kind, flags, ref stream @ ..], rest)) =
                self.came.split_first_chunk::<HEAD>()
            {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                if let Some(payload) = rest.get(..length) {
                    let frame = Frame {
                        kind,
                        flags,
                        stream: u32::from_be_bytes(*stream),
                        payload: payload.to_vec(),
                    };
                    self.came.drain(..HEAD + length);
                    return Some(frame);
                }
            }
            if self.read().await == 0 {
                return None;
            }
        }
    }

    async fn read(&mut self) -> usize {
        let read = timeout(PATIENCE, self.reader.read_buf(&mut self.came));
        read.await.expect("something, or the end").unwrap_or(0)
    }

    /// The next one that is `wanted`, or what has come instead of it: the end of the connection.
    pub(super) async fn wait_for(
        &mut self,
        wanted: impl Fn(&Frame) -> bool,
    ) -> Result<Frame, String> {
        loop {
            match self.next().await {
                None => return Err("the end of the connection".to_owned()),
                Some(frame) if frame.kind == GOAWAY && !wanted(&frame) => {
                    return Err(format!("GOAWAY with {}", frame.code()));
                }
                Some(frame) if wanted(&frame) => return Ok(frame),
                Some(_) => {}
            }
        }
    }

    /// Everything to the end, as bytes.
    pub(super) async fn rest(mut self) -> Vec<u8> {
        while self.read().await > 0 {}
        self.came
    }
}

#[test]
fn numbers_and_statuses_are_as_the_compression_has_them() {
    // RFC 7541, C.1.2 has the same of a prefix of five bits.
    let mut block = Vec::new();
    number(&mut block, 1_337);
    assert_eq!(block, [127, 186, 9]);
    assert_eq!(status(&[0x88]), Some(200));
    assert_eq!(status(&[0x20, 0x8c]), Some(400));
    // C.6.1 has 302.
    assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]), Some(302));
    assert_eq!(status(&[0x48, 0x83, 0x69, 0x90, 0xff]), Some(431));
}
