//! tc egress on the external interface: what the kernel path sends to other nodes, in a tunnel or without.

use super::{
    Act, Carrier, Tables, act,
    carrier::{is_ipip, over_udp},
    egress,
    end::End,
    flow, host_mark, tunnel,
};
use crate::{
    family::{Family, V4, V6},
    reason::Direction,
};

/// All that happens to a packet at this hook: it is looked at, and passes.
#[inline(always)]
pub fn run<P: Act<V4> + Act<V6>>(packet: P, tables: &(impl Tables<V4> + Tables<V6>)) -> P::Answer {
    // Told before any byte is looked at.
    if packet.take_redirected() {
        return packet.pass();
    }
    if packet.is_ipv6() {
        return of_family::<V6, _>(packet, tables);
    }
    // By itself, so that the verifier has nothing of it to walk through with another carrier.
    if is_ipip(tables) { of_ipip::<V4, _>(packet, tables) } else { of_family::<V4, _>(packet, tables) }
}

/// Everything the node sends comes by here. What a pod sends to a pod of another node by the kernel path without a tunnel
/// has one of our marks: `from_pod` has exempted it from masquerading, for the cluster's network always is. What
/// `from_pod` itself sent out of this interface has none, nor has the node's own traffic.
#[inline(always)]
fn of_family<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>) -> P::Answer {
    let marks = tables.marks();
    let marked = packet.arrival().mark & marks.both() != 0;
    packet.make_readable(egress::reads::<F>());
    let size = packet.size();
    if marked {
        flow::take_note::<F, P>(packet, tables, End::Underlay, size);
        packet.unmark(marks.both());
    }
    if let Some((outer, config)) = tunnel::outer::<F>(&packet, tables, over_udp(tables)) {
        packet.make_readable(tunnel::leaving_reads::<F>());
        if let Some(note) = tunnel::note_leaving(&packet, tables, &config, &outer) {
            act::noted_tunnel(packet, Direction::Egress, &note, size);
        }
        if packet.arrival().tc_index == host_mark::LEFT {
            packet.note_beside(0);
        }
    }
    packet.pass()
}

/// The same where the tunnel is IP in IP: what its device sends speaks for the flow in it, too.
#[inline(always)]
fn of_ipip<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>) -> P::Answer {
    let marks = tables.marks();
    packet.make_readable(tunnel::leaving_in_ip_reads::<F>());
    let size = packet.size();
    let is_outer = tunnel::outer::<F>(&packet, tables, Carrier::Ipip).is_some();
    if is_outer || packet.arrival().mark & marks.both() != 0 {
        let end = if is_outer { End::Tunnel } else { End::Underlay };
        flow::take_note::<F, P>(packet, tables, end, size);
        packet.unmark(marks.both());
    }
    // Asked again: kept, it would take more of a program's stack than there is.
    if let Some((outer, config)) = tunnel::outer::<F>(&packet, tables, Carrier::Ipip) {
        if let Some(note) = tunnel::note_leaving_bare(&packet, tables, Carrier::Ipip, &config, &outer) {
            act::noted_tunnel(packet, Direction::Egress, &note, size);
        }
        if packet.arrival().tc_index == host_mark::LEFT {
            packet.note_beside(0);
        }
    }
    packet.pass()
}
