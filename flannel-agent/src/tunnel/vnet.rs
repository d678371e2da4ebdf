//! What stands in front of each packet at the device: `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h), in the
//! order of this machine's bytes.

/// Length of the header, bytes.
pub(super) const LEN: usize = 10;

/// The transport checksum holds only the sum of the pseudo header: the rest is to be added.
const NEEDS_CSUM: u8 = 1;
/// Kinds of aggregates.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;
/// A bit beside the kind: TCP with ECN.
const GSO_ECN: u8 = 0x80;

/// What an aggregate is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Segments of TCP over IPv4.
    Tcp,
    /// Datagrams of UDP.
    Udp,
}

/// What the kernel says of a packet, or is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offload {
    /// Where the transport header begins whose checksum is to be completed, and where in that the checksum stands.
    pub(super) checksum: Option<(usize, usize)>,
    /// What an aggregate is made of, and the payload of each piece but the last, bytes.
    pub(super) aggregate: Option<(Kind, usize)>,
    /// Bytes of all headers; of meaning with an aggregate.
    pub(super) headers: usize,
}

impl Offload {
    /// Reads it; `None` where it says what was not agreed upon.
    pub(super) fn parse(bytes: &[u8; LEN]) -> Option<Self> {
        let [flags, kind, rest @ ..] = *bytes;
        let word = |at: usize| usize::from(u16::from_ne_bytes([rest[at], rest[at + 1]]));
        let kind = match kind & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(Kind::Tcp),
            GSO_UDP_L4 => Some(Kind::Udp),
            _ => return None,
        };
        let checksum = (flags & NEEDS_CSUM != 0).then(|| (word(4), word(6)));
        Some(Self { checksum, aggregate: kind.map(|kind| (kind, word(2))), headers: word(0) })
    }

    /// As it stands before a packet.
    pub(super) fn bytes(&self) -> [u8; LEN] {
        let kind = match self.aggregate {
            None => GSO_NONE,
            Some((Kind::Tcp, _)) => GSO_TCPV4,
            Some((Kind::Udp, _)) => GSO_UDP_L4,
        };
        let (start, offset) = self.checksum.unwrap_or_default();
        let size = self.aggregate.map_or(0, |(_, size)| size);
        let headers = if self.aggregate.is_some() { self.headers } else { 0 };
        let mut bytes = [0; LEN];
        bytes[0] = if self.checksum.is_some() { NEEDS_CSUM } else { 0 };
        bytes[1] = kind;
        for (at, value) in [headers, size, start, offset].into_iter().enumerate() {
            // Lengths within a packet of 65535 bytes at most.
            bytes[2 + at * 2..][..2].copy_from_slice(&(value as u16).to_ne_bytes());
        }
        bytes
    }
}
