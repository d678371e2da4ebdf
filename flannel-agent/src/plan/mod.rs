//! What the kernel should hold, as a pure function of what is leased and where we are.
//!
//! [`plan`] sees the whole of the leases, never an event, so its result depends on what is leased now and
//! not on the order in which that came about. [`delta`] says what leads from an observed state to it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    ops::Range,
};

use flannel_common::layout::{Config, FastPath, PeerKind, PeerV4, PodV4, SubnetV4, VtepV4};
use ipnetwork::Ipv4Network;

use crate::lease::{LeaseSubnet, Leases};

mod change;
mod delta;
mod exempt;
mod peers;
mod state;
#[cfg(test)]
mod tests;

pub use change::{Change, Slot};
pub use delta::delta;
pub use exempt::Exemptions;
pub use flannel_common::path::Hook;
pub use peers::{Peer, Skip, peers, public_addresses};
pub use state::{BpfState, State, VxlanDevice};

/// The facts about this node that do not change while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The network all pod subnets are cut from.
    pub network: Ipv4Network,
    /// Our pod subnet, host bits zero.
    pub subnet: Ipv4Network,
    /// The address our lease publishes; peers send to it.
    pub public_ip: Ipv4Addr,
    /// The VXLAN device. Its underlay is the external interface.
    pub device: VxlanDevice,
    /// How far packets may skip the host's stack.
    pub fast_path: FastPath,
    /// `net.ipv4.ip_local_port_range` as read, host order: outer source ports are chosen from it by the
    /// kernel's formula, which never reaches the end.
    pub source_ports: Range<u16>,
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
    /// How the underlay reaches the peers' public addresses; those without a usable route are absent.
    pub next_hops: &'a BTreeMap<Ipv4Addr, NextHop>,
    /// Our pods.
    pub pods: &'a Pods,
    /// What the operator exempts from masquerading.
    pub exemptions: &'a Exemptions,
    /// Index of the VXLAN device, once it exists.
    pub overlay_ifindex: Option<u32>,
}

/// What [`plan`] concludes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What the kernel should hold.
    pub state: State,
    /// The peers that are reached, by pod subnet.
    pub peers: BTreeMap<Ipv4Network, Peer>,
    /// The leases that are not followed, and why.
    pub skipped: BTreeMap<LeaseSubnet, Skip>,
}

/// What the kernel should hold given `inputs`: exactly what a node of stock flannel programs, and, unless
/// the fast path is off, the maps and programs that overtake it.
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let local = inputs.local;
    let (peers, skipped) = peers(local, inputs.leases);
    let mut state = State {
        device: Some(local.device.clone()),
        addresses: BTreeSet::from([host(local.subnet.network())]),
        bpf: bpf(inputs, &peers),
        ..State::default()
    };
    for (subnet, peer) in &peers {
        let base = subnet.network();
        state.neighbours.insert(base, peer.vtep_mac);
        state.fdb.insert(peer.vtep_mac, peer.public_ip);
        state.routes.insert(*subnet, base);
    }
    Plan { state, peers, skipped }
}

fn bpf(inputs: &Inputs<'_>, peers: &BTreeMap<Ipv4Network, Peer>) -> BpfState {
    let local = inputs.local;
    if local.fast_path == FastPath::Off {
        return BpfState::default();
    }
    let mut bpf = BpfState::default();
    let mut lengths = BTreeSet::new();
    for (subnet, peer) in peers {
        let key = subnet_key(*subnet);
        lengths.insert(Reverse(subnet.prefix()));
        bpf.peers.insert(key, peer_value(local, peer, inputs.next_hops.get(&peer.public_ip)));
        // The source check has room for one lease of a public address.
        if peer.foremost {
            bpf.vteps.insert(peer.public_ip.octets(), VtepV4 { subnet: key });
        }
    }
    bpf.config = Some(Config {
        fast_path: local.fast_path,
        vtep: local.device.local.octets(),
        port: local.device.port.into(),
        vni: local.device.vni,
        source_port_min: local.source_ports.start.into(),
        source_port_max: local.source_ports.end.into(),
        network: subnet_key(local.network),
        subnet: subnet_key(local.subnet),
        // Longest first; what does not fit is reached by the kernel path.
        prefix_lengths: std::array::from_fn(|at| lengths.iter().nth(at).map_or(0, |length| length.0)),
        local_mac: local.device.mac.0,
        reserved: [0; 2],
    });
    bpf.exempt = exempt::prefixes(local, inputs.leases, inputs.exemptions);
    bpf.hooks.extend(inputs.overlay_ifindex.map(|index| (index, Hook::ToOverlay)));
    // Where pods' packets all go through the host's stack, the program only marks them.
    bpf.hooks.extend(inputs.pods.links.iter().map(|&link| (link, Hook::FromPod)));
    if local.fast_path == FastPath::All {
        bpf.hooks.insert((local.device.underlay_ifindex, Hook::FromUnderlay));
        bpf.pods.extend(inputs.pods.places.iter().map(|(address, place)| (address.octets(), *place)));
    }
    bpf
}

fn peer_value(local: &Local, peer: &Peer, next_hop: Option<&NextHop>) -> PeerV4 {
    PeerV4 {
        kind: if next_hop.is_some() { PeerKind::Vxlan } else { PeerKind::Kernel },
        vtep: peer.public_ip.octets(),
        // The device has one VNI, and every flannel sends with its own: what a peer publishes is not used.
        vni: local.device.vni,
        ifindex: next_hop.map_or(0, |hop| hop.ifindex),
        next_hop: next_hop.map_or([0; 4], |hop| hop.address.octets()),
        mtu: next_hop.map_or(0, |hop| hop.mtu),
        vtep_mac: peer.vtep_mac.0,
        local_mac: local.device.mac.0,
    }
}

/// The network of one address.
fn host(address: Ipv4Addr) -> Ipv4Network {
    Ipv4Network::from(address)
}

fn subnet_key(subnet: Ipv4Network) -> SubnetV4 {
    SubnetV4::of(subnet.network().octets(), subnet.prefix().into())
}
