//! Which packets of pods keep the pod's address.

use super::Tables;
use crate::{
    family::{Family, IpHeader as _},
    packet::{Packet, headers::ETHERNET_LEN},
    reason::Reason,
};

/// Whether a packet of a pod that stays with the kernel for `reason` is to be marked
/// [`crate::mark::Marks::exempt`]: from our pod subnet to an exempt prefix, whole or a fragment, with
/// options or without. What the fast path takes never meets a rule, and needs no mark.
#[inline(always)]
pub(super) fn is_exempt<F: Family>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    reason: Reason,
) -> bool {
    if has_no_packet(reason) {
        return false;
    }
    let Some(ip) = F::Header::read(packet, ETHERNET_LEN) else { return false };
    let Some(config) = tables.config() else { return false };
    config.subnet.contains(ip.source()) && tables.is_exempt(ip.destination())
}

/// Whether `reason` is of frames in which there is no IP packet for routing to see.
const fn has_no_packet(reason: Reason) -> bool {
    matches!(reason, Reason::NoConfig | Reason::Truncated | Reason::Vlan | Reason::NotIp | Reason::NotUnicast)
}

/// What a marked packet is counted for. That it was marked says more than that it is not the fast path's;
/// why the fast path left one that it is there for says more than the mark.
#[inline(always)]
pub(super) const fn counted_for(reason: Reason) -> Reason {
    match reason {
        Reason::NoRoute | Reason::PodOnKernel => Reason::SnatExempt,
        _ => reason,
    }
}
