//! Addresses that move from one pod to another.
//!
//! A pod that takes over an address of another (VRRP, keepalived, a database's failover) says so in ARP, or with IPv6
//! by neighbour advertisements ([`Family::announced`]). Bridge and neighbour table follow that at once, and the pods
//! map must not send packets to the old place meanwhile. What is claimed proves nothing, so it puts no address
//! anywhere: it only takes it out of the map, which leaves its packets to the kernel path until the agent has asked the
//! kernel where the address is.

use super::{Note, Tables};
use crate::{
    family::Family,
    layout::PodPlace,
    packet::{Arrival, Packet, headers::is_same_mac},
};

/// What to write down about a frame at tc ingress on the host side of a pod's veth: that an address has moved, if it
/// says so. `then` gets it.
#[inline(always)]
pub(super) fn note<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    then: impl FnOnce(Note<F>) -> R,
) -> Option<R> {
    if arrival.vlan_tagged {
        return None;
    }
    let (address, mac) = F::announced(packet)?;
    let pod = tables.pod(address)?;
    if is_at(&pod, arrival, mac) { None } else { Some(then(Note::Moved(address))) }
}

/// Whether `pod` is behind the veth that an announcement came from, and has the MAC it names.
#[inline(always)]
const fn is_at(pod: &PodPlace, arrival: &Arrival, mac: &[u8; 6]) -> bool {
    pod.ifindex == arrival.ifindex && is_same_mac(&pod.mac, mac)
}
