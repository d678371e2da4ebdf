//! The bytes that encapsulation writes.

use crate::{
    layout::{AddressV6, PeerV6},
    packet::{
        Packet, checksum, hash,
        headers::{ETHERNET_LEN, Ethernet, PROTOCOL_UDP, UDP_LEN, Udp, VXLAN_LEN, Vxlan},
        ipv6::{ENCAP_LEN, ETHERTYPE_IPV6, IPV6_LEN, Ipv6},
    },
    path::{Routing, ecn},
};

/// Offset of the hop limit in an IPv6 header.
const HOP_LIMIT: usize = 7;

/// What routing does to an IPv6 header: its fields as they become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Version, traffic class and flow label, host order, where the class changes.
    pub class: Option<u32>,
    /// Hop limit.
    pub hop_limit: u8,
}

impl Forward {
    /// One hop further. The caller has made sure that the hop limit is above 1.
    #[inline(always)]
    pub const fn hop(ip: &Ipv6) -> Self {
        Self { class: None, hop_limit: ip.hop_limit.wrapping_sub(1) }
    }

    /// One hop further, with the traffic class that decapsulation leaves.
    #[inline(always)]
    pub const fn hop_with_class(ip: &Ipv6, traffic_class: u8) -> Self {
        let mut hop = Self::hop(ip);
        if traffic_class != ip.traffic_class() {
            hop.class = Some((ip.class & !(0xff << 20)) | ((traffic_class as u32) << 20));
        }
        hop
    }
}

impl Routing for Forward {
    const ETHERTYPE: u16 = ETHERTYPE_IPV6;

    #[inline(always)]
    fn write(&self, packet: &mut (impl Packet + ?Sized), offset: usize) -> Option<()> {
        packet.write(offset + HOP_LIMIT, [self.hop_limit])?;
        match self.class {
            Some(class) => packet.write(offset, class.to_be_bytes()),
            None => Some(()),
        }
    }
}

/// How to push VXLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encap {
    /// Whom it goes to.
    pub peer: PeerV6,
    /// Source of the outer header.
    pub source: AddressV6,
    /// UDP destination port, host order.
    pub port: u16,
    /// Range of UDP source ports, host order, end exclusive.
    pub source_ports: (u32, u32),
    /// Hop limit of the outer header: the one that the kernel's device was seen to write.
    pub hop_limit: u8,
    /// The inner header before any change: decides the outer mark, and with it the checksum is made.
    pub inner: Ipv6,
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
    /// device writes.
    ///
    /// `flow_hash` is the kernel's hash of the inner flow.
    #[inline(always)]
    pub fn headers(&self, flow_hash: u32) -> [u8; HEADERS_LEN] {
        let udp_len = self.frame_len.wrapping_add((UDP_LEN + VXLAN_LEN) as u16);
        let outer_class = ecn::encapsulate(self.inner.traffic_class());
        let ip = Ipv6 {
            // The flow label is 0, as the device's.
            class: (6 << 28) | ((outer_class as u32) << 20),
            payload_len: udp_len,
            next_header: PROTOCOL_UDP,
            hop_limit: self.hop_limit,
            source: self.source,
            destination: self.peer.vtep,
        };
        let vxlan = Vxlan::of(self.peer.vni);
        let ethernet = Ethernet::new(self.peer.vtep_mac, self.peer.local_mac, ETHERTYPE_IPV6);
        let mut udp = Udp {
            source: hash::source_port(flow_hash, self.source_ports.0, self.source_ports.1),
            destination: self.port,
            len: udp_len,
            checksum: 0,
        };
        let hop_limit = self.forward.map_or(self.inner.hop_limit, |forward| forward.hop_limit);
        udp.checksum =
            checksum::of_vxlan_over_ipv6(&ip, &udp, &vxlan, &ethernet, &Ipv6 { hop_limit, ..self.inner });
        let mut all = [0; HEADERS_LEN];
        let (a, rest) = all.split_at_mut(ETHERNET_LEN - HEADERS_AT);
        let (b, rest) = rest.split_at_mut(IPV6_LEN);
        let (c, rest) = rest.split_at_mut(UDP_LEN);
        let (d, e) = rest.split_at_mut(VXLAN_LEN);
        a.copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
        b.copy_from_slice(&ip.bytes());
        c.copy_from_slice(&udp.bytes());
        d.copy_from_slice(&vxlan.bytes());
        e.copy_from_slice(&ethernet.bytes());
        all
    }
}

/// How to hand a pod's aggregate to the VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// The device.
    pub ifindex: u32,
    /// As the kernel's neighbour table would have it leave for the peer.
    pub ethernet: Ethernet,
    /// What routing does to the IP header.
    pub forward: Forward,
}
