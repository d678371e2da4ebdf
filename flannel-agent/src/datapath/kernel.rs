//! The kernel half of a state: what stock flannel programs, over netlink.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use tracing::{info, warn};

use super::{ChangeError, Datapath, ObserveError};
use crate::{
    family::{Family, overlap},
    netlink::{
        FdbEntry, Link, LinkKind, Netlink, NetlinkError, Request, Stray, address, link, neighbour,
        protocol::Numbering, route,
    },
    plan::{Change, DirectRoute, State, VxlanDevice},
};

/// The VXLAN devices and what is on them.
///
/// A later process recognises all of it: a device by its name and attributes, and on the device the
/// addresses within the network of its family, the permanent neighbours and forwarding entries, and the routes that are
/// `via GATEWAY onlink` with protocol boot, or the one that [`Numbering`] gives it among many. Routes past the device are recognised as [`Stray`] says, and those
/// this process has made, whatever they look like.
pub struct KernelDatapath {
    netlink: Netlink,
    overlays: BTreeMap<Family, Overlay>,
    strays: Vec<Stray>,
    /// Subnets this process has put a direct route to and not taken it away.
    direct: BTreeSet<IpNetwork>,
}

/// A numbered change, and what became of it.
type Made<'a> = (&'a (usize, &'a Change), Result<(), NetlinkError>);

/// The VXLAN device of one family.
#[derive(Clone, Debug)]
struct Overlay {
    name: String,
    /// Addresses of the device outside of it are left alone.
    network: IpNetwork,
}

impl KernelDatapath {
    /// No device, of the network namespace `netlink` is in: one there is, whoever made it, is left alone.
    pub fn new(netlink: Netlink) -> Self {
        Self { netlink, overlays: BTreeMap::new(), strays: Vec::new(), direct: BTreeSet::new() }
    }

    /// Also the device `name`, which carries packets of `network` and its family. Addresses of the device outside
    /// `network` are left alone.
    #[must_use]
    pub fn with_device(mut self, name: String, network: IpNetwork) -> Self {
        self.overlays.insert(Family::of_network(network), Overlay { name, network });
        self
    }

    /// Also direct routes of one family; `stray` tells those of an earlier process.
    #[must_use]
    pub fn with_direct_routes(mut self, stray: Stray) -> Self {
        self.strays.push(stray);
        self
    }

    /// The device of a family, if it is one we would make; down, it is as good as absent, since nothing on it works.
    async fn device(&mut self, overlay: &Overlay) -> Result<Option<(u32, VxlanDevice)>, NetlinkError> {
        let link = self.netlink.link(&overlay.name).await?.filter(|link| link.up);
        Ok(link.and_then(|link| Some((link.index, link.as_vxlan_device()?))))
    }

    async fn device_index(&mut self, family: Family) -> Result<Option<u32>, NetlinkError> {
        let Some(Overlay { name, .. }) = self.overlays.get(&family) else { return Ok(None) };
        let link = self.netlink.link(name).await?;
        Ok(link.filter(|link| link.as_vxlan_device().is_some()).map(|link| link.index))
    }

    /// Brings the device into line and returns its index.
    async fn put_device(&mut self, wanted: &VxlanDevice) -> Result<u32, NetlinkError> {
        let name = &wanted.name;
        let index = match self.netlink.link(name).await? {
            Some(link) if is_compatible(&link, wanted) => {
                self.adopt(&link, wanted).await?;
                link.index
            }
            Some(link) => {
                info!(
                    device = %name, found = ?link.kind, ?wanted,
                    "device cannot become the one we need: replacing it"
                );
                self.netlink.change(link::delete(link.index)).await?;
                self.create(wanted).await?
            }
            None => self.create(wanted).await?,
        };
        if let Err(error) = link::refuse_router_advertisements(name) {
            warn!(device = %name, %error, "cannot set accept_ra=0");
        }
        self.netlink.change(link::set_up(index)).await?;
        Ok(index)
    }

    async fn adopt(&mut self, link: &Link, wanted: &VxlanDevice) -> Result<(), NetlinkError> {
        if link.mtu != wanted.mtu {
            info!(device = %link.name, from = link.mtu, to = wanted.mtu, "changing the MTU of the device");
            self.netlink.change(link::set_mtu(link.index, wanted.mtu)).await?;
        }
        if link.mac != Some(wanted.mac) {
            let from = link.mac.map(|mac| mac.to_string());
            info!(device = %link.name, from, to = %wanted.mac, "changing the MAC of the device");
            self.netlink.change(link::set_mac(link.index, wanted.mac)).await?;
        }
        if link.as_vxlan_device().is_some_and(|found| found.learning != wanted.learning) {
            info!(device = %link.name, to = wanted.learning, "changing whether the device learns");
            self.netlink.change(link::set_learning(link.index, wanted.learning)).await?;
        }
        Ok(())
    }

    async fn create(&mut self, wanted: &VxlanDevice) -> Result<u32, NetlinkError> {
        if let Err(error) = self.netlink.change(link::create_vxlan(wanted)).await {
            return Err(match error.errno() {
                Some(Errno::EEXIST | Errno::EADDRINUSE) => self.conflict(wanted, error).await?,
                _ => error,
            });
        }
        let link = self.netlink.link(&wanted.name).await?;
        link.map(|link| link.index).ok_or(NetlinkError::Conflict(format!(
            "device {} went away as soon as it was created: another process manages it; stop that process",
            wanted.name
        )))
    }

    /// Says who is in the way of a new device.
    async fn conflict(
        &mut self,
        wanted: &VxlanDevice,
        error: NetlinkError,
    ) -> Result<NetlinkError, NetlinkError> {
        let rival = self.netlink.links().await?.into_iter().find(|link| {
            matches!(link.kind, LinkKind::Vxlan(vxlan) if vxlan.vni == wanted.vni && vxlan.port == wanted.port)
        });
        Ok(match rival {
            Some(rival) => NetlinkError::Conflict(format!(
                "VNI {} on UDP port {} is taken by device {}: delete it (ip link delete {}), or configure \
                 another VNI or Port",
                wanted.vni, wanted.port, rival.name, rival.name
            )),
            None => error,
        })
    }

    /// Makes changes that are one request each, all in flight at once; the result of each by its number.
    async fn apply_on_devices(
        &mut self,
        indices: &BTreeMap<Family, u32>,
        changes: &[(usize, &Change)],
    ) -> Vec<(usize, Result<(), ChangeError>)> {
        let put = |(_, change): &&(usize, &Change)| matches!(change, Change::PutRoute { .. });
        let numbering = Numbering::of_many(changes.iter().filter(put).count());
        let requests: Vec<Request> = changes
            .iter()
            .filter_map(|(_, change)| request(*indices.get(&change.device()?)?, change, numbering))
            .collect();
        let results = self.netlink.transact(&requests).await;
        let mut results: Vec<_> = changes.iter().zip(results).collect();
        self.delete_spread(indices, &mut results).await;
        let settled = results.into_iter().map(|((n, change), result)| match result {
            Err(error) if change.is_removal() && is_gone(&error) => (*n, Ok(())),
            result => (*n, result.map_err(ChangeError::from)),
        });
        settled.collect()
    }

    /// Looks for routes that were to be deleted, and not found as those of a few, as those of many.
    async fn delete_spread(&mut self, indices: &BTreeMap<Family, u32>, results: &mut [Made<'_>]) {
        let missed = |change: &Change, result: &Result<(), NetlinkError>| {
            matches!(change, Change::DeleteRoute { .. }) && result.as_ref().is_err_and(is_gone)
        };
        let again: Vec<Request> = results
            .iter()
            .filter(|((_, change), result)| missed(change, result))
            .filter_map(|((_, change), _)| {
                request(*indices.get(&change.device()?)?, change, Numbering::Spread)
            })
            .collect();
        let found = self.netlink.transact(&again).await;
        let missing = results.iter_mut().filter(|((_, change), result)| missed(change, result));
        for ((_, result), found) in missing.zip(found) {
            *result = found;
        }
    }

    /// What is on the device of a family, if that is there.
    async fn observe_device(&mut self, overlay: &Overlay, state: &mut State) -> Result<(), NetlinkError> {
        let Some((index, device)) = self.device(overlay).await? else { return Ok(()) };
        let family = Family::of_network(overlay.network);
        let within = |network: &IpNetwork| overlap(overlay.network, network.ip().into());
        let addresses = self.netlink.addresses(family, Some(index)).await?;
        state.addresses.extend(addresses.into_iter().map(|address| address.network).filter(within));
        state.neighbours.extend(self.netlink.permanent_neighbours(family, index).await?);
        let fdb = self.netlink.permanent_fdb(index).await?;
        // Those of the other family would lead nowhere, and only somebody else can have made them.
        let fdb = fdb.into_iter().filter(|entry| Family::of(entry.public_ip) == family);
        state.fdb.extend(fdb.map(|entry| ((family, entry.mac), entry.public_ip)));
        state.routes.extend(self.netlink.onlink_routes(family, index).await?);
        state.devices.insert(family, device);
        Ok(())
    }
}

impl Datapath for KernelDatapath {
    /// The devices, what is on them, and the routes past them; the eBPF half is empty.
    async fn observe(&mut self) -> Result<State, ObserveError> {
        let mut state = State::default();
        for stray in &self.strays {
            state.direct_routes.extend(self.netlink.gateway_routes(&self.direct, stray).await?);
        }
        for overlay in self.overlays.clone().values() {
            self.observe_device(overlay, &mut state).await?;
        }
        Ok(state)
    }

    async fn apply(&mut self, changes: &[Change]) -> Vec<Result<(), ChangeError>> {
        let mut results = BTreeMap::new();
        let mut indices = BTreeMap::new();
        let mut on_devices = Vec::new();
        let mut direct = Vec::new();
        for (n, change) in changes.iter().enumerate() {
            match change {
                Change::PutDevice(device) => {
                    let result = self.put_device(device).await;
                    if let Ok(index) = result {
                        indices.insert(device.family(), index);
                    }
                    results.insert(n, result.map(drop).map_err(ChangeError::from));
                }
                Change::DeleteDevice(family) => {
                    results.insert(n, self.delete_device(*family).await.map_err(ChangeError::from));
                }
                change if change.is_bpf() => {
                    results.insert(n, Err(ChangeError::Unsupported));
                }
                Change::PutDirectRoute { .. } | Change::DeleteDirectRoute { .. } => direct.push((n, change)),
                change => on_devices.push((n, change)),
            }
        }
        results.extend(self.apply_direct(&direct).await);
        for family in Family::BOTH {
            if indices.contains_key(&family)
                || !on_devices.iter().any(|(_, change)| change.device() == Some(family))
            {
                continue;
            }
            // Even if an attribute of the device could not be changed, its peers can be.
            let missing = match self.device_index(family).await {
                Ok(Some(index)) => {
                    indices.insert(family, index);
                    continue;
                }
                Ok(None) => None,
                Err(error) => Some(error),
            };
            on_devices.retain(|(n, change)| {
                let here = change.device() == Some(family);
                if here {
                    let result = match &missing {
                        Some(error) => Err(ChangeError::from(error.clone())),
                        None if change.is_removal() => Ok(()),
                        None => Err(ChangeError::Blocked),
                    };
                    results.insert(*n, result);
                }
                !here
            });
        }
        results.extend(self.apply_on_devices(&indices, &on_devices).await);
        results.into_values().collect()
    }
}

impl KernelDatapath {
    /// Makes changes of routes past the device, all in flight at once; the result of each by its number.
    async fn apply_direct(&mut self, changes: &[(usize, &Change)]) -> Vec<(usize, Result<(), ChangeError>)> {
        let requests: Vec<Request> = changes
            .iter()
            .filter_map(|(_, change)| match **change {
                Change::PutDirectRoute { subnet, route } => Some(route::put_direct(subnet, route)),
                Change::DeleteDirectRoute { subnet, route } => Some(route::delete_direct(subnet, route)),
                _ => None,
            })
            .collect();
        let results = self.netlink.transact(&requests).await;
        let settle = |((n, change), result): (&(usize, &Change), Result<(), NetlinkError>)| {
            let result = match (*change, result) {
                (Change::DeleteDirectRoute { subnet, .. }, result) => {
                    let result = result.or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) });
                    if result.is_ok() {
                        self.direct.remove(subnet);
                    }
                    result
                }
                (Change::PutDirectRoute { subnet, route }, result) => {
                    if result.is_ok() {
                        self.direct.insert(*subnet);
                    }
                    result.map_err(|error| unreachable_gateway(*route, error))
                }
                (_, result) => result,
            };
            (*n, result.map_err(ChangeError::from))
        };
        changes.iter().zip(results).map(settle).collect()
    }

    async fn delete_device(&mut self, family: Family) -> Result<(), NetlinkError> {
        let Some(Overlay { name, .. }) = self.overlays.get(&family) else { return Ok(()) };
        match self.netlink.link(name).await? {
            Some(link) => self.netlink.change(link::delete(link.index)).await,
            None => Ok(()),
        }
    }
}

