//! Between two pods on one bridge of this node.
//!
//! A bridge hands on what a pod sends to another pod's MAC, as it is. Where it lets netfilter see that
//! (`net.bridge.bridge-nf-call-iptables`), netfilter is the judge of these flows as of all others ([`super::flow`]):
//! [`note`] writes down where a packet reaches its pod that netfilter has accepted it, and [`decide`] lets the next ones
//! skip bridge and netfilter. A frame for the gateway's MAC is routed, and the kernel's.
//!
//! There is one entry for both ends: the flow as the pod knows it whose veth has the lower index. Its [`Permit::ifindex`]
//! is that veth, and its [`Permit::gateway`] the index of the other one: neither pod inherits anything with its address.
//!
//! What a pod sends to a Service whose backend is on its bridge goes to the gateway's MAC. Netfilter translates it there, and
//! the bridge hands it on as if it had been for the backend's MAC from the start, not routed (`bridged_dnat` in
//! net/bridge/br_netfilter_hooks.c); so come the answers, from MAC to MAC, and netfilter translates them back on the bridge.
//! Such a flow has its entry as the client knows it ([`super::translated`]).

use super::{
    Act, Note, Rewrite, Tables,
    acceptance::{NEVER, gateway_and_backend, lifetime, renewed},
    act,
    egress::segment_len,
    fields,
    gate::{self, Passage},
    tables::{Clock, check_hold},
    trail, translated,
    transport::Transport,
};
use crate::{
    family::{Family, IpHeader as _},
    layout::{Config, FastPath, Flow, FlowProtocol, PodPlace},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, folded},
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

/// At tc ingress on the host side of a pod's veth: how to hand a packet to a pod of this node, and how it is translated if it is
/// the answer of a backend to a client that knows it as a Service.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub(super) fn decide<F: Family>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    config: &Config<F>,
    (ethernet, ip): (&Ethernet, &F::Header),
) -> Result<(Switch, Option<Rewrite<F>>), Reason> {
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
    let mut flow = transport.flow::<F>(way, ip);
    let fields = fields::of(ip.class(), ip.hops());
    let passage = Passage { way, ifindex: lower, gateway: Some(higher), fields, clock };
    let mut rewrite = None;
    if let Err(refusal) = gate::admit(&passage, &transport, &flow, tables, config) {
        flow = transport.flow::<F>(Direction::Ingress, ip);
        rewrite = translated::to_pod(tables, ip, &transport, &mut flow);
        let gateway = gateway_and_backend(folded(&pod.gateway_mac), arrival.ifindex);
        let way = Direction::Ingress;
        let passage = Passage { way, ifindex: pod.ifindex, gateway: Some(gateway), fields, clock };
        let refusal = match rewrite {
            None => Some(refusal),
            Some(_) => gate::admit(&passage, &transport, &flow, tables, config).err(),
        };
        if let Some(refusal) = refusal {
            return Err(of_own::<F>(tables, arrival, ip, refusal));
        }
    }
    Ok((to_pod::<F>(packet, arrival, ip, pod)?, rewrite))
}

/// `refusal`, if the packet's address is this veth's own, or else there is nothing to learn from the packet. A flow is written
/// down with the veth, so for one that is admitted there is nothing to look up.
#[inline(always)]
fn of_own<F: Family>(tables: &impl Tables<F>, arrival: &Arrival, ip: &F::Header, refusal: Reason) -> Reason {
    match tables.pod(ip.source()) {
        None => Reason::UnknownPod,
        Some(source) if source.ifindex != arrival.ifindex => Reason::Spoofed,
        Some(_) => refusal,
    }
}

/// How to hand a packet that may skip the bridge to `pod`.
///
/// # Errors
/// Its header is wrong, or the pod's interface does not take it.
#[inline(always)]
fn to_pod<F: Family>(
    packet: &(impl Packet + ?Sized),
    arrival: &Arrival,
    ip: &F::Header,
    pod: PodPlace,
) -> Result<Switch, Reason> {
    ip.check_sum()?;
    let packet_len = segment_len::<F>(packet, ETHERNET_LEN, arrival, ip)?;
    if packet_len > pod.mtu { Err(Reason::TooBig) } else { Ok(Switch { pod, packet_len }) }
}

