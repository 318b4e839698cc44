//! Memory of this worker that its connections take turns with, so that an idle connection holds none.

use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

/// Bytes that pass at once: more than a socket often has, and no more than stays in the core's own cache.
const PASS_BYTES: usize = 64 * 1_024;
/// Room for one read of what comes from a user: a head, and a body of 8 KiB behind it.
pub(super) const ASKED_BYTES: usize = 12 * 1_024;
/// Room for one read of an answer: a head, and a body of 64 KiB behind it, so that both pass in one write. It is taken
/// when there is something to read, and touched as far as that goes.
pub(super) const ANSWERED_BYTES: usize = 68 * 1_024;
/// Buffers kept for the next that needs one.
const KEPT: usize = 128;
/// Larger ones are given back to the allocator.
const KEPT_BYTES_MAX: usize = 128 * 1_024;

thread_local! {
    static KEEP: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; PASS_BYTES].into());
}

/// A buffer that goes back when it is dropped. It takes none while it is empty and never written.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// The bytes, with room for some.
    pub(super) fn room(&mut self) -> &mut Vec<u8> {
        if self.0.capacity() == 0 {
            self.0 = KEEP.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        &mut self.0
    }

    /// In memory of its own, no larger than it is: it will be held for long.
    pub(super) fn fit(&mut self) {
        let own = self.0.to_vec();
        self.release();
        self.0 = own;
    }

    /// Adds what is there to read, with room for `bytes`; their number, 0 at the end. While there is nothing it takes no
    /// memory.
    pub(super) fn poll_read(
        &mut self,
        io: &mut (impl AsyncRead + Unpin + ?Sized),
        bytes: usize,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        let room = self.room();
        room.reserve(bytes);
        let read = pin!(io.read_buf(room)).poll(context);
        if self.0.is_empty() {
            self.release();
        }
        read
    }

    /// Puts `head` in place of the first `count` bytes; the start of the whole, or nothing done if it is longer.
    pub(super) fn replace_head(&mut self, count: usize, head: &[u8]) -> Option<usize> {
        let start = count.checked_sub(head.len())?;
        self.0.get_mut(start..count)?.copy_from_slice(head);
        Some(start)
    }

    /// Takes the first `count` bytes off; with none left the memory goes back.
    pub(super) fn consume(&mut self, count: usize) {
        if count >= self.0.len() {
            self.release();
        } else {
            self.0.drain(..count);
        }
    }

    fn release(&mut self) {
        let mut memory = std::mem::take(&mut self.0);
        if memory.capacity() == 0 || memory.capacity() > KEPT_BYTES_MAX {
            return;
        }
        memory.clear();
        let kept = KEEP.try_with(|keep| {
            let mut keep = keep.borrow_mut();
            if keep.len() < KEPT {
                keep.push(memory);
            }
        });
        // At the end of its thread there is nobody to keep it for.
        kept.unwrap_or_default();
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

/// Reads what is there and hands it to `take` at once: the memory it is in is everybody's.
pub(super) fn poll_read<T>(
    io: Pin<&mut (impl AsyncRead + ?Sized)>,
    context: &mut Context<'_>,
    take: impl FnOnce(&mut Context<'_>, &[u8]) -> T,
) -> Poll<std::io::Result<T>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        ready!(io.poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(take(context, buffer.filled())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_for_long_takes_no_more_than_it_needs() {
        let mut held = Buffer::default();
        held.room().reserve(ANSWERED_BYTES);
        held.room().extend_from_slice(b"GET");
        held.fit();
        assert_eq!((&held[..], held.0.capacity()), (&b"GET"[..], 3));
        assert!(Buffer::default().room().capacity() >= ANSWERED_BYTES);
    }

    #[test]
    fn what_is_not_needed_goes_to_the_next() {
        let mut first = Buffer::default();
        first.room().extend_from_slice(&[1; 5_000]);
        let memory = first.as_ptr();
        first.consume(4_000);
        assert_eq!(first.len(), 1_000);
        first.consume(1_000);
        assert_eq!(first.0.capacity(), 0);
        let mut next = Buffer::default();
        assert_eq!(next.room().as_ptr(), memory);
        assert!(next.is_empty());
    }
}
