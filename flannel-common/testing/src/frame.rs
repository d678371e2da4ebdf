//! Frames as pods and nodes send them, to be bent where a test wants them bent.

use flannel_common::packet::{
    checksum,
    headers::{
        ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_IPIP, PROTOCOL_TCP, PROTOCOL_UDP,
        TCP_ACK, TCP_TO_FLAGS, UDP_LEN, Udp, Vxlan,
    },
};

use super::interface;

/// An Ethernet frame with an IPv4 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Ethernet header.
    pub ethernet: Ethernet,
    /// IPv4 header, correct until a test bends it.
    pub ip: Ipv4,
    /// What follows.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A correct packet of `protocol`, at TTL 64.
    pub fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: Vec<u8>) -> Self {
        let ethernet = Ethernet::new(interface::UNDERLAY_MAC, [0x02, 0, 0, 0, 0xaa, 0x02], ETHERTYPE_IPV4);
        let ip = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_len: (IPV4_LEN + payload.len()) as u16,
            id: 0x1234,
            fragment: 0x4000,
            ttl: 64,
            protocol,
            checksum: 0,
            source,
            destination,
        };
        Self { ethernet, ip, payload }.ip(|_| ())
    }

    /// UDP with `len` bytes of data.
    pub fn udp(source: [u8; 4], destination: [u8; 4], len: usize) -> Self {
        let header = Udp { source: 5000, destination: 5001, len: (UDP_LEN + len) as u16, checksum: 0 };
        let mut payload = header.bytes().to_vec();
        payload.resize(UDP_LEN + len, 0x55);
        Self::ipv4(source, destination, PROTOCOL_UDP, payload)
    }

    /// TCP with `options` bytes of options, a multiple of four up to 40, and `len` bytes of data.
    pub fn tcp(source: [u8; 4], destination: [u8; 4], options: usize, len: usize) -> Self {
        const DATA_OFFSET: usize = 12;
        let header = 20 + options;
        let mut payload = vec![1; header + len];
        if let Some(offset) = payload.get_mut(DATA_OFFSET) {
            *offset = (header as u8 / 4) << 4;
        }
        if let Some(flags) = payload.get_mut(TCP_TO_FLAGS - 1) {
            *flags = TCP_ACK;
        }
        Self::ipv4(source, destination, PROTOCOL_TCP, payload)
    }

    /// `inner` in VXLAN of network 1, from port 40000 to 8472.
    pub fn vxlan(source: [u8; 4], destination: [u8; 4], inner: &[u8]) -> Self {
        let vxlan = Vxlan::of(1).bytes();
        let len = (UDP_LEN + vxlan.len() + inner.len()) as u16;
        let udp = Udp { source: 40_000, destination: 8472, len, checksum: 0 };
        let payload = [&udp.bytes(), &vxlan, inner].concat();
        Self::ipv4(source, destination, PROTOCOL_UDP, payload).ip(|ip| ip.fragment = 0)
    }

    /// `packet`, which has no Ethernet header, in IP.
    pub fn ipip(source: [u8; 4], destination: [u8; 4], packet: &[u8]) -> Self {
        Self::ipv4(source, destination, PROTOCOL_IPIP, packet.to_vec())
    }

    /// With the flags of its TCP header replaced.
    pub fn tcp_flags(mut self, flags: u8) -> Self {
        if let Some(byte) = self.payload.get_mut(TCP_TO_FLAGS - 1) {
            *byte = flags;
        }
        self
    }

    /// With its MACs replaced.
    pub fn macs(mut self, destination: [u8; 6], source: [u8; 6]) -> Self {
        self.ethernet = Ethernet::new(destination, source, self.ethernet.ethertype);
        self
    }

    /// With its IP header edited, and the checksum made correct again.
    pub fn ip(mut self, edit: impl FnOnce(&mut Ipv4)) -> Self {
        edit(&mut self.ip);
        self.ip.checksum = checksum::of(&self.ip);
        self
    }

    /// As it stands on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ETHERNET_LEN + IPV4_LEN + self.payload.len());
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
