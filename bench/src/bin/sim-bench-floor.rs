//! What no proxy on this machine can do without: bytes passed on between a user and an instance, each connection with
//! one of its own, nothing read or kept. Whatever a proxy costs beyond that is the proxy's.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Bytes that pass at once.
const PASS_BYTES: usize = 128 * 1_024;
/// Happenings that are taken at once.
const EVENTS: usize = 256;

#[derive(Parser)]
struct Arguments {
    /// Where users connect
    listen: SocketAddr,
    /// Where the instance is
    upstream: SocketAddr,
}

/// One end of a pair of connections.
struct End {
    stream: TcpStream,
    /// The other end.
    other: RawFd,
    /// What has come for this one and isn't taken yet.
    left: Vec<u8>,
}

struct Forwarder {
    epoll: Epoll,
    ends: HashMap<RawFd, End>,
    scratch: Box<[u8]>,
}

impl Forwarder {
    fn join(&mut self, user: TcpStream, instance: TcpStream) -> Result<()> {
        let pair = [user.as_raw_fd(), instance.as_raw_fd()];
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        for (stream, other) in [(user, pair[1]), (instance, pair[0])] {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let own = stream.as_raw_fd();
            self.epoll
                .add(&stream, EpollEvent::new(flags, own as u64))?;
            let left = Vec::new();
            self.ends.insert(
                own,
                End {
                    stream,
                    other,
                    left,
                },
            );
        }
        Ok(())
    }

    /// Passes on what has come at `from`; whether the connection goes on.
    fn pass(&mut self, from: RawFd) -> std::io::Result<bool> {
        loop {
            let Some(&End { other, .. }) = self.ends.get(&from) else {
                return Ok(true);
            };
            if self.ends.get(&other).is_some_and(|to| !to.left.is_empty()) {
                return Ok(true);
            }
            let Some(End { stream, .. }) = self.ends.get_mut(&from) else {
                return Ok(true);
            };
            let count = match stream.read(&mut self.scratch) {
                Ok(0) => return Ok(false),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            let Some(to) = self.ends.get_mut(&other) else {
                return Ok(false);
            };
            let sent = match to.stream.write(&self.scratch[..count]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            to.left.extend_from_slice(&self.scratch[sent..count]);
            if count < self.scratch.len() {
                // There was no more: the next event says when there is.
                return Ok(true);
            }
        }
    }

    /// Sends what `to` hadn't taken, and goes on with who waited for that.
    fn drain(&mut self, to: RawFd) -> std::io::Result<bool> {
        let Some(end) = self.ends.get_mut(&to) else {
            return Ok(true);
        };
        if end.left.is_empty() {
            return Ok(true);
        }
        let sent = match end.stream.write(&end.left) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        end.left.drain(..sent);
        let other = end.other;
        if end.left.is_empty() {
            return self.pass(other);
        }
        Ok(true)
    }

    fn close(&mut self, end: RawFd) {
        if let Some(end) = self.ends.remove(&end) {
            self.ends.remove(&end.other);
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let listener = TcpListener::bind(arguments.listen).context("listen")?;
    listener.set_nonblocking(true)?;
    let mut forwarder = Forwarder {
        epoll: Epoll::new(EpollCreateFlags::empty())?,
        ends: HashMap::new(),
        scratch: vec![0; PASS_BYTES].into(),
    };
    let listening = listener.as_raw_fd();
    let event = EpollEvent::new(EpollFlags::EPOLLIN, listening as u64);
    forwarder.epoll.add(&listener, event)?;
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let count = match forwarder.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            count => count?,
        };
        for event in &events[..count] {
            let (at, flags) = (event.data() as RawFd, event.events());
            if at == listening {
                let (user, _) = listener.accept()?;
                // Without an instance there is nothing to pass on.
                if let Ok(instance) = TcpStream::connect(arguments.upstream) {
                    forwarder.join(user, instance)?;
                }
                continue;
            }
            let mut goes_on = Ok(true);
            if flags.contains(EpollFlags::EPOLLOUT) {
                goes_on = forwarder.drain(at);
            }
            if matches!(goes_on, Ok(true)) && flags.contains(EpollFlags::EPOLLIN) {
                goes_on = forwarder.pass(at);
            }
            if !matches!(goes_on, Ok(true)) {
                forwarder.close(at);
            }
        }
    }
}
