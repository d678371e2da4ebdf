//! What the kernel's VXLAN device for IPv6 has freed of its outer headers.

use super::{Deliver, check_ipv6, first_ip, frame_len, hand};
use crate::{
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet},
        ipv6::ETHERTYPE_IPV6,
    },
    path::{Tables, check_hold},
    reason::Reason,
};

/// tc ingress on flannel-v6.<vni>, for packets with [`crate::mark::Marks::flow`]: `then` says what to do with one for
/// a local pod. As with IPv4, all but the outer headers is looked at again.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub fn from_overlay<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Deliver, Reason) -> R,
) -> Result<R, Reason> {
    let config = tables.config_v6().ok_or(Reason::NotIpv4)?;
    let ethernet = Ethernet::parse(packet.view(0).ok_or(Reason::Truncated)?);
    if arrival.vlan_tagged {
        return Err(Reason::Vlan);
    }
    if ethernet.ethertype != ETHERTYPE_IPV6 {
        return Err(Reason::NotIpv4);
    }
    if !config.fast_path.finds_pods() {
        return Err(Reason::PodOnKernel);
    }
    if !ethernet.is_to(&config.local_mac) {
        return Err(Reason::InnerMac);
    }
    let ip = first_ip(packet)?;
    check_ipv6(&ip)?;
    if packet.len() != frame_len(ETHERNET_LEN, &ip) {
        return Err(Reason::Length);
    }
    if !config.subnet.contains(ip.destination) {
        return Err(Reason::NotOurPod);
    }
    let now = check_hold(tables)?;
    Ok(then(hand(packet, tables, arrival, &config, &ip, now)?, Reason::DeliverOverlay))
}
