//! ICMP echoes as bytes (RFC 792, RFC 4443).

use flannel_common::packet::checksum::{fold, sum_of};

/// Bytes of an echo's header.
pub(super) const HEADER: usize = 8;

/// An answer to one of our echoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which echo it answers.
    pub sequence: u16,
    /// How it came.
    pub condition: Condition,
}

/// How an answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Its checksum is right, and it brings back what was sent.
    Intact,
    /// Its checksum is wrong. Who answers looks at that of the question and makes that of the answer anew: it was broken on
    /// the way back.
    BadChecksum,
    /// Other bytes than were sent, with a checksum that somebody has made fit: on the way there or back.
    OtherBytes,
}

impl Answer {
    /// As it should be.
    pub fn is_intact(&self) -> bool {
        self.condition == Condition::Intact
    }
}

const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;

/// A request with `length` bytes of payload. That of IPv6 has no checksum, which the kernel adds.
pub(super) fn request(is_v4: bool, identifier: u16, sequence: u16, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + length];
    bytes[0] = if is_v4 { REQUEST_V4 } else { REQUEST_V6 };
    bytes[4..6].copy_from_slice(&identifier.to_be_bytes());
    bytes[6..8].copy_from_slice(&sequence.to_be_bytes());
    for (at, byte) in bytes[HEADER..].iter_mut().enumerate() {
        *byte = content(sequence, at);
    }
    if is_v4 {
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// What `packet`, as a raw socket gives it, answers of ours. That of IPv4 has its IP header, that of IPv6 none and its
/// checksum was looked at by the kernel.
pub(super) fn answer(is_v4: bool, packet: &[u8], identifier: u16) -> Option<Answer> {
    let icmp = match is_v4 {
        true => packet.get(usize::from(packet.first()? & 0xf) * 4..)?,
        false => packet,
    };
    let header = icmp.get(..HEADER)?;
    let is_reply = header[0] == if is_v4 { REPLY_V4 } else { REPLY_V6 };
    if !is_reply || header[4..6] != identifier.to_be_bytes() {
        return None;
    }
    let sequence = u16::from_be_bytes([header[6], header[7]]);
    let same = icmp[HEADER..].iter().enumerate().all(|(at, byte)| *byte == content(sequence, at));
    // Over everything, its own field included, a right one comes to zero.
    let condition = match (!is_v4 || checksum(icmp) == 0, same) {
        (false, _) => Condition::BadChecksum,
        (true, false) => Condition::OtherBytes,
        (true, true) => Condition::Intact,
    };
    Some(Answer { sequence, condition })
}

fn content(sequence: u16, at: usize) -> u8 {
    (at as u8).wrapping_mul(31) ^ sequence as u8
}

/// The checksum of the Internet (RFC 1071).
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum_of(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the other end makes it of a request.
    fn reply(mut request: Vec<u8>) -> Vec<u8> {
        request[0] = REPLY_V4;
        request[2..4].fill(0);
        let sum = checksum(&request);
        request[2..4].copy_from_slice(&sum.to_be_bytes());
        [&[0x45; 20][..], &request].concat()
    }

    #[test]
    fn an_answer_is_told_from_others_and_from_a_broken_one() {
        let request = request(true, 7, 3, 57);
        assert_eq!(checksum(&request), 0);
        let good = reply(request.clone());
        assert_eq!(answer(true, &good, 7), Some(Answer { sequence: 3, condition: Condition::Intact }));
        assert_eq!(answer(true, &good, 8), None, "another process's");
        assert_eq!(answer(true, &[&[0x45; 20][..], &request].concat(), 7), None, "our own request");
        for at in [22, 28, 40, 84] {
            let mut broken = good.clone();
            broken[at] ^= 1;
            let condition = Condition::BadChecksum;
            assert_eq!(answer(true, &broken, 7), Some(Answer { sequence: 3, condition }), "byte {at}");
        }
        let mut changed = request.clone();
        changed[40] ^= 1;
        let condition = Condition::OtherBytes;
        assert_eq!(answer(true, &reply(changed), 7), Some(Answer { sequence: 3, condition }), "made to fit");
        for length in 0..28 {
            assert_eq!(answer(true, &good[..length], 7), None);
        }
    }
}
