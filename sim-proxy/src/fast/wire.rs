//! Bytes between a user and an instance, with the deadlines of a connection.

use super::answer::Rest;
use super::buffers::{ANSWERED_BYTES, ASKED_BYTES, Buffer, poll_read};
use super::watchdog::Watchdog;
use crate::clock::monotonic_ns;
use crate::counters::RetryReason;
use crate::drain::Stay;
use crate::live::InstanceLive;
use crate::mirror::Copying;
use pingora_core::protocols::Stream;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};

/// More than this isn't read ahead from a user who doesn't wait for an answer.
const AHEAD_BYTES_MAX: usize = 64 * 1_024;

/// What reading came to.
#[derive(Debug)]
pub(super) enum Got {
    Bytes,
    /// Nothing more will come.
    End,
    /// Nothing came in time.
    Late,
    /// It is better to ask elsewhere, for this reason.
    Elsewhere(RetryReason),
}

/// Why bytes couldn't be passed on.
#[derive(Debug)]
pub(super) enum Stuck {
    /// The connection is closed or broken.
    Broken,
    Late,
    /// It is to go on no longer.
    Over,
}

/// Reads what is there, waiting for it unless that ends the wait, into `buffer`.
pub(super) async fn fill(
    io: &mut (impl AsyncRead + Unpin + ?Sized),
    buffer: &mut Buffer,
    watchdog: &mut Watchdog,
    deadline_ns: u64,
    mut unless: impl FnMut(&mut Context<'_>) -> bool,
) -> Got {
    poll_fn(|context| {
        Poll::Ready(match buffer.poll_read(io, ASKED_BYTES, context) {
            Poll::Ready(Ok(1..)) => Got::Bytes,
            Poll::Ready(Ok(0) | Err(_)) => Got::End,
            Poll::Pending if unless(context) => Got::End,
            Poll::Pending if watchdog.is_over(deadline_ns, context) => Got::Late,
            Poll::Pending => return Poll::Pending,
        })
    })
    .await
}

pub(super) fn after(moment_ns: u64, patience_ns: u64) -> u64 {
    moment_ns.saturating_add(patience_ns)
}

/// Writes all of `bytes`. For no longer than `patience_ns` may nothing pass.
pub(super) async fn write(
    io: &mut (impl AsyncWrite + Unpin + ?Sized),
    bytes: &[u8],
    watchdog: &mut Watchdog,
    patience_ns: u64,
) -> Result<(), Stuck> {
    write_until(io, bytes, watchdog, patience_ns, u64::MAX).await
}

/// The same, and all has to be over at `until_ns`.
pub(super) async fn write_until(
    io: &mut (impl AsyncWrite + Unpin + ?Sized),
    bytes: &[u8],
    watchdog: &mut Watchdog,
    patience_ns: u64,
    until_ns: u64,
) -> Result<(), Stuck> {
    let times = (patience_ns, until_ns);
    write_unless(io, bytes, watchdog, times, |_, _, _| false).await
}

/// The same of an answer, which goes on for as long as it may at its instance.
pub(super) async fn write_answer(
    io: &mut (impl AsyncWrite + Unpin + ?Sized),
    bytes: &[u8],
    watchdog: &mut Watchdog,
    patience: &mut Patience<'_>,
) -> Result<(), Stuck> {
    let times = (patience.write_ns, u64::MAX);
    write_unless(io, bytes, watchdog, times, |moved_ns, watchdog, context| {
        patience.is_over(moved_ns, watchdog, context)
    })
    .await
}

async fn write_unless(
    io: &mut (impl AsyncWrite + Unpin + ?Sized),
    mut bytes: &[u8],
    watchdog: &mut Watchdog,
    (patience_ns, until_ns): (u64, u64),
    mut is_over: impl FnMut(u64, &mut Watchdog, &mut Context<'_>) -> bool,
) -> Result<(), Stuck> {
    // It hardly ever has to wait; then the clock isn't read.
    let mut moved_ns = None;
    poll_fn(|context| {
        let before = bytes.len();
        let written = poll_write_all(Pin::new(&mut *io), context, &mut bytes);
        if let Poll::Ready(result) = written {
            return Poll::Ready(result.map_err(|_| Stuck::Broken));
        }
        if bytes.len() < before {
            moved_ns = None;
        }
        let moved_ns = *moved_ns.get_or_insert_with(monotonic_ns);
        if watchdog.is_over(after(moved_ns, patience_ns).min(until_ns), context) {
            return Poll::Ready(Err(Stuck::Late));
        }
        if is_over(moved_ns, watchdog, context) {
            return Poll::Ready(Err(Stuck::Over));
        }
        Poll::Pending
    })
    .await
}

/// Says that nothing more comes; whether the other side took it in time.
pub(super) async fn end(
    io: &mut (impl AsyncWrite + Unpin + ?Sized),
    watchdog: &mut Watchdog,
    patience_ns: u64,
) -> bool {
    let deadline_ns = after(monotonic_ns(), patience_ns);
    poll_fn(|context| match Pin::new(&mut *io).poll_shutdown(context) {
        Poll::Ready(ended) => Poll::Ready(ended.is_ok()),
        Poll::Pending if watchdog.is_over(deadline_ns, context) => Poll::Ready(false),
        Poll::Pending => Poll::Pending,
    })
    .await
}

fn poll_write_all(
    mut io: Pin<&mut (impl AsyncWrite + ?Sized)>,
    context: &mut Context<'_>,
    bytes: &mut &[u8],
) -> Poll<io::Result<()>> {
    while !bytes.is_empty() {
        let count = ready!(io.as_mut().poll_write(context, bytes))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        *bytes = &bytes[count..];
    }
    io.poll_flush(context)
}

/// Reads an answer's bytes, while looking whether the user is still there (and what it sends ahead), if that is for
/// this attempt to do, and whether to go `elsewhere`. No longer than to `until_ns`, and than `patience_ns` for each read. Whoever answers that sees to it that the task is woken for it.
pub(super) async fn listen(
    instance: &mut (impl AsyncRead + Unpin),
    answer: &mut Buffer,
    mut user: Option<(&mut Stream, &mut Buffer)>,
    watchdog: &mut Watchdog,
    patience_ns: u64,
    until_ns: u64,
    mut elsewhere: impl FnMut(&Context<'_>) -> Option<RetryReason>,
) -> Result<Got, Gone> {
    let mut deadline_ns = None;
    poll_fn(|context| {
        let read = answer.poll_read(instance, ANSWERED_BYTES, context);
        if read.is_pending() && deadline_ns.is_none() {
            deadline_ns = Some(after(monotonic_ns(), patience_ns).min(until_ns));
        }
        let deadline_ns = deadline_ns.unwrap_or(u64::MAX);
        Poll::Ready(match read {
            Poll::Ready(Ok(1..)) => Ok(Got::Bytes),
            Poll::Ready(Ok(0) | Err(_)) => Ok(Got::End),
            Poll::Pending => {
                if let Some((user, ahead)) = &mut user
                    && is_gone(*user, ahead, context)
                {
                    return Poll::Ready(Err(Gone));
                }
                if let Some(reason) = elsewhere(context) {
                    return Poll::Ready(Ok(Got::Elsewhere(reason)));
                }
                if watchdog.is_over(deadline_ns, context) {
                    return Poll::Ready(Ok(Got::Late));
                }
                return Poll::Pending;
            }
        })
    })
    .await
}

/// Waits for something while the user is there.
pub(super) async fn while_here<T>(
    user: &mut Stream,
    ahead: &mut Buffer,
    mut waiting: impl Future<Output = T> + Unpin,
) -> Result<T, Gone> {
    poll_fn(|context| match Pin::new(&mut waiting).poll(context) {
        Poll::Ready(found) => Poll::Ready(Ok(found)),
        Poll::Pending if is_gone(user, ahead, context) => Poll::Ready(Err(Gone)),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// The user is.
#[derive(Debug)]
pub(super) struct Gone;

/// Whether the user has closed the connection. What else comes from there is kept for later.
fn is_gone(
    user: &mut (impl AsyncRead + Unpin + ?Sized),
    ahead: &mut Buffer,
    context: &mut Context<'_>,
) -> bool {
    while ahead.len() < AHEAD_BYTES_MAX {
        match ahead.poll_read(user, ASKED_BYTES, context) {
            Poll::Ready(Ok(1..)) => {}
            Poll::Ready(Ok(0) | Err(_)) => return true,
            Poll::Pending => return false,
        }
    }
    false
}

/// Why a body didn't come through.
#[derive(Debug)]
pub(super) enum Cut {
    /// The user is gone, or takes nothing.
    User,
    /// The instance closed the connection before the end, or broke it.
    Instance,
    /// Nothing came from the instance in time.
    Late,
    /// It is to go on no longer.
    Drained,
    /// No proper framing.
    Malformed,
}

/// How long it may go on.
#[derive(Debug)]
pub(super) struct Patience<'a> {
    /// While nothing comes from the instance.
    pub(super) read_ns: u64,
    /// While the user takes nothing.
    pub(super) write_ns: u64,
    /// At all, with [`Patience::live`].
    pub(super) stay: Stay,
    /// The instance.
    pub(super) live: &'a Arc<InstanceLive>,
    /// All that comes from it has come.
    pub(super) whole: bool,
}

impl Patience<'_> {
    /// Whether it has gone on for too long where the user has taken nothing since `moved_ns`. Who takes what has come already
    /// keeps the instance from nothing, and may take the time of the grace for each piece.
    fn is_over(
        &mut self,
        moved_ns: u64,
        watchdog: &mut Watchdog,
        context: &mut Context<'_>,
    ) -> bool {
        self.stay.ends(self.live, context)
            && (!self.whole || watchdog.is_over(after(moved_ns, self.stay.grace_ns()), context))
    }
}

/// Who is told what passes.
#[derive(Debug)]
pub(super) struct Notes<'a> {
    /// Of what the user gets, if it is to be compared.
    pub(super) copying: Option<&'a mut Copying>,
    /// Bytes so far.
    pub(super) passed: &'a mut u64,
}

/// Passes the `rest` of a body on, which `copying` sees. `Ok(true)`: and the instance sent nothing beyond it.
pub(super) async fn pump(
    instance: &mut (impl AsyncRead + Unpin),
    user: &mut (impl AsyncRead + AsyncWrite + Unpin + ?Sized),
    ahead: &mut Buffer,
    rest: &mut Rest,
    watchdog: &mut Watchdog,
    mut patience: Patience<'_>,
    notes: Notes<'_>,
) -> Result<bool, Cut> {
    let Notes {
        mut copying,
        passed,
    } = notes;
    let mut clean = true;
    // Of what was read: what the user has not taken yet.
    let (mut left, mut sent) = (Buffer::default(), 0);
    let mut moved_ns = monotonic_ns();
    poll_fn(|context| {
        loop {
            while sent < left.len() {
                match Pin::new(&mut *user).poll_write(context, &left[sent..]) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Cut::User)),
                    Poll::Ready(Ok(count)) => {
                        sent += count;
                        *passed += count as u64;
                        moved_ns = monotonic_ns();
                    }
                    Poll::Pending
                        if watchdog.is_over(after(moved_ns, patience.write_ns), context) =>
                    {
                        return Poll::Ready(Err(Cut::User));
                    }
                    Poll::Pending => {
                        patience.whole = rest.is_over();
                        if patience.is_over(moved_ns, watchdog, context) {
                            return Poll::Ready(Err(Cut::Drained));
                        }
                        return Poll::Pending;
                    }
                }
            }
            left.consume(sent);
            sent = 0;
            if rest.is_over() {
                patience.whole = true;
                return match Pin::new(&mut *user).poll_flush(context) {
                    Poll::Ready(Ok(())) => Poll::Ready(Ok(clean)),
                    Poll::Ready(Err(_)) => Poll::Ready(Err(Cut::User)),
                    Poll::Pending
                        if watchdog.is_over(after(moved_ns, patience.write_ns), context) =>
                    {
                        Poll::Ready(Err(Cut::User))
                    }
                    Poll::Pending if patience.is_over(moved_ns, watchdog, context) => {
                        Poll::Ready(Err(Cut::Drained))
                    }
                    Poll::Pending => Poll::Pending,
                };
            }
            let read = poll_read(Pin::new(&mut *instance), context, |context, bytes| {
                if bytes.is_empty() {
                    return Ok(true);
                }
                let taken = match &mut copying {
                    None => rest.take(bytes),
                    Some(copying) => rest.take_to(bytes, |content| copying.saw(content)),
                };
                let taken = taken.map_err(|_| Cut::Malformed)?;
                clean = taken == bytes.len();
                let passing = &bytes[..taken];
                let count = match Pin::new(&mut *user).poll_write(context, passing) {
                    Poll::Ready(Ok(count)) => count,
                    Poll::Ready(Err(_)) => return Err(Cut::User),
                    Poll::Pending => 0,
                };
                *passed += count as u64;
                if count < taken {
                    left.room().extend_from_slice(&passing[count..]);
                }
                Ok(false)
            });
            match read {
                Poll::Ready(Ok(Ok(false))) => moved_ns = monotonic_ns(),
                Poll::Ready(Ok(Ok(true))) => {
                    if !matches!(rest, Rest::Close) {
                        return Poll::Ready(Err(Cut::Instance));
                    }
                    *rest = Rest::Length(0);
                }
                Poll::Ready(Ok(Err(cut))) => return Poll::Ready(Err(cut)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Cut::Instance)),
                Poll::Pending => {
                    // Whoever waits for the next piece wants the last one.
                    if let Poll::Ready(Err(_)) = Pin::new(&mut *user).poll_flush(context) {
                        return Poll::Ready(Err(Cut::User));
                    }
                    if is_gone(user, ahead, context) {
                        return Poll::Ready(Err(Cut::User));
                    }
                    if watchdog.is_over(after(moved_ns, patience.read_ns), context) {
                        return Poll::Ready(Err(Cut::Late));
                    }
                    if patience.stay.ends(patience.live, context) {
                        return Poll::Ready(Err(Cut::Drained));
                    }
                    return Poll::Pending;
                }
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim_core::name::InstanceId;
    use tokio::io::{AsyncReadExt as _, duplex};

    const HOUR: u64 = 3_600_000_000_000;

    /// Writes an answer of 64 KiB to a user, from an instance whose grace of `grace_ns` is over.
    async fn write_to(
        io: &mut (impl AsyncWrite + Unpin),
        whole: bool,
        grace_ns: u64,
    ) -> Result<(), Stuck> {
        let address = ([127, 0, 0, 1], 1).into();
        let live = Arc::new(InstanceLive::new(InstanceId(1), address));
        live.drains_since(monotonic_ns().saturating_sub(2 * grace_ns).max(1));
        let mut patience = Patience {
            read_ns: HOUR,
            write_ns: HOUR,
            stay: Stay::new(0, grace_ns),
            live: &live,
            whole,
        };
        let answer = vec![b'x'; 64 * 1024];
        write_answer(io, &answer, &mut Watchdog::new(), &mut patience).await
    }

    #[tokio::test]
    async fn after_the_grace_who_takes_what_has_come_gets_all_of_it_and_who_takes_nothing_is_left()
    {
        const LONG: u64 = 10_000_000_000;
        const SHORT: u64 = 10_000_000;
        // Takes a piece, and lets time pass in which the streams are looked at.
        let (mut user, mut io) = duplex(1024);
        let taking = tokio::spawn(async move {
            let mut piece = [0; 1024];
            let mut taken = 0;
            while taken < 64 * 1024 {
                taken += user.read(&mut piece).await.expect("open");
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        });
        assert!(matches!(write_to(&mut io, true, LONG).await, Ok(())));
        taking.await.expect("all of it");

        // There is more to come, which the instance would have to wait for.
        let (_user, mut io) = duplex(1024);
        let written = write_to(&mut io, false, LONG).await;
        assert!(matches!(written, Err(Stuck::Over)));

        let (_user, mut io) = duplex(1024);
        let written = write_to(&mut io, true, SHORT).await;
        assert!(matches!(written, Err(Stuck::Over)));
    }
}
