//! A packet, its headers, and the arithmetic on them.

pub mod checksum;
pub mod hash;
pub mod headers;
pub mod ipv6;

use crate::layout::AddressV6;

/// What the kernel's routing does with a packet, as far as a program can ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fib {
    /// It is for this node itself, by whichever of its addresses.
    Local,
    /// It goes on to somebody else.
    Forwarded,
    /// Neither is known: there is no route, or the interface forwards nothing.
    Unknown,
}

/// A frame that begins with its Ethernet header.
///
/// The bounds check and the access are one step, so callers need no `unsafe`. A view lives no longer than
/// the packet is left alone: whatever may move it takes `&mut self`.
pub trait Packet {
    /// Length of the frame in bytes, those not in directly readable memory included.
    fn len(&self) -> u32;

    /// Whether the frame has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `N` bytes at `offset`, or `None` when the readable part of the frame ends before them.
    fn view<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;

    /// A copy of the `N` bytes at `offset`; `None` as with [`Packet::view`].
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.view(offset).copied()
    }

    /// Replaces the `N` bytes at `offset`; `None`, and nothing changed, when the frame ends before them.
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;

    /// What routing does with an IPv4 packet that came by interface `ifindex`. Bytes alone have no routing.
    #[inline(always)]
    fn fib_v4(&self, ifindex: u32, source: [u8; 4], destination: [u8; 4]) -> Fib {
        let _ = (ifindex, source, destination);
        Fib::Unknown
    }

    /// As [`Packet::fib_v4`], with an IPv6 packet.
    #[inline(always)]
    fn fib_v6(&self, ifindex: u32, source: AddressV6, destination: AddressV6) -> Fib {
        let _ = (ifindex, source, destination);
        Fib::Unknown
    }
}

impl Packet for [u8] {
    fn len(&self) -> u32 {
        u32::try_from(<[u8]>::len(self)).unwrap_or(u32::MAX)
    }

    fn view<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.get(offset..)?.first_chunk()
    }

    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.get_mut(offset..)?.first_chunk_mut()? = bytes;
        Some(())
    }
}

/// What the kernel knows of a frame beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Interface whose hook sees it.
    pub ifindex: u32,
    /// Payload bytes of each segment of a GSO aggregate; 0 for a plain packet.
    pub gso_size: u32,
    /// The packet's mark (`skb->mark`).
    pub mark: u32,
    /// The packet's priority (`skb->priority`): a class of a qdisc, where the upper half is not 0.
    pub priority: u32,
    /// What is written beside the packet (`skb->tc_index`), by us or by whoever else classifies: see
    /// [`crate::path::trail`].
    pub tc_index: u16,
    /// A VLAN tag stands in the packet's metadata.
    pub vlan_tagged: bool,
    /// The destination MAC is another station's: the interface hears more than what is sent to it.
    pub for_other_station: bool,
    /// A socket of IPv4 or IPv6 has made it, in the namespace it comes from: nobody has forwarded it there.
    pub from_socket: bool,
}
