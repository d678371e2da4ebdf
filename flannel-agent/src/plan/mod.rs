//! What the kernel should hold, as a pure function of what is leased and where we are.
//!
//! [`plan`] sees the whole of the leases, never an event, so its result depends on what is leased now and
//! not on the order in which that came about. [`delta`] lists the changes that lead from an observed state to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Range,
};

use flannel_common::layout::FastPath;
use ipnetwork::IpNetwork;

use crate::{
    backend::FollowedPeer,
    lease::{LeaseSubnet, Leases},
    netlink::{NoNextHop, Special},
    values::Family,
};

mod change;
mod delta;
mod entry;
mod exempt;
mod hooks;
mod inherited;
mod ipsec;
mod maps;
mod patch;
mod peers;
mod programs;
mod routes;
mod state;
#[cfg(test)]
mod tests;
mod xdp;

pub use crate::{
    backend::{AnyBackend, LocalStack, ObjectId, Objects, PeerRoute, Skip},
    netlink::{DirectRoute, IpsecPolicy, NextHop, PodRoute, PodRoutes, Pods, VxlanDevice},
    values::FlowRefresh,
};
pub use change::{Change, ObjectKey};
pub use delta::delta;
pub use entry::{AnyEntry, AnyEntryKey, Entry, EntryFamily, EntryKey};
pub use exempt::Exemptions;
pub use flannel_common::path::Hook;
pub use hooks::{Foreign, ForeignHook, Heeding, HookPlace, Hooked, HookedInterface, LeftToKernel, Stretch};
pub use inherited::inherited;
pub use maps::Maps;
pub use patch::Patch;
pub use peers::{Peer, peers, public_addresses};
pub use state::{BpfState, State};
pub use xdp::Xdp;

/// The facts about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The families of the cluster's network, and this node in each.
    pub stacks: BTreeMap<Family, LocalStack>,
    /// Index of the external interface, by which packets between nodes leave and arrive.
    pub underlay_ifindex: u32,
    /// How packets reach other nodes.
    pub backend: AnyBackend,
    /// The backend's own objects that do not depend on peers.
    pub objects: Objects,
    /// Peers that the underlay reaches without a gateway are routed to without the tunnel.
    pub direct_routing: bool,
    /// How far packets may skip the host's stack.
    pub fast_path: FastPath,
    /// XDP on the external interface.
    pub xdp: Xdp,
    /// How long netfilter's acceptance of a flow holds: with fast path `flow`.
    pub flow_refresh: FlowRefresh,
    /// `net.ipv4.ip_local_port_range` as read, host order: outer source ports are chosen from it by the
    /// kernel's formula, which never reaches the end.
    pub source_ports: Range<u16>,
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

    /// Whether packets go to peers through a tunnel that the programs know.
    pub(crate) fn has_tunnel(&self) -> bool {
        self.devices().next().is_some() || self.backend.own_carrier().is_some()
    }

    /// Whether peers may be reached without a tunnel.
    pub fn routes_direct(&self) -> bool {
        self.direct_routing || self.backend.is_without_tunnel()
    }
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
    /// The host wants the packets encrypted, or stopped: only its own path does that.
    #[error("an IPsec policy covers its packets (ip xfrm policy)")]
    Ipsec,
    /// Netfilter at egress of the interface sees only what the kernel itself sends.
    #[error("an nftables chain at egress of its interface sees only what the kernel sends")]
    EgressChain,
    /// A route to its pods does more than lead there.
    #[error("only the kernel follows route {0} with {1}")]
    PodRoute(IpNetwork, Special),
}

impl From<NoNextHop> for NoHop {
    fn from(why: NoNextHop) -> Self {
        match why {
            NoNextHop::NoRoute => Self::NoRoute,
            NoNextHop::Multipath => Self::Multipath,
            NoNextHop::Special => Self::Special,
        }
    }
}

/// How the underlay reaches addresses, or why the programs cannot use that; an address that was not asked for is
/// absent.
pub type NextHops = BTreeMap<IpAddr, Result<NextHop, NoHop>>;

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
    /// What the host's IPsec policies are about.
    pub policies: &'a [IpsecPolicy],
    /// Indices of the VXLAN devices that exist.
    pub overlays: &'a BTreeMap<Family, u32>,
    /// Hooks of others, which packets on the fast path may skip.
    pub foreign: &'a Foreign,
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
    pub on_kernel: BTreeMap<IpNetwork, NoHop>,
    /// What the programs leave to the kernel for others' hooks.
    pub hooked: LeftToKernel,
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
/// the fast path is off, the maps and programs of the fast path.
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let local = inputs.local;
    let (peers, skipped) = peers(local, inputs.leases, inputs.next_hops);
    let hooked = hooks::left_to_kernel(inputs);
    let (bpf, on_kernel) = programs::plan(inputs, &peers, &hooked);
    let mut state = State { bpf, ..State::default() };
    for (family, stack) in &local.stacks {
        if let Some(device) = &stack.device {
            state.devices.insert(*family, device.clone());
            state.addresses.insert(stack.subnet.network().into());
        }
    }
    let tunnelled =
        || peers.iter().filter_map(|(subnet, peer)| Some((subnet, peer.route.vtep_mac()?, peer.public_ip)));
    // Collected rather than inserted: of a map that grows in order, half of each node stays empty.
    state.neighbours = tunnelled().map(|(subnet, mac, _)| (subnet.network(), mac)).collect();
    state.fdb = tunnelled().map(|(subnet, mac, to)| ((Family::of_network(*subnet), mac), to)).collect();
    state.routes = tunnelled().map(|(subnet, ..)| (*subnet, subnet.network())).collect();
    for (subnet, peer) in &peers {
        match peer.route {
            PeerRoute::Vxlan(_) | PeerRoute::Objects => {}
            PeerRoute::Direct => {
                let ifindex = match inputs.next_hops.get(&peer.public_ip) {
                    Some(Ok(hop)) if local.direct_routing => hop.ifindex,
                    _ => local.underlay_ifindex,
                };
                let route = DirectRoute { ifindex, via: peer.public_ip };
                state.direct_routes.insert(*subnet, route);
            }
        }
    }
    if local.backend.has_objects() {
        state.objects = local.objects.clone();
        state.objects.extend(peer_objects(local, inputs.leases, &peers));
    }
    Plan { state, peers, skipped, on_kernel, hooked }
}

/// What the backend makes of the peers that are reached by objects of its own.
fn peer_objects(local: &Local, leases: &Leases, peers: &BTreeMap<IpNetwork, Peer>) -> Objects {
    let mut families = BTreeMap::<LeaseSubnet, BTreeSet<Family>>::new();
    for (subnet, peer) in peers.iter().filter(|(_, peer)| peer.route == PeerRoute::Objects) {
        families.entry(peer.lease).or_default().insert(Family::of_network(*subnet));
    }
    let followed = families.iter().filter_map(|(subnet, families)| Some((leases.get(subnet)?, families)));
    followed
        .flat_map(|(lease, families)| {
            let subnets = families.iter().filter_map(|family| lease.subnet.of(*family)).collect();
            local.backend.peer_objects(&local.stacks, &FollowedPeer { attrs: &lease.attrs, subnets })
        })
        .collect()
}
