//! Follows a chunked body (RFC 9112, section 7.1) as it passes, without changing it.
//!
//! It is strict where parsers differ: lines end with CR LF, sizes are hexadecimal digits alone and fit, and the
//! lines between the data are bounded. There is no crate for this: those that decode take the framing off.

/// Longest line of a size with its extensions, and all trailers together, bytes.
const LINES_MAX: u32 = 8 * 1_024;
/// Hexadecimal digits of a size: it can't overflow.
const DIGITS_MAX: u32 = 15;

/// What is no chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadChunk;

/// Where in the body it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before the first digit of a size.
    #[default]
    Start,
    Size,
    /// White space behind a size, which belongs to an extension.
    Blank,
    Extension,
    /// After the CR of a line of a size.
    SizeEnd,
    Data,
    /// Before the CR behind the data.
    DataEnd,
    DataLf,
    /// At the start of a line behind the last chunk.
    Trailers,
    Trailer,
    TrailerLf,
    /// After the CR of the last line.
    LastLf,
    Over,
}

/// A chunked body that passes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chunks {
    at: At,
    /// The size being read, and what is left of the data.
    size: u64,
    digits: u32,
    /// Bytes of the present line, or of all trailers.
    line: u32,
    trailers: bool,
}

impl Chunks {
    /// The last byte has passed.
    pub(super) fn is_over(&self) -> bool {
        self.at == At::Over
    }

    /// Fields came behind the last chunk.
    pub(super) fn has_trailers(&self) -> bool {
        self.trailers
    }

    /// How many of `bytes` belong to the body: all, or those up to its end.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, BadChunk> {
        self.take_to(bytes, |_| {})
    }

    /// The same, and `saw` is told the data without its framing.
    pub(super) fn take_to(
        &mut self,
        bytes: &[u8],
        mut saw: impl FnMut(&[u8]),
    ) -> Result<usize, BadChunk> {
        let mut at = 0;
        while at < bytes.len() && !self.is_over() {
            if self.at == At::Data {
                let passing = self.size.min((bytes.len() - at) as u64);
                self.size -= passing;
                let start = at;
                at += passing as usize;
                saw(&bytes[start..at]);
                if self.size == 0 {
                    self.at = At::DataEnd;
                }
                continue;
            }
            self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<(), BadChunk> {
        self.at = match (self.at, byte) {
            (At::Start | At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digits += 1;
                if self.digits > DIGITS_MAX {
                    return Err(BadChunk);
                }
                let digit = (byte as char).to_digit(16).ok_or(BadChunk)?;
                self.size = self.size << 4 | u64::from(digit);
                At::Size
            }
            (At::Size | At::Extension, b'\r') => At::SizeEnd,
            (At::Size | At::Blank, b';') => self.within(At::Extension)?,
            (At::Size | At::Blank, b' ' | b'\t') => self.within(At::Blank)?,
            (At::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.within(At::Extension)?,
            (At::SizeEnd, b'\n') => {
                (self.digits, self.line) = (0, 0);
                if self.size == 0 {
                    At::Trailers
                } else {
                    At::Data
                }
            }
            (At::DataEnd, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Start,
            (At::Trailers, b'\r') => At::LastLf,
            // A line that goes on from the one before begins with white space.
            (At::Trailers, b'!'..=b'~') => {
                self.trailers = true;
                self.within(At::Trailer)?
            }
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::Trailer, b'\t' | b' '..=b'~' | 0x80..) => self.within(At::Trailer)?,
            (At::TrailerLf, b'\n') => At::Trailers,
            (At::LastLf, b'\n') => At::Over,
            _ => return Err(BadChunk),
        };
        Ok(())
    }

    fn within(&mut self, at: At) -> Result<At, BadChunk> {
        self.line += 1;
        if self.line > LINES_MAX {
            return Err(BadChunk);
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(body: &[u8]) -> Result<Option<usize>, BadChunk> {
        let mut chunks = Chunks::default();
        let taken = chunks.take(body)?;
        Ok(chunks.is_over().then_some(taken))
    }

    #[test]
    fn a_body_ends_at_its_last_line() {
        let body = b"3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nX: 1\r\n\r\n";
        let next = [body.as_slice(), b"GET /"].concat();
        assert_eq!(whole(&next), Ok(Some(body.len())));
        assert_eq!(whole(b"0\r\n\r\n"), Ok(Some(5)));
        assert_eq!(whole(b"3\r\nabc\r\n0\r\n"), Ok(None));
    }

    #[test]
    fn what_others_may_read_in_another_way_is_refused() {
        for body in [
            &b"3\nabc\r\n0\r\n\r\n"[..],
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"\r\nabc\r\n",
            b"0x3\r\nabc\r\n",
            b"-1\r\n",
            b" 3\r\nabc\r\n",
            b"3;\nabc\r\n",
            b"3 4\r\nabc\r\n",
            b"3 \r\nabc\r\n",
            b"3;a\rb\r\nabc\r\n",
            b"0\r\n\n",
            b"0\r\n X: 1\r\n\r\n",
            b"0\r\nX: 1\n\r\n",
            b"10000000000000000\r\n",
            b"0000000000000001\r\na\r\n",
        ] {
            assert_eq!(
                whole(body),
                Err(BadChunk),
                "{:?}",
                body.escape_ascii().to_string()
            );
        }
        let endless = [b"1;".as_slice(), &[b'a'; 9_000]].concat();
        assert_eq!(whole(&endless), Err(BadChunk));
    }

    proptest! {
        #[test]
        fn how_the_bytes_arrive_makes_no_difference(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cut in 1usize..17,
        ) {
            let mut body = Vec::new();
            for part in &parts {
                body.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                body.extend_from_slice(part);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let mut chunks = Chunks::default();
            let mut data = Vec::new();
            for piece in body.chunks(cut) {
                prop_assert!(!chunks.is_over());
                let taken = chunks.take_to(piece, |bytes| data.extend_from_slice(bytes));
                prop_assert_eq!(taken, Ok(piece.len()));
            }
            prop_assert!(chunks.is_over());
            prop_assert_eq!(data, parts.concat());
        }

        #[test]
        fn arbitrary_bytes_are_no_trouble(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(taken) = Chunks::default().take(&bytes) {
                prop_assert!(taken <= bytes.len());
            }
        }
    }
}
