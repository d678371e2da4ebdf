//! The state of the kernel that the agent owns: desired and observed have the same type.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use flannel_common::{
    layout::{Config, Exempt, PeerV4, PodV4, SubnetV4, VtepV4},
    path::Hook,
};
use ipnetwork::Ipv4Network;

use crate::mac::Mac;

/// The VXLAN device `flannel.<vni>`, with the attributes that upstream compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanDevice {
    /// `flannel.<vni>`.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, host order.
    pub port: u16,
    /// Index of the external interface it is bound to.
    pub underlay_ifindex: u32,
    /// Local address of the outer header.
    pub local: Ipv4Addr,
    /// Its MAC, as our lease publishes it.
    pub mac: Mac,
    /// Its MTU: that of the underlay less 50.
    pub mtu: u32,
    /// It learns from packets which MAC is behind which address.
    pub learning: bool,
    /// It carries the mark of packets in the header: the group based policy extension.
    pub gbp: bool,
}

/// Where a route leads that uses no tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectRoute {
    /// Interface packets leave by.
    pub ifindex: u32,
    /// The gateway: the public address of the node that holds the subnet.
    pub via: Ipv4Addr,
}

/// What the kernel holds on our behalf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// flannel.<vni>.
    pub device: Option<VxlanDevice>,
    /// Addresses of the device.
    pub addresses: BTreeSet<Ipv4Network>,
    /// Permanent neighbours on the device: a peer's `.0` address to its VtepMAC.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// Permanent self FDB entries of the device: VtepMAC to public address.
    pub fdb: BTreeMap<Mac, Ipv4Addr>,
    /// Routes over the device, `onlink`: pod subnet to the peer's `.0` address.
    pub routes: BTreeMap<Ipv4Network, Ipv4Addr>,
    /// Routes past the device, straight to a peer on the same link. The kernel has one route to a subnet:
    /// no subnet is in both `routes` and here.
    pub direct_routes: BTreeMap<Ipv4Network, DirectRoute>,
    /// Maps and programs. Empty when the fast path is off.
    pub bpf: BpfState,
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
    pub pods: BTreeMap<[u8; 4], PodV4>,
    /// Map `snat_exempt_v4`.
    pub exempt: BTreeMap<SubnetV4, Exempt>,
    /// Attached programs: interface index and hook.
    pub hooks: BTreeSet<(u32, Hook)>,
}
