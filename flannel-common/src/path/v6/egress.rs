//! What pods and the kernel send towards other nodes.

use super::{Direct, Encap, Forward, HandOver, check_ipv6, first_ip, flow, frame_len, longest_match};
use crate::{
    layout::{ConfigV6, FastPath, PeerKind, PeerV6, Tunnel},
    mark::Marks,
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, PROTOCOL_TCP, PROTOCOL_UDP, TCP_TO_FLAGS, UDP_CHECKSUM, UDP_LEN},
        ipv6::{ENCAP_LEN, ETHERTYPE_IPV6, IPV6_LEN, Ipv6, PROTOCOL_ICMPV6},
    },
    path::{Tables, check_hold, egress::has_no_packet, flow::Passage, gate},
    reason::{Direction, Reason},
};

/// Bytes that egress decisions read: the frame up to the TCP flags.
pub const READS: usize = TRANSPORT + TCP_TO_FLAGS;

const TRANSPORT: usize = ETHERNET_LEN + IPV6_LEN;

/// tc ingress on the host side of a pod's veth: `then` says what to do with a packet for a peer behind a
/// tunnel, `hand_over` with an aggregate for one, `route` with either for a peer that is reached without.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub fn from_pod<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Encap, Reason) -> R,
    hand_over: impl FnOnce(HandOver, Reason) -> R,
    route: impl FnOnce(Direct, Reason) -> R,
) -> Result<R, Reason> {
    let config = tables.config_v6().ok_or(Reason::NotIpv4)?;
    let (ethernet, ip) = inner_headers(packet, arrival)?;
    let gated = match config.fast_path {
        FastPath::All => false,
        FastPath::Flow => true,
        FastPath::Off | FastPath::Overlay => return Err(Reason::PodOnKernel),
    };
    // Neighbour discovery and most of what leaves pods for elsewhere is told apart here, before any lookup.
    if !config.network.contains(ip.destination) || config.subnet.contains(ip.destination) {
        return Err(Reason::NoRoute);
    }
    let now = check_hold(tables)?;
    let refusal = if gated {
        let gateway = ethernet.destination_folded();
        let passage = Passage { way: Direction::Egress, ifindex: arrival.ifindex, gateway, now };
        flow::admit(&passage, packet, ETHERNET_LEN, tables, &config, &ip).err()
    } else {
        None
    };
    // The address must be this veth's own: a pod cannot speak for another one past the host's filters. And the frame
    // must be for the gateway: another station, a pod that forwards perhaps, gets what is sent to it. A flow is written
    // down with the veth of its address and the gateway, so for one that is admitted there is nothing to look up.
    if !gated || refusal.is_some() {
        let pod = tables.pod_v6(ip.source).ok_or(Reason::UnknownPod)?;
        if pod.ifindex != arrival.ifindex {
            return Err(Reason::Spoofed);
        }
        if !ethernet.is_to(&pod.gateway_mac) {
            return Err(Reason::NotGateway);
        }
    }
    if ip.hop_limit <= 1 {
        return Err(Reason::Ttl);
    }
    let peer = longest_match(tables, &config, ip.destination).ok_or(Reason::NoRoute)?;
    if let Some(reason) = refusal {
        return Err(reason);
    }
    let forward = Forward::hop(&ip);
    if peer.kind == PeerKind::Direct {
        if segment_len(packet, ETHERNET_LEN, arrival, &ip)? > peer.mtu {
            return Err(Reason::TooBig);
        }
        let direct = Direct { ifindex: peer.ifindex, next_hop: peer.next_hop, forward };
        return Ok(route(direct, Reason::RoutePod));
    }
    let tunnel = tunnel_to(packet, tables, arrival, &config, &ip, &peer, now)?;
    if arrival.gso_size == 0 {
        return Ok(then(encap(packet, &config, &ip, (peer, tunnel), Some(forward))?, Reason::EncapPod));
    }
    if config.overlay_ifindex == 0 {
        return Err(Reason::Ipv6Aggregate);
    }
    let ethernet = Ethernet::new(peer.vtep_mac, peer.local_mac, ETHERTYPE_IPV6);
    Ok(hand_over(HandOver { ifindex: config.overlay_ifindex, ethernet, forward }, Reason::EncapDevice))
}

/// Whether a packet of a pod that stays with the kernel for `reason` is to be marked
/// [`crate::mark::Marks::exempt`], as with IPv4.
#[inline(always)]
pub fn is_exempt(packet: &(impl Packet + ?Sized), tables: &impl Tables, reason: Reason) -> bool {
    if has_no_packet(reason) {
        return false;
    }
    let Ok(ip) = first_ip(packet) else { return false };
    let Some(config) = tables.config_v6() else { return false };
    config.subnet.contains(ip.source) && tables.is_exempt_v6(ip.destination)
}

/// Whether `arrival` is what [`from_pod`] has handed to the VXLAN device, where all is done about it.
#[inline(always)]
pub const fn is_handed_over(arrival: &Arrival, marks: Marks) -> bool {
    marks.is_handed_over(arrival.mark) && arrival.gso_size != 0
}

