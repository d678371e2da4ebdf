//! What the kernel holds of the tunnel and of the routes to peers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use crate::{
    control::snapshot,
    netlink::{
        Link, LinkKind, Netlink, NetlinkError, Tunnel as PlainTunnel, VxlanDevice,
        wireguard::{Exchanged, Wireguard},
    },
    values::{Family, Mac},
};

/// How the devices of flannel's tunnels are called, for whoever has no agent to ask.
const NAMES: [&str; 3] = ["flannel.", "flannel-v6.", "flannel-wg"];

/// What the kernel holds.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// All interfaces.
    pub links: Vec<Link>,
    /// Our VXLAN device of each family.
    pub tunnels: BTreeMap<Family, Tunnel>,
    /// Routes of the main table that have a gateway: destination to gateway and interface.
    pub routes: BTreeMap<IpNetwork, Vec<(IpAddr, u32)>>,
    /// Routes of the main table without a gateway: destination and interface.
    pub connected: Vec<(IpNetwork, u32)>,
    /// Indices of our devices that put IP into IP.
    pub ipip: BTreeSet<u32>,
    /// The peers of our WireGuard devices, by each subnet that they may send from.
    pub wireguard: BTreeMap<IpNetwork, WireguardPeer>,
}

/// A peer of a WireGuard device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardPeer {
    /// The device.
    pub device: String,
    /// Where it is reached.
    pub endpoint: Option<IpAddr>,
    /// What was exchanged with it.
    pub exchanged: Exchanged,
}

impl WireguardPeer {
    /// Seconds since keys were last agreed on; `None` where they never were.
    pub fn heard_seconds_ago(&self) -> Option<u64> {
        Some(snapshot::now().saturating_sub(self.exchanged.handshake?.as_secs()))
    }
}

/// A VXLAN device and what is on it.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Index of the device.
    pub index: u32,
    /// It is set up.
    pub up: bool,
    /// The device.
    pub device: VxlanDevice,
    /// Permanent neighbours: the first address of a peer's subnet to its MAC.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Permanent forwarding entries: MAC to public address.
    pub fdb: BTreeMap<Mac, IpAddr>,
}

impl Kernel {
    /// Reads the kernel of this network namespace. `devices` are the names of our tunnels; where none is known, those that
    /// flannel gives.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn read(netlink: &mut Netlink, devices: &BTreeSet<String>) -> Result<Self, NetlinkError> {
        let links = netlink.links().await?;
        let mut kernel = Self { links, ..Self::default() };
        let is_ours = |link: &&Link| match devices.is_empty() {
            true => NAMES.iter().any(|name| link.name.starts_with(name)),
            false => devices.contains(&link.name),
        };
        for link in kernel.links.iter().filter(is_ours) {
            match link.kind {
                LinkKind::Tunnel(PlainTunnel::Ipip { .. }) => {
                    kernel.ipip.insert(link.index);
                }
                LinkKind::Tunnel(PlainTunnel::Wireguard) => {
                    kernel.wireguard.extend(wireguard_peers(&link.name)?);
                }
                _ => {}
            }
            let Some(device) = link.as_vxlan_device() else { continue };
            let (family, index) = (device.family(), link.index);
            let neighbours = netlink.permanent_neighbours(family, index).await?;
            let fdb = netlink.permanent_fdb(index).await?;
            let tunnel = Tunnel {
                index,
                up: link.up,
                device,
                neighbours,
                fdb: fdb.into_iter().map(|entry| (entry.mac, entry.public_ip)).collect(),
            };
            kernel.tunnels.insert(family, tunnel);
        }
        for family in Family::BOTH {
            for route in netlink.main_routes(family, None).await? {
                match route.gateway {
                    Some(gateway) => {
                        kernel.routes.entry(route.destination).or_default().push((gateway, route.ifindex));
                    }
                    None => kernel.connected.push((route.destination, route.ifindex)),
                }
            }
        }
        Ok(kernel)
    }

    /// Where packets for `subnet` are routed by the main table: gateways and interfaces of the longest prefix that holds all
    /// of it.
    pub fn routes_to(&self, subnet: IpNetwork) -> Vec<(Option<IpAddr>, u32)> {
        let gateways = self
            .routes
            .iter()
            .flat_map(|(to, ways)| ways.iter().map(|(via, index)| (*to, Some(*via), *index)));
        let connected = self.connected.iter().map(|(to, index)| (*to, None, *index));
        let holds = |to: IpNetwork| {
            to.is_ipv4() == subnet.is_ipv4()
                && to.prefix() <= subnet.prefix()
                && to.contains(subnet.network())
        };
        let all: Vec<_> = gateways.chain(connected).filter(|(to, ..)| holds(*to)).collect();
        let longest = all.iter().map(|(to, ..)| to.prefix()).max();
        all.into_iter()
            .filter(|(to, ..)| Some(to.prefix()) == longest)
            .map(|(_, via, index)| (via, index))
            .collect()
    }

    /// Name of an interface, or its number where that is gone.
    pub fn name(&self, index: u32) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }
}

fn wireguard_peers(device: &str) -> Result<Vec<(IpNetwork, WireguardPeer)>, NetlinkError> {
    let Some(found) = Wireguard::open()?.device(device)? else { return Ok(Vec::new()) };
    let of_peer = |peer: crate::netlink::wireguard::WireguardPeerState| {
        let known = WireguardPeer {
            device: device.to_owned(),
            endpoint: peer.endpoint.map(|endpoint| endpoint.ip()),
            exchanged: peer.exchanged,
        };
        peer.allowed.into_iter().map(move |subnet| (subnet, known.clone()))
    };
    Ok(found.peers.into_iter().flat_map(of_peer).collect())
}
