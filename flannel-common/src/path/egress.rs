//! What pods and the kernel send towards other nodes.

use super::{
    Direct, Encap, Forward, Tables, check_hold,
    flow::{self, Passage},
    gate, longest_match,
};
use crate::{
    layout::{Config, FastPath, PeerKind, PeerV4, Tunnel},
    packet::{
        Arrival, Packet,
        headers::{
            ENCAP_LEN, ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP,
            UDP_LEN,
        },
    },
    reason::{Direction, Reason},
};

/// tc ingress on the host side of a pod's veth: `tunnel` says what to do with a packet for a peer behind a
/// tunnel, `route` with one for a peer that is reached without.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub fn from_pod<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    tunnel: impl FnOnce(Encap, Reason) -> R,
    route: impl FnOnce(Direct, Reason) -> R,
) -> Result<R, Reason> {
    let (ethernet, ip) = inner_headers(packet, arrival)?;
    let config = tables.config().ok_or(Reason::NoConfig)?;
    let gated = match config.fast_path {
        FastPath::All => false,
        FastPath::Flow => true,
        FastPath::Off | FastPath::Overlay => return Err(Reason::PodOnKernel),
    };
    // Most of what leaves pods for elsewhere is told apart here, before any lookup.
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
        let pod = tables.pod_v4(ip.source).ok_or(Reason::UnknownPod)?;
        if pod.ifindex != arrival.ifindex {
            return Err(Reason::Spoofed);
        }
        if !ethernet.is_to(&pod.gateway_mac) {
            return Err(Reason::NotGateway);
        }
    }
    if ip.ttl <= 1 {
        return Err(Reason::Ttl);
    }
    let peer = longest_match(tables, &config, ip.destination).ok_or(Reason::NoRoute)?;
    if let Some(reason) = refusal {
        return Err(reason);
    }
    if peer.kind == PeerKind::Direct {
        if segment_len(packet, ETHERNET_LEN, arrival, &ip)? > peer.mtu {
            return Err(Reason::TooBig);
        }
        let direct = Direct { ifindex: peer.ifindex, next_hop: peer.next_hop, forward: Forward::hop(&ip) };
        return Ok(route(direct, Reason::RoutePod));
    }
    let known = tunnel_to(tables, &config, &peer, now)?;
    let encap = encap(packet, arrival, &config, &ip, (peer, known), Some(Forward::hop(&ip)))?;
    Ok(tunnel(encap, Reason::EncapPod))
}

/// Whether a packet of a pod that stays with the kernel for `reason` is to be marked
/// [`crate::mark::Marks::exempt`]: IPv4 from our pod subnet to an exempt prefix, whole or a fragment, with
/// options or without. What the fast path takes never meets a rule, and needs no mark.
#[inline(always)]
pub fn is_exempt(packet: &(impl Packet + ?Sized), tables: &impl Tables, reason: Reason) -> bool {
    if has_no_packet(reason) {
        return false;
    }
    let Some(ip) = packet.view(ETHERNET_LEN).map(Ipv4::parse) else { return false };
    let Some(config) = tables.config() else { return false };
    config.subnet.contains(ip.source) && tables.is_exempt_v4(ip.destination)
}

/// Whether `reason` is of frames in which there is no IP packet for routing to see.
#[inline(always)]
pub(super) const fn has_no_packet(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoConfig | Reason::Truncated | Reason::Vlan | Reason::NotIpv4 | Reason::NotUnicast
    )
}

/// What a marked packet is counted for. That it was marked says more than that it is not the fast path's;
/// why the fast path left one that it is there for says more than the mark.
#[inline(always)]
pub const fn exempt_reason(reason: Reason) -> Reason {
    match reason {
        Reason::NoRoute | Reason::PodOnKernel => Reason::SnatExempt,
        _ => reason,
    }
}

/// tc egress on flannel.<vni>, where netfilter, routing, neighbour and TTL are done: `then` says what to
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
    let (ethernet, ip) = inner_headers(packet, arrival)?;
    let config = tables.config().ok_or(Reason::NoConfig)?;
    let now = check_hold(tables)?;
    let peer = longest_match(tables, &config, ip.destination).ok_or(Reason::NoRoute)?;
    // The kernel's choice of next hop wins: an administrator may have routed a subnet elsewhere.
    if !ethernet.same_stations(&Ethernet::new(peer.vtep_mac, peer.local_mac, ETHERTYPE_IPV4)) {
        return Err(Reason::NeighbourDiffers);
    }
    let tunnel = tunnel_to(tables, &config, &peer, now)?;
    let encap = encap(packet, arrival, &config, &ip, (peer, tunnel), None)?;
    Ok(then(encap, Reason::EncapOverlay))
}

