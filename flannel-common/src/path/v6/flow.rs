//! The flow gate for IPv6: the same rules, another key. ICMPv6 and extension headers are the kernel's.

use super::{check_ipv6, first_ip};
use crate::{
    family::V6,
    layout::{AddressV6, ConfigV6, FastPath, FlowV6},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet},
        ipv6::{ETHERTYPE_IPV6, IPV6_LEN, Ipv6},
    },
    path::{
        Tables,
        flow::{NEVER, Note, Passage, Transport, check_permit, has_our_mark, lifetime, renewed},
        trail,
    },
    reason::{Direction, Reason},
};

/// Lets a packet skip the host's stack. Its IPv6 header `ip`, without extension headers, stands at `offset`.
///
/// # Errors
/// Why it may not.
#[inline(always)]
pub(super) fn admit(
    passage: &Passage,
    packet: &(impl Packet + ?Sized),
    offset: usize,
    tables: &impl Tables,
    config: &ConfigV6,
    ip: &Ipv6,
) -> Result<(), Reason> {
    let transport = Transport::at(packet, offset + IPV6_LEN, ip.next_header)?;
    transport.check_control()?;
    let permit = tables.flow_v6(&flow(&transport, passage.way, ip)).ok_or(Reason::FlowUnknown)?;
    check_permit(passage, &permit, lifetime(config.tcp_refresh, config.udp_refresh, transport.protocol))
}

/// What to write down about the flow of a packet that travels `way` and is at the end of the kernel's path:
/// tc egress on flannel-v6.<vni> or the external interface, or on the host side of a pod's veth. `then` gets it; `None`
/// when there is nothing.
#[inline(always)]
pub fn note<R>(
    way: Direction,
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Note<V6>) -> R,
) -> Option<R> {
    let config = tables.config_v6()?;
    if config.fast_path != FastPath::Flow || arrival.vlan_tagged {
        return None;
    }
    if Ethernet::parse(packet.view(0)?).ethertype != ETHERTYPE_IPV6 {
        return None;
    }
    let ip = first_ip(packet).ok()?;
    check_ipv6(&ip).ok()?;
    let (local, remote) = ends(way, &ip);
    if config.subnet.contains(remote) || !config.network.contains(remote) {
        return None;
    }
    let pod = tables.pod_v6(local)?;
    // Not another pod's, to which a bridge has flooded it.
    if matches!(way, Direction::Ingress) && pod.ifindex != arrival.ifindex {
        return None;
    }
    let transport = Transport::at(packet, ETHERNET_LEN + IPV6_LEN, ip.next_header).ok()?;
    let flow = flow(&transport, way, &ip);
    let known = tables.flow_v6(&flow).unwrap_or(NEVER);
    // Whatever skipped the stack before: from here on netfilter decides about it anew.
    if arrival.mark & tables.marks().flow == 0 || transport.begins_or_ends() {
        return if known.ifindex != NEVER.ifindex { Some(then(Note::Forget(flow))) } else { None };
    }
    if trail::is_changed(arrival.tc_index, ip.traffic_class(), ip.hop_limit) {
        return Some(then(Note::Changed(flow)));
    }
    let lifetime = lifetime(config.tcp_refresh, config.udp_refresh, transport.protocol);
    let permit = renewed(way, &known, &pod, lifetime, tables.now())?;
    Some(then(Note::Permit(flow, permit)))
}

/// [`note`] at tc egress on the external interface, for packets that leave without a tunnel: those with our mark, as
/// with IPv4.
#[inline(always)]
pub fn note_direct<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Note<V6>) -> R,
) -> Option<R> {
    if has_our_mark(arrival.mark, tables.marks()) {
        note(Direction::Egress, packet, tables, arrival, then)
    } else {
        None
    }
}

/// The pod's address and the other end's.
#[inline(always)]
const fn ends(way: Direction, ip: &Ipv6) -> (AddressV6, AddressV6) {
    match way {
        Direction::Egress => (ip.source, ip.destination),
        Direction::Ingress => (ip.destination, ip.source),
    }
}

#[inline(always)]
const fn flow(transport: &Transport, way: Direction, ip: &Ipv6) -> FlowV6 {
    let (local, remote) = ends(way, ip);
    let (local_port, remote_port) = transport.ports(way);
    FlowV6 { local, remote, local_port, remote_port, protocol: transport.protocol }
}
