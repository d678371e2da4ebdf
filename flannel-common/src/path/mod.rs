//! From a packet and the tables to a verdict.
//!
//! A function per hook looks at a packet and says what is to be done; it changes nothing. What it does
//! not fully understand it leaves to the kernel, whose path is always there and always right.
//!
//! Those functions take what to do next as a closure, so that in a program the rare exits carry a
//! [`Reason`] and nothing else; [`decide`] is the same with a [`Verdict`] as the value, for everyone who
//! wants to look at one.

mod direct;
pub mod early;
pub mod ecn;
pub mod egress;
mod encap;
pub mod flow;
pub mod forged;
pub mod forwarding;
pub mod gate;
pub mod ingress;
pub mod moved;
mod overlay;
pub mod trail;
pub mod tunnel;
pub mod v6;

pub use direct::Direct;
pub use encap::{Encap, Forward, HEADERS_AT, HEADERS_LEN};
pub use flow::Note;
pub use gate::{TunnelNote, UnderlayRoute};
pub use overlay::from_overlay;

use self::{egress::segment_len, flow::Passage};
use crate::{
    family::V6,
    layout::{
        AddressV6, Config, ConfigV6, FastPath, FlowV4, FlowV6, PeerV4, PeerV6, Permit, PodPlace, SubnetV4,
        SubnetV6, Tunnel, VtepV4, VtepV6,
    },
    map,
    mark::Marks,
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ipv4},
    },
    reason::{Direction, Reason},
};

/// The maps as a decision sees them. Values are copied out.
pub trait Tables {
    /// The node's own settings; `None` until the agent has written them.
    fn config(&self) -> Option<Config>;
    /// The peer that holds a pod subnet.
    fn route_v4(&self, subnet: SubnetV4) -> Option<PeerV4>;
    /// The lease of a peer, by its public address.
    fn vtep(&self, address: [u8; 4]) -> Option<VtepV4>;
    /// Where a local pod is.
    fn pod_v4(&self, address: [u8; 4]) -> Option<PodPlace>;
    /// Whether pods' packets to `address` keep the pod's address.
    fn is_exempt_v4(&self, address: [u8; 4]) -> bool;
    /// When netfilter accepted a flow.
    fn flow_v4(&self, flow: &FlowV4) -> Option<Permit>;
    /// What the kernel's path through the tunnel to a peer does, by the peer's public address.
    fn tunnel_v4(&self, vtep: [u8; 4]) -> Option<Tunnel>;
    /// The node's own settings in the cluster's IPv6 network; `None` where there is none, or until the agent has
    /// written them.
    fn config_v6(&self) -> Option<ConfigV6>;
    /// The peer that holds a pod subnet.
    fn route_v6(&self, subnet: SubnetV6) -> Option<PeerV6>;
    /// The lease of a peer, by its public IPv6 address.
    fn vtep_v6(&self, address: AddressV6) -> Option<VtepV6>;
    /// Where a local pod is.
    fn pod_v6(&self, address: AddressV6) -> Option<PodPlace>;
    /// Whether pods' packets to `address` keep the pod's address.
    fn is_exempt_v6(&self, address: AddressV6) -> bool;
    /// When netfilter accepted a flow.
    fn flow_v6(&self, flow: &FlowV6) -> Option<Permit>;
    /// What the kernel's path through the tunnel to a peer does, by the peer's public IPv6 address.
    fn tunnel_v6(&self, vtep: AddressV6) -> Option<Tunnel>;
    /// When the pod behind veth `ifindex` was last seen to forward for others, ns on the clock of [`Permit`]; 0 is
    /// never.
    fn forwarded(&self, ifindex: u32) -> u64;
    /// The time, on the clock of [`Permit`].
    fn now(&self) -> u64;
    /// When the maps are out of date, on the same clock.
    fn held_until(&self) -> u64;
    /// The bits of packets' marks that are ours.
    fn marks(&self) -> Marks;
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass, not even counted: the hook only takes notes.
    Pass,
    /// Leave it, untouched, to the kernel.
    Kernel(Reason),
    /// The same, but with [`Marks::exempt`] in its mark, so that nobody masquerades it.
    Exempt(Reason),
    /// The same, but with [`Marks::flow`] in its mark: once the kernel has popped VXLAN, `from_overlay` goes
    /// on with it.
    Checked(Reason),
    /// Push VXLAN and send it to a peer.
    Encap(Encap, Reason),
    /// Send it to a peer as it is.
    Route(Direct, Reason),
    /// Pop VXLAN and hand it to a local pod.
    Deliver(Deliver, Reason),
    /// Push VXLAN over IPv6 and send it to a peer.
    EncapV6(v6::Encap, Reason),
    /// Pop VXLAN over IPv6 and hand it to a local pod.
    DeliverV6(v6::Deliver, Reason),
    /// Hand it to the VXLAN device, which does the rest.
    HandOver(v6::HandOver, Reason),
    /// Hand it to a local pod as it is.
    Hand(Deliver, Reason),
    /// Send an IPv6 packet to a peer as it is.
    RouteV6(v6::Direct, Reason),
    /// Hand an IPv6 packet to a local pod as it is.
    HandV6(v6::Deliver, Reason),
    /// Pop VXLAN, and say in front of the packet which pod it is for.
    PopEarly(Deliver, Reason),
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
            | Self::PopEarly(_, reason)
            | Self::Seen(reason)
            | Self::Drop(reason) => Some(*reason),
        }
    }
}

