//! IPv4.

use super::{Address, Family, Forward, IpHeader, Payload, Sealed};
use crate::{
    packet::{
        Fib, Packet, checksum, hash,
        headers::{
            ENCAP_LEN, ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_UDP, Udp, take,
        },
    },
    path::{DONT_FRAGMENT, Encap, HEADERS_AT, ecn},
    reason::Reason,
};

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum V4 {}

/// Bytes of a header with the most options there can be.
const LONGEST: usize = 60;
/// ICMP type (RFC 792): the packet could not be delivered, "fragmentation needed" among the reasons.
const DESTINATION_UNREACHABLE: u8 = 3;
/// EtherType of ARP (IANA).
const ETHERTYPE_ARP: u16 = 0x0806;
/// Length of an ARP packet of IPv4 over Ethernet, bytes.
const ARP_LEN: usize = 28;
/// How one begins (RFC 826): Ethernet, IPv4, addresses of six and of four bytes.
const ARP_OF_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_SENDER_MAC: usize = 8;
const ARP_SENDER_ADDRESS: usize = 14;

impl Sealed for V4 {}

impl Family for V4 {
    type Address = [u8; 4];
    type PrefixLen = u32;
    type Header = Ipv4;
    type Forward = ForwardV4;

    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    const IP_LEN: usize = IPV4_LEN;
    const SOURCE_AT: usize = 12;
    const DESTINATION_AT: usize = 16;
    const UNCOUNTED: usize = 0;
    const PROTOCOL_ICMP: u8 = 1;
    const UNCONFIGURED: Reason = Reason::NoConfig;
    const DEVICE_SEGMENTS: bool = false;

    /// The header's checksum (net/ipv4/ip_input.c, `ip_rcv_core`). Without one of UDP, RFC 7348 lets every receiver accept
    /// the packet (section 4.1).
    #[inline(always)]
    fn check_outer(ip: &Ipv4, _: &Udp) -> Result<(), Reason> {
        ip.check_sum()
    }

    /// `rt_tos2priority` (include/net/route.h), as long as `net.ipv4.ip_forward_update_priority` is 1, its default.
    #[inline(always)]
    fn priority(class: u8) -> u32 {
        (0x4620 >> ((class >> 3 & 3) * 4)) & 0xf
    }

    #[inline(always)]
    fn check_inner(_: &(impl Packet + ?Sized), _: &Ipv4) -> Result<(), Reason> {
        Ok(())
    }

    #[inline(always)]
    fn is_as_written(outer: &Ipv4, inner: &Ipv4) -> bool {
        outer.tos == ecn::encapsulate(inner.tos) && outer.fragment == 0
    }

    #[inline(always)]
    fn write_outer(
        encap: &Encap<Self>,
        packet: &mut (impl Packet + ?Sized),
        id: u16,
        flow_hash: u32,
    ) -> Option<()> {
        packet.write(HEADERS_AT, encap.headers(id, flow_hash))
    }

    #[inline(always)]
    fn write_outer_udp(encap: &Encap<Self>, packet: &mut (impl Packet + ?Sized)) -> Option<()> {
        packet.write(HEADERS_AT, encap.headers_udp())
    }

    /// A socket asks for its path's MTU to be found, so that nothing is fragmented, and nothing identified, on the way.
    #[inline(always)]
    fn is_as_written_udp(outer: &Ipv4) -> bool {
        outer.tos == 0 && outer.fragment == DONT_FRAGMENT
    }

    #[inline(always)]
    fn write_outer_ipip(encap: &Encap<Self>, packet: &mut (impl Packet + ?Sized), id: u16) -> Option<()> {
        packet.write(HEADERS_AT, encap.headers_ipip(id))
    }

    /// Flannel's device has its path's MTU found, and inherits the TTL (net/ipv4/ip_tunnel.c, `ip_tunnel_xmit`).
    #[inline(always)]
    fn is_as_written_ipip(outer: &Ipv4, inner: &Ipv4) -> bool {
        outer.tos == ecn::encapsulate(inner.tos) && outer.fragment == DONT_FRAGMENT && outer.ttl == inner.ttl
    }

    #[inline(always)]
    fn is_undelivered(icmp_type: u8) -> bool {
        icmp_type == DESTINATION_UNREACHABLE
    }

    /// By ARP: a gratuitous request or answer, and each further question of who holds the address (RFC 5227, section 1.2;
    /// RFC 826).
    #[inline(always)]
    fn announced<P: Packet + ?Sized>(packet: &P) -> Option<([u8; 4], &[u8; 6])> {
        if Ethernet::parse(packet.view(0)?).ethertype != ETHERTYPE_ARP {
            return None;
        }
        let arp: &[u8; ARP_LEN] = packet.view(ETHERNET_LEN)?;
        if take::<6>(arp, 0) != ARP_OF_IPV4 {
            return None;
        }
        Some((take(arp, ARP_SENDER_ADDRESS), packet.view(ETHERNET_LEN + ARP_SENDER_MAC)?))
    }

