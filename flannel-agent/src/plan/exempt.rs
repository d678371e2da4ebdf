//! Where pods' packets go with the pod's own address.

use std::collections::{BTreeMap, BTreeSet};

use flannel_common::layout::{Exempt, SubnetV4};
use ipnetwork::{IpNetwork, Ipv4Network};

use super::{LocalStack, host, subnet_key};
use crate::lease::Leases;

/// What the operator exempts from masquerading, besides the cluster's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exemptions {
    /// Networks and hosts, host bits zero, none of them /0.
    pub prefixes: BTreeSet<Ipv4Network>,
    /// The address of every other node that holds a lease.
    pub nodes: bool,
}

/// All IPv4 prefixes that are exempt, and why; of several reasons the first of [`Exempt`].
pub(super) fn prefixes(
    stack: &LocalStack,
    leases: &Leases,
    exemptions: &Exemptions,
) -> BTreeMap<SubnetV4, Exempt> {
    let mut all: BTreeMap<_, _> =
        exemptions.prefixes.iter().map(|prefix| (subnet_key(*prefix), Exempt::User)).collect();
    if exemptions.nodes {
        // Of any backend: a node whose pods we do not reach is a node all the same. Not our own: nobody
        // masquerades what ends here, and a container that asks for its own published port by our address
        // gets an answer only if docker masquerades it.
        let nodes = leases.values().map(|lease| lease.attrs.public_ip);
        // An IPv6-only node's.
        let nodes = nodes.filter(|address| !address.is_unspecified());
        let nodes = nodes.filter(|address| ![stack.public_ip, stack.address].contains(&(*address).into()));
        all.extend(nodes.map(|address| (subnet_key(host(address)), Exempt::Node)));
    }
    if let IpNetwork::V4(network) = stack.network {
        all.insert(subnet_key(network), Exempt::Cluster);
    }
    all
}
