//! Whether rules change the packets of a flow.
//!
//! A packet that skips the host's stack skips the rules there, too. Whether they let it pass is learned once for the
//! flow; what they write into it (a DSCP, ECN, a TTL, other TCP sequence numbers) they would have to write into each.
//! So where the kernel path begins, what such rules may change is noted beside the packet, in `skb->tc_index`, which
//! neither netfilter nor routing, the bridge or the VXLAN device touch; where the path ends, the packet is compared
//! with that, and a flow whose packets differ by more than a hop is not learned.
//!
//! The note is lost where somebody else's filter of a clsact qdisc classifies the packet in between, and where the packet
//! visits another pod on its way. From such a packet nothing is learned.

/// The upper four bits of a note of ours.
const OURS: u16 = 0xd000;
/// The same of a packet of a pod to outside of the cluster's network, which comes to where flows are learned only if
/// netfilter translates it.
const TRANSLATED: u16 = 0xc000;

/// What rules may change of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// TOS byte or traffic class. Its two bits of ECN count on the way out alone: on the way in, decapsulation itself sets
    /// them where the tunnel was congested.
    pub class: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// Sequence and acknowledgment numbers of TCP; none for UDP. Connection tracking translates them for SYNPROXY, and
    /// where a helper has changed a length.
    pub numbers: [u32; 2],
}

impl Header {
    /// Twelve bits. Any other TOS byte, or TTL, gives others; another number does so in all but one of 4096 cases.
    const fn folded(self) -> u16 {
        let [sequence, acknowledgment] = self.numbers;
        // The golden ratio, which spreads small differences most evenly, and odd constants like it.
        let sum = (self.class as u32)
            .wrapping_mul(0x9e37_79b1)
            .wrapping_add((self.hops as u32).wrapping_mul(0x85eb_ca77))
            .wrapping_add(sequence.wrapping_mul(0xc2b2_ae3d))
            .wrapping_add(acknowledgment.wrapping_mul(0x27d4_eb2f));
        (sum >> 20) as u16
    }
}

/// What is noted beside a packet with this header.
#[inline(always)]
pub const fn begins(header: Header) -> u16 {
    OURS | header.folded()
}

/// The same of a packet to outside of the cluster's network.
#[inline(always)]
pub const fn begins_translated(header: Header) -> u16 {
    TRANSLATED | header.folded()
}

/// Whether the note is one of [`begins_translated`].
#[inline(always)]
pub const fn is_translated(tc_index: u16) -> bool {
    tc_index & 0xf000 == TRANSLATED
}

/// Whether a packet that began with the note `tc_index` is at the end of the kernel path with more changed than one
/// hop does. Without a note of ours, no.
#[inline(always)]
pub const fn is_changed(tc_index: u16, header: Header) -> bool {
    let Header { class, hops, numbers } = header;
    differs(tc_index, Header { class, hops: hops.wrapping_add(1), numbers })
}

/// The same of a packet that was not routed: whether anything has changed.
#[inline(always)]
pub const fn differs(tc_index: u16, header: Header) -> bool {
    is_ours(tc_index) && tc_index & 0xfff != header.folded()
}

/// Whether the note is of our making.
#[inline(always)]
pub const fn is_ours(tc_index: u16) -> bool {
    tc_index & 0xe000 == TRANSLATED
}
