//! A copy of a request at the mirror: its answer is read to its end, and thrown away.

use super::answer::{self, Passing, Rest};
use super::buffers::{ASKED_BYTES, Buffer, poll_read};
use super::exchange::ANSWER_HEAD_BYTES_MAX;
use crate::dial::Link;
use crate::mirror::Witness;
use std::future::poll_fn;
use std::pin::Pin;
use tokio::io::AsyncWriteExt as _;

/// There is no whole answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unanswered {
    /// Part of one has come.
    pub(crate) begun: bool,
}

/// Sends `bytes` and reads the answer, which `witness` sees. True: the connection can be used again.
pub(crate) async fn ask(
    stream: &mut Link,
    bytes: &[u8],
    is_head: bool,
    witness: &mut Witness,
) -> Result<bool, Unanswered> {
    let broken = |begun| Unanswered { begun };
    let written = stream.write_all(bytes).await;
    written.map_err(|_| broken(false))?;
    // TLS may keep the end of it back.
    stream.flush().await.map_err(|_| broken(false))?;
    let passing = Passing {
        to_head: is_head,
        keep: true,
        fields: b"",
    };
    let (mut read, mut head, mut begun) = (Buffer::default(), Buffer::default(), false);
    let mut answer = loop {
        if !read.is_empty() {
            match answer::read(&read, passing, head.room()) {
                answer::Seen::Whole(answer) if answer.status >= 200 => break answer,
                // Nobody asked for a change of protocol.
                answer::Seen::Whole(answer) if answer.status != 101 => {
                    read.consume(answer.len);
                    continue;
                }
                answer::Seen::Part if read.len() <= ANSWER_HEAD_BYTES_MAX => {}
                _ => return Err(broken(true)),
            }
        }
        match poll_fn(|context| read.poll_read(stream, ASKED_BYTES, context)).await {
            Ok(1..) => begun = true,
            Ok(0) | Err(_) => return Err(broken(begun)),
        }
    };
    witness.answered(answer.status);
    let body = &read[answer.len..];
    let taken = answer.body.take_to(body, |content| witness.saw(content));
    let mut clean = taken.map_err(|_| broken(true))? == body.len();
    drop((read, head));
    while !answer.body.is_over() {
        let rest = &mut answer.body;
        let more = poll_fn(|context| {
            poll_read(Pin::new(&mut *stream), context, |_, bytes| {
                let taken = rest.take_to(bytes, |content| witness.saw(content));
                taken.map(|taken| (taken, bytes.len()))
            })
        });
        match more.await {
            Ok(Ok((_, 0))) if matches!(answer.body, Rest::Close) => return Ok(false),
            Ok(Ok((taken, length @ 1..))) => clean = taken == length,
            Ok(_) | Err(_) => return Err(broken(true)),
        }
    }
    Ok(clean && answer.keep_alive)
}
