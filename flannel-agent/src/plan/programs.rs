//! The maps and programs, and what the maps of both families are made of.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_common::{
    layout::{FastPath, PREFIX_LENGTHS, PeerKind, UnknownVtep},
    path::Hook,
};
use ipnetwork::IpNetwork;

use super::{
    Backend, BpfState, Inputs, IpsecPolicy, LeftToKernel, Local, LocalStack, NextHop, NextHops, NoHop, Peer,
    Stretch, Way, hooks, v4, v6,
};
use crate::values::{Family, Mac};

/// How the programs reach a peer.
pub(super) struct Reach {
    /// Its pod subnet.
    pub(super) subnet: IpNetwork,
    /// Its address on the underlay, of the same family.
    pub(super) public_ip: IpAddr,
    /// How packets get there.
    pub(super) kind: PeerKind,
    /// Where they are sent, unless that is the kernel's to know. Its address is of the same family, too.
    pub(super) hop: Option<NextHop>,
    /// MAC of its VXLAN device; zero where none is used.
    pub(super) vtep_mac: Mac,
    /// Whether this is the lease that packets from its address through the tunnel belong to.
    pub(super) is_source: bool,
}

/// The maps and programs, and the peers that they leave to the kernel.
pub(super) fn plan(
    inputs: &Inputs<'_>,
    peers: &BTreeMap<IpNetwork, Peer>,
    left: &LeftToKernel,
) -> (BpfState, BTreeMap<IpNetwork, NoHop>) {
    let served = hooks::served(inputs, left);
    let inputs = &Inputs { pods: &served, ..inputs.clone() };
    let (local, pods) = (inputs.local, inputs.pods);
    let (mut bpf, mut on_kernel) = (BpfState::default(), BTreeMap::new());
    let mut exits = BTreeSet::from([local.underlay_ifindex]);
    if local.fast_path == FastPath::Off || local.backend == Backend::Alloc {
        return (bpf, on_kernel);
    }
    if let Some(stack) = local.stack(Family::V4) {
        let peers = reaches(inputs, Family::V4, stack, peers, &mut on_kernel);
        exits.extend(peers.iter().filter_map(|peer| Some(peer.hop?.ifindex)));
        v4::fill(&mut bpf, inputs, stack, &peers);
    }
    if let Some(stack) = local.stack(Family::V6) {
        let peers = reaches(inputs, Family::V6, stack, peers, &mut on_kernel);
        exits.extend(peers.iter().filter_map(|peer| Some(peer.hop?.ifindex)));
        bpf.v6 = v6::maps(inputs, stack, &peers);
    }
    // There is VXLAN to look at only with a device for it.
    let xdp = local.xdp.hook.filter(|_| local.devices().next().is_some());
    let xdp = match xdp {
        Some(_) if left.contains_key(&(local.underlay_ifindex, Stretch::EarlyPop)) => {
            // What is left to do, generic XDP does as well.
            Some(Hook::XdpGeneric).filter(|_| local.xdp.unknown_vtep != UnknownVtep::Off)
        }
        xdp => xdp,
    };
    bpf.hooks.extend(xdp.map(|hook| (local.underlay_ifindex, hook)));
    for (family, _) in local.devices() {
        let Some(overlay) = inputs.overlays.get(&family) else { continue };
        if left.contains_key(&(*overlay, Stretch::Overlay(family))) {
            continue;
        }
        bpf.hooks.insert((*overlay, Hook::ToOverlay));
        if local.fast_path.finds_pods() {
            bpf.hooks.insert((*overlay, Hook::FromOverlay));
        }
    }
    // Where pods' packets all go through the host's stack, the program only marks them.
    bpf.hooks.extend(pods.links.iter().map(|&link| (link, Hook::FromPod)));
    if local.fast_path == FastPath::Flow {
        // Of a pod that the kernel serves there is nothing to learn; of the others' hooks there, nothing is disturbed.
        let served = pods.links.iter().filter(|link| hooks::serves_link(inputs, left, **link));
        bpf.hooks.extend(served.map(|&link| (link, Hook::ToPod)));
    }
    // Whichever way packets leave, the kernel's own are looked at there: in a tunnel to know its state, without one to
    // learn flows.
    let tunnels = local.devices().next().is_some();
    if tunnels || local.fast_path == FastPath::Flow && local.routes_direct() {
        bpf.hooks.extend(exits.into_iter().map(|exit| (exit, Hook::ToUnderlay)));
    }
    // Also where the kernel delivers all: errors about the tunnel come here.
    let heard = tunnels || local.fast_path.finds_pods();
    if heard && !left.contains_key(&(local.underlay_ifindex, Stretch::Arrivals)) {
        bpf.hooks.insert((local.underlay_ifindex, Hook::FromUnderlay));
    }
    (bpf, on_kernel)
}

