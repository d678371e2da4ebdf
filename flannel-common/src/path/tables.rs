//! The maps as a decision sees them.

use crate::{
    family::Family,
    layout::{Config, Flow, Permit, PodPlace, Route, Subnet, Tunnel, Vtep},
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
    /// When the maps are out of date, on the same clock.
    fn held_until(&self) -> u64;
    /// The bits of packets' marks that are ours.
    fn marks(&self) -> Marks;
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
    /// What the kernel path through the tunnel to a node does, by the node's public address.
    fn tunnel(&self, vtep: F::Address) -> Option<Tunnel>;
}

/// The time, on the clock of [`Permit`], asked once for a packet.
///
/// # Errors
/// No agent has kept the maps up to date for long: nothing is done by them.
#[inline(always)]
pub(super) fn check_hold(tables: &impl NodeTables) -> Result<u64, Reason> {
    let now = tables.now();
    if now < tables.held_until() { Ok(now) } else { Err(Reason::Lapsed) }
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
