//! The kernel half of a state: what stock flannel programs, over netlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use super::{ChangeError, Datapath, ObserveError, Stray};
use crate::{
    backend::{ObjectDriver, Objects},
    netlink::{Netlink, NetlinkError},
    plan::{Change, State, VxlanDevice},
    values::{Family, Mac, overlap},
};

mod apply;
mod device;
mod given_up;
mod port;
mod requests;

use given_up::GivenUp;

/// The VXLAN devices and what is on them.
///
/// A later process recognises all of it: a device by its name and attributes, and on the device, within the network of
/// its family, the addresses, the permanent neighbours, and the routes that are `via GATEWAY onlink` with protocol
/// boot, or the one that [`crate::netlink::protocol::Numbering`] gives it among many; and the permanent forwarding
/// entries, but for those that only neighbours outside of the network lead to. A daemon of another network may use the
/// same device. Routes past the device are recognised by [`Stray`], and those this process has made, whatever they look
/// like.
pub struct KernelDatapath {
    netlink: Netlink,
    overlays: BTreeMap<Family, Overlay>,
    strays: Vec<Stray>,
    /// Subnets this process has put a direct route to and not taken it away.
    direct: BTreeSet<IpNetwork>,
    /// First addresses of subnets outside the networks that this process has put on a device and not taken away.
    beyond: BTreeSet<IpAddr>,
    given_up: GivenUp,
    /// What makes the backend's own objects.
    driver: Option<Box<dyn ObjectDriver>>,
    /// MACs behind which neighbours of other networks are, as last seen.
    shared: BTreeSet<(Family, Mac)>,
}

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
            driver: None,
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

    /// The routes over the device of ipip are no leftovers: it is our backend's own.
    #[must_use]
    pub fn keeping_ipip(mut self, keep: bool) -> Self {
        if keep {
            self.given_up.keep_ipip();
        }
        self
    }

    /// Also direct routes of one family; `stray` tells those of an earlier process.
    #[must_use]
    pub fn with_direct_routes(mut self, stray: Stray) -> Self {
        self.strays.push(stray);
        self
    }

    /// Also the objects that only the backend knows.
    #[must_use]
    pub fn with_driver(mut self, driver: Option<Box<dyn ObjectDriver>>) -> Self {
        self.driver = driver;
        self
    }

    /// The device of a family, if it is one we would make; down, it is as good as absent, since nothing on it works.
    async fn device(&mut self, overlay: &Overlay) -> Result<Option<(u32, VxlanDevice)>, NetlinkError> {
        let link = self.netlink.link(&overlay.name).await?.filter(|link| link.up);
        Ok(link.and_then(|link| Some((link.index, link.as_vxlan_device()?))))
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
    /// The devices, what is on them, the routes past them, and the backend's own objects; the eBPF half is empty.
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
        state.objects = self.observe_objects().await?.unwrap_or_default();
        Ok(state)
    }

    async fn observe_objects(&mut self) -> Result<Option<Objects>, ObserveError> {
        match &mut self.driver {
            Some(driver) => Ok(Some(driver.observe().await?)),
            None => Ok(None),
        }
    }

    async fn apply(&mut self, changes: &[Change]) -> Vec<Result<(), ChangeError>> {
        self.apply_in_order(changes).await
    }
}
