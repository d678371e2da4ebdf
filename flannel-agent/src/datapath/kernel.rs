//! The kernel half of a state: what stock flannel programs, over netlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use tracing::{info, warn};

use super::{
    ChangeError, Datapath, ObserveError, Stray,
    given_up::GivenUp,
    port,
    requests::{is_gone, request, unreachable_gateway},
};
use crate::{
    netlink::{Link, Netlink, NetlinkError, Request, link, protocol::Numbering, route, vxlan},
    plan::{Change, State, VxlanDevice},
    values::{Family, Mac, overlap},
};

/// The VXLAN devices and what is on them.
///
/// A later process recognises all of it: a device by its name and attributes, and on the device, within the network of
/// its family, the addresses, the permanent neighbours, and the routes that are `via GATEWAY onlink` with protocol boot,
/// or the one that [`Numbering`] gives it among many; and the permanent forwarding entries, but for those that only
/// neighbours outside of the network lead to. A daemon of another network may use the same device. Routes past the device
/// are recognised as [`Stray`] says, and those this process has made, whatever they look like.
pub struct KernelDatapath {
    netlink: Netlink,
    overlays: BTreeMap<Family, Overlay>,
    strays: Vec<Stray>,
    /// Subnets this process has put a direct route to and not taken it away.
    direct: BTreeSet<IpNetwork>,
    /// First addresses of subnets outside the networks that this process has put on a device and not taken away.
    beyond: BTreeSet<IpAddr>,
    given_up: GivenUp,
    /// MACs behind which neighbours of other networks are, as last seen.
    shared: BTreeSet<(Family, Mac)>,
}

