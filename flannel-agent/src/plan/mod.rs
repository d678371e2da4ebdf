//! What the kernel should hold, as a pure function of what is leased and where we are.
//!
//! [`plan`] sees the whole of the leases, never an event, so its result depends on what is leased now and
//! not on the order in which that came about. [`delta`] says what leads from an observed state to it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    time::Duration,
};

use flannel_common::layout::{Config, FastPath, PeerKind, PeerV4, PodV4, SubnetV4, VtepV4};
use ipnetwork::{IpNetwork, Ipv4Network};

use crate::{
    family::Family,
    lease::{LeaseSubnet, Leases},
    mac::Mac,
};

mod change;
mod delta;
mod exempt;
mod peers;
mod state;
#[cfg(test)]
mod tests;
mod v6;

pub use change::{Change, Slot};
pub use delta::delta;
pub use exempt::Exemptions;
pub use flannel_common::path::Hook;
pub use peers::{Peer, Skip, Way, peers, public_addresses};
pub use state::{BpfState, DirectRoute, State, VxlanDevice};
pub use v6::{BpfStateV6, EntryV6, KeyV6};

/// The facts about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The families of the cluster's network, and this node in each.
    pub stacks: BTreeMap<Family, LocalStack>,
    /// Index of the external interface, by which packets between nodes leave and arrive.
    pub underlay_ifindex: u32,
    /// How packets reach other nodes.
    pub backend: Backend,
    /// How far packets may skip the host's stack.
    pub fast_path: FastPath,
    /// How long netfilter's acceptance of a flow holds, whole seconds: with fast path `flow`.
    pub flow_refresh: Duration,
    /// `net.ipv4.ip_local_port_range` as read, host order: outer source ports are chosen from it by the
    /// kernel's formula, which never reaches the end.
    pub source_ports: Range<u16>,
}

/// This node in one family. All addresses are of that family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalStack {
    /// The network all pod subnets are cut from.
    pub network: IpNetwork,
    /// Our pod subnet, host bits zero.
    pub subnet: IpNetwork,
    /// The address our lease publishes; peers send to it.
    pub public_ip: IpAddr,
    /// Our address on the external interface.
    pub address: IpAddr,
    /// The VXLAN device that carries this family's packets, with that backend. It is bound to the external
    /// interface, and its outer headers are of this family, too.
    pub device: Option<VxlanDevice>,
}

/// How packets reach other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Through a tunnel: each family over a device of its own.
    Vxlan,
    /// By routes to nodes on the same link, without a tunnel.
    HostGw,
    /// By whatever the administrator has set up: only the lease is ours.
    Alloc,
}

impl Backend {
    /// `BackendType` of our lease and of those that are followed.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            // Upstream publishes none.
            Self::Alloc => "",
        }
    }
}

impl Local {
    /// This node in a family of the cluster's.
    pub fn stack(&self, family: Family) -> Option<&LocalStack> {
        self.stacks.get(&family)
    }

    /// The VXLAN devices there are to be.
    pub fn devices(&self) -> impl Iterator<Item = (Family, &VxlanDevice)> {
        self.stacks.iter().filter_map(|(family, stack)| Some((*family, stack.device.as_ref()?)))
    }
}

/// How the underlay reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Interface packets leave by.
    pub ifindex: u32,
    /// Whose MAC the frame goes to: a gateway, or the address itself when it is on the link.
    pub address: IpAddr,
    /// Largest IP packet the route carries, bytes.
    pub mtu: u32,
}

/// The pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Host sides of their veths.
    pub links: BTreeSet<u32>,
    /// Where each address is. An address that two pods claim is absent: the kernel decides.
    pub places: BTreeMap<IpAddr, PodV4>,
}

/// All that [`plan`] depends on.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// This node.
    pub local: &'a Local,
    /// The leases of the peers.
    pub leases: &'a Leases,
    /// How the underlay reaches the peers' public addresses; those without a usable route are absent.
    pub next_hops: &'a BTreeMap<IpAddr, NextHop>,
    /// Our pods.
    pub pods: &'a Pods,
    /// What the operator exempts from masquerading.
    pub exemptions: &'a Exemptions,
    /// Indices of the VXLAN devices that exist.
    pub overlays: &'a BTreeMap<Family, u32>,
}

/// What [`plan`] concludes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What the kernel should hold.
    pub state: State,
    /// The peers that are reached, by pod subnet: of a node with both families, one for each.
    pub peers: BTreeMap<IpNetwork, Peer>,
    /// The leases that are not followed in a family, and why.
    pub skipped: BTreeMap<(LeaseSubnet, Family), Skip>,
}

impl Plan {
    /// Leases that are followed in some family.
    pub fn followed(&self) -> usize {
        self.peers.values().map(|peer| peer.lease).collect::<BTreeSet<_>>().len()
    }

    /// Leases that should be looked into, in whichever family.
    pub fn faults(&self) -> usize {
        let faults = self.skipped.iter().filter(|(_, skip)| skip.is_fault());
        faults.map(|((lease, _), _)| lease).collect::<BTreeSet<_>>().len()
    }
}