/// The Ethernet and IPv4 headers of a packet simple enough for the fast path.
#[inline(always)]
fn inner_headers(packet: &(impl Packet + ?Sized), arrival: &Arrival) -> Result<(Ethernet, Ipv4), Reason> {
    let ethernet = Ethernet::parse(packet.view(0).ok_or(Reason::Truncated)?);
    if arrival.vlan_tagged {
        return Err(Reason::Vlan);
    }
    if ethernet.ethertype != ETHERTYPE_IPV4 {
        return Err(Reason::NotIpv4);
    }
    if !ethernet.is_unicast() {
        return Err(Reason::NotUnicast);
    }
    let ip = Ipv4::parse(packet.view(ETHERNET_LEN).ok_or(Reason::Truncated)?);
    check_ipv4(&ip)?;
    if packet.len() != ETHERNET_LEN as u32 + u32::from(ip.total_len) {
        return Err(Reason::Length);
    }
    Ok((ethernet, ip))
}

/// Refuses headers that need the kernel's care.
#[inline(always)]
pub(super) fn check_ipv4(ip: &Ipv4) -> Result<(), Reason> {
    if ip.version_ihl != 0x45 {
        return Err(Reason::IpOptions);
    }
    if ip.is_fragment() {
        return Err(Reason::Fragment);
    }
    Ok(())
}

/// The kernel's own path to `peer` at the time `now`.
///
/// # Errors
/// It is not through the tunnel, or has not been seen lately.
#[inline(always)]
fn tunnel_to(tables: &impl Tables, config: &Config, peer: &PeerV4, now: u64) -> Result<Tunnel, Reason> {
    if peer.kind != PeerKind::Vxlan {
        return Err(Reason::PeerOnKernel);
    }
    gate::check(tables.tunnel_v4(peer.vtep), Direction::Egress, config.fast_path, config.tcp_refresh, now)
}

#[inline(always)]
fn encap(
    packet: &(impl Packet + ?Sized),
    arrival: &Arrival,
    config: &Config,
    ip: &Ipv4,
    (peer, tunnel): (PeerV4, Tunnel),
    forward: Option<Forward>,
) -> Result<Encap, Reason> {
    let mtu = if tunnel.mtu < peer.mtu { tunnel.mtu } else { peer.mtu };
    if u64::from(segment_len(packet, ETHERNET_LEN, arrival, ip)?) + ENCAP_LEN as u64 > u64::from(mtu) {
        return Err(Reason::TooBig);
    }
    // An aggregate whose outer length overflows 16 bits is the kernel's to cut.
    let frame_len = packet.len();
    if frame_len + (ENCAP_LEN - ETHERNET_LEN) as u32 > u32::from(u16::MAX) {
        return Err(Reason::TooBig);
    }
    Ok(Encap {
        peer,
        source: config.vtep,
        port: config.port as u16,
        source_ports: (config.source_port_min, config.source_port_max),
        ttl: tunnel.ttl as u8,
        inner_tos: ip.tos,
        frame_len: frame_len as u16,
        forward,
    })
}

/// Length of one segment as an IP packet, bytes. The IPv4 header `ip`, without options, stands at `offset`.
#[inline(always)]
pub(super) fn segment_len(
    packet: &(impl Packet + ?Sized),
    offset: usize,
    arrival: &Arrival,
    ip: &Ipv4,
) -> Result<u32, Reason> {
    if arrival.gso_size == 0 {
        return Ok(u32::from(ip.total_len));
    }
    let transport_len = match ip.protocol {
        PROTOCOL_UDP => UDP_LEN as u32,
        PROTOCOL_TCP => {
            let [words] = *packet.view(offset + IPV4_LEN + 12).ok_or(Reason::Truncated)?;
            u32::from(words >> 4) * 4
        }
        // Neither: an aggregate of a kind we do not know.
        _ => return Err(Reason::TooBig),
    };
    // Any segment size that an arrival may name.
    Ok((IPV4_LEN as u32 + transport_len).saturating_add(arrival.gso_size))
}
