//! Addresses that move from one pod to another.
//!
//! A pod that takes over an address of another (VRRP, keepalived, a database's failover) says so in ARP: by a gratuitous
//! request or answer, and by each further question it asks as the holder of that address (RFC 5227, section 1.2; RFC
//! 826). Bridge and neighbour table follow that at once, and the pods map must not send packets to the old place
//! meanwhile. What is claimed proves nothing, so it puts no address anywhere: it only takes it out of the map, which
//! leaves its packets to the kernel's path until the agent has asked the kernel where the address is.

use super::{Note, Tables};
use crate::{
    layout::PodPlace,
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, is_same_mac, take},
    },
};

/// EtherType of ARP (IANA).
const ETHERTYPE_ARP: u16 = 0x0806;
/// Length of an ARP packet of IPv4 over Ethernet, bytes.
const ARP_LEN: usize = 28;
/// How one begins (RFC 826): Ethernet, IPv4, addresses of six and of four bytes.
const ARP_OF_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const SENDER_MAC: usize = 8;
const SENDER_ADDRESS: usize = 14;

/// What to write down about a frame at tc ingress on the host side of a pod's veth: that an address has moved, if it is
/// ARP that says so. `then` gets it.
#[inline(always)]
pub fn note<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Note) -> R,
) -> Option<R> {
    if Ethernet::parse(packet.view(0)?).ethertype != ETHERTYPE_ARP || arrival.vlan_tagged {
        return None;
    }
    let arp: &[u8; ARP_LEN] = packet.view(ETHERNET_LEN)?;
    if take::<6>(arp, 0) != ARP_OF_IPV4 {
        return None;
    }
    let address = take(arp, SENDER_ADDRESS);
    let pod = tables.pod_v4(address)?;
    if is_at(&pod, arrival, &take(arp, SENDER_MAC)) { None } else { Some(then(Note::Moved(address))) }
}

/// Whether `pod` is behind the veth that an announcement came from, and has the MAC it names.
#[inline(always)]
pub(super) const fn is_at(pod: &PodPlace, arrival: &Arrival, mac: &[u8; 6]) -> bool {
    pod.ifindex == arrival.ifindex && is_same_mac(&pod.mac, mac)
}
