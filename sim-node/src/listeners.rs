//! Connections that wait to be accepted, and those that found no room.
//!
//! There is no place in the kernel to hear of an `accept` at a price that could be paid for each. But each
//! listening socket knows how many connections wait at it and how many it had to drop, and the kernel
//! lists them with the cgroup they belong to (`sock_diag(7)`, which needs no privilege). Looked at each
//! tick, the number that waits times the tick adds up to the time that connections have waited: by Little's
//! law, over the connections accepted meanwhile, the mean wait of one.

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use std::collections::HashMap;
use std::io;

/// `INET_DIAG_CGROUP_ID` of `linux/inet_diag.h`, since Linux 5.9.
const CGROUP_ID: u16 = 21;
/// The kernel fills no datagram beyond this.
const DATAGRAM_BYTES: usize = 32 << 10;

/// The listening sockets of one cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Connections that wait to be accepted now.
    pub waiting: u64,
    /// Connections dropped since the last look, for want of room in a queue above all.
    pub dropped: u64,
}

/// The listening TCP sockets of this network namespace.
#[derive(Debug)]
pub(crate) struct Listeners {
    socket: Socket,
    buffer: Vec<u8>,
    /// Drops of each socket at the last look, by its cookie, which is never another's.
    drops: HashMap<[u8; 8], u64>,
}

struct Listener {
    cookie: [u8; 8],
    cgroup_id: u64,
    waiting: u64,
    drops: u64,
}

impl Listeners {
    /// Opens the way to ask.
    ///
    /// # Errors
    /// The kernel has no `sock_diag`.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut listeners = Self {
            socket,
            buffer: vec![0; DATAGRAM_BYTES],
            drops: HashMap::new(),
        };
        // What was dropped before is nobody's news.
        listeners.look()?;
        Ok(listeners)
    }

    /// Each cgroup that listens.
    ///
    /// # Errors
    /// The kernel refuses, or its answer can't be read.
    pub(crate) fn look(&mut self) -> io::Result<HashMap<u64, Queue>> {
        let mut found = Vec::new();
        self.list(AF_INET, &mut found)?;
        self.list(AF_INET6, &mut found)?;
        let mut queues: HashMap<u64, Queue> = HashMap::new();
        let mut drops = HashMap::with_capacity(found.len());
        for listener in found {
            let before = self.drops.get(&listener.cookie).copied().unwrap_or(0);
            let queue = queues.entry(listener.cgroup_id).or_default();
            queue.waiting += listener.waiting;
            // The kernel's own count is 32 bits wide and may wrap.
            queue.dropped += listener.drops.wrapping_sub(before) & u64::from(u32::MAX);
            drops.insert(listener.cookie, listener.drops);
        }
        self.drops = drops;
        Ok(queues)
    }

    fn list(&mut self, family: u8, found: &mut Vec<Listener>) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::SKMEMINFO,
            states: StateFlags::LISTEN,
            socket_id: if family == AF_INET6 {
                SocketId::new_v6()
            } else {
                SocketId::new_v4()
            },
        };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let length = self.socket.recv(&mut &mut self.buffer[..], 0)?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let length = message.header.length as usize;
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                        found.extend(listener(&response));
                    }
                    _ => {}
                }
                // Messages are aligned to 4 bytes; the last one may not be.
                rest = rest
                    .get(length.next_multiple_of(4).max(4)..)
                    .unwrap_or_default();
            }
        }
    }
}

/// `None` where the kernel doesn't name the cgroup.
fn listener(response: &InetResponse) -> Option<Listener> {
    let mut cgroup_id = None;
    let mut drops = 0;
    for attribute in &response.nlas {
        match attribute {
            Nla::MemInfo(memory) => drops = u64::from(memory.drops),
            Nla::Other(other) if netlink_packet_core::Nla::kind(other) == CGROUP_ID => {
                let mut bytes = [0; 8];
                if netlink_packet_core::Nla::value_len(other) == bytes.len() {
                    netlink_packet_core::Nla::emit_value(other, &mut bytes);
                    cgroup_id = Some(u64::from_ne_bytes(bytes));
                }
            }
            _ => {}
        }
    }
    Some(Listener {
        cookie: response.header.socket_id.cookie,
        cgroup_id: cgroup_id?,
        // Of a listening socket the "receive queue" is what waits to be accepted.
        waiting: u64::from(response.header.recv_queue),
        drops,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;
    use nix::sys::socket::{Backlog, listen};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt as _;
    use std::time::{Duration, Instant};

    /// The cgroup of this process on the version 2 mount.
    fn own_cgroup() -> u64 {
        let text = std::fs::read_to_string("/proc/self/cgroup").expect("cgroups");
        let path = text
            .lines()
            .find_map(|l| l.strip_prefix("0::"))
            .expect("version 2");
        let hierarchy = Hierarchy::detect().expect("mounts");
        let dir = hierarchy
            .unified_dir(path.trim_start_matches('/'))
            .expect("version 2");
        std::fs::metadata(dir).expect("a cgroup").ino()
    }

    #[test]
    fn what_waits_and_what_finds_no_room_is_seen() {
        let cgroup = own_cgroup();
        let mut listeners = Listeners::open().expect("sock_diag");
        let of = |listeners: &mut Listeners| {
            let found = listeners.look().expect("a list");
            found.get(&cgroup).copied().unwrap_or_default()
        };
        let listening = TcpListener::bind("127.0.0.1:0").expect("listening");
        // Room for one more than that.
        listen(&listening, Backlog::new(2).expect("a backlog")).expect("a shorter queue");
        let address = listening.local_addr().expect("an address");
        let before = of(&mut listeners).waiting;
        let dial = || TcpStream::connect_timeout(&address, Duration::from_millis(50));
        let held: Vec<_> = (0..3)
            .map(|_| TcpStream::connect(address).expect("connected"))
            .collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        while of(&mut listeners).waiting < before + 3 {
            assert!(Instant::now() < deadline, "three wait");
        }
        let mut dropped = 0;
        while dropped == 0 {
            assert!(Instant::now() < deadline, "a fourth finds no room");
            // It isn't answered, so it is no connection.
            drop(dial());
            dropped = of(&mut listeners).dropped;
        }
        drop((held, listening));
        while of(&mut listeners).waiting > before {
            assert!(
                Instant::now() < deadline,
                "none waits at a socket that is gone"
            );
        }
    }
}
