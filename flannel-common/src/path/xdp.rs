//! XDP on the external interface: a filter for VXLAN from unknown VTEPs, and decapsulation before the kernel has made a
//! packet of the frame.

use super::{
    Deliver, Tables,
    carrier::over_udp,
    from_underlay,
    tables::check_hold,
    vxlan::{At, ip_header, takes},
};
use crate::{
    family::{Family, IpHeader as _, V4, V6},
    layout::UnknownVtep,
    packet::{Arrival, Fib, Packet},
    reason::Reason,
};

/// A frame at a hook of XDP, and what may be done to it. A copy is the same frame.
pub trait XdpFrame: Packet + Copy {
    /// What the hook answers.
    type Answer;

    /// What is known of it: where it came in.
    fn arrival(&self) -> Arrival;
    /// Lets it pass, not counted.
    fn pass(self) -> Self::Answer;
    /// Counts it for `reason` and lets it pass.
    fn count(self, reason: Reason) -> Self::Answer;
    /// Counts it for `reason` and drops it.
    fn drop(self, reason: Reason) -> Self::Answer;
    /// Decapsulates it, says in front of it which pod it is for, and lets it pass.
    fn decapsulate(self, deliver: &Deliver<V4>, reason: Reason) -> Self::Answer;
}

/// All that happens to a frame in the driver.
#[inline(always)]
pub fn underlay<P: XdpFrame>(frame: P, tables: &(impl Tables<V4> + Tables<V6>)) -> P::Answer {
    if let Some(reason) = unknown_vtep(&frame, tables, &frame.arrival()) {
        return judge(frame, reason);
    }
    decapsulate(&frame, tables, &frame.arrival(), |deliver, reason| frame.decapsulate(&deliver, reason))
        .unwrap_or_else(|_| frame.pass())
}

/// All that happens to a frame behind the making and merging of packets, where decapsulation gains nothing.
#[inline(always)]
pub fn generic<P: XdpFrame>(frame: P, tables: &(impl Tables<V4> + Tables<V6>)) -> P::Answer {
    match unknown_vtep(&frame, tables, &frame.arrival()) {
        Some(reason) => judge(frame, reason),
        None => frame.pass(),
    }
}

/// What becomes of a frame from an unknown VTEP, which is counted for `reason`.
#[inline(always)]
fn judge<P: XdpFrame>(frame: P, reason: Reason) -> P::Answer {
    if matches!(reason, Reason::VtepDropped) { frame.drop(reason) } else { frame.count(reason) }
}

/// Whether the packet is VXLAN for our device from an address that no lease names, and what it is then
/// counted for: [`Reason::VtepDropped`] if it is to be dropped.
///
/// The kernel's device takes it at any address of the node, so only what the node sends on to somebody else may be
/// another's, as of a cluster behind this node that has the same port and VNI.
#[inline(always)]
fn unknown_vtep(
    packet: &(impl Packet + ?Sized),
    tables: &(impl Tables<V4> + Tables<V6>),
    arrival: &Arrival,
) -> Option<Reason> {
    match ip_header(packet)? {
        At::V4(at) => over::<V4>(packet, at, tables, arrival),
        At::V6(at) => over::<V6>(packet, at, tables, arrival),
    }
}

#[inline(always)]
fn over<F: Family>(
    packet: &(impl Packet + ?Sized),
    at: usize,
    tables: &impl Tables<F>,
    arrival: &Arrival,
) -> Option<Reason> {
    let config = tables.config()?;
    let reason = match config.unknown_vtep {
        UnknownVtep::Off => return None,
        UnknownVtep::Count => Reason::VtepSeen,
        UnknownVtep::Drop => Reason::VtepDropped,
    };
    let ip = takes(packet, &config, at)?;
    check_hold(tables).ok()?;
    if tables.vtep(ip.source()).is_some() {
        return None;
    }
    let passes_by = ip.destination() != config.vtep
        && F::fib(packet, arrival.ifindex, ip.source(), ip.destination()) == Fib::Forwarded;
    if passes_by { None } else { Some(reason) }
}

/// A packet that `from_underlay` would decapsulate and hand to a pod can be decapsulated here, before the kernel merges
/// packets. What follows, `then` says.
///
/// # Errors
/// Why it goes on as it is.
#[inline(always)]
fn decapsulate<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<V4>,
    arrival: &Arrival,
    then: impl FnOnce(Deliver<V4>, Reason) -> R,
) -> Result<R, Reason> {
    // What comes without a tunnel has nothing to be cut off.
    // Nor can what is translated be: no helper of XDP changes a checksum that the NIC has a part in.
    let then = |deliver, rewrite: Option<_>, _| match rewrite {
        None => Some(then(deliver, Reason::DecapsulatedEarly)),
        Some(_) => None,
    };
    from_underlay::decide(packet, (tables, over_udp(tables)), arrival, then, |_, _, _| None, |_| {})?
        .ok_or(Reason::NotVxlan)
}
