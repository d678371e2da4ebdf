//! What the kernel's VXLAN device has freed of its outer headers.

use super::{Deliver, Tables, check_hold, egress::check_ipv4, hand};
use crate::{
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, Ipv4},
    },
    reason::Reason,
};

/// tc ingress on flannel.<vni>, for packets with [`crate::mark::Marks::flow`]: `then` says what to do with one for a
/// local pod.
///
/// The outer headers are gone; that they were right is what the mark says. All else is looked at again: a mark may be
/// somebody else's.
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
    let ethernet = Ethernet::parse(packet.view(0).ok_or(Reason::Truncated)?);
    if arrival.vlan_tagged {
        return Err(Reason::Vlan);
    }
    if ethernet.ethertype != ETHERTYPE_IPV4 {
        return Err(Reason::NotIpv4);
    }
    let config = tables.config().ok_or(Reason::NoConfig)?;
    if !config.fast_path.finds_pods() {
        return Err(Reason::PodOnKernel);
    }
    if !ethernet.is_to(&config.local_mac) {
        return Err(Reason::InnerMac);
    }
    let ip = Ipv4::parse(packet.view(ETHERNET_LEN).ok_or(Reason::Truncated)?);
    check_ipv4(&ip)?;
    if packet.len() != ETHERNET_LEN as u32 + u32::from(ip.total_len) {
        return Err(Reason::Length);
    }
    if !config.subnet.contains(ip.destination) {
        return Err(Reason::NotOurPod);
    }
    let now = check_hold(tables)?;
    Ok(then(hand(packet, tables, arrival, &config, &ip, now)?, Reason::DeliverOverlay))
}
