//! What other nodes send to our pods.

use super::{Deliver, Forward, check_ipv6, direct, egress::segment_len, first_ip, flow, frame_len};
use crate::{
    layout::FastPath,
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, PROTOCOL_TCP, PROTOCOL_UDP, TCP_TO_FLAGS, UDP_LEN, Udp, Vxlan},
        ipv6::{ENCAP_LEN, ETHERTYPE_IPV6, IPV6_LEN, Ipv6},
    },
    path::{Tables, check_hold, ecn, flow::Passage, forwarding, gate},
    reason::{Direction, Reason},
};

/// Bytes that [`from_underlay`] reads: the frame up to the inner TCP flags.
pub const READS: usize = INNER_IP + IPV6_LEN + TCP_TO_FLAGS;

const UDP: usize = ETHERNET_LEN + IPV6_LEN;
const VXLAN: usize = UDP + UDP_LEN;
const INNER: usize = ENCAP_LEN;
const INNER_IP: usize = INNER + ETHERNET_LEN;

/// As [`found_at`](crate::path::ingress::found_at) of IPv4.
#[inline(always)]
pub fn found_at(packet: &(impl Packet + ?Sized), tables: &impl Tables) -> Option<usize> {
    let ip = first_ip(packet).ok()?;
    Some(if tables.config_v6()?.subnet.contains(ip.destination) { ETHERNET_LEN } else { INNER_IP })
}

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
    let config = tables.config_v6().ok_or(Reason::NotIpv4)?;
    let outer = Ethernet::parse(packet.view(0).ok_or(Reason::Truncated)?);
    if arrival.vlan_tagged {
        return Err(Reason::Vlan);
    }
    if outer.ethertype != ETHERTYPE_IPV6 {
        return Err(Reason::NotIpv4);
    }
    let outer_ip = first_ip(packet)?;
    if config.subnet.contains(outer_ip.destination) && config.fast_path.finds_pods() {
        return direct::from_underlay(packet, tables, arrival, &config, &outer, &outer_ip, hand);
    }
    if outer_ip.next_header != PROTOCOL_UDP || outer_ip.destination != config.vtep {
        return Err(Reason::NotVxlan);
    }
    if !config.fast_path.finds_pods() {
        return Err(Reason::PodOnKernel);
    }
    if !outer.is_unicast() {
        return Err(Reason::NotUnicast);
    }
    // The kernel drops it in ip6_rcv_core, which a delivered packet never meets.
    if arrival.for_other_station {
        return Err(Reason::NotVxlan);
    }
    check_ipv6(&outer_ip)?;
    let udp = Udp::parse(packet.view(UDP).ok_or(Reason::Truncated)?);
    if u32::from(udp.destination) != config.port {
        return Err(Reason::NotVxlan);
    }
    // The kernel drops it in __udp6_lib_rcv unless the device was made with udp6zerocsumrx. One that is there is
    // not verified: the inner checksum covers all that is left of the packet.
    if udp.checksum == 0 {
        return Err(Reason::OuterChecksum);
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
    if inner.ethertype != ETHERTYPE_IPV6 {
        return Err(Reason::NotIpv4);
    }
    let ip = Ipv6::parse(packet.view(INNER_IP).ok_or(Reason::Truncated)?);
    check_ipv6(&ip)?;
    if [frame_len(ETHERNET_LEN, &outer_ip), frame_len(INNER_IP, &ip)] != [packet.len(); 2] {
        return Err(Reason::Length);
    }
    if !config.subnet.contains(ip.destination) {
        return Err(Reason::NotOurPod);
    }
    let now = check_hold(tables)?;
    let vtep = tables.vtep_v6(outer_ip.source).ok_or(Reason::UnknownVtep)?;
    // Besides its pods, a node speaks for itself: its replies to our pods come through the tunnel too.
    if !vtep.subnet.contains(ip.source) && ip.source != outer_ip.source {
        return Err(Reason::InnerSource);
    }
    if ip.hop_limit <= 1 {
        return Err(Reason::Ttl);
    }
    let class = ecn::decapsulate(outer_ip.traffic_class(), ip.traffic_class()).ok_or(Reason::Ecn)?;
    let pod = tables.pod_v6(ip.destination).ok_or(Reason::UnknownPod)?;
    if config.fast_path == FastPath::Flow {
        let passage = Passage { way: Direction::Ingress, ifindex: pod.ifindex, gateway: 0, now };
        flow::admit(&passage, packet, INNER_IP, tables, &config, &ip)?;
    }
    let tunnel = tables.tunnel_v6(outer_ip.source);
    gate::check(tunnel, Direction::Ingress, config.fast_path, config.tcp_refresh, now)?;
    // Last, as with IPv4: a socket takes TCP whole, what forwards it does not.
    if arrival.gso_size != 0 {
        if ip.next_header != PROTOCOL_TCP {
            return Err(Reason::UdpAggregate);
        }
        if forwarding::forwards(tables, pod.ifindex, now) {
            return Err(Reason::PodForwards);
        }
    }
    let packet_len = segment_len(packet, INNER_IP, arrival, &ip)?;
    Ok(pop(Deliver { pod, forward: Forward::hop_with_class(&ip, class), packet_len }, Reason::DeliverPod))
}
