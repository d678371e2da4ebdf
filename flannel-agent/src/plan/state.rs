//! The state of the kernel that the agent owns: desired and observed have the same type.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_common::{
    layout::{Config, Exempt, PeerV4, PodPlace, SubnetV4, VtepV4},
    path::Hook,
};
use ipnetwork::IpNetwork;

use super::{BpfStateV6, DirectRoute, VxlanDevice};
use crate::values::{Family, Mac};

/// What the kernel holds on our behalf. What is on a device is of the family that the device carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The VXLAN devices.
    pub devices: BTreeMap<Family, VxlanDevice>,
    /// Addresses of the devices.
    pub addresses: BTreeSet<IpNetwork>,
    /// Permanent neighbours on the devices: the first address of a peer's subnet to its VtepMAC.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Permanent self FDB entries of the devices: VtepMAC to public address. A node may have one MAC in both families.
    pub fdb: BTreeMap<(Family, Mac), IpAddr>,
    /// Routes over the devices, `onlink`: pod subnet to the first address of it.
    pub routes: BTreeMap<IpNetwork, IpAddr>,
    /// Routes past the devices, straight to a peer on the same link. The kernel has one route to a subnet:
    /// no subnet is in both `routes` and here.
    pub direct_routes: BTreeMap<IpNetwork, DirectRoute>,
    /// Maps and programs. Empty when the fast path is off.
    pub bpf: BpfState,
}

impl BpfState {
    /// Whether the pods map holds every address that that of `planned` holds.
    pub fn has_pods_of(&self, planned: &Self) -> bool {
        planned.pods.keys().all(|address| self.pods.contains_key(address))
            && planned.v6.pods.keys().all(|address| self.v6.pods.contains_key(address))
    }
}

/// The eBPF half of [`State`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfState {
    /// Map `config`.
    pub config: Option<Config>,
    /// Map `routes_v4`.
    pub peers: BTreeMap<SubnetV4, PeerV4>,
    /// Map `vteps`.
    pub vteps: BTreeMap<[u8; 4], VtepV4>,
    /// Map `pods_v4`.
    pub pods: BTreeMap<[u8; 4], PodPlace>,
    /// Map `snat_exempt_v4`.
    pub exempt: BTreeMap<SubnetV4, Exempt>,
    /// The maps for IPv6.
    pub v6: BpfStateV6,
    /// Attached programs: interface index and hook.
    pub hooks: BTreeSet<(u32, Hook)>,
}