/// The lengths of the subnets of `peers`, longest first. What does not fit is reached by the kernel path.
pub(super) fn prefix_lengths(peers: &[Reach]) -> [u8; PREFIX_LENGTHS] {
    let lengths: BTreeSet<_> = peers.iter().map(|peer| Reverse(peer.subnet.prefix())).collect();
    std::array::from_fn(|at| lengths.iter().nth(at).map_or(0, |length| length.0))
}

/// How the programs reach the peers of one family. Those that they leave to the kernel are added to `on_kernel`.
fn reaches(
    inputs: &Inputs<'_>,
    family: Family,
    stack: &LocalStack,
    peers: &BTreeMap<IpNetwork, Peer>,
    on_kernel: &mut BTreeMap<IpNetwork, NoHop>,
) -> Vec<Reach> {
    let ours = peers.iter().filter(|(subnet, _)| Family::of_network(**subnet) == family);
    ours.map(|(subnet, peer)| {
        let node = [stack.address.into(), stack.subnet];
        let is_covered = |policy: &IpsecPolicy| policy.covers(node, [peer.public_ip.into(), *subnet]);
        let hop = if inputs.policies.iter().any(is_covered) {
            Err(NoHop::Ipsec)
        } else {
            next_hop(inputs.local, peer, inputs.next_hops).and_then(|hop| {
                match hooks::has_egress_chain(inputs, hop.ifindex) {
                    true => Err(NoHop::EgressChain),
                    false => Ok(hop),
                }
            })
        };
        on_kernel.extend(hop.err().map(|why| (*subnet, why)));
        Reach {
            subnet: *subnet,
            public_ip: peer.public_ip,
            kind: match (peer.way, hop) {
                (_, Err(_)) => PeerKind::Kernel,
                (Way::Vxlan(_), Ok(_)) => PeerKind::Vxlan,
                (Way::Direct, Ok(_)) => PeerKind::Direct,
            },
            hop: hop.ok(),
            vtep_mac: peer.way.vtep_mac().unwrap_or(Mac([0; 6])),
            // The source check has room for one lease of a public address. With both ways in use a peer chooses for
            // itself, and may come through the tunnel whichever way it is reached.
            is_source: peer.foremost && stack.device.is_some() && hop != Err(NoHop::Ipsec),
        }
    })
    .collect()
}

/// Where the programs send what is for `peer`.
fn next_hop(local: &Local, peer: &Peer, next_hops: &NextHops) -> Result<NextHop, NoHop> {
    let hop = next_hops.get(&peer.public_ip).copied().unwrap_or(Err(NoHop::NoRoute))?;
    if Family::of(hop.address) != Family::of(peer.public_ip) {
        return Err(NoHop::Special);
    }
    match peer.way {
        Way::Vxlan(_) => Ok(hop),
        Way::Direct if !hop.is_on_link(peer.public_ip) => Err(NoHop::NotOnLink),
        Way::Direct if hop.ifindex != local.underlay_ifindex => Err(NoHop::OtherInterface),
        Way::Direct => Ok(hop),
    }
}
