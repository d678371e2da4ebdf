//! What the kernel holds of the tunnel and of the routes to peers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use crate::{
    netlink::{Link, Netlink, NetlinkError, VxlanDevice},
    values::{Family, Mac},
};

/// How the devices of flannel's tunnels are called, for whoever has no agent to ask.
const NAMES: [&str; 2] = ["flannel.", "flannel-v6."];

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
    /// Reads the kernel of this network namespace. `devices` are the names of our VXLAN devices; where none is known, those
    /// that flannel gives.
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

    /// Name of an interface, or its number where that is gone.
    pub fn name(&self, index: u32) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }
}
