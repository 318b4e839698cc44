//! A packet's TCP header.

use aya_ebpf::programs::SkBuffContext;

const TCP: u8 = 6;
/// Least length of the headers of a TCP packet.
const IP_AND_TCP: usize = 40;

/// What a TCP packet carries.
#[derive(Clone, Copy)]
pub struct Payload {
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// Where it starts in the packet, in bytes.
    pub offset: usize,
}

/// The payload, if the packet is one of TCP's and has any.
///
/// Read in place: by the time that a packet is at its socket its headers lie in one piece.
#[inline(always)]
pub fn payload(ctx: &SkBuffContext) -> Option<Payload> {
    // SAFETY: each load lies before `end`, as the verifier checks.
    unsafe {
        let (start, end) = (
            (*ctx.skb.skb).data as usize,
            (*ctx.skb.skb).data_end as usize,
        );
        if start + IP_AND_TCP > end {
            return None;
        }
        let first = *(start as *const u8);
        let (protocol, tcp) = match first >> 4 {
            4 => (*((start + 9) as *const u8), (first as usize & 15) * 4),
            // Extension headers are rare on TCP, and skipped with their packets.
            6 => (*((start + 6) as *const u8), 40),
            _ => return None,
        };
        let header = start + tcp;
        if protocol != TCP || header + 20 > end {
            return None;
        }
        let sequence = u32::from_be(*((header + 4) as *const u32));
        let offset = tcp + (*((header + 12) as *const u8) as usize >> 4) * 4;
        ((offset as u32) < ctx.len()).then_some(Payload { sequence, offset })
    }
}
