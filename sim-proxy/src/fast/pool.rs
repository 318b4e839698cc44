//! Idle connections to instances, each kept by the worker that opened it.

use crate::clock::monotonic_ns;
use sim_core::name::InstanceId;
use std::cell::RefCell;
use std::time::Duration;
use tokio::net::TcpStream;

/// A connection that waits for its next request.
#[derive(Debug)]
struct Idle {
    stream: TcpStream,
    since_ns: u64,
}

#[derive(Debug, Default)]
struct Pool {
    /// Few instances: looking through them is faster than hashing.
    of: Vec<(InstanceId, Vec<Idle>)>,
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

/// The connection to `instance` that was used last, if it is still good.
pub(super) fn take(instance: InstanceId, limits: PoolLimits, now_ns: u64) -> Option<TcpStream> {
    POOL.with_borrow_mut(|pool| {
        let (_, idle) = pool.of.iter_mut().find(|(id, _)| *id == instance)?;
        while let Some(last) = idle.pop() {
            pool.count -= 1;
            let old = now_ns.saturating_sub(last.since_ns) >= limits.idle_ns;
            // No system call unless there is something to read: then the instance has closed it, or sent what
            // nobody asked for.
            let quiet = last.stream.try_read(&mut [0]).is_err_and(would_block);
            if quiet && !old {
                return Some(last.stream);
            }
        }
        None
    })
}

fn would_block(error: std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock
}

/// Keeps `stream` for the next request to `instance`.
pub(super) fn keep(instance: InstanceId, stream: TcpStream, limits: PoolLimits, now_ns: u64) {
    POOL.with_borrow_mut(|pool| {
        if pool.count >= limits.count_max {
            return;
        }
        let at = pool.of.iter().position(|(id, _)| *id == instance);
        let at = at.unwrap_or_else(|| {
            pool.of.push((instance, Vec::new()));
            pool.of.len() - 1
        });
        pool.of[at].1.push(Idle {
            stream,
            since_ns: now_ns,
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
    use tokio::net::TcpListener;

    const LIMITS: PoolLimits = PoolLimits {
        idle_ns: 50_000_000,
        count_max: 2,
    };
    const ONE: InstanceId = InstanceId(1);

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
        let now = monotonic_ns();
        for stream in here {
            keep(ONE, stream, LIMITS, now);
        }
        let taken = || take(ONE, LIMITS, now).map(|s| s.local_addr().expect("bound"));
        assert_eq!(taken(), Some(ports[1]));
        assert_eq!(taken(), Some(ports[0]));
        assert_eq!(taken(), None);
        assert!(take(InstanceId(2), LIMITS, now).is_none());
    }

    #[tokio::test]
    async fn one_that_is_old_or_was_closed_is_not_taken() {
        let (mut here, mut there) = connections(2).await;
        let now = monotonic_ns();
        keep(ONE, here.remove(0), LIMITS, now);
        assert!(take(ONE, LIMITS, now + LIMITS.idle_ns).is_none());
        let closed = here.remove(0);
        drop(there.remove(1));
        closed.readable().await.expect("the end");
        keep(ONE, closed, LIMITS, now);
        assert!(take(ONE, LIMITS, now).is_none());
    }

    #[tokio::test]
    async fn what_nobody_uses_is_closed() {
        let (mut here, mut there) = connections(1).await;
        keep(ONE, here.remove(0), LIMITS, monotonic_ns());
        let mut byte = [0];
        let read = tokio::io::AsyncReadExt::read(&mut there[0], &mut byte);
        assert_eq!(read.await.expect("the end"), 0);
    }
}
