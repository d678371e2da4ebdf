//! Traffic by reason.

use bytemuck::{Pod, Zeroable};

/// Value of `counters`, one per CPU and [`crate::reason::slot`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counter {
    /// Packets as on the wire: a GSO aggregate counts its segments.
    pub packets: u64,
    /// Bytes of those frames as the program saw them, Ethernet header included.
    pub bytes: u64,
}

super::assert_layout!(Counter, 16, 8);
