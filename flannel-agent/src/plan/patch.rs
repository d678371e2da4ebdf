//! What one lease changes of a plan.
//!
//! A plan is a function of all leases, and to make one of ten thousand takes longer than the kernel takes for the few
//! objects of one. Where a lease has nothing in common with any other, the plan is what it was but for the part that is
//! the plan of this lease alone.
//!
//! This decides nothing by itself: the part is made by [`plan`], and its changes by [`delta`]. Where another lease could
//! have a say there is no patch, and a test holds plans that were patched equal to plans of all leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use ipnetwork::IpNetwork;

use super::{BpfState, Change, Inputs, Maps, Plan, Skip, State, delta, plan};
use crate::{
    lease::{Lease, LeaseSubnet, Leases},
    values::{Family, IpFamily, Mac},
};

/// The plan of one lease, before and after it changed.
#[derive(Clone, Debug)]
pub struct Patch {
    before: Plan,
    after: Plan,
}

impl Patch {
    /// What becomes of `plan`, the plan of `inputs` but for the lease of `subnet`, which was `before`. `None` where
    /// another lease has a say in what becomes of this one, or it in another: then only a new plan tells.
    pub fn of(plan: &Plan, inputs: &Inputs<'_>, subnet: LeaseSubnet, before: Option<&Lease>) -> Option<Self> {
        // A lease that was skipped because of another may be followed now.
        if plan.skipped.iter().any(|((key, _), skip)| *key != subnet && skip.yields_to_another()) {
            return None;
        }
        let after = inputs.leases.get(&subnet);
        let ours: Vec<IpAddr> = before.into_iter().chain(after).flat_map(addresses).collect();
        let mut others = inputs.leases.iter().filter(|(key, _)| **key != subnet);
        if others.any(|(_, lease)| addresses(lease).any(|address| ours.contains(&address))) {
            return None;
        }
        let mut patch = Self { before: alone(inputs, before), after: alone(inputs, after) };
        if !patch.stands_apart(plan) || !patch.keeps_lengths(plan) {
            return None;
        }
        // Of all leases, and the same as it was.
        for plan in [&mut patch.before, &mut patch.after] {
            (plan.state.bpf.v4.config, plan.state.bpf.v6.config) = (None, None);
        }
        Some(patch)
    }

    /// Whether no other peer of `plan` shares a subnet's first address or a MAC with ours.
    fn stands_apart(&self, plan: &Plan) -> bool {
        let (before, after) = (&self.before.peers, &self.after.peers);
        if before.iter().any(|(subnet, peer)| plan.peers.get(subnet) != Some(peer))
            || after.keys().any(|subnet| !before.contains_key(subnet) && plan.peers.contains_key(subnet))
        {
            return false;
        }
        let ours = || before.iter().chain(after);
        let mut bases = ours().map(|(subnet, _)| subnet.network());
        let mut macs = ours().filter_map(|(_, peer)| peer.mac);
        let others = |subnet: &IpNetwork| !before.contains_key(subnet);
        bases.all(|base| !plan.peers.range(beginning_with(base)).any(|(subnet, _)| others(subnet)))
            && macs.all(|mac| !self.is_anothers(mac, plan))
    }

    /// Whether a peer of `plan` that we are not publishes `mac`. None that has our address is asked about.
    fn is_anothers(&self, mac: Mac, plan: &Plan) -> bool {
        let (ours, all) = (&self.before.state, &plan.state);
        let key = |family| (family, mac);
        let tunnelled =
            Family::BOTH.map(key).iter().any(|key| all.fdb.contains_key(key) && !ours.fdb.contains_key(key));
        // The kernel holds no MAC of those that are reached without the tunnel.
        let mut direct = all.direct_routes.keys().filter(|subnet| !self.before.peers.contains_key(*subnet));
        tunnelled || direct.any(|subnet| plan.peers.get(subnet).is_some_and(|peer| peer.mac == Some(mac)))
    }

