//! Whether rules change the packets of a flow.
//!
//! A packet that skips the host's stack skips the rules there, too. Whether they let it pass is learned once for the
//! flow; what they write into it (a DSCP, a TTL) they would have to write into each. So where the kernel path begins,
//! what such rules may change is noted beside the packet, in `skb->tc_index`, which neither netfilter nor routing, the
//! bridge or the VXLAN device touch; where the path ends, the packet is compared with that, and a flow whose packets
//! differ by more than a hop is not learned.
//!
//! The note is lost where somebody else's filter of a clsact qdisc classifies the packet in between. Such a packet is
//! taken for unchanged.

/// The upper four bits of a note of ours.
const OURS: u16 = 0xd000;

/// What is noted of a packet with the TOS byte or traffic class `tos` and this TTL or hop limit. Not ECN, which queues
/// may change on the way.
#[inline(always)]
pub const fn begins(tos: u8, ttl: u8) -> u16 {
    OURS | ((tos >> 2) as u16) << 6 | (ttl & 0x3f) as u16
}

/// Whether a packet that began with the note `tc_index` is at the end of the kernel's path with more changed than one
/// hop does. Without a note of ours, no.
#[inline(always)]
pub const fn is_changed(tc_index: u16, tos: u8, ttl: u8) -> bool {
    is_ours(tc_index) && tc_index != begins(tos, ttl.wrapping_add(1))
}

/// Whether the note is of our making.
#[inline(always)]
pub const fn is_ours(tc_index: u16) -> bool {
    tc_index & 0xf000 == OURS
}
