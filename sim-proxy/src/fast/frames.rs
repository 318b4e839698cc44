//! Where the frames of a WebSocket begin and end (RFC 6455, section 5.2): what the proxy says itself may stand between two
//! of them alone.

/// Says that the server goes away (RFC 6455, section 7.4.1): a whole frame of its own.
pub(super) const GOING_AWAY: &[u8] = &[0x88, 2, 0x03, 0xe9];

/// Longest head of a frame: two bytes, a length of eight, a mask of four.
const HEAD_BYTES_MAX: usize = 14;
const CLOSE: u8 = 8;

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Of the present frame's head, as far as it has come.
    head: [u8; HEAD_BYTES_MAX],
    come: usize,
    /// What is to come of its payload.
    left: u64,
    /// The last word was said.
    closed: bool,
}

impl Frames {
    /// These bytes passed.
    pub(super) fn saw(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len() as u64);
                self.left -= taken;
                bytes = &bytes[taken as usize..];
                continue;
            }
            self.head[self.come] = first;
            self.come += 1;
            bytes = rest;
            if let Some(length) = self.length() {
                self.closed |= self.head[0] & 0x0f == CLOSE;
                (self.left, self.come) = (length, 0);
            }
        }
    }

    /// The length of the payload, once the head is whole.
    fn length(&self) -> Option<u64> {
        if self.come < 2 {
            return None;
        }
        let (short, mask) = (self.head[1] & 0x7f, usize::from(self.head[1] >> 7) * 4);
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.come < 2 + extended + mask {
            return None;
        }
        if extended == 0 {
            return Some(short.into());
        }
        let number = |length: u64, &byte: &u8| length << 8 | u64::from(byte);
        Some(self.head[2..2 + extended].iter().fold(0, number))
    }

    /// A frame may begin here, and the last word wasn't said.
    pub(super) fn is_between(&self) -> bool {
        self.left == 0 && self.come == 0 && !self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of text with a payload of `length`.
    fn frame(length: usize, mask: bool) -> Vec<u8> {
        let masked = u8::from(mask) << 7;
        let mut frame = vec![0x81];
        match length {
            0..126 => frame.push(masked | length as u8),
            126..65_536 => {
                frame.push(masked | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(masked | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.resize(frame.len() + usize::from(mask) * 4 + length, 0xff);
        frame
    }

    #[test]
    fn a_frame_may_begin_where_the_last_one_ended_however_it_was_cut() {
        for mask in [false, true] {
            let lengths = [0, 1, 125, 126, 65_535, 65_536, 200_000];
            for piece in [1, 2, 3, 1_000, usize::MAX] {
                let mut frames = Frames::default();
                assert!(frames.is_between());
                for length in lengths {
                    let frame = frame(length, mask);
                    let (most, last) = frame.split_at(frame.len() - 1);
                    for piece in most.chunks(piece) {
                        frames.saw(piece);
                        assert!(!frames.is_between(), "{length}");
                    }
                    frames.saw(last);
                    assert!(frames.is_between(), "{length}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_said_behind_the_last_word() {
        let mut frames = Frames::default();
        frames.saw(&[frame(5, false), GOING_AWAY.to_vec()].concat());
        assert!(!frames.is_between());
    }
}
