//! The routes of the programs: how they reach the pod subnets of other nodes, and which are the kernel's.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_common::{
    family::{V4, V6},
    layout::{PREFIX_LENGTHS, RouteKind},
    path::Carrier,
};
use ipnetwork::IpNetwork;

use super::{Inputs, IpsecPolicy, Local, LocalStack, NextHop, NextHops, NoHop, Peer, PeerRoute, hooks};
use crate::values::{Family, Mac};

/// How the programs reach a pod subnet, and the node that holds it.
pub(super) struct PlannedRoute {
    /// The subnet.
    pub(super) subnet: IpNetwork,
    /// The node's address on the underlay, of the same family.
    pub(super) public_ip: IpAddr,
    /// How packets get there.
    pub(super) kind: RouteKind,
    /// Where they are sent, unless that is the kernel's to know. Its address is of the same family, too.
    pub(super) hop: Option<NextHop>,
    /// MAC of the node's VXLAN device; zero where none is used.
    pub(super) vtep_mac: Mac,
    /// Whether this is the lease that packets from the node's address through the tunnel belong to.
    pub(super) is_source: bool,
}

/// The lengths of the subnets of `routes`, longest first. What does not fit is reached by the kernel path.
pub(super) fn prefix_lengths(routes: &[PlannedRoute]) -> [u8; PREFIX_LENGTHS] {
    let lengths: BTreeSet<_> = routes.iter().map(|route| Reverse(route.subnet.prefix())).collect();
    std::array::from_fn(|at| lengths.iter().nth(at).map_or(0, |length| length.0))
}

/// The routes to the peers of one family. Those that the programs leave to the kernel are added to `on_kernel`.
pub(super) fn planned(
    inputs: &Inputs<'_>,
    family: Family,
    stack: &LocalStack,
    peers: &BTreeMap<IpNetwork, Peer>,
    on_kernel: &mut BTreeMap<IpNetwork, NoHop>,
) -> Vec<PlannedRoute> {
    let own = inputs.local.backend.own_carrier();
    let ours = peers.iter().filter(|(subnet, _)| Family::of_network(**subnet) == family);
    ours.map(|(subnet, peer)| {
        let node = [stack.address.into(), stack.subnet];
        let is_covered = |policy: &IpsecPolicy| policy.covers(node, [peer.public_ip.into(), *subnet]);
        let particular = inputs.foreign.routes.towards(*subnet, *subnet);
        let hop = if inputs.policies.iter().any(is_covered) {
            Err(NoHop::Ipsec)
        } else if let Some((route, special)) = particular.special {
            Err(NoHop::PodRoute(route, special))
        } else {
            next_hop(inputs.local, peer, inputs.next_hops).and_then(|hop| {
                match hooks::has_egress_chain(inputs, hop.ifindex) {
                    true => Err(NoHop::EgressChain),
                    false => Ok(hop),
                }
            })
        };
        let hop = hop.map(|hop| limited(hop, particular.mtu, overhead(family, peer.route, own)));
        on_kernel.extend(hop.err().map(|why| (*subnet, why)));
        PlannedRoute {
            subnet: *subnet,
            public_ip: peer.public_ip,
            kind: match (peer.route, hop) {
                (_, Err(_)) => RouteKind::Kernel,
                (PeerRoute::Objects, Ok(_)) => own.map_or(RouteKind::Kernel, Carrier::route_kind),
                (PeerRoute::Vxlan(_), Ok(_)) => RouteKind::Vxlan,
                (PeerRoute::Direct, Ok(_)) => RouteKind::Direct,
            },
            hop: hop.ok(),
            vtep_mac: peer.route.vtep_mac().unwrap_or(Mac([0; 6])),
            // The source check has room for one lease of a public address. With direct routing each node
            // chooses for itself: a peer may send through the tunnel what we send it directly.
            is_source: peer.foremost && (stack.device.is_some() || own.is_some()) && hop != Err(NoHop::Ipsec),
        }
    })
    .collect()
}

/// Bytes by which the programs make a packet for a peer longer, which go by the backend's `own` carrier or in VXLAN.
fn overhead(family: Family, route: PeerRoute, own: Option<Carrier>) -> u32 {
    let carrier = own.unwrap_or_default();
    let bytes = match (route, family) {
        (PeerRoute::Direct, _) => 0,
        (_, Family::V4) => carrier.overhead::<V4>(),
        (_, Family::V6) => carrier.overhead::<V6>(),
    };
    bytes as u32
}

/// `hop` for packets that may not be longer than `mtu` before they are made longer by `overhead`: what is longer, the
/// kernel refuses as its route says.
fn limited(hop: NextHop, mtu: Option<u32>, overhead: u32) -> NextHop {
    let mtu = mtu.map_or(hop.mtu, |mtu| hop.mtu.min(mtu.saturating_add(overhead)));
    NextHop { mtu, ..hop }
}

/// Where the programs send what is for `peer`.
fn next_hop(local: &Local, peer: &Peer, next_hops: &NextHops) -> Result<NextHop, NoHop> {
    let hop = next_hops.get(&peer.public_ip).copied().unwrap_or(Err(NoHop::NoRoute))?;
    if Family::of(hop.address) != Family::of(peer.public_ip) {
        return Err(NoHop::Special);
    }
    match peer.route {
        PeerRoute::Vxlan(_) | PeerRoute::Objects => Ok(hop),
        PeerRoute::Direct if !hop.is_on_link(peer.public_ip) => Err(NoHop::NotOnLink),
        PeerRoute::Direct if hop.ifindex != local.underlay_ifindex => Err(NoHop::OtherInterface),
        PeerRoute::Direct => Ok(hop),
    }
}
