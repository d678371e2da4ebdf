//! Whether this node's pods are connected to it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::PodNetworks;
use crate::{
    inspect::{
        Kernel,
        checks::{Finding, Surroundings},
    },
    netlink::{Link, LinkKind},
    values::Family,
};

/// So many interfaces are named.
const NAMED: usize = 4;

/// Adds what was found.
pub(super) fn add(networks: &PodNetworks, kernel: &Kernel, around: &Surroundings, found: &mut Vec<Finding>) {
    let before = found.len();
    let is_bad_here = |found: &[Finding]| found.len() > before;
    let pods: Vec<&Link> =
        kernel.links.iter().filter(|link| around.pod_links.contains(&link.index)).collect();
    for bridge in bridges(kernel, around) {
        let ports = kernel.links.iter().filter(|link| is_port(link, bridge)).count();
        // One without pods is set up by the CNI plugin, with the first of them.
        if !bridge.up && ports > 0 {
            found.push(Finding::error(
                "pods",
                format!("bridge {} is down: none of the {ports} interfaces of pods at it carries packets", bridge.name),
                format!(
                    "ip link set {0} up; its addresses of IPv6 are gone: give them back, or drain the node, ip link delete \
                     {0}, restart its pods",
                    bridge.name
                ),
            ));
        } else if ports > 0 {
            without_gateway(networks, bridge, around, found);
        }
    }
    let is_bridge_down =
        |link: &Link| bridges(kernel, around).any(|bridge| Some(bridge.index) == link.master && !bridge.up);
    let up: Vec<&Link> = pods.iter().copied().filter(|link| !is_bridge_down(link)).collect();
    let named = |is_it: &dyn Fn(&Link) -> bool| {
        let all: Vec<&str> = up.iter().filter(|link| is_it(link)).map(|link| link.name.as_str()).collect();
        let more = if all.len() > NAMED { " and others" } else { "" };
        let names = all.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        (!all.is_empty()).then(|| (all.len(), format!("{names}{more}")))
    };
    if let Some((number, names)) = named(&|link| !link.up) {
        found.push(Finding::error(
            "pods",
            format!("{number} of {} interfaces of pods are down on this node's side: {names}", pods.len()),
            "ip link set <interface> up, or delete the pods, which are made anew",
        ));
    }
    if let Some((number, names)) = named(&|link| link.up && !link.carrier) {
        found.push(Finding::warning(
            "pods",
            format!(
                "{number} of {} interfaces of pods have no carrier, since the pod's side is down: {names}",
                pods.len()
            ),
            "pods that are just made or deleted have none for a moment; another was set down from within",
        ));
    }
    if let Some((number, names)) = named(&|link| link.carrier && link.closed_port) {
        found.push(Finding::warning(
            "pods",
            format!("{number} of {} ports of pods at the bridge are closed: {names}", pods.len()),
            "they are blocked, locked, or listen for other bridges (STP), which ends after 30 s: bridge -d link show",
        ));
    }
    if !is_bad_here(found) {
        found.push(Finding::ok("pods", format!("all {} interfaces of pods are up", pods.len())));
    }
}

/// The bridge that the CNI plugin makes, whatever addresses it has, and others with addresses of our pods.
fn bridges<'a>(kernel: &'a Kernel, around: &'a Surroundings) -> impl Iterator<Item = &'a Link> {
    kernel.links.iter().filter(|link| {
        link.kind == LinkKind::Bridge && (link.name == "cni0" || around.gateways.contains(&link.index))
    })
}

/// Whether a pod is behind it.
fn is_port(link: &Link, bridge: &Link) -> bool {
    link.master == Some(bridge.index) && link.leads_elsewhere()
}

/// A bridge that is up and has pods, and no address that they send to.
fn without_gateway(networks: &PodNetworks, bridge: &Link, around: &Surroundings, found: &mut Vec<Finding>) {
    let Some((held, _)) = around.bridge.as_ref().filter(|_| bridge.name == "cni0") else { return };
    for subnet in networks.own.iter().copied() {
        // One of another subnet is told of by itself.
        let is_gateway = |address: &IpNetwork| match address.ip() {
            IpAddr::V4(_) => subnet.is_ipv4(),
            IpAddr::V6(address) => subnet.is_ipv6() && !address.is_unicast_link_local(),
        };
        if !held.iter().any(is_gateway) {
            let family = Family::of_network(subnet);
            found.push(Finding::warning(
                "pods",
                format!("{} has no address in {subnet}: pods have no gateway for {family}", bridge.name),
                format!(
                    "an address of IPv6 is lost when the bridge goes down: ip address add <first of {subnet}> dev {}, or \
                     drain the node, delete the bridge, restart its pods",
                    bridge.name
                ),
            ));
        }
    }
}
