//! IPv6 frames as pods and nodes send them, to be bent where a test wants them bent.

use flannel_common::{
    layout::AddressV6,
    packet::{
        headers::{
            ETHERNET_LEN, Ethernet, PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_TO_FLAGS, UDP_CHECKSUM, UDP_LEN,
            Udp, Vxlan,
        },
        ipv6::{ETHERTYPE_IPV6, IPV6_LEN, Ipv6, PROTOCOL_ICMPV6},
    },
};

use super::interface;

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in an ICMPv6 header.
const ICMPV6_CHECKSUM: usize = 2;

/// An Ethernet frame with an IPv6 packet, whose checksum is right until a test bends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameV6 {
    /// Ethernet header.
    pub ethernet: Ethernet,
    /// IPv6 header.
    pub ip: Ipv6,
    /// What follows.
    pub payload: Vec<u8>,
}

/// The internet checksum of `payload` under the pseudo header of `ip` (RFC 8200, section 8.1), by the book.
pub fn transport_checksum(ip: &Ipv6, payload: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    bytes.extend(ip.source.octets);
    bytes.extend(ip.destination.octets);
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(u32::from(ip.next_header).to_be_bytes());
    bytes.extend(payload);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    let words =
        bytes.chunks_exact(2).map(|word| word.iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte)));
    match words.sum::<u64>() % 0xffff {
        0 => 0xffff,
        rest => !(rest as u16),
    }
}

impl FrameV6 {
    /// A packet of `protocol`, at hop limit 64.
    pub fn new(source: AddressV6, destination: AddressV6, protocol: u8, payload: Vec<u8>) -> Self {
        let ethernet = Ethernet::new(interface::UNDERLAY_MAC, [0x02, 0, 0, 0, 0xaa, 0x02], ETHERTYPE_IPV6);
        let ip = Ipv6 {
            class: 6 << 28 | 0x54321,
            payload_len: payload.len() as u16,
            next_header: protocol,
            hop_limit: 64,
            source,
            destination,
        };
        Self { ethernet, ip, payload }.checksummed()
    }

    /// UDP with `len` bytes of data.
    pub fn udp(source: AddressV6, destination: AddressV6, len: usize) -> Self {
        let header = Udp { source: 5000, destination: 5001, len: (UDP_LEN + len) as u16, checksum: 0 };
        let mut payload = header.bytes().to_vec();
        payload.resize(UDP_LEN + len, 0x55);
        Self::new(source, destination, PROTOCOL_UDP, payload)
    }

    /// TCP with `options` bytes of options, a multiple of four up to 40, and `len` bytes of data.
    pub fn tcp(source: AddressV6, destination: AddressV6, options: usize, len: usize) -> Self {
        const DATA_OFFSET: usize = 12;
        let header = 20 + options;
        let mut payload = vec![1; header + len];
        if let Some(offset) = payload.get_mut(DATA_OFFSET) {
            *offset = (header as u8 / 4) << 4;
        }
        Self::new(source, destination, PROTOCOL_TCP, payload).tcp_flags(TCP_ACK)
    }

    /// An echo request with `len` bytes of data.
    pub fn echo(source: AddressV6, destination: AddressV6, len: usize) -> Self {
        let mut payload = vec![128, 0, 0, 0, 1, 2, 3, 4];
        payload.resize(8 + len, 0x33);
        Self::new(source, destination, PROTOCOL_ICMPV6, payload)
    }

    /// With extension headers before what follows, each of a kind and of so many words of eight bytes after the
    /// first; a fragment's has no such length, and is of all there is.
    pub fn extended(mut self, headers: &[(u8, u8)]) -> Self {
        for &(kind, words) in headers.iter().rev() {
            let options = vec![0; 6 + usize::from(words) * 8];
            self.payload = [&[self.ip.next_header, words][..], &options, &self.payload].concat();
            self.ip.next_header = kind;
        }
        self.ip.payload_len = self.payload.len() as u16;
        self
    }

    /// `inner` in VXLAN of network 1, from port 40000 to 8472.
    pub fn vxlan(source: AddressV6, destination: AddressV6, inner: &[u8]) -> Self {
        let vxlan = Vxlan::of(1).bytes();
        let len = (UDP_LEN + vxlan.len() + inner.len()) as u16;
        let udp = Udp { source: 40_000, destination: 8472, len, checksum: 0 };
        let mut outer = Self::new(source, destination, PROTOCOL_UDP, [&udp.bytes(), &vxlan, inner].concat());
        outer.ip.class = 6 << 28;
        outer
    }

    /// With the flags of its TCP header replaced.
    pub fn tcp_flags(mut self, flags: u8) -> Self {
        if let Some(byte) = self.payload.get_mut(TCP_TO_FLAGS - 1) {
            *byte = flags;
        }
        self.checksummed()
    }

    /// With its checksum computed anew, if it has room for one.
    pub fn checksummed(mut self) -> Self {
        let at = match self.ip.next_header {
            PROTOCOL_UDP => UDP_CHECKSUM,
            PROTOCOL_TCP => TCP_CHECKSUM,
            PROTOCOL_ICMPV6 => ICMPV6_CHECKSUM,
            _ => return self,
        };
        if let Some(field) = self.payload.get_mut(at..at + 2) {
            field.fill(0);
        } else {
            return self;
        }
        let sum = transport_checksum(&self.ip, &self.payload).to_be_bytes();
        self.payload.iter_mut().skip(at).zip(sum).for_each(|(byte, new)| *byte = new);
        self
    }

    /// With the two bytes of its checksum replaced: of UDP, 0 for none.
    pub fn udp_checksum(mut self, sum: u16) -> Self {
        self.payload.iter_mut().skip(UDP_CHECKSUM).zip(sum.to_be_bytes()).for_each(|(byte, new)| *byte = new);
        self
    }

    /// With its MACs replaced.
    pub fn macs(mut self, destination: [u8; 6], source: [u8; 6]) -> Self {
        self.ethernet = Ethernet::new(destination, source, self.ethernet.ethertype);
        self
    }

    /// With its IP header edited. The checksum is left as it was.
    pub fn ip(mut self, edit: impl FnOnce(&mut Ipv6)) -> Self {
        edit(&mut self.ip);
        self
    }

    /// With this traffic class.
    pub fn class(self, class: u8) -> Self {
        self.ip(|ip| ip.class = ip.class & !(0xff << 20) | u32::from(class) << 20)
    }

    /// As it stands on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ETHERNET_LEN + IPV6_LEN + self.payload.len());
        bytes.extend(self.ethernet.bytes());
        bytes.extend(self.ip.bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// As it stands on the wire, with `with` over the bytes at `offset`.
    pub fn bytes_with(&self, offset: usize, with: &[u8]) -> Vec<u8> {
        let mut bytes = self.bytes();
        for (byte, with) in bytes.iter_mut().skip(offset).zip(with) {
            *byte = *with;
        }
        bytes
    }
}
