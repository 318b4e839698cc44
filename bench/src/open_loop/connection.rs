//! One connection, with at most one request on it.

use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::secure::NAME;

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
    /// Over TLS.
    tls: Option<Box<ClientConnection>>,
    generation: u32,
    due: Option<Duration>,
    reader: Reader,
}

impl Connection {
    /// Waits for it: on this machine that is a moment. With `tls` it is over that.
    pub(super) fn open(
        target: SocketAddr,
        generation: u32,
        tls: Option<&Arc<ClientConfig>>,
    ) -> std::io::Result<Self> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
        stream.set_nodelay(true)?;
        let tls = match tls {
            Some(config) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                let name = ServerName::try_from(NAME).map_err(Error::other)?;
                let mut tls = ClientConnection::new(config.clone(), name).map_err(Error::other)?;
                while tls.is_handshaking() {
                    tls.complete_io(&mut stream)?;
                }
                Some(Box::new(tls))
            }
            None => None,
        };
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            tls,
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
        let Some(tls) = &mut self.tls else {
            return matches!(self.stream.write(request), Ok(count) if count == request.len());
        };
        let mut all = tls.writer().write_all(request).is_ok();
        while all && tls.wants_write() {
            all = matches!(tls.write_tls(&mut self.stream), Ok(1..));
        }
        all
    }

    /// What came, as far as it is there.
    fn read(&mut self, scratch: &mut [u8]) -> std::io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.stream.read(scratch);
        };
        loop {
            match tls.reader().read(scratch) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
            if tls.read_tls(&mut self.stream)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(Error::other)?;
        }
    }

    pub(super) fn receive(&mut self, scratch: &mut [u8]) -> Got {
        loop {
            let bytes = match self.read(scratch) {
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
                // The kernel says when there is more; of what TLS has taken from it, it says nothing.
                Ok(None) if self.tls.is_some() => {}
                Ok(None) => return Got::Part,
                Ok(Some(answer)) => {
                    self.due = None;
                    return Got::Whole(answer);
                }
                Err(_) => return Got::End,
            }
        }
    }
}