/// The hooks a decision is made at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// tc ingress, host side of a pod's veth.
    FromPod,
    /// tc egress, flannel.<vni> and flannel-v6.<vni>.
    ToOverlay,
    /// tc ingress, external interface.
    FromUnderlay,
    /// tc ingress, flannel.<vni>.
    FromOverlay,
    /// tc egress, host side of a pod's veth.
    ToPod,
    /// tc egress, external interface.
    ToUnderlay,
    /// XDP in the driver of the external interface.
    XdpUnderlay,
    /// Generic XDP on the external interface: behind the making and merging of packets, where a pop gains
    /// nothing, so that only strangers are looked for.
    XdpGeneric,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 8] = [
        Self::FromPod,
        Self::ToOverlay,
        Self::FromUnderlay,
        Self::FromOverlay,
        Self::ToPod,
        Self::ToUnderlay,
        Self::XdpUnderlay,
        Self::XdpGeneric,
    ];

    /// Whether it is one of XDP; the others are of tc.
    pub const fn is_xdp(self) -> bool {
        matches!(self, Self::XdpUnderlay | Self::XdpGeneric)
    }

    /// Name of the program at this hook, which is also the name of its pinned link.
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromPod => map::FROM_POD,
            Self::ToOverlay => map::TO_OVERLAY,
            Self::FromUnderlay => map::FROM_UNDERLAY,
            Self::FromOverlay => map::FROM_OVERLAY,
            Self::ToPod => map::TO_POD,
            Self::ToUnderlay => map::TO_UNDERLAY,
            Self::XdpUnderlay => map::XDP_UNDERLAY,
            Self::XdpGeneric => map::XDP_GENERIC,
        }
    }

    /// Which way the packets travel that it sees, from a pod's point of view.
    pub const fn direction(self) -> Direction {
        match self {
            Self::FromPod | Self::ToOverlay | Self::ToUnderlay => Direction::Egress,
            Self::FromUnderlay | Self::FromOverlay | Self::ToPod | Self::XdpUnderlay | Self::XdpGeneric => {
                Direction::Ingress
            }
        }
    }
}

