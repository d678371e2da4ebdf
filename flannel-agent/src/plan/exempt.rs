//! Where pods' packets go with the pod's own address.

use std::collections::{BTreeMap, BTreeSet};

use flannel_common::layout::{Exempt, SubnetV4};
use ipnetwork::Ipv4Network;

use super::{Local, host, subnet_key};
use crate::lease::Leases;

/// What the operator exempts from masquerading, besides the cluster's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exemptions {
    /// Networks and hosts, host bits zero, none of them /0.
    pub prefixes: BTreeSet<Ipv4Network>,
    /// The address of every other node that holds a lease.
    pub nodes: bool,
}

/// All prefixes that are exempt, and why; of several reasons the first of [`Exempt`].
pub(super) fn prefixes(
    local: &Local,
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
        let nodes = nodes.filter(|address| ![local.public_ip, local.underlay.address].contains(address));
        all.extend(nodes.map(|address| (subnet_key(host(address)), Exempt::Node)));
    }
    all.insert(subnet_key(local.network), Exempt::Cluster);
    all
}
