//! What the programs do, written down instead of done.

use core::cell::Cell;

use super::{
    Act, Deliver, Direct, Encap, HandOver, Hook, Move, Note, Rewrite, Switch, Tables, TcPacket, TunnelNote,
    UnderlayRoute, Verdict, XdpFrame, exempt, from_overlay, from_pod, from_underlay, to_overlay, to_pod,
    to_underlay, xdp,
};
use crate::{
    family::{Family, V4, V6},
    layout::{AddressV6, Flow, PodPlace},
    map::REDIRECTED,
    mark::Marks,
    packet::{Arrival, Fib, Packet, headers::Ethernet, ipv6::ETHERTYPE_IPV6},
    reason::{Direction, Reason},
};

/// What the program at a hook does with a packet, and what it writes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// What is written down of IPv4.
    pub v4: Written<V4>,
    /// The same of IPv6.
    pub v6: Written<V6>,
    /// The `skb->priority` that it gets.
    pub priority: Option<u32>,
}

/// What is written down about a packet of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written<F: Family> {
    /// What is noted about its flow or its pod.
    pub note: Option<Note<F>>,
    /// How it is translated, if it is.
    pub rewrite: Option<Rewrite<F>>,
    /// What is noted about the tunnel it has taken.
    pub tunnel: Option<TunnelNote<F>>,
}

/// All that the program at `hook` does with `packet`. `route` is how the kernel sends what is for the packet's outer
/// destination.
pub fn decide_all(
    hook: Hook,
    packet: &(impl Packet + ?Sized),
    tables: &(impl Tables<V4> + Tables<V6>),
    arrival: &Arrival,
    route: Option<UnderlayRoute>,
) -> Decision {
    let seen = &Seen {
        packet,
        arrival,
        marks: tables.marks(),
        route,
        marked: Cell::new(0),
        v4: Pen::default(),
        v6: Pen::default(),
        priority: Cell::new(None),
    };
    let verdict = match hook {
        Hook::FromPod => from_pod::run(seen, tables),
        Hook::ToOverlay => to_overlay::run(seen, tables),
        Hook::FromUnderlay => from_underlay::run(seen, tables),
        Hook::FromOverlay => from_overlay::run(seen, tables),
        Hook::ToPod => to_pod::run(seen, tables),
        Hook::ToUnderlay => to_underlay::run(seen, tables),
        Hook::XdpUnderlay => xdp::underlay(seen, tables),
        Hook::XdpGeneric => xdp::generic(seen, tables),
    };
    Decision { verdict, v4: seen.v4.written(), v6: seen.v6.written(), priority: seen.priority.get() }
}

/// What the program at `hook` does with `packet`.
pub fn decide(
    hook: Hook,
    packet: &(impl Packet + ?Sized),
    tables: &(impl Tables<V4> + Tables<V6>),
    arrival: &Arrival,
) -> Verdict {
    decide_all(hook, packet, tables, arrival, None).verdict
}

/// What becomes of a packet at `hook` that stays with the kernel for `reason`, by the kernel's refusal to change it.
pub fn left(
    hook: Hook,
    packet: &(impl Packet + ?Sized),
    tables: &(impl Tables<V4> + Tables<V6>),
    reason: Reason,
) -> Verdict {
    let is_exempt = || match is_ipv6(packet) {
        true => exempt::is_exempt::<V6>(packet, tables, reason),
        false => exempt::is_exempt::<V4>(packet, tables, reason),
    };
    match hook {
        Hook::FromPod if is_exempt() => Verdict::Exempt(exempt::counted_for(reason)),
        Hook::FromUnderlay if from_underlay::is_checked(reason) => Verdict::Checked(reason),
        _ => Verdict::Kernel(reason),
    }
}

fn is_ipv6(packet: &(impl Packet + ?Sized)) -> bool {
    packet.view(0).is_some_and(|bytes| Ethernet::parse(bytes).ethertype == ETHERTYPE_IPV6)
}

/// A packet to which nothing is done.
struct Seen<'a, P: ?Sized> {
    packet: &'a P,
    arrival: &'a Arrival,
    marks: Marks,
    route: Option<UnderlayRoute>,
    /// Bits set in its mark.
    marked: Cell<u32>,
    v4: Pen<V4>,
    v6: Pen<V6>,
    priority: Cell<Option<u32>>,
}

/// Where a packet's [`Written`] is collected.
struct Pen<F: Family> {
    note: Cell<Option<Note<F>>>,
    rewrite: Cell<Option<Rewrite<F>>>,
    tunnel: Cell<Option<TunnelNote<F>>>,
}

impl<F: Family> Default for Pen<F> {
    fn default() -> Self {
        Self { note: Cell::new(None), rewrite: Cell::new(None), tunnel: Cell::new(None) }
    }
}

impl<F: Family> Pen<F> {
    fn written(&self) -> Written<F> {
        Written { note: self.note.get(), rewrite: self.rewrite.get(), tunnel: self.tunnel.get() }
    }
}

/// A family as a [`Decision`] holds it.
trait Decided: Family {
    fn pen<'a, P: ?Sized>(seen: &'a Seen<'_, P>) -> &'a Pen<Self>;

    fn verdict(how: Move<Self>, reason: Reason) -> Verdict;
}

impl Decided for V4 {
    fn pen<'a, P: ?Sized>(seen: &'a Seen<'_, P>) -> &'a Pen<Self> {
        &seen.v4
    }

    fn verdict(how: Move<Self>, reason: Reason) -> Verdict {
        Verdict::V4(how, reason)
    }
}

