//! tc ingress on the host side of a pod's veth: what a pod sends.

use super::{
    Act, Direct, Encap, HandOver, Rewrite, Switch, Tables, act,
    carrier::is_vxlan,
    egress::{self, encap, inner_headers, segment_len, tunnel_to},
    exempt, fields, flow, forged, forwarding,
    gate::{self, Passage},
    moved, switched,
    tables::{check_hold, longest_match},
    translated,
    transport::Transport,
};
use crate::{
    family::{Family, Forward as _, IpHeader as _, V4, V6},
    layout::{FastPath, RouteKind},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet},
    },
    reason::{Direction, Reason},
};

/// All that happens to a packet at this hook.
#[inline(always)]
pub fn run<P: Act<V4> + Act<V6>>(packet: P, tables: &(impl Tables<V4> + Tables<V6>)) -> P::Answer {
    // First, and not only for what stays with the kernel: the verifier then walks through it once.
    if is_vxlan(tables) && forged::is_forged(packet, tables) {
        return packet.drop(Direction::Egress, Reason::PodVxlan);
    }
    if packet.is_ipv6() { of_family::<V6, _>(packet, tables) } else { of_family::<V4, _>(packet, tables) }
}

#[inline(always)]
fn of_family<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>) -> P::Answer {
    packet.make_readable(egress::reads::<F>());
    let size = packet.size();
    moved::note(&packet, tables, &packet.arrival(), |note| {
        act::noted(packet, Direction::Egress, &note, size);
    });
    forwarding::note(&packet, tables, &packet.arrival(), |note| {
        act::noted(packet, Direction::Egress, &note, size);
    });
    let verdict = decide(
        &packet,
        tables,
        &packet.arrival(),
        |priority| packet.prioritize(priority),
        |encap, rewrite, reason| packet.encapsulate(&encap, rewrite.as_ref(), reason),
        |to, rewrite, reason| packet.hand_over(&to, rewrite.as_ref(), reason),
        (
            |direct, rewrite, reason| packet.send_direct(&direct, rewrite.as_ref(), reason),
            |to| packet.switch(&to),
        ),
    )
    .and_then(|done| done);
    translated::ended(&packet, tables, &verdict, |flow, is_broken_off| {
        packet.untranslate(flow, is_broken_off);
        packet.count(Direction::Egress, Reason::FlowForgotten, size);
    });
    flow::begin_trail::<F, P>(packet, tables, Direction::Egress, &verdict, || Some(ETHERNET_LEN));
    let verdict = match verdict {
        Err(reason) if exempt::is_exempt(&packet, tables, reason) => {
            packet.mark(tables.marks().exempt);
            Err(exempt::counted_for(reason))
        }
        verdict => verdict,
    };
    packet.conclude(Direction::Egress, size, verdict)
}

