//! tc ingress on flannel.<vni> and flannel-v6.<vni>, or the tunnel's other device: what the kernel, or `from_underlay` in its place, has decapsulated. Only
//! what `from_underlay` has checked and leaves to the kernel no further than that; and what no pod may send.

use super::{
    Act, Deliver, Rewrite, Tables, act,
    carrier::{is_ipip, is_udp},
    egress, flow, forged,
    ingress::deliver_to,
    tables::check_hold,
    tunnel,
};
use crate::{
    family::{Family, IpHeader as _, V4, V6},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, TCP_TO_FLAGS},
    },
    reason::{Direction, Reason},
};

/// All that happens to a packet at this hook.
#[inline(always)]
pub fn run<P: Act<V4> + Act<V6>>(packet: P, tables: &(impl Tables<V4> + Tables<V6>)) -> P::Answer {
    if is_udp(tables) {
        return from_agent::<V4, _>(packet, tables);
    }
    let flow = tables.marks().flow;
    if is_ipip(tables) {
        return match packet.arrival().mark & flow {
            0 => packet.pass(),
            _ => out_of_ip::<V4, _>(packet, tables),
        };
    }
    if packet.arrival().mark & flow == 0 {
        if forged::is_forged(packet, tables) {
            return packet.drop(Direction::Ingress, Reason::PodVxlan);
        }
        // What `from_underlay` has not checked is the kernel's, and has been counted.
        return packet.pass();
    }
    if packet.is_ipv6() { of_family::<V6, _>(packet, tables) } else { of_family::<V4, _>(packet, tables) }
}

/// What the agent has brought through the tunnel: the kernel's, and a sign that packets of its node are delivered.
#[inline(always)]
fn from_agent<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>) -> P::Answer {
    packet.make_readable(F::IP_LEN + TCP_TO_FLAGS);
    let size = packet.size();
    tunnel::note_delivered(&packet, tables, |note| {
        act::noted_tunnel(packet, Direction::Ingress, &note, size);
    });
    // What `from_underlay` has noted beside it has gone with the outer packet.
    flow::begin_trail::<F, P>(packet, tables, Direction::Ingress, &Err(Reason::FlowUnknown), || Some(0));
    packet.pass()
}

/// What the device of IP in IP has decapsulated and `from_underlay` has checked: the kernel's, since no program can put an
/// Ethernet header for a pod in front of it on every kernel, and a sign that packets of its node are delivered.
#[inline(always)]
fn out_of_ip<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>) -> P::Answer {
    packet.make_readable(F::IP_LEN);
    packet.unmark(tables.marks().flow);
    let size = packet.size();
    tunnel::note_delivered(&packet, tables, |note| {
        act::noted_tunnel(packet, Direction::Ingress, &note, size);
    });
    packet.pass()
}

#[inline(always)]
fn of_family<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>) -> P::Answer {
    packet.make_readable(egress::reads::<F>());
    packet.unmark(tables.marks().flow);
    let size = packet.size();
    tunnel::note_delivered(&packet, tables, |note| {
        act::noted_tunnel(packet, Direction::Ingress, &note, size);
    });
    let verdict = decide(&packet, tables, &packet.arrival(), |to, rewrite, reason| {
        packet.deliver(&to, rewrite.as_ref(), reason)
    })
    .and_then(|done| done);
    packet.conclude(Direction::Ingress, size, verdict)
}

/// `deliver` says what to do with a packet for a local pod, which is to be translated if there is how.
///
/// The outer headers are gone; that they were right is what the mark says. All else is looked at again: a mark may be
/// somebody else's.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
fn decide<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    deliver: impl FnOnce(Deliver<F>, Option<Rewrite<F>>, Reason) -> R,
) -> Result<R, Reason> {
    let ethernet = Ethernet::parse(packet.view(0).ok_or(Reason::Truncated)?);
    if arrival.vlan_tagged {
        return Err(Reason::Vlan);
    }
    if ethernet.ethertype != F::ETHERTYPE {
        return Err(Reason::NotIp);
    }
    let config = tables.config().ok_or(F::UNCONFIGURED)?;
    if !config.fast_path.finds_pods() {
        return Err(Reason::PodOnKernel);
    }
    if !ethernet.is_to(&config.local_mac) {
        return Err(Reason::InnerMac);
    }
    let ip = F::Header::read(packet, ETHERNET_LEN).ok_or(Reason::Truncated)?;
    ip.check()?;
    if packet.len() != ETHERNET_LEN as u32 + ip.packet_len() {
        return Err(Reason::Length);
    }
    if !config.subnet.contains(ip.destination()) {
        return Err(Reason::NotOurPod);
    }
    let clock = check_hold(tables)?;
    let (to, rewrite) = deliver_to(packet, tables, arrival, &config, &ip, clock)?;
    let reason = if rewrite.is_some() { Reason::Translated } else { Reason::DeliverOverlay };
    Ok(deliver(to, rewrite, reason))
}