    /// What stands behind the packet's own length, as in a short frame's padding, the kernel cuts off.
    #[inline(always)]
    fn end(_: &(impl Packet + ?Sized), at: usize, ip: &Ipv4) -> usize {
        at + usize::from(ip.total_len)
    }

    #[inline(always)]
    fn payload(_: &(impl Packet + ?Sized), at: usize, _: usize, ip: &Ipv4) -> Payload {
        if ip.protocol != PROTOCOL_UDP || ip.version_ihl >> 4 != 4 || !ip.is_beginning() {
            return Payload::Other;
        }
        let header_len = usize::from(ip.version_ihl & 0xf) * 4;
        if !(IPV4_LEN..=LONGEST).contains(&header_len) {
            return Payload::Other;
        }
        Payload::Udp { at: at + header_len, whole: !ip.is_fragment() }
    }

    #[inline(always)]
    fn flow_hash(packet: &(impl Packet + ?Sized)) -> Option<u32> {
        hash::of_flow(packet)
    }

    #[inline(always)]
    fn fib(packet: &(impl Packet + ?Sized), ifindex: u32, source: [u8; 4], destination: [u8; 4]) -> Fib {
        packet.fib_v4(ifindex, source, destination)
    }
}

const _: () = assert!(V4::ENCAP_LEN == ENCAP_LEN);

/// In network order.
impl Address for [u8; 4] {
    #[inline(always)]
    fn masked(self, prefix_len: u64) -> Self {
        (u32::from_be_bytes(self) & mask(prefix_len)).to_be_bytes()
    }

    #[inline(always)]
    fn shares_prefix(self, other: Self, prefix_len: u64) -> bool {
        (u32::from_be_bytes(self) ^ u32::from_be_bytes(other)) & mask(prefix_len) == 0
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        let word = u32::from_be_bytes(self);
        (word >> 16) + (word & 0xffff)
    }

    #[inline(always)]
    fn write(self, packet: &mut (impl Packet + ?Sized), at: usize) -> Option<()> {
        packet.write(at, self)
    }
}

/// The bits of a prefix.
#[inline(always)]
const fn mask(prefix_len: u64) -> u32 {
    if prefix_len == 0 { 0 } else { u32::MAX << (32 - if prefix_len > 32 { 32 } else { prefix_len }) }
}

impl IpHeader for Ipv4 {
    type Address = [u8; 4];

    #[inline(always)]
    fn read(packet: &(impl Packet + ?Sized), at: usize) -> Option<Self> {
        packet.view(at).map(Self::parse)
    }

    #[inline(always)]
    fn source(&self) -> [u8; 4] {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> [u8; 4] {
        self.destination
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn one_hop_less(self) -> Self {
        let ForwardV4 { ttl, checksum, .. } = ForwardV4::hop(&self);
        Self { ttl, checksum, ..self }
    }

    #[inline(always)]
    fn class(&self) -> u8 {
        self.tos
    }

    #[inline(always)]
    fn packet_len(&self) -> u32 {
        u32::from(self.total_len)
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.version_ihl == 0x45
    }

    #[inline(always)]
    fn check(&self) -> Result<(), Reason> {
        if !self.is_plain() {
            return Err(Reason::IpOptions);
        }
        if self.is_fragment() {
            return Err(Reason::Fragment);
        }
        Ok(())
    }

    #[inline(always)]
    fn check_sum(&self) -> Result<(), Reason> {
        if checksum::sum(self) != 0xffff {
            return Err(Reason::HeaderChecksum);
        }
        Ok(())
    }
}

/// What routing does to an IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardV4 {
    /// TOS byte, where it changes.
    pub tos: Option<u8>,
    /// Time to live.
    pub ttl: u8,
    /// Protocol, unchanged: it stands between the two that change.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: u16,
}

/// Offset of TTL, protocol and checksum in the header.
const TTL: usize = 8;
/// Offset of the TOS byte in the header.
const TOS: usize = 1;

impl Forward<Ipv4> for ForwardV4 {
    #[inline(always)]
    fn hop(ip: &Ipv4) -> Self {
        let ttl = ip.ttl.wrapping_sub(1);
        let checksum = checksum::update(ip.checksum, word(ip.ttl, ip.protocol), word(ttl, ip.protocol));
        Self { tos: None, ttl, protocol: ip.protocol, checksum }
    }

    #[inline(always)]
    fn hop_with_class(ip: &Ipv4, tos: u8) -> Self {
        let mut hop = Self::hop(ip);
        if tos != ip.tos {
            hop.tos = Some(tos);
            hop.checksum =
                checksum::update(hop.checksum, word(ip.version_ihl, ip.tos), word(ip.version_ihl, tos));
        }
        hop
    }

    #[inline(always)]
    fn translated(mut self, addresses: u16) -> Self {
        self.checksum = !checksum::fold(u32::from(!self.checksum) + u32::from(addresses));
        self
    }

    #[inline(always)]
    fn sum(&self) -> u16 {
        0
    }

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