/// How to hand a packet of `flow`, which is one to a Service, to the `backend`, which has an address of this node's.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub(super) fn to_backend<F: Family>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    config: &Config<F>,
    (ethernet, ip, transport, flow): (&Ethernet, &F::Header, &Transport, &Flow<F>),
    backend: F::Address,
    clock: Clock,
) -> Result<Switch, Reason> {
    let pod = tables.pod(backend).filter(|pod| pod.ifindex != arrival.ifindex).ok_or(Reason::NoRoute)?;
    let passage = Passage {
        way: Direction::Egress,
        ifindex: arrival.ifindex,
        gateway: Some(gateway_and_backend(ethernet.destination_folded(), pod.ifindex)),
        fields: fields::of(ip.class(), ip.hops()),
        clock,
    };
    match gate::admit(&passage, transport, flow, tables, config) {
        Ok(_) => to_pod::<F>(packet, arrival, ip, pod),
        Err(refusal) => Err(of_own::<F>(tables, arrival, ip, refusal)),
    }
}

/// At tc egress on the host side of a pod's veth: writes down what a packet of `size` from another pod of this node says
/// about its flow. `None` when there is nothing.
///
/// It counts only if it has come as the bridge brings it, from MAC to MAC, and straight from the other pod's veth, where
/// its trail was noted beside it. A reset counts from wherever it comes: connection tracking takes it for the pod's.
///
/// What a client has sent to a Service counts for its flow as the client knows it, if the agent has told of that.
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
    let Veths { mut way, lower, higher } = Veths::of(from.ifindex, to.ifindex)?;
    let transport = Transport::at(&packet, ETHERNET_LEN + F::IP_LEN, ip.protocol()).ok()?;
    if !transport.resets() && !frame.same_stations(&Ethernet::new(to.mac, from.mac, F::ETHERTYPE)) {
        return None;
    }
    let mut flow = transport.flow::<F>(way, ip);
    let mut at = (lower, higher);
    let is_translated = trail::is_translated(arrival.tc_index);
    // Somebody else may reset it in its pod's name, who comes in elsewhere.
    if is_translated | transport.resets() {
        let on_wire = transport.flow::<F>(Direction::Egress, ip);
        match tables.translation(&on_wire) {
            Some(service) => {
                flow = service.other_side(&on_wire);
                way = Direction::Egress;
                at = (from.ifindex, gateway_and_backend(folded(&from.gateway_mac), to.ifindex));
            }
            // After its first answer there may be none by which to ask.
            None if is_translated => {
                return ask(packet, tables, arrival, &transport, ip, (on_wire, &from), size);
            }
            None => {}
        }
    }
    let mut known = tables.flow(&flow).unwrap_or(NEVER);
    if at.1 != higher {
        known = translated::of_backend(known, &from, at.1);
    }
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
        let permit = renewed(way, &known, at, seen, lifetime, Clock::of(tables))?;
        act::noted(packet, Direction::Ingress, &Note::Permit(flow, permit), size);
    }
    Some(())
}

/// Writes down that netfilter has accepted a packet of `flow`, as the network knows it, from the client `from` to a backend here, of
/// which no translation is known: the agent is asked once it has lasted. `None` when there is nothing.
#[inline(always)]
fn ask<F: Family, P: Act<F>>(
    packet: P,
    tables: &impl Tables<F>,
    arrival: &Arrival,
    transport: &Transport,
    ip: &F::Header,
    (flow, from): (Flow<F>, &PodPlace),
    size: P::Size,
) -> Option<()> {
    let is_accepted = arrival.mark & tables.marks().flow != 0;
    if !is_accepted
        || !matches!(transport.protocol, FlowProtocol::Udp)
        || trail::differs(arrival.tc_index, transport.header::<F>(Direction::Egress, ip))
    {
        return None;
    }
    let known = tables.flow(&flow).unwrap_or(NEVER);
    let note = translated::ask(Direction::Egress, flow, &known, from, tables.now())?;
    act::noted(packet, Direction::Ingress, &note, size);
    Some(())
}
