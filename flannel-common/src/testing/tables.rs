//! The maps, without a kernel.

use std::collections::BTreeMap;

use crate::{
    layout::{Config, Exempt, PeerV4, PodV4, SubnetV4, VtepV4},
    path::Tables,
};

/// The maps' contents as the agent would have written them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTables {
    /// `config`.
    pub config: Option<Config>,
    /// `routes_v4`.
    pub routes: BTreeMap<SubnetV4, PeerV4>,
    /// `vteps`.
    pub vteps: BTreeMap<[u8; 4], VtepV4>,
    /// `pods_v4`.
    pub pods: BTreeMap<[u8; 4], PodV4>,
    /// `snat_exempt_v4`.
    pub exempt: BTreeMap<SubnetV4, Exempt>,
}

impl Tables for MemoryTables {
    fn config(&self) -> Option<Config> {
        self.config
    }

    fn route_v4(&self, subnet: SubnetV4) -> Option<PeerV4> {
        self.routes.get(&subnet).copied()
    }

    fn vtep(&self, address: [u8; 4]) -> Option<VtepV4> {
        self.vteps.get(&address).copied()
    }

    fn pod_v4(&self, address: [u8; 4]) -> Option<PodV4> {
        self.pods.get(&address).copied()
    }

    fn is_exempt_v4(&self, address: [u8; 4]) -> bool {
        self.exempt.keys().any(|prefix| prefix.contains(address))
    }
}
