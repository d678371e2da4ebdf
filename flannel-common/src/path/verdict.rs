//! What is done with a packet, as a value: for everyone who wants to look at it.

use super::{Deliver, Direct, Encap, HandOver, Switch};
use crate::{
    family::{Family, V4, V6},
    layout::PodPlace,
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
    /// Decapsulate it, and leave it to the kernel as what the VXLAN device with this index has decapsulated.
    LeaveDecapsulated(u32, Reason),
    /// Move an IPv4 packet past the host's stack.
    V4(Move<V4>, Reason),
    /// Move an IPv6 packet past the host's stack.
    V6(Move<V6>, Reason),
    /// Decapsulate it, and say in front of the packet which pod it is for.
    DecapsulateEarly(Deliver<V4>, Reason),
    /// Hand it, as it is, to another pod on the bridge of the one that has sent it.
    Switch(Switch, Reason),
    /// Leave it to the kernel, untouched, but count it.
    Seen(Reason),
    /// Drop it.
    Drop(Reason),
}

/// How a packet goes on past the host's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move<F: Family> {
    /// Encapsulate it and send it to a node.
    Encapsulate(Encap<F>),
    /// Hand it to the VXLAN device, which does the rest.
    HandOver(HandOver<F>),
    /// Send it to a node as it is.
    SendDirect(Direct<F>),
    /// Decapsulate it and hand it to a local pod.
    Decapsulate(Deliver<F>),
    /// Hand it to a local pod as it is.
    Deliver(Deliver<F>),
}

impl<F: Family> Move<F> {
    /// The pod of this node that gets it, and the length of the packet that its interface must take, bytes.
    pub const fn pod(&self) -> Option<(PodPlace, u32)> {
        match self {
            Self::Decapsulate(to) | Self::Deliver(to) => Some((to.pod, to.packet_len)),
            Self::Encapsulate(_) | Self::HandOver(_) | Self::SendDirect(_) => None,
        }
    }
}

impl Verdict {
    /// The pod of this node that gets it, and the length of the packet that its interface must take, bytes.
    pub const fn pod(&self) -> Option<(PodPlace, u32)> {
        match self {
            Self::V4(how, _) => how.pod(),
            Self::V6(how, _) => how.pod(),
            Self::DecapsulateEarly(to, _) => Some((to.pod, to.packet_len)),
            Self::Switch(to, _) => Some((to.pod, to.packet_len)),
            _ => None,
        }
    }

    /// What it is counted for; `None` for one that is not counted.
    pub const fn reason(&self) -> Option<Reason> {
        match self {
            Self::Pass => None,
            Self::Kernel(reason)
            | Self::Exempt(reason)
            | Self::Checked(reason)
            | Self::LeaveDecapsulated(_, reason)
            | Self::V4(_, reason)
            | Self::V6(_, reason)
            | Self::DecapsulateEarly(_, reason)
            | Self::Switch(_, reason)
            | Self::Seen(reason)
            | Self::Drop(reason) => Some(*reason),
        }
    }
}
