//! What XDP decides, before or behind the making of packets: a filter for strangers, and an early pop.

use super::{
    Deliver, Tables, check_hold, ingress,
    tunnel::{At, Device, ip_header},
};
use crate::{
    layout::UnknownVtep,
    packet::{Arrival, Fib, Packet},
    reason::Reason,
};

/// Whether the packet is VXLAN for our device from an address that no lease names, and what it is then
/// counted for: [`Reason::VtepDropped`] if it is to be dropped.
///
/// The kernel's device takes it at any address of the node, so only what the node sends on to somebody else may be
/// another's, as of a cluster behind this node that has the same port and VNI.
#[inline(always)]
pub fn stranger(packet: &(impl Packet + ?Sized), tables: &impl Tables, arrival: &Arrival) -> Option<Reason> {
    match ip_header(packet)? {
        At::V4(at) => over_ipv4(packet, at, tables, arrival),
        At::V6(at) => over_ipv6(packet, at, tables, arrival),
    }
}

#[inline(always)]
fn over_ipv4(
    packet: &(impl Packet + ?Sized),
    at: usize,
    tables: &impl Tables,
    arrival: &Arrival,
) -> Option<Reason> {
    let config = tables.config()?;
    let reason = counted_for(config.unknown_vtep)?;
    let ip = Device { port: config.port, vni: config.vni }.takes_v4(packet, at)?;
    check_hold(tables).ok()?;
    if tables.vtep(ip.source).is_some() {
        return None;
    }
    let passes_by = ip.destination != config.vtep
        && packet.fib_v4(arrival.ifindex, ip.source, ip.destination) == Fib::Forwarded;
    if passes_by { None } else { Some(reason) }
}

#[inline(always)]
fn over_ipv6(
    packet: &(impl Packet + ?Sized),
    at: usize,
    tables: &impl Tables,
    arrival: &Arrival,
) -> Option<Reason> {
    let config = tables.config_v6()?;
    let reason = counted_for(config.unknown_vtep)?;
    let ip = Device { port: config.port, vni: config.vni }.takes_v6(packet, at)?;
    check_hold(tables).ok()?;
    if tables.vtep_v6(ip.source).is_some() {
        return None;
    }
    let passes_by = ip.destination != config.vtep
        && packet.fib_v6(arrival.ifindex, ip.source, ip.destination) == Fib::Forwarded;
    if passes_by { None } else { Some(reason) }
}

/// What a stranger's packet is counted for; `None` where nobody asks.
#[inline(always)]
const fn counted_for(unknown_vtep: UnknownVtep) -> Option<Reason> {
    match unknown_vtep {
        UnknownVtep::Off => None,
        UnknownVtep::Count => Some(Reason::VtepSeen),
        UnknownVtep::Drop => Some(Reason::VtepDropped),
    }
}

/// XDP in the driver of the external interface: a packet that `from_underlay` would pop and hand to a pod can
/// be popped here, before the kernel merges packets. What follows, `then` says.
///
/// # Errors
/// Why it goes on as it is.
#[inline(always)]
pub fn pop<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Deliver, Reason) -> R,
) -> Result<R, Reason> {
    // What comes without a tunnel has nothing to be popped.
    let pop = |deliver, _| Some(then(deliver, Reason::PoppedEarly));
    ingress::from_underlay(packet, tables, arrival, pop, |_, _| None)?.ok_or(Reason::NotVxlan)
}
