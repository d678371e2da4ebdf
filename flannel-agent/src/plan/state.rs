//! The state of the kernel that the agent owns: desired and observed have the same type.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_common::{
    family::{V4, V6},
    path::Hook,
};
use ipnetwork::IpNetwork;

use super::{DirectRoute, Maps, Objects, VxlanDevice};
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
    /// What the backend has of kinds that only it knows.
    pub objects: Objects,
    /// Maps and programs. Empty when the fast path is off.
    pub bpf: BpfState,
}

impl BpfState {
    /// Whether the pods map holds every address that that of `planned` holds.
    pub fn has_pods_of(&self, planned: &Self) -> bool {
        planned.v4.pods.keys().all(|address| self.v4.pods.contains_key(address))
            && planned.v6.pods.keys().all(|address| self.v6.pods.contains_key(address))
    }
}

/// The eBPF half of [`State`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfState {
    /// The maps for IPv4.
    pub v4: Maps<V4>,
    /// The maps for IPv6.
    pub v6: Maps<V6>,
    /// Attached programs: interface index and hook.
    pub hooks: BTreeSet<(u32, Hook)>,
}
