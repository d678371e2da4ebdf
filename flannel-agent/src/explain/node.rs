//! What the maps say of this node and its peers, in the agent's own types.

use std::net::IpAddr;

use flannel_common::layout::{Config, PodPlace, RouteKind, Subnet};
use ipnetwork::IpNetwork;

use super::tables::PinnedTables;
use crate::{
    bpf::{FamilyTables, MapFault, TrieFamily},
    values::{Family, Mac},
};

/// This node in the cluster's network of a family.
#[derive(Clone, Copy, Debug)]
pub(super) struct ThisNode {
    pub(super) subnet: IpNetwork,
    pub(super) vtep: IpAddr,
    pub(super) port: u16,
    pub(super) vni: u32,
    pub(super) local_mac: Mac,
}

/// The node that a pod subnet is leased to.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerRoute {
    pub(super) kind: RouteKind,
    pub(super) vtep: IpAddr,
    pub(super) ifindex: u32,
    pub(super) vtep_mac: Mac,
}

fn network<F: TrieFamily>(subnet: Subnet<F>) -> Option<IpNetwork> {
    let length: u64 = subnet.prefix_len.into();
    IpNetwork::new(F::address(subnet.network), u8::try_from(length).ok()?).ok()
}

fn this_node<F: TrieFamily>(of: &FamilyTables<F>) -> Result<Option<ThisNode>, MapFault> {
    let Some(config) = of.config.get()?.filter(|config| config.source_port_max != 0) else { return Ok(None) };
    Ok(read(&config))
}

fn read<F: TrieFamily>(config: &Config<F>) -> Option<ThisNode> {
    Some(ThisNode {
        subnet: network(config.subnet)?,
        vtep: F::address(config.vtep),
        port: u16::try_from(config.port).ok()?,
        vni: config.vni,
        local_mac: Mac(config.local_mac),
    })
}

fn peer<F: TrieFamily>(of: &FamilyTables<F>, address: IpAddr) -> Result<Option<PeerRoute>, MapFault> {
    let Some(key) = F::address_key(address) else { return Ok(None) };
    let Some(config) = of.config.get()? else { return Ok(None) };
    for length in config.prefix_lengths.into_iter().filter(|length| *length != 0) {
        if let Some(route) = of.routes.get(&Subnet::of(key, length.into()))? {
            return Ok(Some(PeerRoute {
                kind: route.kind,
                vtep: F::address(route.vtep),
                ifindex: route.ifindex,
                vtep_mac: Mac(route.vtep_mac),
            }));
        }
    }
    Ok(None)
}

fn place<F: TrieFamily>(of: &FamilyTables<F>, address: IpAddr) -> Result<Option<PodPlace>, MapFault> {
    match F::address_key(address) {
        Some(key) => of.pods.get(&key),
        None => Ok(None),
    }
}

impl PinnedTables {
    /// This node in the network of a family; `None` where that is not configured.
    pub(super) fn this_node(&self, family: Family) -> Result<Option<ThisNode>, MapFault> {
        match family {
            Family::V4 => this_node(&self.tables.v4),
            Family::V6 => this_node(&self.tables.v6),
        }
    }

    /// The node whose lease holds `address`.
    pub(super) fn peer(&self, address: IpAddr) -> Result<Option<PeerRoute>, MapFault> {
        match Family::of(address) {
            Family::V4 => peer(&self.tables.v4, address),
            Family::V6 => peer(&self.tables.v6, address),
        }
    }

    /// Where the pods map says that `address` is.
    pub(super) fn place(&self, address: IpAddr) -> Result<Option<PodPlace>, MapFault> {
        match Family::of(address) {
            Family::V4 => place(&self.tables.v4, address),
            Family::V6 => place(&self.tables.v6, address),
        }
    }
}
