//! The tunnel's gate for VXLAN over IPv6: the same rules, other headers.

use super::{check_ipv6, first_ip, longest_match};
use crate::{
    layout::{AddressV6, PeerKind, Tunnel},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, PROTOCOL_UDP, UDP_LEN, Udp, Vxlan},
        ipv6::{ENCAP_LEN, ETHERTYPE_IPV6, IPV6_LEN, Ipv6, PROTOCOL_ICMPV6},
    },
    path::{
        Tables, ecn,
        gate::{TunnelNote, UNSEEN, UnderlayRoute, closed, is_news, left},
    },
    reason::Reason,
};

/// Bytes that [`note_leaving`] reads: up to the end of the inner IPv6 header.
pub const LEAVING_READS: usize = INNER_IP + IPV6_LEN;
/// Bytes that [`note_error`] reads: up to the ports of the packet that an error is about.
pub const ERROR_READS: usize = ABOUT + IPV6_LEN + 4;

const UDP: usize = ETHERNET_LEN + IPV6_LEN;
const INNER_IP: usize = ENCAP_LEN + ETHERNET_LEN;
const ICMP: usize = ETHERNET_LEN + IPV6_LEN;
/// The header of the packet that an ICMPv6 error is about.
const ABOUT: usize = ICMP + 8;
/// The highest type of an ICMPv6 error about delivery (RFC 4443): destination unreachable is 1, packet too big 2.
const PACKET_TOO_BIG: u8 = 2;

/// As [`crate::path::gate::is_outer`].
#[inline(always)]
pub fn is_outer(packet: &(impl Packet + ?Sized), tables: &impl Tables) -> Option<bool> {
    let config = tables.config_v6()?;
    if Ethernet::parse(packet.view(0)?).ethertype != ETHERTYPE_IPV6 {
        return None;
    }
    let ip = first_ip(packet).ok()?;
    check_ipv6(&ip).ok()?;
    if ip.next_header != PROTOCOL_UDP {
        return None;
    }
    let udp = Udp::parse(packet.view(UDP)?);
    Some(ip.source == config.vtep && u32::from(udp.destination) == config.port)
}

/// As [`crate::path::gate::note_leaving`].
#[inline(always)]
pub fn note_leaving<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    route: impl FnOnce(AddressV6) -> Option<UnderlayRoute>,
    then: impl FnOnce(TunnelNote<AddressV6>) -> R,
) -> Option<R> {
    let config = tables.config_v6()?;
    let outer = Ethernet::parse(packet.view(0)?);
    let outer_ip = first_ip(packet).ok()?;
    let vxlan = Vxlan::parse(packet.view(UDP + UDP_LEN)?);
    if vxlan != Vxlan::of(config.vni) {
        return None;
    }
    let inner = Ethernet::parse(packet.view(ENCAP_LEN)?);
    if inner.ethertype != ETHERTYPE_IPV6 {
        return None;
    }
    let ip = Ipv6::parse(packet.view(INNER_IP)?);
    let peer = longest_match(tables, &config, ip.destination)?;
    if peer.kind != PeerKind::Vxlan || peer.vtep != outer_ip.destination {
        return None;
    }
    let now = tables.now();
    let known = tables.tunnel_v6(peer.vtep).unwrap_or_default();
    if !is_news(known.egress, config.tcp_refresh, now) || !is_news(known.differs, config.tcp_refresh, now) {
        return None;
    }
    // As with IPv4; the flow label is 0.
    let class = (6 << 28) | (u32::from(ecn::encapsulate(ip.traffic_class())) << 20);
    let is_same = outer_ip.class == class
        && arrival.ifindex == peer.ifindex
        && inner.same_stations(&Ethernet::new(peer.vtep_mac, peer.local_mac, ETHERTYPE_IPV6));
    let route = if is_same { route(peer.vtep) } else { None };
    let mtu = route.filter(|route| route.stations.same_stations(&outer)).map(|route| route.mtu);
    Some(then(left(peer.vtep, known, now, outer_ip.hop_limit, mtu)))
}

/// As [`crate::path::gate::note_delivered`].
#[inline(always)]
pub fn note_delivered<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    then: impl FnOnce(TunnelNote<AddressV6>) -> R,
) -> Option<R> {
    let config = tables.config_v6()?;
    if Ethernet::parse(packet.view(0)?).ethertype != ETHERTYPE_IPV6 {
        return None;
    }
    let ip = first_ip(packet).ok()?;
    let vtep = longest_match(tables, &config, ip.source).map_or(ip.source, |peer| peer.vtep);
    tables.vtep_v6(vtep)?;
    let now = tables.now();
    let known = tables.tunnel_v6(vtep).unwrap_or_default();
    if !is_news(known.ingress, config.tcp_refresh, now) {
        return None;
    }
    let tunnel = Tunnel { ingress: now, ..known };
    Some(then(TunnelNote { vtep, tunnel, reason: Reason::TunnelSeen }))
}

/// As [`crate::path::gate::note_error`], of ICMPv6 "destination unreachable" and "packet too big".
#[inline(always)]
pub fn note_error<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    then: impl FnOnce(TunnelNote<AddressV6>) -> R,
) -> Option<R> {
    let config = tables.config_v6()?;
    let ip = first_ip(packet).ok()?;
    if ip.next_header != PROTOCOL_ICMPV6 || ip.destination != config.vtep {
        return None;
    }
    let [kind] = *packet.view(ICMP)?;
    if kind == 0 || kind > PACKET_TOO_BIG {
        return None;
    }
    let about = Ipv6::parse(packet.view(ABOUT)?);
    if about.next_header != PROTOCOL_UDP || about.source != config.vtep {
        return None;
    }
    let [_, _, high, low] = *packet.view(ABOUT + IPV6_LEN)?;
    if u32::from(u16::from_be_bytes([high, low])) != config.port {
        return None;
    }
    let known = tables.tunnel_v6(about.destination).unwrap_or(UNSEEN);
    closed(about.destination, known, tables.now()).map(then)
}
