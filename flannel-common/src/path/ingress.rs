//! What other nodes send to our pods.

use super::{
    Deliver, Forward, Tables, check_hold, direct, ecn,
    egress::{check_ipv4, segment_len},
    flow::{self, Passage},
    forwarding, gate,
};
use crate::{
    layout::FastPath,
    packet::{
        Arrival, Packet, checksum,
        headers::{
            ENCAP_LEN, ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP,
            TCP_TO_FLAGS, UDP_LEN, Udp, Vxlan,
        },
    },
    reason::{Direction, Reason},
};

/// Bytes that [`from_underlay`] reads: the frame up to the inner TCP flags.
pub const FROM_UNDERLAY_READS: usize = INNER_IP + IPV4_LEN + TCP_TO_FLAGS;

const UDP: usize = ETHERNET_LEN + IPV4_LEN;
const VXLAN: usize = UDP + UDP_LEN;
const INNER: usize = ENCAP_LEN;
const INNER_IP: usize = INNER + ETHERNET_LEN;

/// tc ingress on the external interface: `pop` says what to do with a packet in VXLAN for a local pod, `hand`
/// with one without.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub fn from_underlay<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    pop: impl FnOnce(Deliver, Reason) -> R,
    hand: impl FnOnce(Deliver, Reason) -> R,
) -> Result<R, Reason> {
    // Everything of the node that is not ours comes by here too: first what tells most of it apart.
    let outer = Ethernet::parse(packet.view(0).ok_or(Reason::Truncated)?);
    if arrival.vlan_tagged {
        return Err(Reason::Vlan);
    }
    if outer.ethertype != ETHERTYPE_IPV4 {
        return Err(Reason::NotIpv4);
    }
    let outer_ip = Ipv4::parse(packet.view(ETHERNET_LEN).ok_or(Reason::Truncated)?);
    let config = tables.config().ok_or(Reason::NoConfig)?;
    if config.subnet.contains(outer_ip.destination) && config.fast_path.finds_pods() {
        return direct::from_underlay(packet, tables, arrival, &config, &outer, &outer_ip, hand);
    }
    if outer_ip.protocol != PROTOCOL_UDP || outer_ip.destination != config.vtep {
        return Err(Reason::NotVxlan);
    }
    if !config.fast_path.finds_pods() {
        return Err(Reason::PodOnKernel);
    }
    if !outer.is_unicast() {
        return Err(Reason::NotUnicast);
    }
    // The kernel drops it in ip_rcv, which a delivered packet never meets.
    if arrival.for_other_station {
        return Err(Reason::NotVxlan);
    }
    check_ipv4(&outer_ip)?;
    let udp = Udp::parse(packet.view(UDP).ok_or(Reason::Truncated)?);
    if u32::from(udp.destination) != config.port {
        return Err(Reason::NotVxlan);
    }
    // The kernel checks this in ip_rcv, which a delivered packet never meets.
    if checksum::sum(&outer_ip) != 0xffff {
        return Err(Reason::HeaderChecksum);
    }
    let vxlan = Vxlan::parse(packet.view(VXLAN).ok_or(Reason::Truncated)?);
    if vxlan.flags != Vxlan::of(0).flags || vxlan.vni & 0xff != 0 {
        return Err(Reason::VxlanFlags);
    }
    if vxlan.vni >> 8 != config.vni {
        return Err(Reason::Vni);
    }

    let inner = Ethernet::parse(packet.view(INNER).ok_or(Reason::Truncated)?);
    if !inner.is_to(&config.local_mac) {
        return Err(Reason::InnerMac);
    }
    if inner.ethertype != ETHERTYPE_IPV4 {
        return Err(Reason::NotIpv4);
    }
    let ip = Ipv4::parse(packet.view(INNER_IP).ok_or(Reason::Truncated)?);
    check_ipv4(&ip)?;
    let lengths =
        [ETHERNET_LEN as u32 + u32::from(outer_ip.total_len), INNER_IP as u32 + u32::from(ip.total_len)];
    if lengths != [packet.len(); 2] {
        return Err(Reason::Length);
    }
    if !config.subnet.contains(ip.destination) {
        return Err(Reason::NotOurPod);
    }
    let now = check_hold(tables)?;
    let vtep = tables.vtep(outer_ip.source).ok_or(Reason::UnknownVtep)?;
    // Besides its pods, a node speaks for itself: its replies to our pods come through the tunnel too.
    if !vtep.subnet.contains(ip.source) && ip.source != outer_ip.source {
        return Err(Reason::InnerSource);
    }
    if ip.ttl <= 1 {
        return Err(Reason::Ttl);
    }
    let tos = ecn::decapsulate(outer_ip.tos, ip.tos).ok_or(Reason::Ecn)?;
    let pod = tables.pod_v4(ip.destination).ok_or(Reason::UnknownPod)?;
    if config.fast_path == FastPath::Flow {
        let passage = Passage { way: Direction::Ingress, ifindex: pod.ifindex, gateway: 0, now };
        flow::admit(&passage, packet, INNER_IP, tables, &config, &ip)?;
    }
    let tunnel = tables.tunnel_v4(outer_ip.source);
    gate::check(tunnel, Direction::Ingress, config.fast_path, config.tcp_refresh, now)?;
    // Last, so that all else has been looked at: see `is_checked`. A popped aggregate keeps its tunnel's GSO type
    // (net/core/filter.c, bpf_skb_net_shrink). A socket takes TCP whole; what udp_rcv_segment would cut for one
    // without UDP_GRO, it drops.
    if arrival.gso_size != 0 {
        if ip.protocol != PROTOCOL_TCP {
            return Err(Reason::UdpAggregate);
        }
        if forwarding::forwards(tables, pod.ifindex, now) {
            return Err(Reason::PodForwards);
        }
    }
    let packet_len = segment_len(packet, INNER_IP, arrival, &ip)?;
    Ok(pop(Deliver { pod, forward: Forward::hop_with_tos(&ip, tos), packet_len }, Reason::DeliverPod))
}

/// Where the header stands of the packet for a pod that [`from_underlay`] has found in a frame: behind the outer headers,
/// or without a tunnel at the frame's own place. `None` for frames it does not look into.
#[inline(always)]
pub fn found_at(packet: &(impl Packet + ?Sized), tables: &impl Tables) -> Option<usize> {
    let ip = Ipv4::parse(packet.view(ETHERNET_LEN)?);
    Some(if tables.config()?.subnet.contains(ip.destination) { ETHERNET_LEN } else { INNER_IP })
}

/// Whether a packet that [`from_underlay`] leaves to the kernel for `reason` is one that `from_overlay` goes on with,
/// because nothing is wrong with it but that a program cannot decapsulate it, or may not before the kernel has.
#[inline(always)]
pub const fn is_checked(reason: Reason) -> bool {
    matches!(reason, Reason::UdpAggregate | Reason::PodForwards | Reason::TunnelStale)
}
