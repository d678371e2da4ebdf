//! The bytes that encapsulation writes, and what else is done with a packet.

use super::ecn;
use crate::{
    family::{Family, V4, V6},
    layout::{PodPlace, Route},
    packet::{
        checksum, hash,
        headers::{
            self, ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_IPIP, PROTOCOL_UDP,
            UDP_LEN, Udp, VXLAN_LEN, Vxlan,
        },
        ipv6::{self, ETHERTYPE_IPV6, IPV6_LEN, Ipv6},
    },
};

/// How to encapsulate a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encap<F: Family> {
    /// Where it goes.
    pub route: Route<F>,
    /// Source of the outer header.
    pub source: F::Address,
    /// UDP destination port, host order.
    pub port: u16,
    /// Range of UDP source ports, host order, end exclusive.
    pub source_ports: (u32, u32),
    /// TTL or hop limit of the outer header: the one that the kernel's device was seen to write; of IP in IP the inner one,
    /// as routing leaves it.
    pub hops: u8,
    /// The inner header before any change: decides the outer ECN bits, and with IPv6 the checksum is made with it.
    pub inner: F::Header,
    /// Length of the inner frame with its Ethernet header, bytes. With the outer headers it fits 16 bits.
    pub frame_len: u16,
    /// What routing does to the inner IP header; `None` where the kernel has routed it already.
    pub forward: Option<F::Forward>,
}

/// How to send a packet to a node as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct<F: Family> {
    /// Interface the node is reached by.
    pub ifindex: u32,
    /// Address on that interface's link whose MAC the frame goes to.
    pub next_hop: F::Address,
    /// What routing does to the IP header.
    pub forward: F::Forward,
}

/// How to hand a pod's aggregate to the VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOver<F: Family> {
    /// The device.
    pub ifindex: u32,
    /// As the kernel's neighbour table would have it leave for the node.
    pub ethernet: Ethernet,
    /// What routing does to the IP header.
    pub forward: F::Forward,
}

/// How to hand a packet to a pod, decapsulated if it is in VXLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliver<F: Family> {
    /// Where the pod is.
    pub pod: PodPlace,
    /// What routing does to the IP header that the pod gets.
    pub forward: F::Forward,
    /// Length of the inner packet, or of each segment of an aggregate, as an IP packet, bytes: what the pod's
    /// interface must take.
    pub packet_len: u32,
}

/// Where outer headers are written: behind the outer MACs, which the neighbour table fills in.
pub const HEADERS_AT: usize = ETHERNET_LEN - 2;
/// "Don't fragment", where flags and fragment offset of IPv4 stand (RFC 791).
pub const DONT_FRAGMENT: u16 = 0x4000;
/// Length of [`Encap::headers_udp`]: from the outer EtherType to the end of the UDP header.
pub const HEADERS_UDP_LEN: usize = ETHERNET_LEN - HEADERS_AT + IPV4_LEN + UDP_LEN;
/// Length of [`Encap::headers_ipip`]: from the outer EtherType to the end of the outer IP header.
pub const HEADERS_IPIP_LEN: usize = ETHERNET_LEN - HEADERS_AT + IPV4_LEN;
/// Length of [`Encap::headers`] of IPv4: from the outer EtherType to the end of the inner Ethernet header.
pub const HEADERS_LEN: usize = headers::ENCAP_LEN + ETHERNET_LEN - HEADERS_AT;
/// The same of IPv6.
pub const HEADERS_V6_LEN: usize = ipv6::ENCAP_LEN + ETHERNET_LEN - HEADERS_AT;

impl<F: Family> Encap<F> {
    /// The inner Ethernet header.
    #[inline(always)]
    fn ethernet(&self) -> Ethernet {
        Ethernet::new(self.route.vtep_mac, self.route.local_mac, F::ETHERTYPE)
    }

    /// The UDP header, without a checksum.
    #[inline(always)]
    fn udp(&self, flow_hash: u32) -> Udp {
        Udp {
            source: hash::source_port(flow_hash, self.source_ports.0, self.source_ports.1),
            destination: self.port,
            len: self.frame_len.wrapping_add((UDP_LEN + VXLAN_LEN) as u16),
            checksum: 0,
        }
    }
}

impl Encap<V4> {
    /// The outer IP header in front of `len` bytes of `protocol`.
    #[inline(always)]
    fn outer(&self, (protocol, len): (u8, u16), tos: u8, id: u16, fragment: u16) -> Ipv4 {
        let mut ip = Ipv4 {
            version_ihl: 0x45,
            tos,
            total_len: len.wrapping_add(IPV4_LEN as u16),
            id,
            fragment,
            ttl: self.hops,
            protocol,
            checksum: 0,
            source: self.source,
            destination: self.route.vtep,
        };
        ip.checksum = checksum::of(&ip);
        ip
    }

