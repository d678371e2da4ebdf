//! What belongs to each peer: of its lease, in the kernel and in the maps, and what of it differs.

use std::{net::IpAddr, time::Duration};

use flannel_common::layout::RouteKind;
use ipnetwork::IpNetwork;
use serde::Serialize;

use super::{Kernel, Maps, WireguardPeer};
use crate::{
    control::snapshot::{self, Backend, Probe},
    values::{Family, Mac},
};

mod differences;
mod known;
mod shared;
#[cfg(test)]
mod tests;

use differences::{kernel_differences, map_differences};
use known::wanted_without_agent;
pub use shared::Shared;
use shared::shared;

/// A peer, in one family.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerRow {
    /// Its pod subnet.
    pub subnet: IpNetwork,
    /// The name of its node, where that is known.
    pub node: Option<String>,
    /// Its address on the underlay.
    pub public_ip: Option<IpAddr>,
    /// How packets get there: `direct`, or the backend: `vxlan`, `udp` and the like.
    pub way: String,
    /// MAC of its VXLAN device.
    pub mac: Option<String>,
    /// Why the programs leave its packets to the kernel.
    pub on_kernel: Option<String>,
    /// `in place`, `differs`, `pending` or `skipped`.
    pub state: State,
    /// What to do about a lease that is not followed.
    pub remedy: Option<String>,
    /// What differs, failed, or why its lease is not followed: a sentence each.
    pub differences: Vec<String>,
    /// Flows of our pods with its pods that may skip the stack.
    pub flows: Option<usize>,
    /// Seconds since something is known to have come from it through the tunnel: a packet of the kernel's path, one that
    /// netfilter accepted, or a handshake of WireGuard. What the programs alone move in between leaves no trace.
    pub heard_seconds_ago: Option<u64>,
    /// What passed between its pods and this node.
    pub traffic: Option<PeerTraffic>,
    /// What the last probe found.
    pub probe: Option<Probe>,
    /// What its lease has in common with others that no two nodes can have.
    pub shared: Vec<Shared>,
}

/// What passed between a peer and this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PeerTraffic {
    /// Over how many seconds it was counted; absent where the kernel counts since the peer was set up.
    pub seconds: Option<f64>,
    /// To it.
    pub sent: Passed,
    /// From it.
    pub received: Passed,
}

/// Packets one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// How many, as on the wire; absent where only bytes are counted.
    pub packets: Option<u64>,
    /// Their bytes.
    pub bytes: u64,
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
    /// The device of the backend's own that carries its packets.
    device: Option<String>,
}

/// A row for each peer. `agent` says what there should be, by `backend`; without it, what the kernel and the maps hold
/// is compared with each other. `maps` is absent where there are no programs.
pub fn join(
    agent: Option<&snapshot::Peers>,
    backend: Option<&Backend>,
    kernel: &Kernel,
    maps: Option<&Maps>,
) -> Vec<PeerRow> {
    let maps = maps.filter(|maps| !maps.configured.is_empty());
    let Some(agent) = agent else {
        return wanted_without_agent(kernel, maps)
            .into_iter()
            .map(|wanted| row(&wanted, kernel, maps, None))
            .collect();
    };
    let mut shared = shared(&agent.peers, backend);
    let mut rows: Vec<PeerRow> = agent
        .peers
        .iter()
        .map(|peer| {
            let wanted = Wanted {
                subnet: peer.subnet,
                public_ip: Some(peer.public_ip),
                way: peer.way.clone(),
                mac: peer.mac.as_deref().and_then(|mac| mac.parse().ok()),
                device: backend
                    .and_then(|backend| backend.device_to(peer.subnet, &peer.way))
                    .map(|device| device.name.clone()),
            };
            let shared = shared.remove(&peer.subnet).unwrap_or_default();
            PeerRow { shared, ..row(&wanted, kernel, maps, Some(peer)) }
        })
        .collect();
    rows.extend(agent.skipped.iter().filter_map(skipped));
    rows
}

/// Nodes of these rows, of which each has one in each family of the cluster.
pub fn nodes<'a>(rows: impl IntoIterator<Item = &'a PeerRow>) -> usize {
    let mut of_family = [0, 0];
    for row in rows {
        of_family[usize::from(row.subnet.is_ipv6())] += 1;
    }
    of_family[0].max(of_family[1])
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
        remedy: Some(skipped.remedy.clone()).filter(|remedy| !remedy.is_empty()),
        differences: vec![skipped.reason.clone()],
        flows: None,
        heard_seconds_ago: None,
        traffic: None,
        probe: None,
        shared: Vec::new(),
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
    let wireguard = kernel.wireguard.get(&subnet);
    let heard = [
        wanted.public_ip.and_then(|public_ip| maps?.heard.get(&public_ip)).map(Duration::as_secs),
        maps.and_then(|maps| maps.accepted.get(&subnet)).map(Duration::as_secs),
        wireguard.and_then(WireguardPeer::heard_seconds_ago),
    ];
    let traffic = wireguard.map(|peer| PeerTraffic {
        seconds: None,
        sent: Passed { packets: None, bytes: peer.exchanged.sent },
        received: Passed { packets: None, bytes: peer.exchanged.received },
    });
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
        remedy: None,
        differences,
        flows: maps.map(|maps| maps.flows.get(&subnet).copied().unwrap_or_default()),
        heard_seconds_ago: heard.into_iter().flatten().min(),
        traffic,
        probe: peer.and_then(|peer| peer.probe.clone()),
        shared: Vec::new(),
    }
}