/// A numbered change, and what became of it.
type Made<'a> = (&'a (usize, &'a Change), Result<(), NetlinkError>);

/// The VXLAN device of one family.
#[derive(Clone, Debug)]
struct Overlay {
    name: String,
    /// What is on the device and outside of it is left alone, unless this process has put it there.
    network: IpNetwork,
    /// This node's networks before: what is left of those, too, but for addresses.
    earlier: Vec<IpNetwork>,
}

impl Overlay {
    /// Whether a peer's subnet that begins with `base` is of this node's networks.
    fn takes_in(&self, base: IpAddr) -> bool {
        self.network.contains(base) || self.earlier.iter().any(|network| network.contains(base))
    }
}

impl KernelDatapath {
    /// No device, of the network namespace `netlink` is in: one there is, whoever made it, is left alone.
    pub fn new(netlink: Netlink) -> Self {
        Self {
            netlink,
            overlays: BTreeMap::new(),
            strays: Vec::new(),
            direct: BTreeSet::new(),
            beyond: BTreeSet::new(),
            given_up: GivenUp::default(),
            shared: BTreeSet::new(),
        }
    }

    /// Also the device `name`, which carries packets of `network` and its family. What is on the device and outside
    /// `network` is left alone.
    #[must_use]
    pub fn with_device(mut self, name: String, network: IpNetwork) -> Self {
        self.overlays.insert(Family::of_network(network), Overlay { name, network, earlier: Vec::new() });
        self
    }

    /// Also what this node has left on its devices, of any family, when it had one of `networks`.
    #[must_use]
    pub fn with_earlier(mut self, networks: &[IpNetwork]) -> Self {
        for overlay in self.overlays.values_mut() {
            overlay.earlier.extend(networks);
        }
        self
    }

    /// Also what this node has left on other devices than that of its family, when it had another backend or VNI: the
    /// routes to subnets of `network`.
    #[must_use]
    pub fn giving_up(mut self, network: IpNetwork) -> Self {
        self.given_up.within(network);
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
        match self.netlink.change(link::set_up(index)).await {
            Ok(()) => Ok(index),
            Err(error) => Err(port::explained(&mut self.netlink, wanted, error).await?),
        }
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
            self.netlink.change(vxlan::set_learning(link.index, wanted.learning)).await?;
        }
        Ok(())
    }

    async fn create(&mut self, wanted: &VxlanDevice) -> Result<u32, NetlinkError> {
        if let Err(error) = self.netlink.change(vxlan::create(wanted)).await {
            return Err(port::explained(&mut self.netlink, wanted, error).await?);
        }
        let link = self.netlink.link(&wanted.name).await?;
        link.map(|link| link.index).ok_or(NetlinkError::Conflict(format!(
            "device {} went away as soon as it was created: another process manages it; stop that process",
            wanted.name
        )))
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
        for ((_, change), result) in &results {
            self.note_beyond(change, result.is_ok());
        }
        let settled = results.into_iter().map(|((n, change), result)| match result {
            Err(error) if change.is_removal() && is_gone(&error) => (*n, Ok(())),
            result => (*n, result.map_err(ChangeError::from)),
        });
        settled.collect()
    }

    /// Keeps in mind what is put on a device though it is of none of its networks: nobody would know it for ours.
    fn note_beyond(&mut self, change: &Change, done: bool) {
        let (base, put) = match change {
            Change::PutRoute { subnet, .. } => (subnet.network(), true),
            Change::PutNeighbour { address, .. } => (*address, true),
            // The last of a subnet to go.
            Change::DeleteNeighbour(address) => (*address, false),
            _ => return,
        };
        let taken_in = self.overlays.get(&Family::of(base)).is_none_or(|overlay| overlay.takes_in(base));
        if put && !taken_in {
            self.beyond.insert(base);
        } else if done {
            self.beyond.remove(&base);
        }
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
        let is_ours = |base: IpAddr| overlay.takes_in(base) || self.beyond.contains(&base);
        let addresses = self.netlink.addresses(family, Some(index)).await?;
        state.addresses.extend(addresses.into_iter().map(|address| address.network).filter(within));
        let neighbours = self.netlink.permanent_neighbours(family, index).await?;
        let (ours, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            neighbours.into_iter().partition(|(address, _)| is_ours(*address));
        let others: BTreeSet<Mac> = others.into_values().collect();
        let needed: BTreeSet<Mac> = match others.is_empty() {
            true => BTreeSet::new(),
            false => ours.values().copied().collect(),
        };
        let fdb = self.netlink.permanent_fdb(index).await?;
        let fdb = fdb
            .into_iter()
            // Those of the other family would lead nowhere, and only somebody else can have made them.
            .filter(|entry| Family::of(entry.public_ip) == family)
            .filter(|entry| needed.contains(&entry.mac) || !others.contains(&entry.mac));
        state.fdb.extend(fdb.map(|entry| ((family, entry.mac), entry.public_ip)));
        state.neighbours.extend(ours);
        let routes = self.netlink.onlink_routes(family, index).await?;
        state.routes.extend(routes.into_iter().filter(|(subnet, _)| is_ours(subnet.network())));
        self.shared.retain(|(of, _)| *of != family);
        self.shared.extend(others.into_iter().map(|mac| (family, mac)));
        state.devices.insert(family, device);
        Ok(())
    }
}

impl Datapath for KernelDatapath {
    /// The devices, what is on them, and the routes past them; the eBPF half is empty.
    async fn observe(&mut self) -> Result<State, ObserveError> {
        let mut state = State::default();
        for stray in &self.strays {
            state.direct_routes.extend(stray.direct_routes(&mut self.netlink, &self.direct).await?);
        }
        for overlay in self.overlays.clone().values() {
            self.observe_device(overlay, &mut state).await?;
        }
        if self.given_up.is_looked_for() {
            let mut devices = BTreeMap::new();
            for family in self.overlays.keys().copied().collect::<Vec<_>>() {
                // One that is not there yet has an index that no route has.
                devices.insert(family, self.device_index(family).await?.unwrap_or_default());
            }
            self.given_up.observe(&mut self.netlink, &devices, &mut state).await?;
        }
        Ok(state)
    }

    async fn apply(&mut self, changes: &[Change]) -> Vec<Result<(), ChangeError>> {
        let mut results = BTreeMap::new();
        let mut indices = BTreeMap::new();
        let mut on_devices = Vec::new();
        let mut direct = Vec::new();
        for (n, change) in changes.iter().enumerate() {
            if let Some(request) = self.given_up.request(change) {
                let gone = self.netlink.change(request).await;
                let gone = gone.or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) });
                results.insert(n, gone.map_err(ChangeError::from));
                continue;
            }
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
                Change::DeleteFdb { mac, public_ip }
                    if self.shared.contains(&(Family::of(*public_ip), *mac)) =>
                {
                    // A daemon of another network still sends there; the entry is its own now.
                    results.insert(n, Ok(()));
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

fn is_compatible(link: &Link, wanted: &VxlanDevice) -> bool {
    link.as_vxlan_device().is_some_and(|found| wanted.is_compatible(&found))
}
