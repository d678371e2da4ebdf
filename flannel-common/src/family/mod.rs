//! The two families of IP, whose packets the same decisions are made about.
//!
//! What is the same for both is written once, over [`Family`]; what differs is in [`V4`] and [`V6`].

mod v4;
mod v6;

use core::{fmt::Debug, hash::Hash};

use bytemuck::Pod;

pub use v4::{ForwardV4, V4};
pub use v6::{ForwardV6, V6};

use crate::{
    packet::{
        Fib, Packet,
        headers::{ETHERNET_LEN, UDP_LEN, Udp, VXLAN_LEN},
    },
    path::Encap,
    reason::Reason,
};

/// Families are these two: the layouts of maps are checked for both.
trait Sealed {}

/// A family of IP.
#[expect(private_bounds, reason = "no other crate adds a family")]
pub trait Family: Sealed + Copy + Debug + Eq + Ord + Hash + 'static {
    /// An address, as the maps have it.
    type Address: Address;
    /// Length of a prefix, bits: as wide as addresses are aligned, so that a prefix has no padding.
    type PrefixLen: Pod + Debug + Ord + Hash + From<u32> + Into<u64>;
    /// A header without options or extensions.
    type Header: IpHeader<Address = Self::Address>;
    /// What routing does to a header.
    type Forward: Forward<Self::Header>;

    /// EtherType of its frames (IEEE 802).
    const ETHERTYPE: u16;
    /// Length of a header without options or extensions, bytes.
    const IP_LEN: usize;
    /// Offset of the source address in a header.
    const SOURCE_AT: usize;
    /// Offset of the destination address in a header.
    const DESTINATION_AT: usize;
    /// What VXLAN adds to a frame, bytes: outer Ethernet, IP, UDP, VXLAN.
    const ENCAP_LEN: usize = ETHERNET_LEN + Self::IP_LEN + UDP_LEN + VXLAN_LEN;
    /// Bytes of the header that the length in it leaves out.
    const UNCOUNTED: usize;
    /// Protocol number of its ICMP (IANA).
    const PROTOCOL_ICMP: u8;
    /// Why packets are the kernel's while the agent has configured nothing for this family.
    const UNCONFIGURED: Reason;
    /// Whether only the VXLAN device can encapsulate an aggregate: the outer UDP checksum of each segment is its own.
    const DEVICE_SEGMENTS: bool;

    /// Refuses an outer packet that the kernel would drop before its VXLAN device gets it, where a packet that a program
    /// decapsulates never gets.
    ///
    /// # Errors
    /// Why it would.
    fn check_outer(ip: &Self::Header, udp: &Udp) -> Result<(), Reason>;

    /// The `skb->priority` that forwarding gives to a packet with the TOS byte or traffic class `class`.
    fn priority(class: u8) -> u32;

    /// Refuses an inner packet, whose header `ip` stands behind the frame's Ethernet header, for which no outer UDP
    /// checksum can be made.
    ///
    /// # Errors
    /// Why not.
    fn check_inner(packet: &(impl Packet + ?Sized), ip: &Self::Header) -> Result<(), Reason>;

    /// Whether `outer` is, field for field, what [`Self::write_outer`] writes around `inner`, but for hops and addresses.
    fn is_as_written(outer: &Self::Header, inner: &Self::Header) -> bool;

    /// Writes the bytes from the outer EtherType up to the inner IP header, field for field what the kernel's device
    /// writes. `id` is the IP identification, where there is one; `flow_hash` the kernel's hash of the inner flow. `None`
    /// when the packet ends before.
    fn write_outer(
        encap: &Encap<Self>,
        packet: &mut (impl Packet + ?Sized),
        id: u16,
        flow_hash: u32,
    ) -> Option<()>;

    /// Writes the bytes from the outer EtherType up to the inner IP header of a packet in UDP, field for field what a socket
    /// of the kernel's writes, but for the UDP checksum. `None` also where this family is not carried so.
    fn write_outer_udp(encap: &Encap<Self>, packet: &mut (impl Packet + ?Sized)) -> Option<()>;

    /// Whether `outer` is what [`Self::write_outer_udp`] writes, but for hops and addresses.
    fn is_as_written_udp(outer: &Self::Header) -> bool;

    /// Writes the bytes from the outer EtherType up to the inner IP header of a packet in IP, field for field what the
    /// kernel's device writes. `None` also where this family is not carried so.
    fn write_outer_ipip(encap: &Encap<Self>, packet: &mut (impl Packet + ?Sized), id: u16) -> Option<()>;

    /// Whether `outer` is what [`Self::write_outer_ipip`] writes in front of `inner`, which routing has left as it is, but for
    /// addresses.
    fn is_as_written_ipip(outer: &Self::Header, inner: &Self::Header) -> bool;

    /// Whether an ICMP error of this type says that a packet could not be delivered.
    fn is_undelivered(icmp_type: u8) -> bool;

    /// The address that a frame announces to be at its sender, and the MAC that it names for it.
    fn announced<P: Packet + ?Sized>(packet: &P) -> Option<(Self::Address, &[u8; 6])>;

    /// Where a packet ends whose header `ip` stands at `at`, by what that says.
    fn end(packet: &(impl Packet + ?Sized), at: usize, ip: &Self::Header) -> usize;

    /// What follows the IP header `ip` at `at`, in a packet that ends at `end`, as the kernel finds it: options and
    /// extension headers are looked behind.
    fn payload(packet: &(impl Packet + ?Sized), at: usize, end: usize, ip: &Self::Header) -> Payload;

    /// A hash of the flow of a packet without options or extensions, in an Ethernet frame: the same for each packet of the
    /// flow, and never 0. `None` when the packet ends before its addresses and ports.
    ///
    /// For packets whose socket has not hashed them. The kernel would take them apart once more for that
    /// (net/core/flow_dissector.c), at a price of several lookups; what is wanted here is a spread, not a secret.
    fn flow_hash(packet: &(impl Packet + ?Sized)) -> Option<u32>;

    /// What routing does with a packet that came by interface `ifindex`.
    fn fib(
        packet: &(impl Packet + ?Sized),
        ifindex: u32,
        source: Self::Address,
        destination: Self::Address,
    ) -> Fib;
}

