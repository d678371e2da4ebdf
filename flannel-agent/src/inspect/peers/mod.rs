//! What belongs to each peer: of its lease, in the kernel and in the maps, and what of it differs.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use flannel_common::layout::RouteKind;
use ipnetwork::IpNetwork;
use serde::Serialize;

use super::{Kernel, MapRoute, Maps};
use crate::{
    control::snapshot::{self, Probe},
    values::{Family, Mac},
};

/// A peer, in one family.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerRow {
    /// Its pod subnet.
    pub subnet: IpNetwork,
    /// The name of its node, where that is known.
    pub node: Option<String>,
    /// Its address on the underlay.
    pub public_ip: Option<IpAddr>,
    /// How packets get there: `vxlan`, `direct` and the like.
    pub way: String,
    /// MAC of its VXLAN device.
    pub mac: Option<String>,
    /// Why the programs leave its packets to the kernel.
    pub on_kernel: Option<String>,
    /// `in place`, `differs`, `pending` or `skipped`.
    pub state: State,
    /// What differs, failed, or why its lease is not followed: a sentence each.
    pub differences: Vec<String>,
    /// Flows of our pods with its pods that may skip the stack.
    pub flows: Option<usize>,
    /// Seconds since the kernel's own packet was last seen to come from it through the tunnel.
    pub heard_seconds_ago: Option<u64>,
    /// What the last probe found.
    pub probe: Option<Probe>,
}

/// How a peer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Everything is as its lease says.
    InPlace,
    /// The agent could not do something for it, and tries again.
    Pending,
    /// The kernel or the maps hold something else than its lease says.
    Differs,
    /// Its lease is not followed.
    Skipped,
}

impl State {
    /// As tables have it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::InPlace => "in place",
            Self::Pending => "pending",
            Self::Differs => "differs",
            Self::Skipped => "skipped",
        }
    }
}

/// What there should be for a peer.
struct Wanted {
    subnet: IpNetwork,
    public_ip: Option<IpAddr>,
    way: String,
    mac: Option<Mac>,
}

/// A row for each peer. `agent` says what there should be; without it, what the kernel and the maps hold is compared with
/// each other. `maps` is absent where there are no programs.
pub fn join(agent: Option<&snapshot::Peers>, kernel: &Kernel, maps: Option<&Maps>) -> Vec<PeerRow> {
    let maps = maps.filter(|maps| !maps.configured.is_empty());
    let Some(agent) = agent else {
        return wanted_without_agent(kernel, maps)
            .into_iter()
            .map(|wanted| row(&wanted, kernel, maps, None))
            .collect();
    };
    let mut rows: Vec<PeerRow> = agent
        .peers
        .iter()
        .map(|peer| {
            let wanted = Wanted {
                subnet: peer.subnet,
                public_ip: Some(peer.public_ip),
                way: peer.way.clone(),
                mac: peer.mac.as_deref().and_then(|mac| mac.parse().ok()),
            };
            row(&wanted, kernel, maps, Some(peer))
        })
        .collect();
    rows.extend(agent.skipped.iter().filter_map(skipped));
    rows
}

/// A lease that is not followed, which may have subnets of both families.
fn skipped(skipped: &snapshot::Skipped) -> Option<PeerRow> {
    let of_family = |subnet: &IpNetwork| Family::of_network(*subnet).to_string() == skipped.family;
    let mut subnets = skipped.lease.split('&').filter_map(|subnet| subnet.parse::<IpNetwork>().ok());
    Some(PeerRow {
        subnet: subnets.find(of_family)?,
        node: None,
        public_ip: None,
        way: "-".to_owned(),
        mac: None,
        on_kernel: None,
        state: State::Skipped,
        differences: vec![skipped.reason.clone()],
        flows: None,
        heard_seconds_ago: None,
        probe: None,
    })
}

