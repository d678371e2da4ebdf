//! What may be done to a packet at a hook of tc.
//!
//! What happens at a hook is written once, over [`Act`]: the programs do it to the kernel's packet, and
//! [`super::decide`] writes down what they would do.

use super::{Deliver, Direct, Encap, HandOver, Note, Rewrite, Switch, TunnelNote, UnderlayRoute};
use crate::{
    family::Family,
    layout::{Flow, PodPlace},
    packet::{Arrival, Packet},
    reason::{Direction, Reason},
};

/// A packet at a hook of tc. A copy is the same packet.
pub trait TcPacket: Packet + Copy {
    /// How much a packet counts for.
    type Size: Copy;
    /// What has been done with a packet.
    type Done;
    /// What the hook answers.
    type Answer;

    /// What the kernel knows of it beside its bytes.
    fn arrival(&self) -> Arrival;
    /// Whether it is an IPv6 packet.
    fn is_ipv6(&self) -> bool;
    /// Makes its first `len` bytes readable, or all if it has fewer.
    fn make_readable(&self, len: usize);
    /// How much it counts for.
    fn size(&self) -> Self::Size;
    /// Sets `bits` in its mark; the others stay.
    fn mark(&self, bits: u32);
    /// Clears `bits` in its mark; the others stay.
    fn unmark(&self, bits: u32);
    /// Gives it this `skb->priority`.
    fn prioritize(&self, priority: u32);
    /// Writes `note` beside the packet: see [`super::trail`].
    fn note_beside(&self, note: u16);
    /// Whether one of our programs has redirected it here. It is not so for whoever sees it next.
    fn take_redirected(&self) -> bool;
    /// The pod for which XDP has decapsulated it.
    fn decapsulated_for(&self) -> Option<PodPlace>;
    /// Hands it on to `pod`, for which XDP has decapsulated it.
    ///
    /// # Errors
    /// Why it is the kernel's.
    fn hand_on(self, pod: &PodPlace) -> Result<Self::Done, Reason>;
    /// Hands it, as it is, to another pod on the bridge of the one that has sent it.
    ///
    /// # Errors
    /// The pod's interface is gone or too small.
    fn switch(self, to: &Switch) -> Result<Self::Done, Reason>;

    /// Counts a packet of `size` for `reason`.
    fn count(&self, direction: Direction, reason: Reason, size: Self::Size);
    /// Lets it pass, not counted.
    fn pass(self) -> Self::Answer;
    /// Drops it.
    fn drop(self, direction: Direction, reason: Reason) -> Self::Answer;
    /// Counts it, in the size it came with. What an error is the reason of goes to the kernel as it is.
    fn conclude(
        self,
        direction: Direction,
        size: Self::Size,
        verdict: Result<Self::Done, Reason>,
    ) -> Self::Answer;
}

/// What may be done to a packet of a family, which is translated on the way where there is how. An error is why it was left
/// as it was.
pub trait Act<F: Family>: TcPacket {
    /// Writes down what is noted.
    fn write_down(&self, note: &Note<F>);
    /// Writes down [`Note::Untranslate`] of `flow`: by itself, for in a note the flow would stand on a program's stack
    /// twice. The agent is told of one that `is_broken_off`, as by [`Note::BrokenOff`].
    fn untranslate(&self, flow: &Flow<F>, is_broken_off: bool);
    /// Writes down what is noted about a tunnel.
    fn write_down_tunnel(&self, note: &TunnelNote<F>);
    /// How the kernel's route sends what is from `source` to `destination` out of this interface.
    fn underlay_route(&self, source: F::Address, destination: F::Address) -> Option<UnderlayRoute>;
    /// Encapsulates it and sends it to the node.
    ///
    /// # Errors
    /// The kernel refused.
    fn encapsulate(
        self,
        encap: &Encap<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Self::Done, Reason>;
    /// Hands it to the VXLAN device, addressed to the node.
    ///
    /// # Errors
    /// The device is gone.
    fn hand_over(
        self,
        to: &HandOver<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Self::Done, Reason>;
    /// Sends it to the node as it is.
    ///
    /// # Errors
    /// The kernel refused.
    fn send_direct(
        self,
        direct: &Direct<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Self::Done, Reason>;
    /// Decapsulates it and hands it to the pod.
    ///
    /// # Errors
    /// The kernel refused, or the pod's interface is gone or too small.
    fn decapsulate(
        self,
        deliver: &Deliver<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Self::Done, Reason>;
    /// Decapsulates it, and leaves it to the kernel as what the VXLAN device with this index has decapsulated.
    ///
    /// # Errors
    /// `reason`: the kernel refused, and gets it as it came.
    fn leave_decapsulated(self, ifindex: u32, reason: Reason) -> Result<Self::Done, Reason>;
    /// Hands it to the pod as it is.
    ///
    /// # Errors
    /// The pod's interface is gone or too small.
    fn deliver(
        self,
        deliver: &Deliver<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Self::Done, Reason>;
}

/// Writes down and counts what is noted about a packet of `size`.
#[inline(always)]
pub(super) fn noted<F: Family, P: Act<F>>(packet: P, direction: Direction, note: &Note<F>, size: P::Size) {
    let reason = note.reason();
    packet.write_down(note);
    packet.count(direction, reason, size);
}

/// The same of what is noted about a tunnel.
#[inline(always)]
pub(super) fn noted_tunnel<F: Family, P: Act<F>>(
    packet: P,
    direction: Direction,
    note: &TunnelNote<F>,
    size: P::Size,
) {
    packet.write_down_tunnel(note);
    packet.count(direction, note.reason, size);
}
