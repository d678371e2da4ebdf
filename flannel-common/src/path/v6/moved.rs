//! IPv6 addresses that move from one pod to another: told by neighbour advertisements, as by ARP with IPv4.

use super::first_ip;
use crate::{
    family::V6,
    layout::AddressV6,
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, take},
        ipv6::{ETHERTYPE_IPV6, IPV6_LEN, PROTOCOL_ICMPV6},
    },
    path::{Note, Tables, moved::is_at},
};

/// Type of a neighbour advertisement (RFC 4861, section 4.4).
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Bytes of one up to the end of the address it is about.
const TO_TARGET: usize = 24;
const TARGET: usize = 8;
/// Hop limit of neighbour discovery, which no router has passed on (RFC 4861, section 7.1.2).
const FROM_THE_LINK: u8 = 255;

/// As [`note`](crate::path::moved::note) of IPv4.
#[inline(always)]
pub fn note<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Note<V6>) -> R,
) -> Option<R> {
    let header: &[u8; ETHERNET_LEN] = packet.view(0)?;
    if Ethernet::parse(header).ethertype != ETHERTYPE_IPV6 || arrival.vlan_tagged {
        return None;
    }
    let ip = first_ip(packet).ok()?;
    if !ip.is_version_6() || ip.next_header != PROTOCOL_ICMPV6 || ip.hop_limit != FROM_THE_LINK {
        return None;
    }
    let advertisement: &[u8; TO_TARGET] = packet.view(ETHERNET_LEN + IPV6_LEN)?;
    if advertisement[0] != NEIGHBOUR_ADVERTISEMENT {
        return None;
    }
    let half = |at| u64::from_ne_bytes(take(advertisement, at));
    let address = AddressV6::of_halves([half(TARGET), half(TARGET + 8)]);
    let pod = tables.pod_v6(address)?;
    if is_at(&pod, arrival, &take(header, 6)) { None } else { Some(then(Note::Moved(address))) }
}
