//! One connection, with at most one request on it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::answer::{Answer, Reader};

/// What reading came to.
#[derive(Debug)]
pub(super) enum Got {
    /// More is to come.
    Part,
    /// An answer.
    Whole(Answer),
    /// It is closed, broken, or speaks no HTTP.
    End,
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    generation: u32,
    due: Option<Duration>,
    reader: Reader,
}

impl Connection {
    /// Waits for it: on this machine that is a moment.
    pub(super) fn open(target: SocketAddr, generation: u32) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&target, Duration::from_secs(1))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            generation,
            due: None,
            reader: Reader::default(),
        })
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// When its request was due; none where it has none.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Sends the whole of `request`; false where the connection doesn't take it.
    pub(super) fn send(&mut self, request: &[u8], due: Duration) -> bool {
        self.due = Some(due);
        self.reader = Reader::default();
        // An empty buffer of the kernel's takes any request that is sent here.
        matches!(self.stream.write(request), Ok(count) if count == request.len())
    }

    pub(super) fn receive(&mut self, scratch: &mut [u8]) -> Got {
        let bytes = match self.stream.read(scratch) {
            Ok(0) => return Got::End,
            Ok(count) => &scratch[..count],
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Got::Part,
            Err(_) => return Got::End,
        };
        if self.due.is_none() {
            // Nobody asked.
            return Got::End;
        }
        match self.reader.take(bytes) {
            Ok(None) => Got::Part,
            Ok(Some(answer)) => {
                self.due = None;
                Got::Whole(answer)
            }
            Err(_) => Got::End,
        }
    }
}
