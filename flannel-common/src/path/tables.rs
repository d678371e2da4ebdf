//! The maps as a decision sees them.

use super::Carrier;
use crate::{
    family::Family,
    layout::{Config, Flow, Hold, Permit, PodPlace, Route, Subnet, Translation, Tunnel, Vtep},
    mark::Marks,
    reason::Reason,
};

/// What is there once for the node.
pub trait NodeTables {
    /// When the pod behind veth `ifindex` was last seen to forward for others, ns on the clock of [`Permit`]; 0 is
    /// never.
    fn forwarded(&self, ifindex: u32) -> u64;
    /// The time, on the clock of [`Permit`].
    fn now(&self) -> u64;
    /// For which times the maps are good.
    fn held(&self) -> Hold;
    /// The bits of packets' marks that are ours.
    fn marks(&self) -> Marks;
    /// What carries packets to other nodes.
    fn carrier(&self) -> Carrier;
}

/// The maps of a family. Values are copied out.
pub trait Tables<F: Family>: NodeTables {
    /// The node's own settings in the cluster's network of this family; `None` where there is none, or until the agent
    /// has written them.
    fn config(&self) -> Option<Config<F>>;
    /// The way to the node that holds a pod subnet.
    fn route(&self, subnet: Subnet<F>) -> Option<Route<F>>;
    /// The lease of a node, by its public address.
    fn vtep(&self, address: F::Address) -> Option<Vtep<F>>;
    /// Where a local pod is.
    fn pod(&self, address: F::Address) -> Option<PodPlace>;
    /// Whether pods' packets to `address` keep the pod's address.
    fn is_exempt(&self, address: F::Address) -> bool;
    /// When netfilter accepted a flow.
    fn flow(&self, flow: &Flow<F>) -> Option<Permit>;
    /// How netfilter translates a flow.
    fn translation(&self, flow: &Flow<F>) -> Option<Translation<F>>;
    /// What the kernel path through the tunnel to a node does, by the node's public address.
    fn tunnel(&self, vtep: F::Address) -> Option<Tunnel>;
}

/// The time, asked once for a packet, and what was noted before it that counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// The time, on the clock of [`Permit`].
    pub(super) now: u64,
    /// [`Hold::since`].
    since: u64,
}

impl Clock {
    /// As it is now.
    #[inline(always)]
    pub(super) fn of(tables: &impl NodeTables) -> Self {
        Self { now: tables.now(), since: tables.held().since }
    }

    /// Whether what was noted at `stamp`, 0 being never, still counts where it does for `lifetime`, ns.
    #[inline(always)]
    pub(super) const fn counts(self, stamp: u64, lifetime: u64) -> bool {
        stamp > self.since && self.now.saturating_sub(stamp) < lifetime
    }
}

/// The time, while an agent keeps the maps.
///
/// # Errors
/// No agent has kept the maps up to date for long: nothing is done by them.
#[inline(always)]
pub(super) fn check_hold(tables: &impl NodeTables) -> Result<Clock, Reason> {
    let (now, Hold { until, since }) = (tables.now(), tables.held());
    if now < until { Ok(Clock { now, since }) } else { Err(Reason::Lapsed) }
}

/// The route of the longest leased prefix that holds `address`.
#[inline(always)]
pub(super) fn longest_match<F: Family>(
    tables: &impl Tables<F>,
    config: &Config<F>,
    address: F::Address,
) -> Option<Route<F>> {
    // Written out: a loop would carry the route of each turn past the lookups of the next.
    let [a, b, c, d] = config.prefix_lengths;
    let at = |length: u8| match length {
        0 => None,
        length => tables.route(Subnet::of(address, u32::from(length))),
    };
    at(a).or_else(|| at(b)).or_else(|| at(c)).or_else(|| at(d))
}
