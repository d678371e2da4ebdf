//! Errors that the tunnel answers with, as a router would.

use flannel_common::{
    family::{Family as _, V4},
    packet::{
        checksum::{self, sum_of},
        headers::{IPV4_LEN, Ipv4},
    },
};

use super::packet::{header_len, write};

const ICMP_LEN: usize = 8;
/// TTL of answers, as stock flannel's.
const TTL: u8 = 8;
/// How much of the packet's payload is sent back, bytes (RFC 792).
const QUOTED: usize = 8;
/// The longest answer: the headers, and the packet's header with all options.
const LONGEST: usize = IPV4_LEN + ICMP_LEN + 60 + QUOTED;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// No node has the destination: network unreachable.
    NetUnreachable,
    /// The TTL has run out.
    TimeExceeded,
}

impl Problem {
    /// Type and code (RFC 792).
    const fn kind(self) -> [u8; 2] {
        match self {
            Self::NetUnreachable => [3, 0],
            Self::TimeExceeded => [11, 0],
        }
    }
}

/// An answer, as a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Answer {
    /// The answer of the node at `from` to `packet` with the header `ip`; `None` where a router must not answer (RFC 1122,
    /// 3.2.2): to errors, to later fragments, to groups, to what comes from nobody.
    pub(super) fn to(packet: &[u8], ip: &Ipv4, problem: Problem, from: [u8; 4]) -> Option<Self> {
        let header = header_len(ip);
        let is_later_fragment = ip.fragment & 0x1fff != 0;
        let is_nobody = |address: [u8; 4]| matches!(address[0], 0 | 127 | 224..);
        if is_later_fragment || is_nobody(ip.source) || is_nobody(ip.destination) {
            return None;
        }
        // Echo and its like may be answered; errors not.
        if ip.protocol == V4::PROTOCOL_ICMP && !matches!(packet.get(header)?, 0 | 8 | 13..=18) {
            return None;
        }
        let quoted = packet.get(..(header + QUOTED).min(usize::from(ip.total_len)))?;
        let len = IPV4_LEN + ICMP_LEN + quoted.len();
        let mut outer = Ipv4 {
            version_ihl: 0x45,
            // Internetwork control (RFC 1812, 4.3.2.5), as the kernel's.
            tos: 0xc0,
            total_len: len as u16,
            id: 0,
            fragment: 0,
            ttl: TTL,
            protocol: V4::PROTOCOL_ICMP,
            checksum: 0,
            source: from,
            destination: ip.source,
        };
        outer.checksum = checksum::of(&outer);
        let mut bytes = [0; LONGEST];
        bytes[..IPV4_LEN].copy_from_slice(&outer.bytes());
        bytes[IPV4_LEN..IPV4_LEN + 2].copy_from_slice(&problem.kind());
        bytes.get_mut(IPV4_LEN + ICMP_LEN..len)?.copy_from_slice(quoted);
        let total = !checksum::fold(sum_of(bytes.get(IPV4_LEN..len)?));
        write(&mut bytes, IPV4_LEN + 2, total);
        Some(Self { bytes, len })
    }

    /// The packet.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
