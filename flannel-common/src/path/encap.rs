//! The bytes that encapsulation writes.

use super::{Routing, ecn};
use crate::{
    layout::PeerV4,
    packet::{
        Packet, checksum, hash,
        headers::{
            ENCAP_LEN, ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_UDP, UDP_LEN, Udp,
            VXLAN_LEN, Vxlan,
        },
    },
};

/// What routing does to an IPv4 header: its fields as they become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TOS byte, where it changes.
    pub tos: Option<u8>,
    /// Time to live.
    pub ttl: u8,
    /// Protocol, unchanged: it stands between the two that change.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: u16,
}

/// Offset of TTL, protocol and checksum in an IPv4 header.
const TTL: usize = 8;
/// Offset of the TOS byte in an IPv4 header.
const TOS: usize = 1;

impl Forward {
    /// One hop further: TTL one less. The caller has made sure that the TTL is above 1.
    #[inline(always)]
    pub const fn hop(ip: &Ipv4) -> Self {
        let ttl = ip.ttl.wrapping_sub(1);
        let checksum = checksum::update(ip.checksum, word(ip.ttl, ip.protocol), word(ttl, ip.protocol));
        Self { tos: None, ttl, protocol: ip.protocol, checksum }
    }

    /// One hop further, with the TOS byte that decapsulation leaves.
    #[inline(always)]
    pub const fn hop_with_tos(ip: &Ipv4, tos: u8) -> Self {
        let mut hop = Self::hop(ip);
        if tos != ip.tos {
            hop.tos = Some(tos);
            hop.checksum =
                checksum::update(hop.checksum, word(ip.version_ihl, ip.tos), word(ip.version_ihl, tos));
        }
        hop
    }
}

impl Routing for Forward {
    const ETHERTYPE: u16 = ETHERTYPE_IPV4;

    #[inline(always)]
    fn write(&self, packet: &mut (impl Packet + ?Sized), offset: usize) -> Option<()> {
        let [high, low] = self.checksum.to_be_bytes();
        packet.write(offset + TTL, [self.ttl, self.protocol, high, low])?;
        match self.tos {
            Some(tos) => packet.write(offset + TOS, [tos]),
            None => Some(()),
        }
    }
}

#[inline(always)]
const fn word(high: u8, low: u8) -> u16 {
    ((high as u16) << 8) | low as u16
}

/// How to push VXLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encap {
    /// Whom it goes to.
    pub peer: PeerV4,
    /// Source of the outer header.
    pub source: [u8; 4],
    /// UDP destination port, host order.
    pub port: u16,
    /// Range of UDP source ports, host order, end exclusive.
    pub source_ports: (u32, u32),
    /// TTL of the outer header: the one that the kernel's device was seen to write.
    pub ttl: u8,
    /// TOS of the inner header before any change: decides the outer mark.
    pub inner_tos: u8,
    /// Length of the inner frame with its Ethernet header, bytes. With the outer headers it fits 16 bits.
    pub frame_len: u16,
    /// What routing does to the inner IP header; `None` where the kernel has routed it already.
    pub forward: Option<Forward>,
}

/// Where what [`Encap::headers`] writes begins: behind the outer MACs, which the neighbour table fills in.
pub const HEADERS_AT: usize = ETHERNET_LEN - 2;
/// Length of what [`Encap::headers`] writes: from the outer EtherType to the end of the inner Ethernet
/// header.
pub const HEADERS_LEN: usize = ENCAP_LEN + ETHERNET_LEN - HEADERS_AT;

impl Encap {
    /// The bytes from the outer EtherType up to the inner IP header, field for field what the kernel's
    /// device writes, but for a UDP checksum of 0 (RFC 7348, section 4.1, lets every receiver accept that).
    ///
    /// `id` is the IP identification; `flow_hash` the kernel's hash of the inner flow.
    #[inline(always)]
    pub const fn headers(&self, id: u16, flow_hash: u32) -> [u8; HEADERS_LEN] {
        let udp_len = self.frame_len.wrapping_add((UDP_LEN + VXLAN_LEN) as u16);
        let mut ip = Ipv4 {
            version_ihl: 0x45,
            tos: ecn::encapsulate(self.inner_tos),
            total_len: udp_len.wrapping_add(IPV4_LEN as u16),
            id,
            fragment: 0,
            ttl: self.ttl,
            protocol: PROTOCOL_UDP,
            checksum: 0,
            source: self.source,
            destination: self.peer.vtep,
        };
        ip.checksum = checksum::of(&ip);
        let udp = Udp {
            source: hash::source_port(flow_hash, self.source_ports.0, self.source_ports.1),
            destination: self.port,
            len: udp_len,
            checksum: 0,
        };
        let inner = Ethernet::new(self.peer.vtep_mac, self.peer.local_mac, ETHERTYPE_IPV4);
        let mut all = [0; HEADERS_LEN];
        let (a, rest) = all.split_at_mut(ETHERNET_LEN - HEADERS_AT);
        let (b, rest) = rest.split_at_mut(IPV4_LEN);
        let (c, rest) = rest.split_at_mut(UDP_LEN);
        let (d, e) = rest.split_at_mut(VXLAN_LEN);
        a.copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        b.copy_from_slice(&ip.bytes());
        c.copy_from_slice(&udp.bytes());
        d.copy_from_slice(&Vxlan::of(self.peer.vni).bytes());
        e.copy_from_slice(&inner.bytes());
        all
    }
}
