//! What the kernel's VXLAN device has freed of its outer headers.

use super::{
    Deliver, Forward, Tables, check_hold,
    egress::{check_ipv4, segment_len},
    flow::{self, Passage},
};
use crate::{
    layout::FastPath,
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, Ipv4},
    },
    reason::{Direction, Reason},
};

/// tc ingress on flannel.<vni>, for packets with [`crate::map::CHECKED_MARK`]: `then` says what to do with one for a
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
    if ip.ttl <= 1 {
        return Err(Reason::Ttl);
    }
    let pod = tables.pod_v4(ip.destination).ok_or(Reason::UnknownPod)?;
    if config.fast_path == FastPath::Flow {
        let passage = Passage { way: Direction::Ingress, ifindex: pod.ifindex, now };
        flow::admit(&passage, packet, ETHERNET_LEN, tables, &config, &ip)?;
    }
    let packet_len = segment_len(packet, ETHERNET_LEN, arrival, &ip)?;
    Ok(then(Deliver { pod, forward: Forward::hop(&ip), packet_len }, Reason::DeliverOverlay))
}