/// An address of either family.
pub trait Address: Pod + Debug + Ord + Hash {
    /// With all bits zero but the first `prefix_len`. Lengths above the address' own count as that.
    fn masked(self, prefix_len: u64) -> Self;

    /// Whether the first `prefix_len` bits are those of `other`.
    fn shares_prefix(self, other: Self, prefix_len: u64) -> bool;

    /// The sum of its 16-bit words, big-endian, as a checksum takes them.
    fn sum(self) -> u32;

    /// Writes it at `at` into `packet`; `None` when that ends before.
    fn write(self, packet: &mut (impl Packet + ?Sized), at: usize) -> Option<()>;
}

/// An IP header.
pub trait IpHeader: Copy + Debug + Eq {
    /// An address in it.
    type Address;

    /// The header at `at`; `None` when the packet ends before its end.
    fn read(packet: &(impl Packet + ?Sized), at: usize) -> Option<Self>;

    /// Source address.
    fn source(&self) -> Self::Address;

    /// Destination address.
    fn destination(&self) -> Self::Address;

    /// What follows: a protocol, or with IPv6 an extension header.
    fn protocol(&self) -> u8;

    /// TTL or hop limit.
    fn hops(&self) -> u8;

    /// The same header with one hop less, its checksum right.
    fn one_hop_less(self) -> Self;

    /// TOS byte or traffic class: DSCP (upper six bits) and ECN (lower two).
    fn class(&self) -> u8;

    /// Length of the packet by what the header says, the header included, bytes.
    fn packet_len(&self) -> u32;

    /// Whether the version is right and, with IPv4, options are absent.
    fn is_plain(&self) -> bool;

    /// Refuses headers that need the kernel's care: options, extensions, fragments.
    ///
    /// # Errors
    /// Why they do.
    fn check(&self) -> Result<(), Reason>;

    /// Refuses a wrong checksum, if the header has one.
    ///
    /// # Errors
    /// [`Reason::HeaderChecksum`].
    fn check_sum(&self) -> Result<(), Reason>;
}

/// What routing does to an IP header: its fields as they become.
pub trait Forward<Header>: Copy + Debug + Eq {
    /// One hop further. The caller has made sure that the hops left are more than 1.
    fn hop(ip: &Header) -> Self;

    /// One hop further, with the TOS byte or traffic class that decapsulation leaves.
    fn hop_with_class(ip: &Header, class: u8) -> Self;

    /// The same, where an address becomes another as well, whose sum is larger by `addresses` ([`crate::path::Rewrite`]).
    #[must_use]
    fn translated(self, addresses: u16) -> Self;

    /// What it adds, in one's complement and big-endian, to a sum over the whole packet that is kept beside it; 0 where the
    /// header's own checksum makes up for all that changes. Of an address that becomes another, what the kernel takes away
    /// from such a sum when it is told of the checksum behind the header: as if this one had a checksum, too.
    fn sum(&self) -> u16;

    /// Writes the fields that change into the header at `offset` of `packet`; `None` when the packet ends before.
    fn write(&self, packet: &mut (impl Packet + ?Sized), offset: usize) -> Option<()>;
}

/// What follows an IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// UDP, at this offset, of a whole packet or a first fragment.
    Udp {
        /// Where its header stands.
        at: usize,
        /// Not a fragment.
        whole: bool,
    },
    /// Something else, or a later fragment.
    Other,
    /// It cannot be told.
    Hidden,
}