/// tc egress on flannel-v6.<vni>, where netfilter, routing, neighbour and hop limit are done: `then` says what to
/// do with a packet for a peer.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub fn to_overlay<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Encap, Reason) -> R,
) -> Result<R, Reason> {
    let config = tables.config_v6().ok_or(Reason::NotIpv4)?;
    let (ethernet, ip) = inner_headers(packet, arrival)?;
    let now = check_hold(tables)?;
    let peer = longest_match(tables, &config, ip.destination).ok_or(Reason::NoRoute)?;
    // The kernel's choice of next hop wins: an administrator may have routed a subnet elsewhere.
    if !ethernet.same_stations(&Ethernet::new(peer.vtep_mac, peer.local_mac, ETHERTYPE_IPV6)) {
        return Err(Reason::NeighbourDiffers);
    }
    let tunnel = tunnel_to(packet, tables, arrival, &config, &ip, &peer, now)?;
    if arrival.gso_size != 0 {
        return Err(Reason::Ipv6Aggregate);
    }
    Ok(then(encap(packet, &config, &ip, (peer, tunnel), None)?, Reason::EncapOverlay))
}

/// The Ethernet and IPv6 headers of a packet simple enough for the fast path.
#[inline(always)]
fn inner_headers(packet: &(impl Packet + ?Sized), arrival: &Arrival) -> Result<(Ethernet, Ipv6), Reason> {
    let ethernet = Ethernet::parse(packet.view(0).ok_or(Reason::Truncated)?);
    if arrival.vlan_tagged {
        return Err(Reason::Vlan);
    }
    if ethernet.ethertype != ETHERTYPE_IPV6 {
        return Err(Reason::NotIpv4);
    }
    if !ethernet.is_unicast() {
        return Err(Reason::NotUnicast);
    }
    let ip = first_ip(packet)?;
    check_ipv6(&ip)?;
    if packet.len() != frame_len(ETHERNET_LEN, &ip) {
        return Err(Reason::Length);
    }
    Ok((ethernet, ip))
}

/// The kernel's own path to `peer` at the time `now`, if the packet fits it.
///
/// # Errors
/// It does not, or that path is not through the tunnel, or has not been seen lately.
#[inline(always)]
fn tunnel_to(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    config: &ConfigV6,
    ip: &Ipv6,
    peer: &PeerV6,
    now: u64,
) -> Result<Tunnel, Reason> {
    if peer.kind != PeerKind::Vxlan {
        return Err(Reason::PeerOnKernel);
    }
    let tunnel = gate::check(
        tables.tunnel_v6(peer.vtep),
        Direction::Egress,
        config.fast_path,
        config.tcp_refresh,
        now,
    )?;
    let mtu = if tunnel.mtu < peer.mtu { tunnel.mtu } else { peer.mtu };
    if segment_len(packet, ETHERNET_LEN, arrival, ip)?.saturating_add(ENCAP_LEN as u32) > mtu {
        return Err(Reason::TooBig);
    }
    Ok(tunnel)
}

/// The encapsulation of a packet that is no aggregate.
#[inline(always)]
fn encap(
    packet: &(impl Packet + ?Sized),
    config: &ConfigV6,
    ip: &Ipv6,
    (peer, tunnel): (PeerV6, Tunnel),
    forward: Option<Forward>,
) -> Result<Encap, Reason> {
    check_transport(packet, ip)?;
    // A packet whose outer length overflows 16 bits fits no underlay that says so in 16 bits.
    let frame_len = packet.len();
    if frame_len + (ENCAP_LEN - ETHERNET_LEN - IPV6_LEN) as u32 > u32::from(u16::MAX) {
        return Err(Reason::TooBig);
    }
    Ok(Encap {
        peer,
        source: config.vtep,
        port: config.port as u16,
        source_ports: (config.source_port_min, config.source_port_max),
        hop_limit: tunnel.ttl as u8,
        inner: *ip,
        frame_len: frame_len as u16,
        forward,
    })
}

/// Refuses packets without a checksum from which the outer one could be made.
#[inline(always)]
fn check_transport(packet: &(impl Packet + ?Sized), ip: &Ipv6) -> Result<(), Reason> {
    match ip.next_header {
        PROTOCOL_TCP | PROTOCOL_ICMPV6 => Ok(()),
        PROTOCOL_UDP => {
            let sum: [u8; 2] = packet.read(TRANSPORT + UDP_CHECKSUM).ok_or(Reason::Truncated)?;
            // None at all (RFC 6935). One that is left to the NIC holds the sum of the pseudo header, never 0.
            if sum == [0; 2] { Err(Reason::OuterChecksum) } else { Ok(()) }
        }
        _ => Err(Reason::OuterChecksum),
    }
}

/// Length of one segment, whose header `ip` stands at `offset`, as an IP packet, bytes.
#[inline(always)]
pub(super) fn segment_len(
    packet: &(impl Packet + ?Sized),
    offset: usize,
    arrival: &Arrival,
    ip: &Ipv6,
) -> Result<u32, Reason> {
    if arrival.gso_size == 0 {
        return Ok(IPV6_LEN as u32 + u32::from(ip.payload_len));
    }
    let transport_len = match ip.next_header {
        PROTOCOL_UDP => UDP_LEN as u32,
        PROTOCOL_TCP => {
            let [words] = *packet.view(offset + IPV6_LEN + 12).ok_or(Reason::Truncated)?;
            u32::from(words >> 4) * 4
        }
        // Neither: an aggregate of a kind we do not know.
        _ => return Err(Reason::TooBig),
    };
    // Any segment size that an arrival may name.
    Ok((IPV6_LEN as u32 + transport_len).saturating_add(arrival.gso_size))
}
