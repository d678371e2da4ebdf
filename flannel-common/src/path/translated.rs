//! Flows that netfilter translates, such as those from a pod to a Service.
//!
//! netfilter stays the judge of them as of all others ([`super::flow`]). What they become only connection tracking knows,
//! which programs cannot ask. So where the answers of a Service reach the pod by the kernel path, and where what the pod has
//! sent to it over UDP leaves, for which there may be no second answer, [`ask`] lets the agent know of a flow that lasts;
//! the agent asks connection tracking, and puts the two entries of a [`Translation`]. From then on the programs translate
//! in netfilter's place ([`Rewrite`]).
//!
//! When such a flow was accepted is written down for it as its pod knows it. A packet from the pod that begins or ends a
//! connection takes its translation away ([`ended`]): the next connection between the same ports may get another one. The
//! entry by which its answers are known is then the agent's to remove, before it puts another.

use super::{
    Note, Rewrite, Tables,
    acceptance::{NEVER, age},
    transport::Transport,
};
use crate::{
    family::{Family, IpHeader as _},
    layout::{Flow, Permit, PodPlace},
    packet::{
        Packet,
        headers::{ETHERNET_LEN, folded},
    },
    reason::{Direction, Reason},
};

/// How long a flow must last before the agent is asked about it, ns: most connections are over by then, and asking costs
/// more than they would gain.
const ASKED_AFTER: u64 = 50_000_000;
/// After how long it is asked again, ns. It may have been busy, or have found a translation that is not one for programs.
const ASKED_AGAIN: u64 = 10_000_000_000;

/// What stands in [`Permit::gateway`] of a flow about which the agent has been asked, which may not skip the stack.
const fn asked(gateway: u32) -> u32 {
    !gateway
}

/// By what [`Permit::gateway`] differs for a flow as the network knows it, so that no acceptance is seen in it.
const ON_WIRE: u32 = 0xaaaa_aaaa;

/// How to translate what comes for a pod, and the flow as the pod knows it. `known` is the flow as it comes, which has the
/// header `ip`.
#[inline(always)]
pub(super) fn to_pod<F: Family>(
    tables: &impl Tables<F>,
    ip: &F::Header,
    transport: &Transport,
    mut flow: Flow<F>,
) -> Option<(Rewrite<F>, Flow<F>)> {
    let translation = tables.translation(&flow)?;
    (flow.remote, flow.remote_port) = (translation.remote, translation.remote_port);
    let rewrite = Rewrite::new(Direction::Ingress, &translation, ip, transport.protocol, transport.source);
    Some((rewrite, flow))
}

/// What to write down about a flow of `pod` that netfilter has accepted at the time `now` and translates no program knows
/// how; `known` is what was written down before.
///
/// On the way in it is the flow as the pod knows it, and what is written down is that this direction was accepted. On the
/// way out it is the flow as the network knows it, and may be that of nobody as the pod knows it: it counts for nothing.
#[inline(always)]
pub(super) fn ask<F: Family>(
    way: Direction,
    flow: Flow<F>,
    known: &Permit,
    pod: &PodPlace,
    now: u64,
) -> Option<Note<F>> {
    let ifindex = pod.ifindex;
    let gateway = match way {
        Direction::Egress => folded(&pod.gateway_mac) ^ ON_WIRE,
        Direction::Ingress => folded(&pod.gateway_mac),
    };
    let permit = |gateway| Permit { ingress: now, ifindex, gateway, ..NEVER };
    let rest = match known.gateway {
        // What was accepted by a translation that is gone counts for nothing.
        _ if known.ifindex != ifindex || known.egress != 0 => 0,
        known if known == gateway => ASKED_AFTER,
        known if known == asked(gateway) => ASKED_AGAIN,
        _ => 0,
    };
    if rest == 0 {
        return Some(Note::Candidate(flow, permit(gateway)));
    }
    if age(now, known.ingress) < rest {
        return None;
    }
    Some(Note::Ask(flow, permit(asked(gateway))))
}

/// Writes down that a packet of a pod, which the kernel path takes, begins or ends a connection whose translation is known:
/// `then` gets the flow, and whether it is broken off.
#[inline(always)]
pub(super) fn ended<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    verdict: &Result<impl Sized, Reason>,
    then: impl FnOnce(&Flow<F>, bool) -> R,
) -> Option<R> {
    if !matches!(verdict, Err(Reason::FlowControl | Reason::NoRoute | Reason::Ttl)) {
        return None;
    }
    let config = tables.config()?;
    let ip = F::Header::read(packet, ETHERNET_LEN)?;
    if config.network.contains(ip.destination()) || ip.check().is_err() {
        return None;
    }
    let transport = Transport::at(packet, ETHERNET_LEN + F::IP_LEN, ip.protocol()).ok()?;
    if !transport.begins_or_ends() {
        return None;
    }
    let flow = transport.flow::<F>(Direction::Egress, &ip);
    tables.translation(&flow)?;
    Some(then(&flow, transport.breaks_off()))
}
