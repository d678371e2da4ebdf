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
mod patch;
mod peers;
mod state;
#[cfg(test)]
mod tests;

pub use change::{Change, Slot};
pub use delta::delta;
pub use exempt::Exemptions;
pub use flannel_common::path::Hook;
pub use patch::Patch;
pub use peers::{Peer, Skip, Way, peers, public_addresses};
pub use state::{BpfState, DirectRoute, State, VxlanDevice};

/// The facts about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The families of the cluster's network, and this node in each.
    pub stacks: BTreeMap<Family, LocalStack>,
    /// Index of the external interface, by which packets between nodes leave and arrive.
    pub underlay_ifindex: u32,
    /// How packets reach other nodes.
    pub backend: Backend,
    /// Peers that the underlay reaches without a gateway are routed to without the tunnel.
    pub direct_routing: bool,
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

    /// Whether peers may be reached without a tunnel.
    pub fn routes_direct(&self) -> bool {
        self.direct_routing || self.backend == Backend::HostGw
    }
}

/// How the underlay reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Interface packets leave by.
    pub ifindex: u32,
    /// Whose MAC the frame goes to: a gateway, or the address itself when it is on the link.
    pub address: Ipv4Addr,
    /// Largest IP packet the route carries, bytes.
    pub mtu: u32,
}

/// Why the programs send nothing towards an address, and leave it to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum NoHop {
    /// The kernel knows no route, or not from our address.
    #[error("no route leads to its address")]
    NoRoute,
    /// The kernel chooses one of several for each flow.
    #[error("the route to its address has several next hops, of which the kernel chooses")]
    Multipath,
    /// Not a plain one over Ethernet: it encapsulates, drops, or has a gateway of another family.
    #[error("the route to its address is of a kind that only the kernel follows")]
    Special,
    /// A tunnel through itself.
    #[error("the route to its address leads over the tunnel itself")]
    Tunnel,
    /// A peer to be reached without a tunnel is not on the link.
    #[error("its address is behind a gateway, not on the link of the external interface")]
    NotOnLink,
    /// A peer to be reached without a tunnel is on another link, whose packets no program sees.
    #[error("its address is on the link of another interface than the external one")]
    OtherInterface,
}

/// How the underlay reaches addresses, or why the programs cannot use that; an address that was not asked for is
/// absent.
pub type NextHops = BTreeMap<Ipv4Addr, Result<NextHop, NoHop>>;

impl NextHop {
    /// Whether `destination`, which this leads to, is on the link itself.
    pub(crate) fn is_on_link(&self, destination: IpAddr) -> bool {
        destination == self.address
    }
}

/// The pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Host sides of their veths.
    pub links: BTreeSet<u32>,
    /// Where each address is. An address that two pods claim is absent: the kernel decides.
    pub places: BTreeMap<Ipv4Addr, PodV4>,
}

/// All that [`plan`] depends on.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// This node.
    pub local: &'a Local,
    /// The leases of the peers.
    pub leases: &'a Leases,
    /// How the underlay reaches the peers' public addresses.
    pub next_hops: &'a NextHops,
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
    /// The peers whose packets the programs leave to the kernel, and why, by pod subnet.
    pub on_kernel: BTreeMap<Ipv4Network, NoHop>,
}

impl Plan {
    /// Leases that are followed in some family.
    pub fn followed(&self) -> usize {
        // A lease has one subnet of each family at most: the peer of the second is the same one.
        let is_counted = |peer: &Peer| {
            let first = peer.lease.of(Family::V4).and_then(|subnet| self.peers.get(&subnet));
            first.is_some_and(|other| other.lease == peer.lease)
        };
        self.peers.iter().filter(|(subnet, peer)| subnet.is_ipv4() || !is_counted(peer)).count()
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
    let (peers, skipped) = peers(local, inputs.leases, inputs.next_hops);
    let (bpf, on_kernel) = bpf(inputs, &peers);
    let mut state = State { bpf, ..State::default() };
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
                let ifindex = match peer.next_hop(inputs.next_hops) {
                    Some(Ok(hop)) if local.direct_routing => hop.ifindex,
                    _ => local.underlay_ifindex,
                };
                let route = DirectRoute { ifindex, via: peer.public_ip };
                state.direct_routes.insert(*subnet, route);
            }
        }
    }
    Plan { state, peers, skipped, on_kernel }
}

