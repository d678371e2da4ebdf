//! Between nodes that reach each other's pods without a tunnel.

use super::{Deliver, check_ipv6, frame_len, hand, longest_match};
use crate::{
    layout::{ConfigV6, PeerKind},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet},
        ipv6::Ipv6,
    },
    path::{
        Tables, check_hold,
        direct::{check_padding, check_stations},
    },
    reason::Reason,
};

/// A packet without a tunnel, for an address in our pod subnet: `then` says what to do with one for a local pod. It
/// must come by the interface its sender is reached by, as with IPv4.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub(super) fn from_underlay<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    config: &ConfigV6,
    ethernet: &Ethernet,
    ip: &Ipv6,
    then: impl FnOnce(Deliver, Reason) -> R,
) -> Result<R, Reason> {
    check_stations(ethernet, arrival)?;
    check_ipv6(ip)?;
    check_padding(packet.len(), frame_len(ETHERNET_LEN, ip))?;
    let now = check_hold(tables)?;
    match longest_match(tables, config, ip.source) {
        Some(peer) if peer.kind == PeerKind::Direct && peer.ifindex == arrival.ifindex => {}
        _ => return Err(Reason::NotDirect),
    }
    Ok(then(hand(packet, tables, arrival, config, ip, now)?, Reason::HandPod))
}
