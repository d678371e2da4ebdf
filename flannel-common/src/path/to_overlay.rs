//! tc egress on flannel.<vni> and flannel-v6.<vni>, or the tunnel's other device: what the kernel routed into the overlay. Netfilter, routing,
//! neighbour and TTL are done.

use super::{
    Act, Encap, Tables,
    carrier::{is_ipip, is_udp},
    egress::{self, encap, inner_headers, tunnel_to},
    end::End,
    flow, host_mark,
    tables::{check_hold, longest_match},
};
use crate::{
    family::{Family, IpHeader as _, V4, V6},
    mark::Marks,
    packet::{Arrival, Packet, headers::Ethernet},
    reason::{Direction, Reason},
};

/// All that happens to a packet at this hook.
#[inline(always)]
pub fn run<P: Act<V4> + Act<V6>>(packet: P, tables: &(impl Tables<V4> + Tables<V6>)) -> P::Answer {
    if packet.is_ipv6() { of_family::<V6, _>(packet, tables) } else { of_family::<V4, _>(packet, tables) }
}

#[inline(always)]
fn of_family<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>) -> P::Answer {
    packet.make_readable(egress::reads::<F>());
    let size = packet.size();
    let marks = tables.marks();
    if F::DEVICE_SEGMENTS && is_handed_over(&packet.arrival(), marks) {
        packet.unmark(marks.both());
        return packet.pass();
    }
    if is_ipip(tables) {
        return into_ip(packet, tables, size);
    }
    flow::take_note::<F, P>(packet, tables, End::Overlay, size);
    // The outer packet takes the mark over, and is routed by it.
    packet.unmark(marks.both());
    // The agent carries it from here.
    if is_udp(tables) {
        return packet.pass();
    }
    let verdict =
        decide(&packet, tables, &packet.arrival(), |encap, reason| packet.encapsulate(&encap, None, reason))
            .and_then(|done| done);
    if matches!(verdict, Err(Reason::HostMark)) {
        packet.note_beside(host_mark::LEFT);
    }
    packet.conclude(Direction::Egress, size, verdict)
}

/// A packet for the device of IP in IP, which carries it. That has no MACs by which to tell where it sends a packet: the
/// outer packet says so, and [`super::to_underlay`] takes the note there. The device looks at no mark (net/ipv4/ip_tunnel.c,
/// `ip_tunnel_xmit`), so that the outer packet may have it.
#[inline(always)]
fn into_ip<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>, size: P::Size) -> P::Answer {
    let marks = tables.marks();
    let is_heeded =
        tables.config().is_some_and(|config| host_mark::is_heeded(&packet.arrival(), marks, config.heeded));
    if is_heeded {
        flow::take_note::<F, P>(packet, tables, End::Overlay, size);
        packet.unmark(marks.both());
        packet.note_beside(host_mark::LEFT);
    }
    packet.pass()
}

/// Whether `arrival` is what [`super::from_pod`] has handed to the VXLAN device, where all is done about it.
#[inline(always)]
pub const fn is_handed_over(arrival: &Arrival, marks: Marks) -> bool {
    marks.is_handed_over(arrival.mark) && arrival.gso_size != 0
}

/// `encapsulate` says what to do with a packet for a node behind a tunnel.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
fn decide<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    encapsulate: impl FnOnce(Encap<F>, Reason) -> R,
) -> Result<R, Reason> {
    let (ethernet, ip) = inner_headers::<F>(packet, arrival)?;
    let config = tables.config().ok_or(F::UNCONFIGURED)?;
    let clock = check_hold(tables)?;
    let route = longest_match(tables, &config, ip.destination()).ok_or(Reason::NoRoute)?;
    // The kernel's choice of next hop wins: an administrator may have routed a subnet elsewhere.
    if !ethernet.same_stations(&Ethernet::new(route.vtep_mac, route.local_mac, F::ETHERTYPE)) {
        return Err(Reason::NeighbourDiffers);
    }
    if host_mark::is_heeded(arrival, tables.marks(), config.heeded) {
        return Err(Reason::HostMark);
    }
    let tunnel = tunnel_to(packet, tables, arrival, &config, &ip, &route, clock)?;
    if F::DEVICE_SEGMENTS && arrival.gso_size != 0 {
        return Err(Reason::Ipv6Aggregate);
    }
    Ok(encapsulate(
        encap(packet, tables.carrier(), &config, &ip, (route, tunnel), None)?,
        Reason::EncapOverlay,
    ))
}
