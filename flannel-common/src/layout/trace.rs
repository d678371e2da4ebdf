//! What the traced programs are told, and tell. Of no pinned map: they are there only while somebody looks.

use bytemuck::{Pod, Zeroable};

/// Bytes of a frame that are kept: as far as the ports of a packet in VXLAN over IPv6.
pub const TRACE_DATA: usize = 160;
/// Reasons that a record has room for; one program counts a packet for three at most.
pub const TRACE_REASONS: usize = 8;
/// What [`TraceKey::reason`] is of a packet that is let pass uncounted.
pub const NO_REASON: u32 = u32::MAX;

/// [`TraceFilter::mode`]: nothing is written down.
pub const TRACE_OFF: u32 = 0;
/// [`TraceFilter::mode`]: each packet is a [`TraceRecord`] in the ring.
pub const TRACE_RECORDS: u32 = 1;
/// [`TraceFilter::mode`]: packets are added up by [`TraceKey`].
pub const TRACE_TOTALS: u32 = 2;

/// One end of packets: an address whose first bits matter. As bytes in network order, an IPv4 address in the first four;
/// the two words are for the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceEnd {
    /// The address; zero where the mask is.
    pub address: [u64; 2],
    /// Bits of it that must be the packet's; none for every address.
    pub mask: [u64; 2],
}

impl TraceEnd {
    /// Whether an address is this end's.
    #[inline(always)]
    pub const fn holds(&self, address: &[u64; 2]) -> bool {
        (address[0] ^ self.address[0]) & self.mask[0] == 0
            && (address[1] ^ self.address[1]) & self.mask[1] == 0
    }
}

/// A set of reasons, by number: a bit each, from the lowest bit of the first word on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReasonBits([u64; 2]);

impl ReasonBits {
    /// Also the reason of this number, 0 to 127.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, reason: u8) -> Self {
        let Self([low, high]) = self;
        let bit = 1 << (reason & 63);
        if reason & 64 == 0 { Self([low | bit, high]) } else { Self([low, high | bit]) }
    }

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0[0] | self.0[1] == 0
    }

    /// Whether a reason is in both.
    #[inline(always)]
    pub const fn meets(self, other: Self) -> bool {
        (self.0[0] & other.0[0]) | (self.0[1] & other.0[1]) != 0
    }
}

/// The one value of `trace_filter`: which packets are wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceFilter {
    /// One end, and the other, whichever sends.
    pub ends: [TraceEnd; 2],
    /// Reasons of which a packet must be counted for one; none for all.
    pub reasons: ReasonBits,
    /// What is done with them.
    pub mode: u32,
    /// 4 or 6; 0 for both.
    pub family: u32,
    /// Protocol (IANA); 0 for all.
    pub protocol: u32,
    /// A port of either end, host order; 0 for all.
    pub port: u32,
    /// Hooks, a bit each in the order of [`crate::path::Hook::ALL`].
    pub hooks: u32,
    /// UDP port of VXLAN, host order, inside of which packets are looked at; 0 for none.
    pub vxlan_port: u32,
    /// One of so many packets; 0 and 1 for all.
    pub every: u32,
    /// So many records a second on each CPU at most; 0 for no limit.
    pub rate: u32,
}

/// What packets are told apart by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct TraceKey {
    /// Source, as in [`TraceEnd::address`]: of the inner packet, where there is one.
    pub source: [u64; 2],
    /// Destination.
    pub destination: [u64; 2],
    /// Which hook, by its place in [`crate::path::Hook::ALL`].
    pub hook: u32,
    /// What it is counted for; [`NO_REASON`] for nothing.
    pub reason: u32,
    /// 4, 6, or 0 for no IP packet.
    pub family: u32,
    /// Protocol (IANA).
    pub protocol: u32,
}

/// A packet at a hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceRecord {
    /// When, ns of CLOCK_MONOTONIC.
    pub time: u64,
    /// What it is.
    pub key: TraceKey,
    /// Ports of TCP or UDP, host order: source and destination.
    pub ports: [u16; 2],
    /// Length of the frame, bytes.
    pub len: u32,
    /// Packets on the wire.
    pub segments: u32,
    /// Payload bytes of a segment of an aggregate; 0 for a plain packet.
    pub gso_size: u32,
    /// Its mark when it came.
    pub mark: u32,
    /// Its mark when it went on.
    pub mark_after: u32,
    /// The interface.
    pub ifindex: u32,
    /// What the program answered: an action of tc or XDP.
    pub action: i32,
    /// It was in VXLAN.
    pub tunnelled: u32,
    /// It is wanted, and the program still runs.
    pub live: u32,
    /// Bytes in `data`.
    pub captured: u32,
    /// How many of `reasons` there are.
    pub counted: u32,
    /// The CPU.
    pub cpu: u32,
    /// What it is counted for, notes first, in order.
    pub reasons: [u8; TRACE_REASONS],
    /// Always zero.
    pub reserved: u32,
    /// The frame as it came, in pieces.
    pub data: [[u8; 32]; TRACE_DATA / 32],
}

/// The value of `trace_state`, one for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceState {
    /// The second that `sent` is of, of CLOCK_MONOTONIC.
    pub second: u64,
    /// Records in it.
    pub sent: u32,
    /// Packets that fit the filter, modulo its `every`.
    pub seen: u32,
    /// Records that were not written for the rate's sake.
    pub limited: u64,
    /// Records for which the ring had no room.
    pub lost: u64,
}

super::assert_layout!(TraceEnd, 32, 8);
super::assert_layout!(TraceFilter, 112, 8);
super::assert_layout!(TraceKey, 48, 8);
super::assert_layout!(TraceRecord, 280, 8);
super::assert_layout!(TraceState, 32, 8);
