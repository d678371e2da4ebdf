//! Segments of TCP and datagrams of UDP as bytes, with their checksums (RFC 1071, RFC 9293, RFC 768).

use std::net::IpAddr;

use flannel_common::packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP, TCP_CHECKSUM, UDP_CHECKSUM};

use super::echo::checksum;

/// A protocol whose checksum covers the addresses, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// Where the flags of TCP are, and those that answer a SYN.
const FLAGS: usize = 13;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const SYN_ACK: u8 = 0x12;

impl Transport {
    /// Its number (IANA).
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Tcp => PROTOCOL_TCP,
            Self::Udp => PROTOCOL_UDP,
        }
    }

    /// Where its checksum is.
    const fn checksum_at(self) -> usize {
        match self {
            Self::Tcp => TCP_CHECKSUM,
            Self::Udp => UDP_CHECKSUM,
        }
    }
}

/// What begins a conversation between `ends` and their `ports`, source first, with `length` bytes of content.
pub(super) fn opening(
    transport: Transport,
    ends: (IpAddr, IpAddr),
    ports: (u16, u16),
    length: usize,
) -> Vec<u8> {
    let header = if transport == Transport::Tcp { TCP_HEADER } else { UDP_HEADER };
    let mut bytes = vec![0; header + length];
    bytes[..2].copy_from_slice(&ports.0.to_be_bytes());
    bytes[2..4].copy_from_slice(&ports.1.to_be_bytes());
    match transport {
        Transport::Tcp => {
            bytes[4..8].copy_from_slice(&rand::random::<[u8; 4]>());
            bytes[12] = (TCP_HEADER as u8 / 4) << 4;
            bytes[FLAGS] = SYN;
            bytes[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        }
        Transport::Udp => bytes[4..6].copy_from_slice(&((header + length) as u16).to_be_bytes()),
    }
    for (at, byte) in bytes[header..].iter_mut().enumerate() {
        *byte = (at as u8).wrapping_mul(37);
    }
    let sum = match sum(transport, ends, &bytes) {
        // Zero stands for none in UDP.
        0 => u16::MAX,
        sum => sum,
    };
    let at = transport.checksum_at();
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Whether the checksum in `bytes` is right.
pub(super) fn is_whole(transport: Transport, ends: (IpAddr, IpAddr), bytes: &[u8]) -> bool {
    // Over everything, its own field included, a right one comes to zero.
    sum(transport, ends, bytes) == 0
}

/// The ports, source first.
pub(super) fn ports(bytes: &[u8]) -> Option<(u16, u16)> {
    let port = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    Some((port(0)?, port(2)?))
}

/// Whether a segment answers a SYN, with yes or no.
pub(super) fn answers(segment: &[u8]) -> bool {
    segment.get(FLAGS).is_some_and(|flags| flags & RST != 0 || flags & SYN_ACK == SYN_ACK)
}

fn sum(transport: Transport, ends: (IpAddr, IpAddr), bytes: &[u8]) -> u16 {
    let mut all = Vec::with_capacity(40 + bytes.len());
    for end in [ends.0, ends.1] {
        match end {
            IpAddr::V4(address) => all.extend(address.octets()),
            IpAddr::V6(address) => all.extend(address.octets()),
        }
    }
    all.extend((bytes.len() as u32).to_be_bytes());
    all.extend([0, 0, 0, transport.number()]);
    all.extend(bytes);
    checksum(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_bit_is_seen_in_either_family() {
        for ends in [("10.244.1.0", "10.244.2.254"), ("fd00:1::", "fd00:2::fffe")] {
            let ends = (ends.0.parse().unwrap(), ends.1.parse().unwrap());
            for transport in [Transport::Tcp, Transport::Udp] {
                let bytes = opening(transport, ends, (50_000, 10_250), 31);
                assert!(is_whole(transport, ends, &bytes));
                assert_eq!(ports(&bytes), Some((50_000, 10_250)));
                for at in 0..bytes.len() {
                    let mut broken = bytes.clone();
                    broken[at] ^= 0x10;
                    assert!(!is_whole(transport, ends, &broken), "byte {at}");
                }
                let swapped = (ends.1, "10.244.3.0".parse().unwrap());
                assert!(!is_whole(transport, swapped, &bytes), "other addresses");
            }
        }
    }

    /// Added up by other code: 10.0.0.2:33438 to 10.0.0.1:9, two bytes of content.
    #[test]
    fn the_checksum_is_that_of_others() {
        let ends = ("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap());
        let datagram = [0x82, 0x9e, 0x00, 0x09, 0x00, 0x0a, 0x00, 0x00, 0x68, 0x69];
        assert_eq!(sum(Transport::Udp, ends, &datagram), 0x00c7);
    }

    #[test]
    fn a_reset_and_a_syn_with_ack_answer_and_nothing_else_does() {
        for (flags, expected) in [(0x04, true), (0x14, true), (0x12, true), (0x02, false), (0x10, false)] {
            let mut segment = [0; TCP_HEADER];
            segment[FLAGS] = flags;
            assert_eq!(answers(&segment), expected, "{flags:#x}");
        }
        assert!(!answers(&[0; 4]) && ports(&[0; 3]).is_none());
    }
}
