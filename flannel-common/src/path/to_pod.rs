//! tc egress on the host side of a pod's veth: what the kernel path brings the pod.

use super::{Act, Tables, egress, end::End, flow};
use crate::family::{Family, V4, V6};

/// All that happens to a packet at this hook: it is looked at, and passes.
#[inline(always)]
pub fn run<P: Act<V4> + Act<V6>>(packet: P, tables: &(impl Tables<V4> + Tables<V6>)) -> P::Answer {
    if packet.is_ipv6() { of_family::<V6, _>(packet, tables) } else { of_family::<V4, _>(packet, tables) }
}

#[inline(always)]
fn of_family<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>) -> P::Answer {
    packet.make_readable(egress::reads::<F>());
    flow::take_note::<F, P>(packet, tables, End::Pod, packet.size());
    // Here ends its use, here as at the other ends of the kernel path.
    packet.unmark(tables.marks().both());
    packet.pass()
}
