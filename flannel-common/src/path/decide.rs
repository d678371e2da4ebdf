//! What the programs do, written down instead of done.

use core::cell::Cell;

use super::{
    Act, Deliver, Direct, Encap, HandOver, Hook, Note, Rewrite, Tables, TcPacket, TunnelNote, UnderlayRoute,
    Verdict, XdpFrame, exempt, from_overlay, from_pod, from_underlay, to_overlay, to_pod, to_underlay, xdp,
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
    /// What is noted about its flow or its pod.
    pub note: Option<Note<V4>>,
    /// The same of IPv6.
    pub note_v6: Option<Note<V6>>,
    /// How it is translated, if it is.
    pub rewrite: Option<Rewrite<V4>>,
    /// The same of IPv6.
    pub rewrite_v6: Option<Rewrite<V6>>,
    /// What is noted about the tunnel it has taken.
    pub tunnel: Option<TunnelNote<V4>>,
    /// The same of IPv6.
    pub tunnel_v6: Option<TunnelNote<V6>>,
    /// The `skb->priority` that it gets.
    pub priority: Option<u32>,
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
    let marks = tables.marks();
    let seen = &Seen {
        packet,
        arrival,
        marks,
        route,
        marked: Cell::new(0),
        note: Cell::new(None),
        note_v6: Cell::new(None),
        rewrite: Cell::new(None),
        rewrite_v6: Cell::new(None),
        tunnel: Cell::new(None),
        tunnel_v6: Cell::new(None),
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
    Decision {
        verdict,
        note: seen.note.get(),
        note_v6: seen.note_v6.get(),
        rewrite: seen.rewrite.get(),
        rewrite_v6: seen.rewrite_v6.get(),
        tunnel: seen.tunnel.get(),
        tunnel_v6: seen.tunnel_v6.get(),
        priority: seen.priority.get(),
    }
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
    note: Cell<Option<Note<V4>>>,
    note_v6: Cell<Option<Note<V6>>>,
    rewrite: Cell<Option<Rewrite<V4>>>,
    rewrite_v6: Cell<Option<Rewrite<V6>>>,
    tunnel: Cell<Option<TunnelNote<V4>>>,
    tunnel_v6: Cell<Option<TunnelNote<V6>>>,
    priority: Cell<Option<u32>>,
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

/// What of a family is written down.
macro_rules! act {
    ($family:ident, $note:ident, $rewrite:ident, $tunnel:ident, $encap:path, $hand_over:expr, $direct:path, $decapsulate:path, $deliver:path) => {
        impl<P: Packet + ?Sized> Act<$family> for &Seen<'_, P> {
            fn write_down(&self, note: &Note<$family>) {
                self.$note.set(Some(*note));
            }

            fn untranslate(&self, flow: &Flow<$family>, _is_broken_off: bool) {
                self.$note.set(Some(Note::Untranslate(*flow)));
            }

            fn write_down_tunnel(&self, note: &TunnelNote<$family>) {
                self.$tunnel.set(Some(*note));
            }

            fn underlay_route(
                &self,
                _: <$family as Family>::Address,
                _: <$family as Family>::Address,
            ) -> Option<UnderlayRoute> {
                self.route
            }

            fn encapsulate(
                self,
                encap: &Encap<$family>,
                rewrite: Option<&Rewrite<$family>>,
                reason: Reason,
            ) -> Result<Verdict, Reason> {
                self.$rewrite.set(rewrite.copied());
                Ok($encap(*encap, reason))
            }

            fn hand_over(
                self,
                to: &HandOver<$family>,
                rewrite: Option<&Rewrite<$family>>,
                reason: Reason,
            ) -> Result<Verdict, Reason> {
                self.$rewrite.set(rewrite.copied());
                $hand_over(*to, reason)
            }

            fn send_direct(
                self,
                direct: &Direct<$family>,
                rewrite: Option<&Rewrite<$family>>,
                reason: Reason,
            ) -> Result<Verdict, Reason> {
                self.$rewrite.set(rewrite.copied());
                Ok($direct(*direct, reason))
            }

            fn decapsulate(
                self,
                deliver: &Deliver<$family>,
                rewrite: Option<&Rewrite<$family>>,
                reason: Reason,
            ) -> Result<Verdict, Reason> {
                self.$rewrite.set(rewrite.copied());
                Ok($decapsulate(*deliver, reason))
            }

            fn deliver(
                self,
                deliver: &Deliver<$family>,
                rewrite: Option<&Rewrite<$family>>,
                reason: Reason,
            ) -> Result<Verdict, Reason> {
                self.$rewrite.set(rewrite.copied());
                Ok($deliver(*deliver, reason))
            }
        }
    };
}

act!(
    V4,
    note,
    rewrite,
    tunnel,
    Verdict::Encap,
    // The device need not segment IPv4.
    |_, _| Err(Reason::Refused),
    Verdict::Route,
    Verdict::Deliver,
    Verdict::Hand
);
act!(
    V6,
    note_v6,
    rewrite_v6,
    tunnel_v6,
    Verdict::EncapV6,
    |to, reason| Ok(Verdict::HandOver(to, reason)),
    Verdict::RouteV6,
    Verdict::DeliverV6,
    Verdict::HandV6
);

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
