//! What is done with a packet, as a value: for everyone who wants to look at it.

use super::{Deliver, Direct, Encap, HandOver};
use crate::{
    family::{V4, V6},
    reason::Reason,
};

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass, not even counted: the hook only takes notes.
    Pass,
    /// Leave it, untouched, to the kernel.
    Kernel(Reason),
    /// The same, but with [`crate::mark::Marks::exempt`] in its mark, so that nobody masquerades it.
    Exempt(Reason),
    /// The same, but with [`crate::mark::Marks::flow`] in its mark: once the kernel has decapsulated it, `from_overlay`
    /// goes on with it.
    Checked(Reason),
    /// Encapsulate it in VXLAN and send it to a node.
    Encap(Encap<V4>, Reason),
    /// Send it to a node as it is.
    Route(Direct<V4>, Reason),
    /// Decapsulate it and hand it to a local pod.
    Deliver(Deliver<V4>, Reason),
    /// Hand it to a local pod as it is.
    Hand(Deliver<V4>, Reason),
    /// Encapsulate it in VXLAN over IPv6 and send it to a node.
    EncapV6(Encap<V6>, Reason),
    /// Decapsulate it from VXLAN over IPv6 and hand it to a local pod.
    DeliverV6(Deliver<V6>, Reason),
    /// Hand it to the VXLAN device, which does the rest.
    HandOver(HandOver<V6>, Reason),
    /// Send an IPv6 packet to a node as it is.
    RouteV6(Direct<V6>, Reason),
    /// Hand an IPv6 packet to a local pod as it is.
    HandV6(Deliver<V6>, Reason),
    /// Decapsulate it, and say in front of the packet which pod it is for.
    DecapsulateEarly(Deliver<V4>, Reason),
    /// Leave it to the kernel, untouched, but count it.
    Seen(Reason),
    /// Drop it.
    Drop(Reason),
}

impl Verdict {
    /// What it is counted for; `None` for one that is not counted.
    pub const fn reason(&self) -> Option<Reason> {
        match self {
            Self::Pass => None,
            Self::Kernel(reason)
            | Self::Exempt(reason)
            | Self::Checked(reason)
            | Self::Encap(_, reason)
            | Self::Route(_, reason)
            | Self::Deliver(_, reason)
            | Self::Hand(_, reason)
            | Self::EncapV6(_, reason)
            | Self::DeliverV6(_, reason)
            | Self::HandOver(_, reason)
            | Self::RouteV6(_, reason)
            | Self::HandV6(_, reason)
            | Self::DecapsulateEarly(_, reason)
            | Self::Seen(reason)
            | Self::Drop(reason) => Some(*reason),
        }
    }
}
