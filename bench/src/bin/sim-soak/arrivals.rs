//! What instances had of the numbered requests, by their own word: so that what was lost with an instance can be told
//! from what never came to one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::Result;

/// Requests whose arrival is remembered: those of many seconds more than any of them takes.
const KNOWN_MAX: usize = 8_192;

/// Paths whose last segment is a size.
const SIZES: [&str; 2] = ["/bytes", "/pieces"];

/// Where they say so. Over loopback a datagram is there once it is sent: before its request can have an end.
#[derive(Debug)]
pub(crate) struct Arrivals {
    socket: UdpSocket,
    /// Which instance had it last.
    known: BTreeMap<u64, SocketAddr>,
}

impl Arrivals {
    pub(crate) fn listen() -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            known: BTreeMap::new(),
        })
    }

    /// Where instances say so.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }

    /// Hears what was said since. Often enough that the kernel has room for it.
    pub(crate) fn hear(&mut self) {
        let mut said = [0; 64];
        while let Ok(length) = self.socket.recv(&mut said) {
            let text = std::str::from_utf8(&said[..length]).unwrap_or_default();
            let Some((number, address)) = text.split_once(' ') else {
                continue;
            };
            if let (Ok(number), Ok(address)) = (number.parse(), address.parse()) {
                self.known.insert(number, address);
            }
            if self.known.len() > KNOWN_MAX {
                self.known.pop_first();
            }
        }
    }

    /// Which instance had the request, if any did.
    pub(crate) fn of(&self, number: u64) -> Option<SocketAddr> {
        self.known.get(&number).copied()
    }
}

/// An instance's part of it.
#[derive(Debug)]
pub(crate) struct Teller {
    socket: UdpSocket,
    own: SocketAddr,
}

impl Teller {
    /// Of the instance at `own`, to whoever listens at `to`.
    pub(crate) fn new(own: SocketAddr, to: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(to)?;
        Ok(Self { socket, own })
    }

    /// Says that a request came, if it has a number: the last segment of its path.
    pub(crate) fn came(&self, path: &str) {
        let (of, number) = path.rsplit_once('/').unwrap_or_default();
        if SIZES.contains(&of) {
            return;
        }
        if let Ok(number) = number.parse::<u64>() {
            let text = format!("{number} {}", self.own);
            // Where nobody listens any more the soak is over.
            self.socket.send(text.as_bytes()).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_instance_says_is_heard_and_what_has_no_number_is_not_said() {
        let mut arrivals = Arrivals::listen().expect("a socket");
        let own = SocketAddr::from(([127, 0, 0, 9], 8_000));
        let teller = Teller::new(own, arrivals.address().expect("bound")).expect("a socket");
        for path in ["/", "/slow", "/bytes/9", "/soak.Echo/7", "/echo/8"] {
            teller.came(path);
        }
        arrivals.hear();
        assert_eq!((arrivals.of(7), arrivals.of(8)), (Some(own), Some(own)));
        assert_eq!(arrivals.known.len(), 2);
    }
}
