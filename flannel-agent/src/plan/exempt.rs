//! Where pods' packets go with the pod's own address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_common::layout::Exempt;
use ipnetwork::IpNetwork;

use super::LocalStack;
use crate::{lease::Leases, values::Family};

/// What the operator exempts from masquerading, besides the cluster's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exemptions {
    /// Networks and hosts, host bits zero, none of them /0.
    pub prefixes: BTreeSet<IpNetwork>,
    /// The address of every other node that holds a lease.
    pub nodes: bool,
}

/// All prefixes of the family of `stack` that are exempt, and why; of several reasons the first of [`Exempt`].
pub(super) fn prefixes(
    stack: &LocalStack,
    leases: &Leases,
    exemptions: &Exemptions,
) -> BTreeMap<IpNetwork, Exempt> {
    let family = Family::of_network(stack.network);
    let named = exemptions.prefixes.iter().copied();
    let named = named.filter(|prefix| Family::of_network(*prefix) == family);
    let mut all: BTreeMap<_, _> = named.map(|prefix| (prefix, Exempt::User)).collect();
    if exemptions.nodes {
        // Of any backend: a node whose pods we do not reach is a node all the same. Not our own: nobody
        // masquerades what ends here, and a container that asks for its own published port by our address
        // gets an answer only if docker masquerades it.
        let nodes = leases.values().filter_map(|lease| lease.attrs.address(family));
        // An IPv6-only node's.
        let nodes = nodes.filter(|address| !address.is_unspecified());
        let nodes = nodes.filter(|address| ![stack.public_ip, stack.address].contains(address));
        all.extend(nodes.map(|address: IpAddr| (address.into(), Exempt::Node)));
    }
    all.insert(stack.network, Exempt::Cluster);
    all
}
