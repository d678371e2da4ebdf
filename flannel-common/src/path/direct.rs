//! Between nodes that reach each other's pods without a tunnel.

use super::{Deliver, Forward, Tables, check_hold, egress::check_ipv4, longest_match};
use crate::{
    layout::{Config, PeerKind},
    packet::{
        Arrival, Packet, checksum,
        headers::{ETHERNET_LEN, Ethernet, Ipv4},
    },
    reason::Reason,
};

/// Length that a link of Ethernet pads shorter frames to, bytes without the check sequence (`ETH_ZLEN`,
/// include/uapi/linux/if_ether.h).
const SHORTEST_FRAME: u32 = 60;

/// How to send a packet to a peer as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct<Address = [u8; 4], F = Forward> {
    /// Interface the peer is reached by.
    pub ifindex: u32,
    /// Address on that interface's link whose MAC the frame goes to.
    pub next_hop: Address,
    /// What routing does to the IP header.
    pub forward: F,
}

/// A packet without a tunnel, for an address in our pod subnet: `hand` says what to do with one for a local
/// pod.
///
/// It must come by the interface its sender is reached by, as strict reverse path filtering asks. The MAC it
/// comes from proves nothing, here as little as on the kernel's path: whoever is on that link can speak for
/// another node, within the flows that the gate admits.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub(super) fn from_underlay<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    config: &Config,
    ethernet: &Ethernet,
    ip: &Ipv4,
    hand: impl FnOnce(Deliver, Reason) -> R,
) -> Result<R, Reason> {
    check_stations(ethernet, arrival)?;
    check_ipv4(ip)?;
    check_padding(packet.len(), ETHERNET_LEN as u32 + u32::from(ip.total_len))?;
    if checksum::sum(ip) != 0xffff {
        return Err(Reason::HeaderChecksum);
    }
    let now = check_hold(tables)?;
    match longest_match(tables, config, ip.source) {
        Some(peer) if peer.kind == PeerKind::Direct && peer.ifindex == arrival.ifindex => {}
        _ => return Err(Reason::NotDirect),
    }
    Ok(hand(super::hand(packet, tables, arrival, config, ip, now)?, Reason::HandPod))
}

/// Refuses frames that are not for this node alone.
#[inline(always)]
pub(super) fn check_stations(ethernet: &Ethernet, arrival: &Arrival) -> Result<(), Reason> {
    if !ethernet.is_unicast() {
        return Err(Reason::NotUnicast);
    }
    // The kernel drops it in ip_rcv or ip6_rcv_core, which a packet that is handed over never meets.
    if arrival.for_other_station {
        return Err(Reason::NotDirect);
    }
    Ok(())
}

/// Refuses a frame of `len` bytes with more behind its packet than a link pads, or less; by its IP header it has
/// `whole` bytes. Padding stays: the pod's own stack cuts it off.
#[inline(always)]
pub(super) const fn check_padding(len: u32, whole: u32) -> Result<(), Reason> {
    if len != whole && (len < whole || len > SHORTEST_FRAME) {
        return Err(Reason::Length);
    }
    Ok(())
}
