//! Which pods forward for others, by what they send of IPv6. Extension headers are not looked behind.

use super::first_ip;
use crate::{
    family::V6,
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, PROTOCOL_TCP},
        ipv6::{ETHERTYPE_IPV6, IPV6_LEN},
    },
    path::{
        Note, Tables,
        forwarding::{is_reset, news},
    },
};

/// As [`note`](crate::path::forwarding::note) of IPv4.
#[inline(always)]
pub fn note<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Note<V6>) -> R,
) -> Option<R> {
    if arrival.from_socket || arrival.vlan_tagged {
        return None;
    }
    if Ethernet::parse(packet.view(0)?).ethertype != ETHERTYPE_IPV6 {
        return None;
    }
    let ip = first_ip(packet).ok()?;
    if !ip.is_version_6() || ip.next_header != PROTOCOL_TCP || is_reset(packet, ETHERNET_LEN + IPV6_LEN)? {
        return None;
    }
    let seen = news(tables, arrival, &tables.pod_v6(ip.source)?)?;
    Some(then(Note::Forwards { ifindex: arrival.ifindex, seen }))
}
