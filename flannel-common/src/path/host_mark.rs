//! Packets that the host routes or queues by their mark or class.
//!
//! Rules may give a pod's packet a mark (`skb->mark`) or a class (`skb->priority`). The outer packet takes both over,
//! and `ip rule fwmark`, tc filters and classful qdiscs go by them. One packet cannot speak for its flow or peer then.
//! So what has a mark or class that something on the host heeds ([`Heeded`]) stays on the kernel path, flow and
//! outer packet alike. Marks that nobody heeds are on every packet of a pod where some network policies are in use,
//! and do not matter.

use crate::{layout::Heeded, mark::Marks, packet::Arrival};

/// What `to_overlay` notes in `skb->tc_index` of such a packet. `to_underlay` then does not take the outer packet for one
/// that speaks for its peer. Any other with a heeded mark got it on the way out, and every packet for its peer would.
pub const LEFT: u16 = 0xe7a1;

/// Whether something on the host goes by the mark or class that the packet has.
#[inline(always)]
pub const fn is_heeded(arrival: &Arrival, marks: Marks, heeded: Heeded) -> bool {
    (arrival.mark & !marks.both() & heeded.marks) | (arrival.priority & heeded.classes) != 0
}