/// What is to be done: `prioritize` a packet as forwarding would, and `encapsulate` with a packet for a node behind a
/// tunnel, `hand_over` with an aggregate that only the VXLAN device can encapsulate, `send_direct` with either for a
/// node that is reached without. Each gets how the packet is to be translated, if it is. `switch` is for one that goes to
/// another pod of this node.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub(super) fn decide<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    prioritize: impl FnOnce(u32),
    encapsulate: impl FnOnce(Encap<F>, Option<Rewrite<F>>, Reason) -> R,
    hand_over: impl FnOnce(HandOver<F>, Option<Rewrite<F>>, Reason) -> R,
    (send_direct, switch): (
        impl FnOnce(Direct<F>, Option<Rewrite<F>>, Reason) -> R,
        impl FnOnce(Switch) -> R,
    ),
) -> Result<R, Reason> {
    let (ethernet, ip) = inner_headers::<F>(packet, arrival)?;
    let config = tables.config().ok_or(F::UNCONFIGURED)?;
    let gated = match config.fast_path {
        FastPath::All => false,
        FastPath::Flow => true,
        FastPath::Off | FastPath::Overlay => return Err(Reason::PodOnKernel),
    };
    // Most of what leaves pods for elsewhere is told apart here.
    if config.subnet.contains(ip.destination()) {
        return switched::decide(packet, tables, arrival, &config, (&ethernet, &ip), switch);
    }
    let is_inside = config.network.contains(ip.destination());
    if !is_inside && !gated {
        return Err(Reason::NoRoute);
    }
    let clock = check_hold(tables).map_err(|lapsed| if is_inside { lapsed } else { Reason::NoRoute })?;
    let mut rewrite = None;
    let mut refusal = None;
    let mut priority = F::priority(ip.class());
    if gated {
        match Transport::at(packet, ETHERNET_LEN + F::IP_LEN, ip.protocol()) {
            Ok(transport) => {
                let flow = transport.flow::<F>(Direction::Egress, &ip);
                if !is_inside {
                    let translation = tables.translation(&flow).ok_or(Reason::NoRoute)?;
                    let (protocol, port) = (transport.protocol, transport.destination);
                    rewrite = Some(Rewrite::new(Direction::Egress, &translation, &ip, protocol, port));
                }
                let gateway = ethernet.destination_folded();
                let fields = fields::of(ip.class(), ip.hops());
                let passage = Passage {
                    way: Direction::Egress,
                    ifindex: arrival.ifindex,
                    gateway: Some(gateway),
                    fields,
                    clock,
                };
                match gate::admit(&passage, &transport, &flow, tables, &config) {
                    Ok(accepted) => priority = accepted,
                    Err(reason) => refusal = Some(reason),
                }
            }
            Err(reason) if is_inside => refusal = Some(reason),
            Err(_) => return Err(Reason::NoRoute),
        }
    }
    let (destination, forward) = match &rewrite {
        None => (ip.destination(), F::Forward::hop(&ip)),
        Some(rewrite) => (rewrite.remote, F::Forward::hop(&ip).translated(rewrite.addresses)),
    };
    let counted_for = |reason| if rewrite.is_some() { Reason::Translated } else { reason };
    // The address must be this veth's own: a pod cannot speak for another one past the host's filters. And the frame
    // must be for the gateway: another station, a pod that forwards perhaps, gets what is sent to it. A flow is written
    // down with the veth of its address and the gateway, so for one that is admitted there is nothing to look up.
    if !gated || refusal.is_some() {
        let pod = tables.pod(ip.source()).ok_or(Reason::UnknownPod)?;
        if pod.ifindex != arrival.ifindex {
            return Err(Reason::Spoofed);
        }
        if !ethernet.is_to(&pod.gateway_mac) {
            return Err(Reason::NotGateway);
        }
    }
    if !tables.carrier().has_hops::<F>(&ip) {
        return Err(Reason::Ttl);
    }
    let route = longest_match(tables, &config, destination).ok_or(Reason::NoRoute)?;
    if let Some(reason) = refusal {
        return Err(reason);
    }
    ip.check_sum()?;
    if route.kind == RouteKind::Direct {
        if segment_len::<F>(packet, ETHERNET_LEN, arrival, &ip)? > route.mtu {
            return Err(Reason::TooBig);
        }
        let direct = Direct { ifindex: route.ifindex, next_hop: route.next_hop, forward };
        prioritize(priority);
        return Ok(send_direct(direct, rewrite, counted_for(Reason::RoutePod)));
    }
    let tunnel = tunnel_to(packet, tables, arrival, &config, &ip, &route, clock)?;
    if !F::DEVICE_SEGMENTS || arrival.gso_size == 0 {
        let hop = F::Forward::hop(&tables.carrier().past_end::<F>(ip));
        let forward = match &rewrite {
            None => hop,
            Some(rewrite) => hop.translated(rewrite.addresses),
        };
        let encap = encap(packet, tables.carrier(), &config, &ip, (route, tunnel), Some(forward))?;
        prioritize(priority);
        return Ok(encapsulate(encap, rewrite, counted_for(Reason::EncapPod)));
    }
    if config.overlay_ifindex == 0 {
        return Err(Reason::Ipv6Aggregate);
    }
    let ethernet = Ethernet::new(route.vtep_mac, route.local_mac, F::ETHERTYPE);
    let to = HandOver { ifindex: config.overlay_ifindex, ethernet, forward };
    prioritize(priority);
    Ok(hand_over(to, rewrite, counted_for(Reason::EncapDevice)))
}