    /// Whether the lengths of leased prefixes, which the programs try one after the other, stay what they are.
    fn keeps_lengths(&self, plan: &Plan) -> bool {
        let length = |subnet: &IpNetwork| (Family::of_network(*subnet), subnet.prefix());
        let lengths = |plan: &Plan| plan.peers.keys().map(length).collect::<BTreeSet<_>>();
        let (before, after) = (lengths(&self.before), lengths(&self.after));
        let ours = |subnet| self.before.peers.contains_key(subnet) || self.after.peers.contains_key(subnet);
        before
            .symmetric_difference(&after)
            .all(|one| plan.peers.keys().any(|subnet| length(subnet) == *one && !ours(subnet)))
    }

    /// What leads from the plan before to the one after, in the order of [`delta`].
    pub fn changes(&self) -> Vec<Change> {
        delta(&self.after.state, &self.before.state)
    }

    /// The plan of this lease alone, before.
    pub fn before(&self) -> &Plan {
        &self.before
    }

    /// The same, now.
    pub fn after(&self) -> &Plan {
        &self.after
    }

    /// Brings a plan up to date.
    pub fn apply(&self, plan: &mut Plan) {
        swap(&mut plan.peers, &self.before.peers, &self.after.peers);
        swap(&mut plan.skipped, &self.before.skipped, &self.after.skipped);
        swap(&mut plan.on_kernel, &self.before.on_kernel, &self.after.on_kernel);
        self.apply_to_state(&mut plan.state);
    }

    fn apply_to_state(&self, state: &mut State) {
        let (before, after) = (&self.before.state, &self.after.state);
        // Named one by one, so that none is forgotten when there are more.
        let State { devices: _, addresses: _, neighbours, fdb, routes, direct_routes, objects, bpf } = state;
        swap(neighbours, &before.neighbours, &after.neighbours);
        swap(fdb, &before.fdb, &after.fdb);
        swap(routes, &before.routes, &after.routes);
        swap(direct_routes, &before.direct_routes, &after.direct_routes);
        swap(objects, &before.objects, &after.objects);
        let BpfState { v4, v6, hooks: _ } = bpf;
        swap_entries(v4, &before.bpf.v4, &after.bpf.v4);
        swap_entries(v6, &before.bpf.v6, &after.bpf.v6);
    }
}

/// As [`swap`], of maps. This node's configuration and pods depend on no lease.
fn swap_entries<F: IpFamily>(all: &mut Maps<F>, before: &Maps<F>, after: &Maps<F>) {
    let Maps { config: _, routes, vteps, pods: _, exempt } = all;
    swap(routes, &before.routes, &after.routes);
    swap(vteps, &before.vteps, &after.vteps);
    swap(exempt, &before.exempt, &after.exempt);
}

impl Skip {
    /// Whether the lease would be followed if another were not there.
    fn yields_to_another(&self) -> bool {
        matches!(self, Self::SameBase(_) | Self::SameMac { .. })
    }
}

/// The subnets whose first address is `base`, of whichever length, as they are ordered.
fn beginning_with(base: IpAddr) -> RangeInclusive<IpNetwork> {
    let longest = IpNetwork::from(base);
    let shortest = IpNetwork::new(base, 0).unwrap_or(longest);
    shortest..=longest
}

/// The addresses a lease publishes. An IPv6-only node's has no IPv4 address: it publishes 0.0.0.0.
fn addresses(lease: &Lease) -> impl Iterator<Item = IpAddr> {
    let all = Family::BOTH.map(|family| lease.attrs.address(family));
    all.into_iter().flatten().filter(|address| !address.is_unspecified())
}

/// The plan as if there were no other lease.
fn alone(inputs: &Inputs<'_>, lease: Option<&Lease>) -> Plan {
    let leases: Leases = lease.map(|lease| (lease.subnet, lease.clone())).into_iter().collect();
    plan(&Inputs { leases: &leases, ..inputs.clone() })
}

/// Puts `after` in the place of `before`, which is part of `all`. What is the same in both may be another's, too, and
/// stays as it is.
fn swap<K: Ord + Clone, V: Clone + PartialEq>(
    all: &mut BTreeMap<K, V>,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) {
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        all.remove(key);
    }
    let news = after.iter().filter(|(key, value)| before.get(*key) != Some(*value));
    all.extend(news.map(|(key, value)| (key.clone(), value.clone())));
}