/// What the kernel should hold given `inputs`: exactly what a node of stock flannel programs, and, unless
/// the fast path is off, the maps and programs that overtake it.
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let local = inputs.local;
    let (peers, skipped) = peers(local, inputs.leases);
    let mut state = State { bpf: bpf(inputs, &peers), ..State::default() };
    for (family, stack) in &local.stacks {
        if let Some(device) = &stack.device {
            state.devices.insert(*family, device.clone());
            state.addresses.insert(stack.subnet.network().into());
        }
    }
    for (subnet, peer) in &peers {
        match peer.way {
            Way::Vxlan(mac) => {
                let base = subnet.network();
                state.neighbours.insert(base, mac);
                state.fdb.insert((Family::of(base), mac), peer.public_ip);
                state.routes.insert(*subnet, base);
            }
            Way::Direct => {
                let route = DirectRoute { ifindex: local.underlay_ifindex, via: peer.public_ip };
                state.direct_routes.insert(*subnet, route);
            }
        }
    }
    Plan { state, peers, skipped }
}

/// The maps and programs, which need a VXLAN device.
fn bpf(inputs: &Inputs<'_>, peers: &BTreeMap<IpNetwork, Peer>) -> BpfState {
    let local = inputs.local;
    let Some((_, device)) = local.devices().next().filter(|_| local.fast_path != FastPath::Off) else {
        return BpfState::default();
    };
    let mut bpf = BpfState { v6: v6::bpf(inputs, peers), ..bpf_v4(inputs, peers) };
    let overlays = local.devices().filter_map(|(family, _)| inputs.overlays.get(&family));
    bpf.hooks.extend(overlays.map(|index| (*index, Hook::ToOverlay)));
    // Where pods' packets all go through the host's stack, the program only marks them.
    bpf.hooks.extend(inputs.pods.links.iter().map(|&link| (link, Hook::FromPod)));
    if local.fast_path == FastPath::Flow {
        bpf.hooks.extend(inputs.pods.links.iter().map(|&link| (link, Hook::ToPod)));
    }
    if local.fast_path.finds_pods() {
        bpf.hooks.insert((device.underlay_ifindex, Hook::FromUnderlay));
    }
    bpf
}

/// The maps for IPv4: nothing on a node of a cluster without it.
fn bpf_v4(inputs: &Inputs<'_>, peers: &BTreeMap<IpNetwork, Peer>) -> BpfState {
    let local = inputs.local;
    let stack = local.stack(Family::V4).filter(|_| local.fast_path != FastPath::Off);
    let Some((stack, device)) = stack.and_then(|stack| Some((stack, stack.device.as_ref()?))) else {
        return BpfState::default();
    };
    let (IpNetwork::V4(network), IpNetwork::V4(subnet), IpAddr::V4(vtep)) =
        (stack.network, stack.subnet, device.local)
    else {
        return BpfState::default();
    };
    let mut bpf = BpfState::default();
    let mut lengths = BTreeSet::new();
    for (subnet, peer) in peers {
        let (IpNetwork::V4(subnet), IpAddr::V4(public_ip)) = (subnet, peer.public_ip) else { continue };
        let key = subnet_key(*subnet);
        lengths.insert(Reverse(subnet.prefix()));
        bpf.peers.insert(key, peer_value(device, peer.way, public_ip, inputs.next_hops.get(&peer.public_ip)));
        // The source check has room for one lease of a public address.
        if peer.foremost {
            bpf.vteps.insert(public_ip.octets(), VtepV4 { subnet: key });
        }
    }
    bpf.config = Some(Config {
        fast_path: local.fast_path,
        vtep: vtep.octets(),
        port: device.port.into(),
        vni: device.vni,
        source_port_min: local.source_ports.start.into(),
        source_port_max: local.source_ports.end.into(),
        network: subnet_key(network),
        subnet: subnet_key(subnet),
        flow_refresh: u32::try_from(local.flow_refresh.as_secs()).unwrap_or(u32::MAX),
        // Longest first; what does not fit is reached by the kernel path.
        prefix_lengths: std::array::from_fn(|at| lengths.iter().nth(at).map_or(0, |length| length.0)),
        local_mac: device.mac.0,
        reserved: [0; 2],
    });
    bpf.exempt = exempt::prefixes(stack, inputs.leases, inputs.exemptions);
    if local.fast_path.finds_pods() {
        bpf.pods.extend(inputs.pods.places.iter().filter_map(|(address, place)| match address {
            IpAddr::V4(address) => Some((address.octets(), *place)),
            IpAddr::V6(_) => None,
        }));
    }
    bpf
}

fn peer_value(device: &VxlanDevice, way: Way, public_ip: Ipv4Addr, next_hop: Option<&NextHop>) -> PeerV4 {
    let next_hop = next_hop.and_then(|hop| match hop.address {
        IpAddr::V4(address) => Some((hop, address)),
        IpAddr::V6(_) => None,
    });
    let (kind, mac) = match (way, next_hop) {
        (Way::Vxlan(mac), Some(_)) => (PeerKind::Vxlan, mac),
        (Way::Vxlan(mac), None) => (PeerKind::Kernel, mac),
        // The programs have no way without a tunnel.
        (Way::Direct, _) => (PeerKind::Kernel, Mac([0; 6])),
    };
    PeerV4 {
        kind,
        vtep: public_ip.octets(),
        // The device has one VNI, and every flannel sends with its own: what a peer publishes is not used.
        vni: device.vni,
        ifindex: next_hop.map_or(0, |(hop, _)| hop.ifindex),
        next_hop: next_hop.map_or([0; 4], |(_, address)| address.octets()),
        mtu: next_hop.map_or(0, |(hop, _)| hop.mtu),
        vtep_mac: mac.0,
        local_mac: device.mac.0,
    }
}

/// The network of one address.
fn host(address: Ipv4Addr) -> Ipv4Network {
    Ipv4Network::from(address)
}

fn subnet_key(subnet: Ipv4Network) -> SubnetV4 {
    SubnetV4::of(subnet.network().octets(), subnet.prefix().into())
}
