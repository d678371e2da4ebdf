//! Between two pods on one bridge of this node.
//!
//! A bridge hands on what a pod sends to another pod's MAC, as it is. Where it lets netfilter see that
//! (`net.bridge.bridge-nf-call-iptables`), netfilter is the judge of these flows as of all others ([`super::flow`]):
//! [`note`] writes down where a packet reaches its pod that netfilter has accepted it, and [`decide`] lets the next ones
//! skip bridge and netfilter. A frame for the gateway's MAC is routed, and the kernel's.
//!
//! There is one entry for both ends: the flow as the pod knows it whose veth has the lower index. Its [`Permit::ifindex`]
//! is that veth, and its [`Permit::gateway`] the index of the other one: neither pod inherits anything with its address.

use super::{
    Act, Note, Tables,
    acceptance::{NEVER, lifetime, renewed},
    act,
    egress::segment_len,
    fields,
    gate::{self, Passage},
    tables::{Clock, check_hold},
    trail,
    transport::Transport,
};
use crate::{
    family::{Family, IpHeader as _},
    layout::{Config, FastPath, PodPlace},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet},
    },
    reason::{Direction, Reason},
};

/// How to hand a packet to another pod on the same bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Where that pod is.
    pub pod: PodPlace,
    /// Length of the packet, or of each segment of an aggregate, as an IP packet, bytes: what the pod's interface must
    /// take.
    pub packet_len: u32,
}

/// The two veths of a flow.
struct Veths {
    /// Which way a packet travels that goes from one to the other, for the pod behind the lower one.
    way: Direction,
    lower: u32,
    higher: u32,
}

impl Veths {
    /// `None` for a pod that sends to itself.
    #[inline(always)]
    const fn of(from: u32, to: u32) -> Option<Self> {
        if from < to {
            return Some(Self { way: Direction::Egress, lower: from, higher: to });
        }
        if from > to { Some(Self { way: Direction::Ingress, lower: to, higher: from }) } else { None }
    }
}

/// At tc ingress on the host side of a pod's veth: `switch` says what to do with a packet for a pod of this node.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub(super) fn decide<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    config: &Config<F>,
    (ethernet, ip): (&Ethernet, &F::Header),
    switch: impl FnOnce(Switch) -> R,
) -> Result<R, Reason> {
    if config.fast_path != FastPath::Flow {
        return Err(Reason::NoRoute);
    }
    let pod = tables.pod(ip.destination()).ok_or(Reason::NoRoute)?;
    if !ethernet.is_to(&pod.mac) {
        return Err(Reason::NoRoute);
    }
    let Veths { way, lower, higher } = Veths::of(arrival.ifindex, pod.ifindex).ok_or(Reason::NoRoute)?;
    let clock = check_hold(tables)?;
    let transport = Transport::at(packet, ETHERNET_LEN + F::IP_LEN, ip.protocol())?;
    let flow = transport.flow::<F>(way, ip);
    let fields = fields::of(ip.class(), ip.hops());
    let passage = Passage { way, ifindex: lower, gateway: Some(higher), fields, clock };
    if let Err(refusal) = gate::admit(&passage, &transport, &flow, tables, config) {
        // The address must be this veth's own, or there is nothing to learn from the packet. A flow is written down with
        // both veths, so for one that is admitted there is nothing to look up.
        let source = tables.pod(ip.source()).ok_or(Reason::UnknownPod)?;
        return Err(if source.ifindex == arrival.ifindex { refusal } else { Reason::Spoofed });
    }
    ip.check_sum()?;
    let packet_len = segment_len::<F>(packet, ETHERNET_LEN, arrival, ip)?;
    if packet_len > pod.mtu {
        return Err(Reason::TooBig);
    }
    Ok(switch(Switch { pod, packet_len }))
}

/// At tc egress on the host side of a pod's veth: writes down what a packet of `size` from another pod of this node says
/// about its flow. `None` when there is nothing.
///
/// It counts only if it has come as the bridge brings it, from MAC to MAC, and straight from the other pod's veth, where
/// its trail was noted beside it. A reset counts from wherever it comes: connection tracking takes it for the pod's.
#[inline(always)]
pub(super) fn note<F: Family, P: Act<F>>(
    packet: P,
    tables: &impl Tables<F>,
    arrival: &Arrival,
    config: &Config<F>,
    ip: &F::Header,
    size: P::Size,
) -> Option<()> {
    let (from, to) = (tables.pod(ip.source())?, tables.pod(ip.destination())?);
    let frame = Ethernet::parse(packet.view(0)?);
    // Not another station's, to which a bridge has flooded it.
    if to.ifindex != arrival.ifindex || !frame.is_to(&to.mac) {
        return None;
    }
    let Veths { way, lower, higher } = Veths::of(from.ifindex, to.ifindex)?;
    let transport = Transport::at(&packet, ETHERNET_LEN + F::IP_LEN, ip.protocol()).ok()?;
    if !transport.resets() && !frame.same_stations(&Ethernet::new(to.mac, from.mac, F::ETHERTYPE)) {
        return None;
    }
    let flow = transport.flow::<F>(way, ip);
    let known = tables.flow(&flow).unwrap_or(NEVER);
    let is_straight = trail::is_ours(arrival.tc_index);
    if arrival.mark & tables.marks().flow == 0 || transport.begins_or_ends() {
        if known.ifindex != NEVER.ifindex {
            let was_fast = known.egress != 0 && known.ingress != 0;
            let is_broken_off = was_fast && (transport.resets() || (transport.breaks_off() && is_straight));
            let note = if is_broken_off { Note::BrokenOff(flow) } else { Note::Forget(flow) };
            act::noted(packet, Direction::Ingress, &note, size);
        }
    } else if !is_straight {
        return None;
    } else if trail::differs(arrival.tc_index, transport.header::<F>(Direction::Egress, ip)) {
        act::noted(packet, Direction::Ingress, &Note::Changed(flow), size);
    } else {
        let seen = (fields::of(ip.class(), ip.hops()), arrival.priority);
        let lifetime = lifetime(config, transport.protocol);
        let permit = renewed(way, &known, (lower, higher), seen, lifetime, Clock::of(tables))?;
        act::noted(packet, Direction::Ingress, &Note::Permit(flow, permit), size);
    }
    Some(())
}
