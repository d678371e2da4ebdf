//! What is not as a peer's lease says.

use std::net::IpAddr;

use flannel_common::layout::RouteKind;

use super::Wanted;
use crate::{
    control::snapshot,
    inspect::{Kernel, MapRoute, Maps},
    netlink::{LinkKind, Tunnel},
    values::Family,
};

/// What of the kernel's objects for a peer is absent or otherwise.
pub(super) fn kernel_differences(wanted: &Wanted, kernel: &Kernel) -> Vec<String> {
    let subnet = wanted.subnet;
    let mut found = Vec::new();
    let routes = kernel.routes.get(&subnet).map(Vec::as_slice).unwrap_or_default();
    let shown = |(via, index): &(IpAddr, u32)| format!("via {via} dev {}", kernel.name(*index));
    let other = || routes.iter().map(shown).collect::<Vec<_>>().join(", ");
    match wanted.way.as_str() {
        "vxlan" => {
            let Some(tunnel) = kernel.tunnels.get(&Family::of_network(subnet)) else {
                found.push("the VXLAN device is absent".to_owned());
                return found;
            };
            let (base, name) = (subnet.network(), &tunnel.device.name);
            if !tunnel.up {
                found.push(format!("the VXLAN device {name} is down"));
            }
            match routes {
                [] => found.push(format!("route: absent, instead of {subnet} via {base} dev {name}")),
                _ if routes.contains(&(base, tunnel.index)) => {}
                _ => {
                    found.push(format!("route: {subnet} leads {}, instead of via {base} dev {name}", other()))
                }
            }
            let neighbour = tunnel.neighbours.get(&base);
            match (neighbour, wanted.mac) {
                (None, _) => found.push(format!("neighbour: {base} is absent on {name}")),
                (Some(is), Some(mac)) if *is != mac => {
                    found.push(format!("neighbour: {base} has {is}, instead of {mac}"));
                }
                _ => {}
            }
            if let Some(mac) = wanted.mac {
                match (tunnel.fdb.get(&mac), wanted.public_ip) {
                    (None, _) => found.push(format!("FDB: {mac} is absent on {name}")),
                    (Some(is), Some(public_ip)) if *is != public_ip => {
                        found.push(format!("FDB: {mac} leads to {is}, instead of {public_ip}"));
                    }
                    _ => {}
                }
            }
        }
        "direct" => {
            let Some(public_ip) = wanted.public_ip else { return found };
            match routes {
                [] => found.push(format!("route: absent, instead of {subnet} via {public_ip}")),
                _ if routes.iter().any(|(via, _)| *via == public_ip) => {}
                _ => found.push(format!("route: {subnet} leads {}, instead of via {public_ip}", other())),
            }
        }
        _ => found.extend(object_differences(wanted, kernel)),
    }
    found
}

/// The same of a peer that is reached by objects of a backend's own. What an extension's commands make is theirs.
fn object_differences(wanted: &Wanted, kernel: &Kernel) -> Vec<String> {
    let subnet = wanted.subnet;
    let mut found = Vec::new();
    let ways = kernel.routes_to(subnet);
    let Some(name) = &wanted.device else {
        if wanted.way == "ipsec" && ways.is_empty() {
            found.push(format!("route: no route leads to {subnet}, which its IPsec policies need"));
        }
        return found;
    };
    let Some(link) = kernel.links.iter().find(|link| link.name == *name) else {
        return vec![format!("the device {name} is absent")];
    };
    if !link.up {
        found.push(format!("the device {name} is down"));
    }
    // Only IP in IP takes the peer's address from the route.
    let gateway = wanted.public_ip.filter(|_| kernel.ipip.contains(&link.index));
    let shown = |(via, index): &(Option<IpAddr>, u32)| {
        let via = via.map_or_else(String::new, |via| format!("via {via} "));
        format!("{via}dev {}", kernel.name(*index))
    };
    let right = (gateway, link.index);
    match &ways[..] {
        [] => found.push(format!("route: absent, instead of {subnet} {}", shown(&right))),
        _ if ways.contains(&right) => {}
        _ => {
            let ways = ways.iter().map(shown).collect::<Vec<_>>().join(", ");
            found.push(format!("route: {subnet} leads {ways}, instead of {}", shown(&right)));
        }
    }
    if link.kind == LinkKind::Tunnel(Tunnel::Wireguard) && !kernel.wireguard.contains_key(&subnet) {
        found.push(format!("WireGuard: no peer of {name} has {subnet}"));
    }
    found
}

/// What of the maps' entries for a peer is absent or otherwise.
pub(super) fn map_differences(
    wanted: &Wanted,
    kernel: &Kernel,
    maps: &Maps,
    peer: Option<&snapshot::Peer>,
) -> Vec<String> {
    let subnet = wanted.subnet;
    let mut found = Vec::new();
    let map = match Family::of_network(subnet) {
        Family::V4 => "routes_v4",
        Family::V6 => "routes_v6",
    };
    let Some(route) = maps.routes.get(&subnet) else {
        // Ways that the programs do not carry have no entry.
        if matches!(wanted.way.as_str(), "vxlan" | "direct") {
            found.push(format!("map {map}: {subnet} is absent"));
        }
        return found;
    };
    let MapRoute { kind, public_ip, mac, .. } = *route;
    if let Some(wanted) = wanted.public_ip
        && wanted != public_ip
    {
        found.push(format!("map {map}: {subnet} leads to {public_ip}, instead of {wanted}"));
    }
    if let Some(wanted) = wanted.mac
        && kind == RouteKind::Vxlan
        && wanted != mac
    {
        found.push(format!("map {map}: {subnet} has {mac}, instead of {wanted}"));
    }
    let is_kind = match kind {
        RouteKind::Kernel => peer.is_none_or(|peer| peer.on_kernel.is_some()),
        RouteKind::Vxlan => wanted.way == "vxlan" && peer.is_none_or(|peer| peer.on_kernel.is_none()),
        RouteKind::Udp => wanted.way == "udp" && peer.is_none_or(|peer| peer.on_kernel.is_none()),
        RouteKind::Ipip => wanted.way == "ipip" && peer.is_none_or(|peer| peer.on_kernel.is_none()),
        RouteKind::Direct => wanted.way == "direct" && peer.is_none_or(|peer| peer.on_kernel.is_none()),
    };
    if !is_kind {
        found.push(format!("map {map}: {subnet} is for another way ({kind:?}) than {}", wanted.way));
    }
    let served = kind == RouteKind::Vxlan && kernel.tunnels.contains_key(&Family::of_network(subnet));
    if served && !maps.vteps.contains_key(&public_ip) {
        let map = if public_ip.is_ipv4() { "vteps" } else { "vteps_v6" };
        found.push(format!("map {map}: {public_ip} is absent"));
    }
    found
}
