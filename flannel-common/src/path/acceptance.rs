//! What is known of a flow: when netfilter has accepted each direction of it, and for how long that holds.

use super::{fields, tables::Clock};
use crate::{
    family::Family,
    layout::{Config, Flow, FlowProtocol, Permit},
    reason::{Direction, Reason},
};

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;

/// Acceptance is written down anew when it is so old, ns, or at half its time: rarely enough to cost nothing.
pub(super) const RENEW: u64 = SECOND;

/// For so long, ns, a direction stays accepted for packets with one DSCP and TTL, however many others come between:
/// that bounds how often it is written down anew.
const SETTLED: u64 = 20 * MILLISECOND;

/// The value of a flow that the map does not have. No interface has index 0.
pub(super) const NEVER: Permit =
    Permit { egress: 0, ingress: 0, ifindex: 0, gateway: 0, sent: 0, received: 0, priority: 0, reserved: 0 };

/// When a direction was accepted that must not skip the stack, ns: before any agent has started.
pub const LONG_AGO: u64 = 1;

/// What to write down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note<F: Family> {
    /// Netfilter has accepted it: put this.
    Permit(Flow<F>, Permit),
    /// It begins anew, or ends, or is not accepted any more: delete it.
    Forget(Flow<F>),
    /// It skipped the stack, and is broken off: delete it, and tell the agent. Connection tracking, which has not seen
    /// how far it has come, does not know what to believe of a reset, and would take a new connection between the same
    /// ports for this one.
    BrokenOff(Flow<F>),
    /// Netfilter has accepted it, but its packets do not leave the kernel's path as they came ([`trail`]): delete it.
    Changed(Flow<F>),
    /// Netfilter has accepted it, but translates it: put this, by which it is known again.
    Candidate(Flow<F>, Permit),
    /// The same, and it lasts: put this, and ask the agent how it is translated.
    Ask(Flow<F>, Permit),
    /// A connection that is translated begins anew or ends: delete how, and that it was accepted.
    Untranslate(Flow<F>),
    /// Not of a flow: the address of a pod is announced from somewhere else ([`super::moved`]). Delete its place.
    Moved(F::Address),
    /// Not of a flow: the pod behind the veth forwards for others. Put that.
    Forwards {
        /// Host side of the pod's veth.
        ifindex: u32,
        /// When it was seen, ns on the clock of [`Permit`].
        seen: u64,
    },
}

impl<F: Family> Note<F> {
    /// What it is counted for.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Permit(..) => Reason::FlowLearned,
            Self::Forget(_) | Self::BrokenOff(_) | Self::Untranslate(_) => Reason::FlowForgotten,
            Self::Candidate(..) => Reason::FlowTranslated,
            Self::Ask(..) => Reason::FlowAsked,
            Self::Changed(_) => Reason::FlowChanged,
            Self::Moved(_) => Reason::PodMoved,
            Self::Forwards { .. } => Reason::ForwarderLearned,
        }
    }
}

/// `known` after netfilter has accepted a packet that travels `way` now, where that holds for `lifetime`, ns; `None` while
/// what is known is recent enough. The packet is of the pod with that [`Permit::ifindex`] and [`Permit::gateway`], and has
/// those fields, and that `skb->priority`.
#[inline(always)]
pub(super) fn renewed(
    way: Direction,
    known: &Permit,
    (ifindex, gateway): (u32, u32),
    (of_packet, priority): (u32, u32),
    lifetime: u64,
    clock: Clock,
) -> Option<Permit> {
    // Another pod had this address, or this one another gateway: nothing is inherited.
    let same = known.ifindex == ifindex && known.gateway == gateway;
    let before = if same { *known } else { NEVER };
    let (stamp, accepted) = match way {
        Direction::Egress => (before.egress, before.sent),
        Direction::Ingress => (before.ingress, before.received),
    };
    let half = lifetime / 2;
    let mut now = (clock.now, of_packet);
    if clock.counts(stamp, if half < RENEW { half } else { RENEW }) {
        if fields::hold(accepted, of_packet) {
            return None;
        }
        if fields::are_alike(accepted, of_packet) {
            now = (stamp, accepted | of_packet);
        } else if clock.counts(stamp, SETTLED) {
            return None;
        }
    }
    Some(match way {
        Direction::Egress => Permit { egress: now.0, sent: now.1, priority, ifindex, gateway, ..before },
        Direction::Ingress => Permit { ingress: now.0, received: now.1, ifindex, gateway, ..before },
    })
}

/// `permit` for a packet that travels `way` and has come in where no program would have taken it from: the other direction
/// may go by it, its own takes the kernel path. `None` where `known` says as much.
#[inline(always)]
pub(super) const fn half(way: Direction, permit: Permit, known: &Permit) -> Option<Permit> {
    let is_known = known.ifindex == permit.ifindex && known.gateway == permit.gateway;
    match way {
        Direction::Egress if is_known && known.egress != 0 => None,
        Direction::Ingress if is_known && known.ingress != 0 => None,
        Direction::Egress => Some(Permit { egress: LONG_AGO, ..permit }),
        Direction::Ingress => Some(Permit { ingress: LONG_AGO, ..permit }),
    }
}

/// How long ago `stamp` was, ns; longer than anything if never.
#[inline(always)]
pub(super) const fn age(now: u64, stamp: u64) -> u64 {
    if stamp == 0 { u64::MAX } else { now.saturating_sub(stamp) }
}

/// How long acceptance holds, ns.
#[inline(always)]
pub(super) const fn lifetime<F: Family>(config: &Config<F>, protocol: FlowProtocol) -> u64 {
    let refresh = match protocol {
        FlowProtocol::Tcp => config.tcp_refresh,
        FlowProtocol::Udp => config.udp_refresh,
    };
    refresh as u64 * MILLISECOND
}
