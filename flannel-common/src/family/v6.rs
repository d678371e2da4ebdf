//! IPv6. What differs from IPv4: there is no header checksum; fragments and options are extension headers; and the outer
//! UDP checksum is not optional. That of a single packet is made from the inner one
//! ([`checksum::of_vxlan_over_ipv6`]). Those of an aggregate's segments
//! only the VXLAN device can ask for, so a pod's aggregates are handed to it: past bridge, routing and netfilter all
//! the same.

use super::{Address, Family, Forward, IpHeader, Payload, Sealed};
use crate::{
    layout::AddressV6,
    packet::{
        Fib, Packet, checksum, hash,
        headers::{ETHERNET_LEN, Ethernet, PROTOCOL_TCP, PROTOCOL_UDP, UDP_CHECKSUM, Udp, take},
        ipv6::{ENCAP_LEN, ETHERTYPE_IPV6, IPV6_LEN, Ipv6, NEXT_HEADER_FRAGMENT, PROTOCOL_ICMPV6},
    },
    path::{Encap, HEADERS_AT, ecn, vxlan::is_hidden},
    reason::Reason,
};

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum V6 {}

/// The highest type of an ICMPv6 error about delivery (RFC 4443): destination unreachable is 1, packet too big 2.
const PACKET_TOO_BIG: u8 = 2;
/// Type of a neighbour advertisement (RFC 4861, section 4.4).
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Bytes of one up to the end of the address it is about.
const TO_TARGET: usize = 24;
const TARGET: usize = 8;
/// Offset of the sender's MAC in a frame.
const SOURCE_MAC: usize = 6;
/// Hop limit of neighbour discovery, which no router has passed on (RFC 4861, section 7.1.2).
const FROM_THE_LINK: u8 = 255;
/// Extension headers that are looked behind: the kernel takes any number, and no sender of VXLAN puts one.
const EXTENSIONS: usize = 6;

impl Sealed for V6 {}

impl Family for V6 {
    type Address = AddressV6;
    type PrefixLen = u64;
    type Header = Ipv6;
    type Forward = ForwardV6;

    const ETHERTYPE: u16 = ETHERTYPE_IPV6;
    const IP_LEN: usize = IPV6_LEN;
    const SOURCE_AT: usize = 8;
    const DESTINATION_AT: usize = 24;
    const UNCOUNTED: usize = IPV6_LEN;
    const PROTOCOL_ICMP: u8 = PROTOCOL_ICMPV6;
    const UNCONFIGURED: Reason = Reason::NotIp;
    const DEVICE_SEGMENTS: bool = true;

    /// The kernel drops a packet without a UDP checksum in `__udp6_lib_rcv` unless the device was made with
    /// udp6zerocsumrx. One that is there is not verified: the inner checksum covers all that is left of the packet.
    #[inline(always)]
    fn check_outer(_: &Ipv6, udp: &Udp) -> Result<(), Reason> {
        if udp.checksum == 0 { Err(Reason::OuterChecksum) } else { Ok(()) }
    }

    /// What comes out of a veth has 0, and `ip6_forward` leaves it.
    #[inline(always)]
    fn priority(_: u8) -> u32 {
        0
    }

    #[inline(always)]
    fn check_inner(packet: &(impl Packet + ?Sized), ip: &Ipv6) -> Result<(), Reason> {
        match ip.next_header {
            PROTOCOL_TCP | PROTOCOL_ICMPV6 => Ok(()),
            PROTOCOL_UDP => {
                let at = ETHERNET_LEN + IPV6_LEN + UDP_CHECKSUM;
                let sum: [u8; 2] = packet.read(at).ok_or(Reason::Truncated)?;
                // None at all (RFC 6935). One that is left to the NIC holds the sum of the pseudo header, never 0.
                if sum == [0; 2] { Err(Reason::OuterChecksum) } else { Ok(()) }
            }
            _ => Err(Reason::OuterChecksum),
        }
    }

    /// The flow label is 0.
    #[inline(always)]
    fn is_as_written(outer: &Ipv6, inner: &Ipv6) -> bool {
        outer.class == (6 << 28) | (u32::from(ecn::encapsulate(inner.traffic_class())) << 20)
    }

    #[inline(always)]
    fn write_outer(
        encap: &Encap<Self>,
        packet: &mut (impl Packet + ?Sized),
        _: u16,
        flow_hash: u32,
    ) -> Option<()> {
        packet.write(HEADERS_AT, encap.headers(flow_hash))
    }

    #[inline(always)]
    fn write_outer_udp(_: &Encap<Self>, _: &mut (impl Packet + ?Sized)) -> Option<()> {
        None
    }

    #[inline(always)]
    fn is_as_written_udp(_: &Ipv6) -> bool {
        false
    }