fn row(wanted: &Wanted, kernel: &Kernel, maps: Option<&Maps>, peer: Option<&snapshot::Peer>) -> PeerRow {
    let subnet = wanted.subnet;
    let family = Family::of_network(subnet);
    let maps = maps.filter(|maps| maps.configured.contains(&family));
    let mut differences = kernel_differences(wanted, kernel);
    differences.extend(maps.map(|maps| map_differences(wanted, kernel, maps, peer)).unwrap_or_default());
    let pending = peer.map(|peer| peer.pending.clone()).unwrap_or_default();
    let state = match (differences.is_empty(), pending.is_empty()) {
        (_, false) => State::Pending,
        (false, true) => State::Differs,
        (true, true) => State::InPlace,
    };
    differences.extend(pending);
    let heard = wanted.public_ip.and_then(|public_ip| maps?.heard.get(&public_ip).copied());
    PeerRow {
        subnet,
        node: peer.and_then(|peer| peer.node.clone()),
        public_ip: wanted.public_ip,
        way: wanted.way.clone(),
        mac: wanted.mac.map(|mac| mac.to_string()),
        on_kernel: peer.and_then(|peer| peer.on_kernel.clone()).or_else(|| {
            let left = maps?.routes.get(&subnet)?.kind == RouteKind::Kernel;
            (peer.is_none() && left).then(|| "the map says so".to_owned())
        }),
        state,
        differences,
        flows: maps.map(|maps| maps.flows.get(&subnet).copied().unwrap_or_default()),
        heard_seconds_ago: heard.as_ref().map(Duration::as_secs),
        probe: peer.and_then(|peer| peer.probe.clone()),
    }
}

/// What of the kernel's objects for a peer is absent or otherwise.
fn kernel_differences(wanted: &Wanted, kernel: &Kernel) -> Vec<String> {
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
        _ => {
            if routes.is_empty() && !kernel.connected.iter().any(|(to, _)| *to == subnet) {
                found.push(format!("route: {subnet} is absent"));
            }
        }
    }
    found
}

/// What of the maps' entries for a peer is absent or otherwise.
fn map_differences(
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
        RouteKind::Udp => wanted.way == "tunnel" && peer.is_none_or(|peer| peer.on_kernel.is_none()),
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

/// The peers that the kernel or the maps know of.
fn wanted_without_agent(kernel: &Kernel, maps: Option<&Maps>) -> Vec<Wanted> {
    let mut wanted = BTreeMap::<IpNetwork, Wanted>::new();
    for (family, tunnel) in &kernel.tunnels {
        let of_family = kernel.routes.iter().filter(|(subnet, _)| Family::of_network(**subnet) == *family);
        for (subnet, routes) in of_family {
            if routes.contains(&(subnet.network(), tunnel.index)) {
                let mac = tunnel.neighbours.get(&subnet.network()).copied();
                let public_ip = mac.and_then(|mac| tunnel.fdb.get(&mac).copied());
                let way = "vxlan".to_owned();
                wanted.insert(*subnet, Wanted { subnet: *subnet, public_ip, way, mac });
            }
        }
    }
    // The maps name a node whole, so that they decide where they name one.
    for (subnet, route) in maps.iter().flat_map(|maps| &maps.routes) {
        let is_vxlan = |route: &MapRoute| match route.kind {
            RouteKind::Vxlan => true,
            RouteKind::Direct | RouteKind::Udp => false,
            RouteKind::Kernel => route.mac != Mac([0; 6]),
        };
        let vxlan = is_vxlan(route);
        let way = match route.kind {
            _ if vxlan => "vxlan",
            RouteKind::Udp => "tunnel",
            _ => "direct",
        };
        wanted.insert(
            *subnet,
            Wanted {
                subnet: *subnet,
                public_ip: Some(route.public_ip),
                way: way.to_owned(),
                mac: Some(route.mac).filter(|_| vxlan),
            },
        );
    }
    wanted.into_values().collect()
}

#[cfg(test)]
mod tests;
