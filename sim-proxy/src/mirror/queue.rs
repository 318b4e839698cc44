//! Copies that wait at a worker, and the task that sends them.

use super::counts::{Dropped, Lost};
use super::witness::{Seen, Witness};
use super::{BODY_BYTES_MAX, Mirror};
use crate::clock::monotonic_ns;
use crate::dial::{Link, NoLink, dial};
use crate::fast::mirrored::{self, Unanswered};
use crate::tls::instances::Alpn;
use sim_core::address::Address;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// Copies that may wait at one worker, and their bytes.
const WAITING_MAX: usize = 256;
const WAITING_BYTES_MAX: usize = 8 * 1_024 * 1_024;
/// Copies that one worker has under way: a mirror that hangs holds no more connections than this.
const UNDER_WAY_MAX: usize = 32;

/// A copy.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) mirror: Arc<Mirror>,
    pub(super) address: Address,
    pub(super) bytes: Vec<u8>,
    /// It is a HEAD: the answer has no body.
    pub(super) is_head: bool,
    /// It may be sent again where an idle connection turns out to be closed.
    pub(super) is_repeatable: bool,
    /// What the user got.
    pub(super) expected: Option<Seen>,
}

/// One worker's queue.
struct Queue {
    copies: Sender<Copied>,
    /// Bytes that wait.
    bytes: Arc<AtomicUsize>,
}

thread_local! {
    static QUEUE: RefCell<Option<Queue>> = const { RefCell::new(None) };
}

/// Copies `parts` into the queue of this worker, if there is room; it never waits.
pub(super) fn offer(
    parts: &[&[u8]],
    copied: impl FnOnce(Vec<u8>) -> Copied,
) -> Result<(), Dropped> {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    if length > 2 * BODY_BYTES_MAX {
        return Err(Dropped::TooLarge);
    }
    QUEUE.with_borrow_mut(|queue| {
        let Queue { copies, bytes } = queue.get_or_insert_with(start);
        // Relaxed: a bound, not a message.
        if bytes.load(Ordering::Relaxed) + length > WAITING_BYTES_MAX {
            return Err(Dropped::QueueFull);
        }
        // Room is looked for first: what is dropped isn't copied.
        let permit = copies.try_reserve().map_err(|_| Dropped::QueueFull)?;
        bytes.fetch_add(length, Ordering::Relaxed);
        let copied = copied(parts.concat());
        copied.mirror.counts().queued();
        permit.send(copied);
        Ok(())
    })
}

/// The worker's task lives as long as its thread.
fn start() -> Queue {
    let (copies, waiting) = channel(WAITING_MAX);
    let bytes = Arc::<AtomicUsize>::default();
    tokio::spawn(send_all(waiting, bytes.clone()));
    Queue { copies, bytes }
}

/// A connection that waits for the next copy.
struct Idle {
    to: Address,
    link: Link,
    until: Instant,
}

async fn send_all(mut waiting: Receiver<Copied>, bytes: Arc<AtomicUsize>) {
    let mut under_way = JoinSet::new();
    // The one that has waited longest comes first.
    let mut idle: Vec<Idle> = Vec::new();
    loop {
        let close_at = idle.first().map_or_else(Instant::now, |first| first.until);
        tokio::select! {
            copied = waiting.recv(), if under_way.len() < UNDER_WAY_MAX => {
                let Some(copied) = copied else { return };
                bytes.fetch_sub(copied.bytes.len(), Ordering::Relaxed);
                let link = take(&mut idle, &copied.address, copied.mirror.material());
                under_way.spawn(send(copied, link));
            }
            Some(sent) = under_way.join_next() => idle.extend(sent.ok().flatten()),
            () = sleep_until(close_at), if !idle.is_empty() => {
                let now = Instant::now();
                idle.retain(|one| one.until > now);
            }
        }
    }
}

/// The connection to `to` that was used last, if it is still good and secured by `material`.
fn take(idle: &mut Vec<Idle>, to: &Address, material: u64) -> Option<Link> {
    let now = Instant::now();
    let leads = |one: &Idle| one.to == *to && one.link.material() == material;
    while let Some(at) = idle.iter().rposition(leads) {
        let mut one = idle.remove(at);
        if one.until > now && one.link.is_quiet(false) {
            return Some(one.link);
        }
    }
    None
}

/// Sends a copy and throws its answer away; the connection, if it can be used again.
async fn send(copied: Copied, link: Option<Link>) -> Option<Idle> {
    let (mirror, begun_ns) = (copied.mirror.clone(), monotonic_ns());
    let mut witness = match copied.expected {
        Some(_) => Witness::hashing(),
        None => Witness::default(),
    };
    let asking = ask(&copied, link, &mut witness);
    let link = match timeout(mirror.settings.timeout, asking).await {
        Ok(Ok(link)) => link,
        Ok(Err(lost)) => {
            mirror.counts().lost(lost);
            return None;
        }
        Err(_) => {
            mirror.counts().lost(Lost::Timeout);
            return None;
        }
    };
    let (seen, micros) = (witness.seen(), (monotonic_ns() - begun_ns) / 1_000);
    mirror.counts().answered(seen.status, micros);
    if let Some(expected) = &copied.expected {
        mirror.counts().compared(expected, &seen);
    }
    link.map(|link| Idle {
        to: copied.address,
        link,
        until: Instant::now() + mirror.idle,
    })
}

async fn ask(
    copied: &Copied,
    idle: Option<Link>,
    witness: &mut Witness,
) -> Result<Option<Link>, Lost> {
    let (bytes, is_head) = (&copied.bytes, copied.is_head);
    if let Some(mut link) = idle {
        match mirrored::ask(&mut link, bytes, is_head, witness).await {
            Ok(keep) => return Ok(keep.then_some(link)),
            // The instance was just closing it.
            Err(Unanswered { begun: false }) if copied.is_repeatable => {}
            Err(_) => return Err(Lost::Broken),
        }
    }
    let tls = copied.mirror.tls.as_deref();
    let mut link = match dial(&copied.address, tls, Alpn::Http1).await {
        Ok(link) => link,
        Err(none) => {
            if let (NoLink::Tls(error), Some(tls)) = (&none, tls) {
                tls.say(monotonic_ns(), error);
            }
            return Err(none.into());
        }
    };
    let asked = mirrored::ask(&mut link, bytes, is_head, witness).await;
    let keep = asked.map_err(|_| Lost::Broken)?;
    Ok(keep.then_some(link))
}
