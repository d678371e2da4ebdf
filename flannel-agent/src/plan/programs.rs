//! The maps and programs.

use std::collections::{BTreeMap, BTreeSet};

use flannel_common::{
    layout::{FastPath, UnknownVtep},
    path::Hook,
};
use ipnetwork::IpNetwork;

use super::{BpfState, Inputs, LeftToKernel, Maps, NoHop, Peer, Stretch, hooks, routes};
use crate::values::Family;

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
    if local.fast_path == FastPath::Off || local.backend.kernel_only().is_some() {
        return (bpf, on_kernel);
    }
    for (family, stack) in &local.stacks {
        let routes = routes::planned(inputs, *family, stack, peers, &mut on_kernel);
        exits.extend(routes.iter().filter_map(|route| Some(route.hop?.ifindex)));
        match family {
            Family::V4 => bpf.v4 = Maps::planned(inputs, stack, &routes),
            Family::V6 => bpf.v6 = Maps::planned(inputs, stack, &routes),
        }
    }
    // There is VXLAN to look at only with a device for it.
    let xdp = local.xdp.hook.filter(|_| local.devices().next().is_some());
    let xdp = match xdp {
        Some(_) if left.contains_key(&(local.underlay_ifindex, Stretch::EarlyDecapsulation)) => {
            // What is left to do, generic XDP does as well.
            Some(Hook::XdpGeneric).filter(|_| local.xdp.unknown_vtep != UnknownVtep::Off)
        }
        xdp => xdp,
    };
    bpf.hooks.extend(xdp.map(|hook| (local.underlay_ifindex, hook)));
    let own = local.backend.own_carrier().map(|_| Family::V4);
    for family in local.devices().map(|(family, _)| family).chain(own) {
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
    // At each interface that packets leave by, those of the kernel path are looked at: in a tunnel to know its state,
    // without one to learn flows.
    let tunnels = local.has_tunnel();
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