/// The maps and programs, and the peers that they leave to the kernel. They know IPv4; packets of IPv6 take the
/// kernel's way.
fn bpf(inputs: &Inputs<'_>, peers: &BTreeMap<IpNetwork, Peer>) -> (BpfState, BTreeMap<Ipv4Network, NoHop>) {
    let local = inputs.local;
    let (mut bpf, mut on_kernel) = (BpfState::default(), BTreeMap::new());
    let served = local.fast_path != FastPath::Off && local.backend != Backend::Alloc;
    let Some(stack) = local.stack(Family::V4).filter(|_| served) else { return (bpf, on_kernel) };
    let (IpNetwork::V4(network), IpNetwork::V4(subnet), IpAddr::V4(address)) =
        (stack.network, stack.subnet, stack.address)
    else {
        return (bpf, on_kernel);
    };
    let device = stack.device.as_ref();
    let mut lengths = BTreeSet::new();
    for (subnet, peer) in peers {
        let (IpNetwork::V4(subnet), IpAddr::V4(public_ip)) = (subnet, peer.public_ip) else { continue };
        let key = subnet_key(*subnet);
        lengths.insert(Reverse(subnet.prefix()));
        let hop = next_hop(local, peer, inputs.next_hops);
        on_kernel.extend(hop.err().map(|why| (*subnet, why)));
        bpf.peers.insert(key, peer_value(device, peer, public_ip, hop.ok()));
        // The source check of the tunnel has room for one lease of a public address. With both ways in use a peer
        // chooses for itself, and may come through the tunnel whichever way it is reached.
        if peer.foremost && device.is_some() {
            bpf.vteps.insert(public_ip.octets(), VtepV4 { subnet: key });
        }
    }
    bpf.config = Some(Config {
        fast_path: local.fast_path,
        vtep: address.octets(),
        port: device.map_or(0, |device| device.port.into()),
        vni: device.map_or(0, |device| device.vni),
        source_port_min: local.source_ports.start.into(),
        source_port_max: local.source_ports.end.into(),
        network: subnet_key(network),
        subnet: subnet_key(subnet),
        flow_refresh: u32::try_from(local.flow_refresh.as_secs()).unwrap_or(u32::MAX),
        // Longest first; what does not fit is reached by the kernel path.
        prefix_lengths: std::array::from_fn(|at| lengths.iter().nth(at).map_or(0, |length| length.0)),
        local_mac: device.map_or([0; 6], |device| device.mac.0),
        reserved: [0; 2],
    });
    bpf.exempt = exempt::prefixes(stack, inputs.leases, inputs.exemptions);
    let overlay = inputs.overlays.get(&Family::V4).copied().filter(|_| device.is_some());
    bpf.hooks.extend(overlay.map(|index| (index, Hook::ToOverlay)));
    // Where pods' packets all go through the host's stack, the program only marks them.
    bpf.hooks.extend(inputs.pods.links.iter().map(|&link| (link, Hook::FromPod)));
    if local.fast_path == FastPath::Flow {
        bpf.hooks.extend(inputs.pods.links.iter().map(|&link| (link, Hook::ToPod)));
        if local.routes_direct() {
            bpf.hooks.insert((local.underlay_ifindex, Hook::ToUnderlay));
        }
    }
    if local.fast_path.finds_pods() {
        bpf.hooks.insert((local.underlay_ifindex, Hook::FromUnderlay));
        bpf.hooks.extend(overlay.map(|index| (index, Hook::FromOverlay)));
        bpf.pods.extend(inputs.pods.places.iter().map(|(address, place)| (address.octets(), *place)));
    }
    (bpf, on_kernel)
}

/// Where the programs send what is for `peer`.
fn next_hop(local: &Local, peer: &Peer, next_hops: &NextHops) -> Result<NextHop, NoHop> {
    let hop = peer.next_hop(next_hops).copied().unwrap_or(Err(NoHop::NoRoute))?;
    match peer.way {
        Way::Vxlan(_) => Ok(hop),
        Way::Direct if !hop.is_on_link(peer.public_ip) => Err(NoHop::NotOnLink),
        Way::Direct if hop.ifindex != local.underlay_ifindex => Err(NoHop::OtherInterface),
        Way::Direct => Ok(hop),
    }
}

fn peer_value(
    device: Option<&VxlanDevice>,
    peer: &Peer,
    public_ip: Ipv4Addr,
    next_hop: Option<NextHop>,
) -> PeerV4 {
    let kind = match (peer.way, next_hop) {
        (_, None) => PeerKind::Kernel,
        (Way::Vxlan(_), Some(_)) => PeerKind::Vxlan,
        (Way::Direct, Some(_)) => PeerKind::Direct,
    };
    let mac = peer.way.vtep_mac().unwrap_or(Mac([0; 6]));
    PeerV4 {
        kind,
        vtep: public_ip.octets(),
        // The device has one VNI, and every flannel sends with its own: what a peer publishes is not used.
        vni: device.map_or(0, |device| device.vni),
        ifindex: next_hop.map_or(0, |hop| hop.ifindex),
        next_hop: next_hop.map_or([0; 4], |hop| hop.address.octets()),
        mtu: next_hop.map_or(0, |hop| hop.mtu),
        vtep_mac: mac.0,
        local_mac: device.map_or([0; 6], |device| device.mac.0),
    }
}

/// The network of one address.
fn host(address: Ipv4Addr) -> Ipv4Network {
    Ipv4Network::from(address)
}

fn subnet_key(subnet: Ipv4Network) -> SubnetV4 {
    SubnetV4::of(subnet.network().octets(), subnet.prefix().into())
}