/// What the program at `hook` does with `packet`.
pub fn decide(
    hook: Hook,
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
) -> Verdict {
    if hook.is_xdp()
        && let Some(reason) = early::stranger(packet, tables, arrival)
    {
        return if reason == Reason::VtepDropped { Verdict::Drop(reason) } else { Verdict::Seen(reason) };
    }
    let unchecked = hook == Hook::FromOverlay && arrival.mark & tables.marks().flow == 0;
    if (hook == Hook::FromPod || unchecked)
        && !forged::is_out_of_question(packet, tables)
        && forged::is_for_a_node(packet, tables, arrival)
    {
        return Verdict::Drop(Reason::PodVxlan);
    }
    // What `from_underlay` has not checked is the kernel's, and has been counted.
    if unchecked {
        return Verdict::Pass;
    }
    if v6::is_ipv6(packet) {
        return decide_v6(hook, packet, tables, arrival);
    }
    match hook {
        Hook::FromPod => egress::from_pod(packet, tables, arrival, Verdict::Encap, Verdict::Route),
        Hook::ToOverlay => egress::to_overlay(packet, tables, arrival, Verdict::Encap),
        Hook::FromUnderlay => {
            ingress::from_underlay(packet, tables, arrival, Verdict::Deliver, Verdict::Hand)
        }
        Hook::FromOverlay => from_overlay(packet, tables, arrival, Verdict::Hand),
        Hook::XdpUnderlay => {
            Ok(early::pop(packet, tables, arrival, Verdict::PopEarly).unwrap_or(Verdict::Pass))
        }
        Hook::ToPod | Hook::ToUnderlay | Hook::XdpGeneric => Ok(Verdict::Pass),
    }
    .unwrap_or_else(|reason| left(hook, packet, tables, reason))
}

fn decide_v6(
    hook: Hook,
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
) -> Verdict {
    match hook {
        Hook::FromPod => v6::egress::from_pod(
            packet,
            tables,
            arrival,
            Verdict::EncapV6,
            Verdict::HandOver,
            Verdict::RouteV6,
        ),
        Hook::ToOverlay if v6::egress::is_handed_over(arrival, tables.marks()) => Ok(Verdict::Pass),
        Hook::ToOverlay => v6::egress::to_overlay(packet, tables, arrival, Verdict::EncapV6),
        Hook::FromUnderlay => {
            v6::ingress::from_underlay(packet, tables, arrival, Verdict::DeliverV6, Verdict::HandV6)
        }
        Hook::FromOverlay => v6::from_overlay(packet, tables, arrival, Verdict::HandV6),
        Hook::ToPod | Hook::ToUnderlay | Hook::XdpUnderlay | Hook::XdpGeneric => Ok(Verdict::Pass),
    }
    .unwrap_or_else(|reason| left(hook, packet, tables, reason))
}

/// What the program at `hook` notes about the flow of `packet`.
pub fn note(
    hook: Hook,
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
) -> Option<Note> {
    match hook {
        Hook::ToOverlay | Hook::ToPod => flow::note(hook.direction(), packet, tables, arrival, |note| note),
        Hook::ToUnderlay => flow::note_direct(packet, tables, arrival, |note| note),
        Hook::FromPod => moved::note(packet, tables, arrival, |note| note)
            .or_else(|| forwarding::note(packet, tables, arrival, |note| note)),
        Hook::FromUnderlay | Hook::FromOverlay | Hook::XdpUnderlay | Hook::XdpGeneric => None,
    }
}

/// What the program at `hook` notes about the IPv6 flow of `packet`.
pub fn note_v6(
    hook: Hook,
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
) -> Option<Note<V6>> {
    match hook {
        Hook::ToOverlay if v6::egress::is_handed_over(arrival, tables.marks()) => None,
        Hook::ToOverlay | Hook::ToPod => {
            v6::flow::note(hook.direction(), packet, tables, arrival, |note| note)
        }
        Hook::ToUnderlay => v6::flow::note_direct(packet, tables, arrival, |note| note),
        Hook::FromPod => v6::moved::note(packet, tables, arrival, |note| note)
            .or_else(|| v6::forwarding::note(packet, tables, arrival, |note| note)),
        Hook::FromUnderlay | Hook::FromOverlay | Hook::XdpUnderlay | Hook::XdpGeneric => None,
    }
}

/// What the program at `hook` notes about the tunnel that an IPv4 packet has taken, which no program has redirected.
/// `route` is how the kernel sends what is for the packet's outer destination.
pub fn note_tunnel(
    hook: Hook,
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    route: Option<UnderlayRoute>,
) -> Option<TunnelNote> {
    match hook {
        Hook::ToUnderlay if gate::is_outer(packet, tables)? => {
            gate::note_leaving(packet, tables, arrival, |_| route, |note| note)
        }
        Hook::FromOverlay if arrival.mark & tables.marks().flow != 0 => {
            gate::note_delivered(packet, tables, |note| note)
        }
        Hook::FromUnderlay if decide(hook, packet, tables, arrival).reason() == Some(Reason::NotVxlan) => {
            gate::note_error(packet, tables, |note| note)
        }
        _ => None,
    }
}

