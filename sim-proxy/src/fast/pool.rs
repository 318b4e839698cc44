//! Idle connections to instances, each kept by the worker that opened it.

use crate::clock::monotonic_ns;
use crate::dial::Link;
use sim_core::address::Address;
use sim_core::name::InstanceId;
use std::cell::RefCell;
use std::time::Duration;

/// A connection that waits for its next request.
#[derive(Debug)]
struct Idle {
    link: Link,
    since_ns: u64,
    /// Its last answer had a body that wasn't to be sent. Who sends it all the same does so a little later.
    doubtful: bool,
}

/// Where connections lead, and by which material they are secured ([`Link::material`]).
pub(super) type To<'a> = (InstanceId, &'a Address, u64);

/// The same, kept.
type Kept = (InstanceId, Address, u64);

fn leads((instance, address, material): &Kept, to: To<'_>) -> bool {
    (*instance, address, *material) == to
}

#[derive(Debug, Default)]
struct Pool {
    /// Few instances: looking through them is faster than hashing.
    of: Vec<(Kept, Vec<Idle>)>,
    count: usize,
    swept: bool,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// How long a connection may be idle, and how many may be at each worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolLimits {
    pub(super) idle_ns: u64,
    pub(super) count_max: usize,
}

/// The connection that was used last, if it is still good. `sure`: the kernel is asked, since the request can't be
/// repeated.
pub(super) fn take(to: To<'_>, limits: PoolLimits, now_ns: u64, sure: bool) -> Option<Link> {
    POOL.with_borrow_mut(|pool| {
        let (_, idle) = pool.of.iter_mut().find(|(known, _)| leads(known, to))?;
        while let Some(mut last) = idle.pop() {
            pool.count -= 1;
            let old = now_ns.saturating_sub(last.since_ns) >= limits.idle_ns;
            if !old && last.link.is_quiet(sure || last.doubtful) {
                return Some(last.link);
            }
        }
        None
    })
}

/// Closes the idle connections to an instance.
pub(super) fn forget(to: To<'_>) {
    POOL.with_borrow_mut(|pool| {
        if let Some((_, idle)) = pool.of.iter_mut().find(|(known, _)| leads(known, to)) {
            pool.count -= idle.len();
            idle.clear();
        }
    });
}

/// Keeps `link` for the next request. `doubtful`: see [`Idle`].
pub(super) fn keep(to: To<'_>, link: Link, limits: PoolLimits, now_ns: u64, doubtful: bool) {
    POOL.with_borrow_mut(|pool| {
        if pool.count >= limits.count_max {
            return;
        }
        let at = pool.of.iter().position(|(known, _)| leads(known, to));
        let at = at.unwrap_or_else(|| {
            let (instance, address, material) = to;
            pool.of
                .push(((instance, address.clone(), material), Vec::new()));
            pool.of.len() - 1
        });
        pool.of[at].1.push(Idle {
            link,
            since_ns: now_ns,
            doubtful,
        });
        pool.count += 1;
        if !pool.swept {
            pool.swept = true;
            tokio::spawn(sweep(limits));
        }
    });
}

/// Closes what nobody has used for too long, until nothing is left.
async fn sweep(limits: PoolLimits) {
    let pause = Duration::from_nanos(limits.idle_ns / 2).max(Duration::from_millis(10));
    loop {
        tokio::time::sleep(pause).await;
        let now_ns = monotonic_ns();
        let more = POOL.with_borrow_mut(|pool| {
            for (_, idle) in &mut pool.of {
                idle.retain(|one| now_ns.saturating_sub(one.since_ns) < limits.idle_ns);
            }
            pool.of.retain(|(_, idle)| !idle.is_empty());
            pool.count = pool.of.iter().map(|(_, idle)| idle.len()).sum();
            pool.swept = pool.count > 0;
            pool.swept
        });
        if !more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::Socket;
    use tokio::net::{TcpListener, TcpStream};

    const LIMITS: PoolLimits = PoolLimits {
        idle_ns: 50_000_000,
        count_max: 2,
    };
    fn one(stream: &TcpStream) -> Address {
        stream.peer_addr().expect("connected").into()
    }

    async fn connections(count: usize) -> (Vec<TcpStream>, Vec<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..count {
            here.push(TcpStream::connect(address).await.expect("connected"));
            there.push(listener.accept().await.expect("accepted").0);
        }
        (here, there)
    }

    #[tokio::test]
    async fn the_last_used_is_taken_first_and_no_more_are_kept_than_may_be() {
        let (here, _there) = connections(3).await;
        let ports: Vec<_> = here
            .iter()
            .map(|s| s.local_addr().expect("bound"))
            .collect();
        let (now, address) = (monotonic_ns(), one(&here[0]));
        let to = (InstanceId(1), &address, 0);
        for stream in here {
            keep(to, stream.into(), LIMITS, now, false);
        }
        let taken = || match take(to, LIMITS, now, true)? {
            Link::Plain(Socket::Tcp(stream)) => stream.local_addr().ok(),
            _ => None,
        };
        assert_eq!(taken(), Some(ports[1]));
        assert_eq!(taken(), Some(ports[0]));
        assert_eq!(taken(), None);
        assert!(take((InstanceId(2), to.1, 0), LIMITS, now, false).is_none());
        assert!(take((to.0, to.1, 1), LIMITS, now, false).is_none());
    }

    #[tokio::test]
    async fn one_that_is_old_or_was_closed_is_not_taken() {
        let (mut here, mut there) = connections(2).await;
        let now = monotonic_ns();
        let address = one(&here[0]);
        let to = (InstanceId(1), &address, 0);
        keep(to, here.remove(0).into(), LIMITS, now, false);
        assert!(take(to, LIMITS, now + LIMITS.idle_ns, false).is_none());
        let closed = here.remove(0);
        drop(there.remove(1));
        closed.readable().await.expect("the end");
        keep(to, closed.into(), LIMITS, now, false);
        assert!(take(to, LIMITS, now, false).is_none());
    }

    #[tokio::test]
    async fn the_kernel_is_asked_where_it_matters() {
        use tokio::io::AsyncWriteExt as _;
        let (mut here, mut there) = connections(3).await;
        let (now, address) = (monotonic_ns(), one(&here[0]));
        let to = (InstanceId(1), &address, 0);
        for (at, (sure, doubtful)) in [(true, false), (false, true)].into_iter().enumerate() {
            // What has come since this worker last heard from the kernel.
            keep(to, here.remove(0).into(), LIMITS, now, doubtful);
            there[at].write_all(b"unasked").await.expect("sent");
            assert!(take(to, LIMITS, now, sure).is_none());
        }
        keep(to, here.remove(0).into(), LIMITS, now, false);
        forget(to);
        assert!(take(to, LIMITS, now, false).is_none());
    }

    #[tokio::test]
    async fn what_nobody_uses_is_closed() {
        let (mut here, mut there) = connections(1).await;
        let address = one(&here[0]);
        let to = (InstanceId(1), &address, 0);
        let link = here.remove(0).into();
        keep(to, link, LIMITS, monotonic_ns(), false);
        let mut byte = [0];
        let read = tokio::io::AsyncReadExt::read(&mut there[0], &mut byte);
        assert_eq!(read.await.expect("the end"), 0);
    }
}