    #[inline(always)]
    fn write_outer_ipip(_: &Encap<Self>, _: &mut (impl Packet + ?Sized), _: u16) -> Option<()> {
        None
    }

    #[inline(always)]
    fn is_as_written_ipip(_: &Ipv6, _: &Ipv6) -> bool {
        false
    }

    #[inline(always)]
    fn is_undelivered(icmp_type: u8) -> bool {
        icmp_type != 0 && icmp_type <= PACKET_TOO_BIG
    }

    /// By a neighbour advertisement.
    #[inline(always)]
    fn announced<P: Packet + ?Sized>(packet: &P) -> Option<(AddressV6, &[u8; 6])> {
        if Ethernet::parse(packet.view(0)?).ethertype != ETHERTYPE_IPV6 {
            return None;
        }
        let ip = Ipv6::read(packet, ETHERNET_LEN)?;
        if !ip.is_version_6() || ip.next_header != PROTOCOL_ICMPV6 || ip.hop_limit != FROM_THE_LINK {
            return None;
        }
        let advertisement: &[u8; TO_TARGET] = packet.view(ETHERNET_LEN + IPV6_LEN)?;
        if advertisement[0] != NEIGHBOUR_ADVERTISEMENT {
            return None;
        }
        let half = |at| u64::from_ne_bytes(take(advertisement, at));
        Some((AddressV6::of_halves([half(TARGET), half(TARGET + 8)]), packet.view(SOURCE_MAC)?))
    }

    #[inline(always)]
    fn end(packet: &(impl Packet + ?Sized), at: usize, ip: &Ipv6) -> usize {
        match ip.payload_len {
            // A jumbogram says its length elsewhere.
            0 => packet.len() as usize,
            payload => at + IPV6_LEN + usize::from(payload),
        }
    }

    #[inline(always)]
    fn payload(packet: &(impl Packet + ?Sized), at: usize, end: usize, ip: &Ipv6) -> Payload {
        if !ip.is_version_6() {
            return Payload::Other;
        }
        behind_extensions(packet, at + IPV6_LEN, end, ip.next_header)
    }

    #[inline(always)]
    fn flow_hash(packet: &(impl Packet + ?Sized)) -> Option<u32> {
        hash::of_flow_v6(packet)
    }

    #[inline(always)]
    fn fib(packet: &(impl Packet + ?Sized), ifindex: u32, source: AddressV6, destination: AddressV6) -> Fib {
        packet.fib_v6(ifindex, source, destination)
    }
}

const _: () = assert!(V6::ENCAP_LEN == ENCAP_LEN);

/// Looks behind the extension headers that the kernel takes without being told to (net/ipv6/exthdrs.c), the first of
/// which is `next` and stands at `at`, in a packet that ends at `end`.
#[inline(always)]
fn behind_extensions(packet: &(impl Packet + ?Sized), mut at: usize, end: usize, mut next: u8) -> Payload {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    let mut whole = true;
    for _ in 0..EXTENSIONS {
        if next == PROTOCOL_UDP {
            return Payload::Udp { at, whole };
        }
        if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION | NEXT_HEADER_FRAGMENT) {
            return Payload::Other;
        }
        let Some(&[following, len, offset, more]) = packet.view::<4>(at) else {
            return if is_hidden(packet, at + 4, end) { Payload::Hidden } else { Payload::Other };
        };
        at += if next == NEXT_HEADER_FRAGMENT {
            if u16::from_be_bytes([offset, more]) >> 3 != 0 {
                return Payload::Other;
            }
            whole = more & 1 == 0;
            8
        } else {
            // In words of eight bytes, without the first.
            8 + usize::from(len) * 8
        };
        next = following;
    }
    match next {
        PROTOCOL_UDP => Payload::Udp { at, whole },
        HOP_BY_HOP | ROUTING | DESTINATION | NEXT_HEADER_FRAGMENT => Payload::Hidden,
        _ => Payload::Other,
    }
}

impl Address for AddressV6 {
    #[inline(always)]
    fn masked(self, prefix_len: u64) -> Self {
        let [high, low] = self.halves();
        let mask = mask(prefix_len);
        Self::of_halves([high & mask[0], low & mask[1]])
    }

    #[inline(always)]
    fn shares_prefix(self, other: Self, prefix_len: u64) -> bool {
        let ([high, low], [other_high, other_low]) = (self.halves(), other.halves());
        let mask = mask(prefix_len);
        ((high ^ other_high) & mask[0]) | ((low ^ other_low) & mask[1]) == 0
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        let [high, low] = self.halves().map(u64::from_be);
        let words =
            |half: u64| (half >> 48) + (half >> 32 & 0xffff) + (half >> 16 & 0xffff) + (half & 0xffff);
        (words(high) + words(low)) as u32
    }

