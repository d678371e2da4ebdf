//! Between nodes that reach each other's pods without a tunnel.

use super::{
    Deliver, Rewrite, Tables,
    ingress::deliver_to,
    tables::{check_hold, longest_match},
};
use crate::{
    family::{Family, IpHeader as _},
    layout::{Config, RouteKind},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet},
    },
    reason::Reason,
};

/// Length that a link of Ethernet pads shorter frames to, bytes without the check sequence (`ETH_ZLEN`,
/// include/uapi/linux/if_ether.h).
const SHORTEST_FRAME: u32 = 60;

/// A packet without a tunnel, for an address in our pod subnet: `deliver` says what to do with one for a local
/// pod.
///
/// It must come by the interface its sender is reached by, as strict reverse path filtering asks. The MAC it
/// comes from proves nothing, here as little as on the kernel path: whoever is on that link can speak for
/// another node, within the flows that the gate admits.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub(super) fn from_underlay<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    config: &Config<F>,
    (ethernet, ip): (&Ethernet, &F::Header),
    deliver: impl FnOnce(Deliver<F>, Option<Rewrite<F>>, Reason) -> R,
) -> Result<R, Reason> {
    if !ethernet.is_unicast() {
        return Err(Reason::NotUnicast);
    }
    // The kernel drops it in ip_rcv or ip6_rcv_core, which a packet that is delivered never meets.
    if arrival.for_other_station {
        return Err(Reason::NotDirect);
    }
    ip.check()?;
    check_padding(packet.len(), ETHERNET_LEN as u32 + ip.packet_len())?;
    ip.check_sum()?;
    let clock = check_hold(tables)?;
    match longest_match(tables, config, ip.source()) {
        Some(route) if route.kind == RouteKind::Direct && route.ifindex == arrival.ifindex => {}
        _ => return Err(Reason::NotDirect),
    }
    let (to, rewrite) = deliver_to(packet, tables, arrival, config, ip, clock)?;
    let reason = if rewrite.is_some() { Reason::Translated } else { Reason::HandPod };
    Ok(deliver(to, rewrite, reason))
}

/// Refuses a frame of `len` bytes with more behind its packet than a link pads, or less; by its IP header it has
/// `whole` bytes. Padding stays: the pod's own stack cuts it off.
#[inline(always)]
const fn check_padding(len: u32, whole: u32) -> Result<(), Reason> {
    if len != whole && (len < whole || len > SHORTEST_FRAME) {
        return Err(Reason::Length);
    }
    Ok(())
}