    /// The bytes from the outer EtherType up to the inner IP header, with a UDP checksum of 0.
    ///
    /// `id` is the IP identification; `flow_hash` the kernel's hash of the inner flow.
    #[inline(always)]
    pub fn headers(&self, id: u16, flow_hash: u32) -> [u8; HEADERS_LEN] {
        let udp = self.udp(flow_hash);
        let ip = self.outer((PROTOCOL_UDP, udp.len), ecn::encapsulate(self.inner.tos), id, 0);
        let mut all = [0; HEADERS_LEN];
        let (a, rest) = all.split_at_mut(ETHERNET_LEN - HEADERS_AT);
        let (b, rest) = rest.split_at_mut(IPV4_LEN);
        let (c, rest) = rest.split_at_mut(UDP_LEN);
        let (d, e) = rest.split_at_mut(VXLAN_LEN);
        a.copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        b.copy_from_slice(&ip.bytes());
        c.copy_from_slice(&udp.bytes());
        d.copy_from_slice(&Vxlan::of(self.route.vni).bytes());
        e.copy_from_slice(&self.ethernet().bytes());
        all
    }

    /// The bytes from the outer EtherType up to the inner IP header of a packet in UDP, without a UDP checksum.
    #[inline(always)]
    pub fn headers_udp(&self) -> [u8; HEADERS_UDP_LEN] {
        let udp = Udp {
            source: self.source_ports.0 as u16,
            destination: self.port,
            // The frame's Ethernet header is not carried.
            len: self.frame_len.wrapping_add(UDP_LEN as u16).wrapping_sub(ETHERNET_LEN as u16),
            checksum: 0,
        };
        let ip = self.outer((PROTOCOL_UDP, udp.len), 0, 0, DONT_FRAGMENT);
        let mut all = [0; HEADERS_UDP_LEN];
        let (a, rest) = all.split_at_mut(ETHERNET_LEN - HEADERS_AT);
        let (b, c) = rest.split_at_mut(IPV4_LEN);
        a.copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        b.copy_from_slice(&ip.bytes());
        c.copy_from_slice(&udp.bytes());
        all
    }

    /// The bytes from the outer EtherType up to the inner IP header of a packet in IP. `id` is the IP identification, which
    /// the kernel's device gives packets that may not be fragmented, too (net/ipv4/ip_tunnel_core.c, `iptunnel_xmit`).
    #[inline(always)]
    pub fn headers_ipip(&self, id: u16) -> [u8; HEADERS_IPIP_LEN] {
        // The frame's Ethernet header is not carried.
        let len = self.frame_len.wrapping_sub(ETHERNET_LEN as u16);
        let ip = self.outer((PROTOCOL_IPIP, len), ecn::encapsulate(self.inner.tos), id, DONT_FRAGMENT);
        let mut all = [0; HEADERS_IPIP_LEN];
        let (a, b) = all.split_at_mut(ETHERNET_LEN - HEADERS_AT);
        a.copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        b.copy_from_slice(&ip.bytes());
        all
    }
}

impl Encap<V6> {
    /// The bytes from the outer EtherType up to the inner IP header, with the UDP checksum of all there is.
    ///
    /// `flow_hash` is the kernel's hash of the inner flow.
    #[inline(always)]
    pub fn headers(&self, flow_hash: u32) -> [u8; HEADERS_V6_LEN] {
        let mut udp = self.udp(flow_hash);
        let outer_class = ecn::encapsulate(self.inner.traffic_class());
        let ip = Ipv6 {
            // The flow label is 0, as the device's.
            class: (6 << 28) | ((outer_class as u32) << 20),
            payload_len: udp.len,
            next_header: PROTOCOL_UDP,
            hop_limit: self.hops,
            source: self.source,
            destination: self.route.vtep,
        };
        let vxlan = Vxlan::of(self.route.vni);
        let ethernet = self.ethernet();
        let hop_limit = self.forward.map_or(self.inner.hop_limit, |forward| forward.hop_limit);
        udp.checksum =
            checksum::of_vxlan_over_ipv6(&ip, &udp, &vxlan, &ethernet, &Ipv6 { hop_limit, ..self.inner });
        let mut all = [0; HEADERS_V6_LEN];
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