/// Says what a node that is not on our link means; other errors speak for themselves.
fn unreachable_gateway(route: DirectRoute, error: NetlinkError) -> NetlinkError {
    match error.errno() {
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => NetlinkError::Conflict(format!(
            "node {} is not on the link of the external interface (kernel: {error}): the host-gw backend reaches \
             only nodes on one link; use the vxlan backend, or join the node to this link",
            route.via
        )),
        _ => error,
    }
}

fn is_compatible(link: &Link, wanted: &VxlanDevice) -> bool {
    link.as_vxlan_device().is_some_and(|found| wanted.is_compatible(&found))
}

/// The request that makes a change of what is on the device.
fn request(index: u32, change: &Change, numbering: Numbering) -> Option<Request> {
    Some(match *change {
        Change::PutAddress(address) => address::put(index, address),
        Change::DeleteAddress(address) => address::delete(index, address),
        Change::PutFdb { mac, public_ip } => neighbour::put_fdb(index, FdbEntry { mac, public_ip }),
        Change::DeleteFdb { mac, public_ip } => neighbour::delete_fdb(index, FdbEntry { mac, public_ip }),
        Change::PutNeighbour { address, mac } => neighbour::put(index, address, mac),
        Change::DeleteNeighbour(address) => neighbour::delete(index, address),
        Change::PutRoute { subnet, via } => route::put_onlink(index, subnet, via, numbering),
        Change::DeleteRoute { subnet, via } => route::delete_onlink(index, subnet, via, numbering),
        _ => return None,
    })
}

/// Whether a removal failed because there was nothing to remove.
fn is_gone(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL))
}