impl Decided for V6 {
    fn pen<'a, P: ?Sized>(seen: &'a Seen<'_, P>) -> &'a Pen<Self> {
        &seen.v6
    }

    fn verdict(how: Move<Self>, reason: Reason) -> Verdict {
        Verdict::V6(how, reason)
    }
}

impl<P: ?Sized> Seen<'_, P> {
    fn moved<F: Decided>(
        &self,
        how: Move<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Verdict, Reason> {
        F::pen(self).rewrite.set(rewrite.copied());
        Ok(F::verdict(how, reason))
    }
}

impl<P: Packet + ?Sized> Packet for &Seen<'_, P> {
    fn len(&self) -> u32 {
        self.packet.len()
    }

    fn view<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.packet.view(offset)
    }

    fn write<const N: usize>(&mut self, _: usize, _: [u8; N]) -> Option<()> {
        None
    }

    fn fib_v4(&self, ifindex: u32, source: [u8; 4], destination: [u8; 4]) -> Fib {
        self.packet.fib_v4(ifindex, source, destination)
    }

    fn fib_v6(&self, ifindex: u32, source: AddressV6, destination: AddressV6) -> Fib {
        self.packet.fib_v6(ifindex, source, destination)
    }
}

impl<P: Packet + ?Sized> TcPacket for &Seen<'_, P> {
    type Size = ();
    type Done = Verdict;
    type Answer = Verdict;

    fn arrival(&self) -> Arrival {
        *self.arrival
    }

    fn is_ipv6(&self) -> bool {
        is_ipv6(self.packet)
    }

    fn make_readable(&self, _: usize) {}

    fn size(&self) {}

    fn mark(&self, bits: u32) {
        self.marked.set(self.marked.get() | bits);
    }

    fn unmark(&self, _: u32) {}

    fn prioritize(&self, priority: u32) {
        self.priority.set(Some(priority));
    }

    fn note_beside(&self, _: u16) {}

    fn take_redirected(&self) -> bool {
        self.arrival.tc_index == REDIRECTED
    }

    fn decapsulated_for(&self) -> Option<PodPlace> {
        None
    }

    fn hand_on(self, _: &PodPlace) -> Result<Verdict, Reason> {
        Err(Reason::NotVxlan)
    }

    fn switch(self, to: &Switch) -> Result<Verdict, Reason> {
        Ok(Verdict::Switch(*to, Reason::SwitchPod))
    }

    fn count(&self, _: Direction, _: Reason, (): ()) {}

    fn pass(self) -> Verdict {
        Verdict::Pass
    }

    fn drop(self, _: Direction, reason: Reason) -> Verdict {
        Verdict::Drop(reason)
    }

    fn conclude(self, _: Direction, (): (), verdict: Result<Verdict, Reason>) -> Verdict {
        verdict.unwrap_or_else(|reason| match self.marked.get() {
            0 => Verdict::Kernel(reason),
            bits if bits == self.marks.exempt => Verdict::Exempt(reason),
            _ => Verdict::Checked(reason),
        })
    }
}

impl<F: Decided, P: Packet + ?Sized> Act<F> for &Seen<'_, P> {
    fn write_down(&self, note: &Note<F>) {
        F::pen(self).note.set(Some(*note));
    }

    fn untranslate(&self, flow: &Flow<F>, _is_broken_off: bool) {
        F::pen(self).note.set(Some(Note::Untranslate(*flow)));
    }

    fn write_down_tunnel(&self, note: &TunnelNote<F>) {
        F::pen(self).tunnel.set(Some(*note));
    }

    fn underlay_route(&self, _: F::Address, _: F::Address) -> Option<UnderlayRoute> {
        self.route
    }

    fn encapsulate(
        self,
        encap: &Encap<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Verdict, Reason> {
        self.moved(Move::Encapsulate(*encap), rewrite, reason)
    }

    fn hand_over(
        self,
        to: &HandOver<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Verdict, Reason> {
        // Of other families the device need not segment anything: the program refuses.
        if !F::DEVICE_SEGMENTS {
            return Err(Reason::Refused);
        }
        self.moved(Move::HandOver(*to), rewrite, reason)
    }

    fn send_direct(
        self,
        direct: &Direct<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Verdict, Reason> {
        self.moved(Move::SendDirect(*direct), rewrite, reason)
    }

    fn decapsulate(
        self,
        deliver: &Deliver<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Verdict, Reason> {
        self.moved(Move::Decapsulate(*deliver), rewrite, reason)
    }

    fn leave_decapsulated(self, device: u32, reason: Reason) -> Result<Verdict, Reason> {
        Ok(Verdict::LeaveDecapsulated(device, reason))
    }

    fn deliver(
        self,
        deliver: &Deliver<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Verdict, Reason> {
        self.moved(Move::Deliver(*deliver), rewrite, reason)
    }
}

impl<P: Packet + ?Sized> XdpFrame for &Seen<'_, P> {
    type Answer = Verdict;

    fn arrival(&self) -> Arrival {
        *self.arrival
    }

    fn pass(self) -> Verdict {
        Verdict::Pass
    }

    fn count(self, reason: Reason) -> Verdict {
        Verdict::Seen(reason)
    }

    fn drop(self, reason: Reason) -> Verdict {
        Verdict::Drop(reason)
    }

    fn decapsulate(self, deliver: &Deliver<V4>, reason: Reason) -> Verdict {
        Verdict::DecapsulateEarly(*deliver, reason)
    }
}