/// As [`note_tunnel`], of an IPv6 packet.
pub fn note_tunnel_v6(
    hook: Hook,
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    route: Option<UnderlayRoute>,
) -> Option<TunnelNote<AddressV6>> {
    match hook {
        Hook::ToUnderlay if v6::gate::is_outer(packet, tables)? => {
            v6::gate::note_leaving(packet, tables, arrival, |_| route, |note| note)
        }
        Hook::FromOverlay if arrival.mark & tables.marks().flow != 0 => {
            v6::gate::note_delivered(packet, tables, |note| note)
        }
        Hook::FromUnderlay if decide(hook, packet, tables, arrival).reason() == Some(Reason::NotVxlan) => {
            v6::gate::note_error(packet, tables, |note| note)
        }
        _ => None,
    }
}

/// What becomes of a packet at `hook` that stays with the kernel for `reason`, be that decided here or by
/// the kernel's refusal to change the packet.
pub fn left(hook: Hook, packet: &(impl Packet + ?Sized), tables: &impl Tables, reason: Reason) -> Verdict {
    let is_exempt = || match v6::is_ipv6(packet) {
        true => v6::egress::is_exempt(packet, tables, reason),
        false => egress::is_exempt(packet, tables, reason),
    };
    match hook {
        Hook::FromPod if is_exempt() => Verdict::Exempt(egress::exempt_reason(reason)),
        Hook::FromUnderlay if ingress::is_checked(reason) => Verdict::Checked(reason),
        _ => Verdict::Kernel(reason),
    }
}

/// What routing does to an IP header.
pub trait Routing {
    /// EtherType of frames with such a header.
    const ETHERTYPE: u16;

    /// Writes the fields that change into the header at `offset` of `packet`; `None` when the packet ends before.
    fn write(&self, packet: &mut (impl Packet + ?Sized), offset: usize) -> Option<()>;
}

/// How to hand a packet to a pod, after its outer headers are popped if it has any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliver<F = Forward> {
    /// Where the pod is.
    pub pod: PodPlace,
    /// What routing does to the IP header that the pod gets.
    pub forward: F,
    /// Length of the inner packet, or of each segment of an aggregate, as an IP packet, bytes: what the pod's
    /// interface must take.
    pub packet_len: u32,
}

/// How to hand a packet to a pod that has no outer headers, or none any more, at the time `now`. Its IPv4 header `ip`
/// is one for an address in our pod subnet, without options.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
fn hand(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    config: &Config,
    ip: &Ipv4,
    now: u64,
) -> Result<Deliver, Reason> {
    if ip.ttl <= 1 {
        return Err(Reason::Ttl);
    }
    let pod = tables.pod_v4(ip.destination).ok_or(Reason::UnknownPod)?;
    if config.fast_path == FastPath::Flow {
        let passage = Passage { way: Direction::Ingress, ifindex: pod.ifindex, gateway: 0, now };
        flow::admit(&passage, packet, ETHERNET_LEN, tables, config, ip)?;
    }
    let packet_len = segment_len(packet, ETHERNET_LEN, arrival, ip)?;
    Ok(Deliver { pod, forward: Forward::hop(ip), packet_len })
}

/// The time, on the clock of [`Permit`], asked once for a packet.
///
/// # Errors
/// No agent has kept the maps up to date for long: nothing is done by them.
#[inline(always)]
fn check_hold(tables: &impl Tables) -> Result<u64, Reason> {
    let now = tables.now();
    if now < tables.held_until() { Ok(now) } else { Err(Reason::Lapsed) }
}

/// The peer of the longest leased prefix that holds `address`.
#[inline(always)]
fn longest_match(tables: &impl Tables, config: &Config, address: [u8; 4]) -> Option<PeerV4> {
    // Written out: a loop would carry the peer of each turn past the lookups of the next.
    let [a, b, c, d] = config.prefix_lengths;
    let at = |length: u8| match length {
        0 => None,
        length => tables.route_v4(SubnetV4::of(address, u32::from(length))),
    };
    at(a).or_else(|| at(b)).or_else(|| at(c)).or_else(|| at(d))
}
