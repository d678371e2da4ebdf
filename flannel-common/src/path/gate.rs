//! The flow gate: which packets skip the host's stack.

use super::{Rewrite, Tables, acceptance::lifetime, fields, tables::Clock, translated, transport::Transport};
use crate::{
    family::{Family, IpHeader as _},
    layout::{Config, Flow, Permit},
    packet::Packet,
    reason::{Direction, Reason},
};

/// Why [`admit`] leaves a packet to the kernel's path.
pub const REFUSALS: [Reason; 6] = [
    Reason::FlowUnknown,
    Reason::FlowHalf,
    Reason::FlowStale,
    Reason::FlowControl,
    Reason::FlowProtocol,
    Reason::FlowFields,
];

/// Whether `reason` is one of [`REFUSALS`].
#[inline(always)]
pub(super) const fn is_refusal(reason: Reason) -> bool {
    use Reason::{FlowControl, FlowFields, FlowHalf, FlowProtocol, FlowStale, FlowUnknown};
    matches!(reason, FlowUnknown | FlowHalf | FlowStale | FlowControl | FlowProtocol | FlowFields)
}

/// A packet that asks to skip the host's stack.
#[derive(Clone, Copy)]
pub(super) struct Passage {
    /// Which way it travels.
    pub(super) way: Direction,
    /// Host side of the veth of the pod that it comes from, or is for.
    pub(super) ifindex: u32,
    /// The station that a pod's packet goes to, folded, or the other pod's veth ([`switched`]); none for those to a pod from
    /// elsewhere.
    pub(super) gateway: Option<u32>,
    /// Those of its [`fields`] that the kernel path would see.
    pub(super) fields: u32,
    /// The time.
    pub(super) clock: Clock,
}

/// Lets a packet of `flow` skip the host's stack, with [`Permit::priority`].
///
/// A direction needs acceptance of its own that still holds; of the other one it is enough that it was
/// accepted. A flow that only ever goes one way after its first answer would be slow for good otherwise, and
/// each of its own packets that renew it keeps connection tracking's entry alive for both ways.
///
/// # Errors
/// Why it may not.
#[inline(always)]
pub(super) fn admit<F: Family>(
    passage: &Passage,
    transport: &Transport,
    flow: &Flow<F>,
    tables: &impl Tables<F>,
    config: &Config<F>,
) -> Result<u32, Reason> {
    transport.check_control()?;
    let permit = tables.flow(flow).ok_or(Reason::FlowUnknown)?;
    check_permit(passage, &permit, lifetime(config, transport.protocol))?;
    Ok(permit.priority)
}

/// As [`admit`] a packet for a pod, of a flow that netfilter translates, too: then with how. Its header `ip`, without
/// options or extensions, stands at `offset`.
///
/// # Errors
/// Why it may not.
#[inline(always)]
pub(super) fn admit_to_pod<F: Family>(
    passage: &Passage,
    packet: &(impl Packet + ?Sized),
    offset: usize,
    tables: &impl Tables<F>,
    config: &Config<F>,
    ip: &F::Header,
) -> Result<Option<Rewrite<F>>, Reason> {
    let transport = Transport::at(packet, offset + F::IP_LEN, ip.protocol())?;
    transport.check_control()?;
    let lifetime = lifetime(config, transport.protocol);
    let flow = transport.flow::<F>(passage.way, ip);
    let refusal = match tables.flow(&flow) {
        None => Reason::FlowUnknown,
        Some(permit) => match check_permit(passage, &permit, lifetime) {
            Ok(()) => return Ok(None),
            Err(reason) => reason,
        },
    };
    // No flow is both: whoever puts a translation takes away what was known of the flow as it comes.
    let (rewrite, flow) = translated::to_pod(tables, ip, &transport, flow).ok_or(refusal)?;
    let permit = tables.flow(&flow).ok_or(Reason::FlowUnknown)?;
    check_permit(passage, &permit, lifetime)?;
    Ok(Some(rewrite))
}

/// Whether `permit` lets a packet skip the stack, where acceptance holds for `lifetime`, ns.
///
/// # Errors
/// Why it does not.
#[inline(always)]
fn check_permit(passage: &Passage, permit: &Permit, lifetime: u64) -> Result<(), Reason> {
    if permit.ifindex != passage.ifindex {
        return Err(Reason::FlowUnknown);
    }
    if let Some(gateway) = passage.gateway
        && permit.gateway != gateway
    {
        return Err(Reason::FlowUnknown);
    }
    if permit.egress == 0 || permit.ingress == 0 {
        return Err(Reason::FlowHalf);
    }
    let (stamp, accepted) = match passage.way {
        Direction::Egress => (permit.egress, permit.sent),
        Direction::Ingress => (permit.ingress, permit.received),
    };
    if !passage.clock.counts(stamp, lifetime) {
        return Err(Reason::FlowStale);
    }
    if !fields::hold(accepted, passage.fields) {
        return Err(Reason::FlowFields);
    }
    Ok(())
}