    #[inline(always)]
    fn write(self, packet: &mut (impl Packet + ?Sized), at: usize) -> Option<()> {
        packet.write(at, self.octets)
    }
}

/// The bits of a prefix, as [`AddressV6::halves`].
#[inline(always)]
const fn mask(prefix_len: u64) -> [u64; 2] {
    [half_mask(prefix_len).to_be(), half_mask(prefix_len.saturating_sub(64)).to_be()]
}

/// The upper `bits` of a word, all of them from 64 on.
#[inline(always)]
const fn half_mask(bits: u64) -> u64 {
    if bits == 0 { 0 } else { u64::MAX << (64 - if bits > 64 { 64 } else { bits }) }
}

impl IpHeader for Ipv6 {
    type Address = AddressV6;

    #[inline(always)]
    fn read(packet: &(impl Packet + ?Sized), at: usize) -> Option<Self> {
        packet.view(at).map(Self::parse)
    }

    #[inline(always)]
    fn source(&self) -> AddressV6 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> AddressV6 {
        self.destination
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.next_header
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn one_hop_less(self) -> Self {
        Self { hop_limit: self.hop_limit.wrapping_sub(1), ..self }
    }

    #[inline(always)]
    fn class(&self) -> u8 {
        self.traffic_class()
    }

    #[inline(always)]
    fn packet_len(&self) -> u32 {
        IPV6_LEN as u32 + u32::from(self.payload_len)
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.is_version_6()
    }

    #[inline(always)]
    fn check(&self) -> Result<(), Reason> {
        if !self.is_version_6() {
            return Err(Reason::NotIp);
        }
        if self.next_header == NEXT_HEADER_FRAGMENT {
            return Err(Reason::Fragment);
        }
        if self.has_extension() {
            return Err(Reason::IpOptions);
        }
        Ok(())
    }

    #[inline(always)]
    fn check_sum(&self) -> Result<(), Reason> {
        Ok(())
    }
}

/// What routing does to an IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardV6 {
    /// Version, traffic class and flow label, host order, where the class changes.
    pub class: Option<u32>,
    /// Hop limit.
    pub hop_limit: u8,
    /// As of [`Forward::sum`].
    pub sum: u16,
}

/// What one hop less adds to a sum.
const ONE_LESS: u16 = !1;

/// Offset of the hop limit in the header.
const HOP_LIMIT: usize = 7;

impl Forward<Ipv6> for ForwardV6 {
    #[inline(always)]
    fn hop(ip: &Ipv6) -> Self {
        Self { class: None, hop_limit: ip.hop_limit.wrapping_sub(1), sum: ONE_LESS }
    }

    #[inline(always)]
    fn hop_with_class(ip: &Ipv6, traffic_class: u8) -> Self {
        let mut hop = Self::hop(ip);
        if traffic_class != ip.traffic_class() {
            let class = (ip.class & !(0xff << 20)) | ((traffic_class as u32) << 20);
            hop.class = Some(class);
            // All of it is in the upper half.
            hop.sum = checksum::fold(hop.sum as u32 + (class >> 16) + (!ip.class >> 16));
        }
        hop
    }

    /// There is no checksum.
    #[inline(always)]
    fn translated(mut self, addresses: u16) -> Self {
        self.sum = checksum::fold(self.sum as u32 + addresses as u32);
        self
    }

    #[inline(always)]
    fn sum(&self) -> u16 {
        self.sum
    }

    #[inline(always)]
    fn write(&self, packet: &mut (impl Packet + ?Sized), offset: usize) -> Option<()> {
        packet.write(offset + HOP_LIMIT, [self.hop_limit])?;
        match self.class {
            Some(class) => packet.write(offset, class.to_be_bytes()),
            None => Some(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u32 {
        bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum()
    }

    #[test]
    fn a_sum_over_the_packet_grows_by_what_is_written() {
        let mut header = [0; IPV6_LEN];
        for (class, hop_limit, becomes) in [(0, 64, 0), (2, 255, 3), (0xff, 2, 0), (0xb8, 9, 0xbb)] {
            let ip = Ipv6 { class: 6 << 28 | class << 20 | 0xa_bcde, hop_limit, ..Ipv6::parse(&header) };
            header = ip.bytes();
            let before = sum(&header);
            let hop = ForwardV6::hop_with_class(&ip, becomes);
            hop.write(&mut header[..], 0).unwrap();
            let told = u32::from(checksum::fold(before)) + u32::from(hop.sum());
            assert_eq!(checksum::fold(told) % 0xffff, checksum::fold(sum(&header)) % 0xffff, "{ip:?}");
            assert_eq!(hop.translated(5).sum() % 0xffff, checksum::fold(u32::from(hop.sum()) + 5) % 0xffff);
        }
    }
}
