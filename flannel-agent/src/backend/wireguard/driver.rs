//! The devices, their peers, and the routes over them.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use futures::future::BoxFuture;
use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::keys::{self, PrivateKey};
use crate::{
    backend::{AnyObject, BackendError, ObjectDriver, ObjectId, Objects, Stage, device::Device},
    netlink::{
        Netlink, NetlinkError, route,
        wireguard::{Exchanged, Key, PeerChange, Wireguard, WireguardPeerState},
    },
    values::{Family, overlap},
};

/// A device with its key and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WgDevice {
    pub(super) device: Device,
    pub(super) public_key: Key,
    pub(super) port: u16,
}

impl fmt::Display for WgDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, public_key, port } = self;
        write!(f, "{device}, listening at UDP port {port} with public key {}", keys::text(public_key))
    }
}

/// A pod subnet of a peer, which the device sends there and takes from there.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct WgPeer {
    /// Name of the device.
    pub(super) device: String,
    pub(super) subnet: IpNetwork,
    pub(super) public_key: Key,
    pub(super) endpoint: Option<SocketAddr>,
    /// Zero for none.
    pub(super) preshared_key: Key,
    pub(super) keepalive: u16,
}

impl WgPeer {
    fn state(&self, allowed: Vec<IpNetwork>) -> WireguardPeerState {
        WireguardPeerState {
            public_key: self.public_key,
            preshared_key: self.preshared_key,
            endpoint: self.endpoint,
            keepalive: self.keepalive,
            allowed,
            exchanged: Exchanged::default(),
        }
    }
}

/// Without the secret.
impl fmt::Debug for WgPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for WgPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, subnet, public_key, endpoint, .. } = self;
        write!(f, "WireGuard peer {} of {subnet} on {device}", keys::text(public_key))?;
        endpoint.iter().try_for_each(|endpoint| write!(f, ", at {endpoint}"))
    }
}

/// The route of a whole network into the device, which knows the peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WgRoute {
    /// Name of the device.
    pub(super) device: String,
    pub(super) network: IpNetwork,
}

impl fmt::Display for WgRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the route to {} on {}", self.network, self.device)
    }
}

/// What makes all of these.
pub(super) struct Driver {
    pub(super) netlink: Netlink,
    /// Opened once there is a device: before that, the module may not be loaded.
    pub(super) wireguard: Option<Wireguard>,
    pub(super) private_key: PrivateKey,
    /// The devices, and the networks that each carries.
    pub(super) devices: BTreeMap<String, Vec<IpNetwork>>,
    /// A device of another mode, which is to go.
    pub(super) spare: Option<&'static str>,
    /// What this process has put. A peer that was heard from elsewhere since, as from behind a NAT that gave it another
    /// port, is reached there now, which is as it should be.
    pub(super) put: BTreeMap<ObjectId, WgPeer>,
}

impl Driver {
    fn wireguard(&mut self) -> Result<&mut Wireguard, NetlinkError> {
        if self.wireguard.is_none() {
            self.wireguard = Some(Wireguard::open()?);
        }
        self.wireguard.as_mut().ok_or(NetlinkError::Open(Errno::ENOENT))
    }

    async fn look(&mut self) -> Result<Objects, BackendError> {
        let mut objects = Objects::new();
        for (name, networks) in self.devices.clone() {
            self.look_at(&name, &networks, &mut objects).await?;
        }
        if let Some(name) = self.spare
            && let Some((_, device)) = Device::find(&mut self.netlink, name, &[]).await?
        {
            let id = ObjectId { stage: Stage::Device, network: IpAddr::V6(Ipv6Addr::UNSPECIFIED).into() };
            objects.insert(id, AnyObject::new(WgDevice { device, public_key: [0; 32], port: 0 }));
        }
        Ok(objects)
    }

    async fn look_at(
        &mut self,
        name: &str,
        networks: &[IpNetwork],
        objects: &mut Objects,
    ) -> Result<(), BackendError> {
        let Some((index, device)) = Device::find(&mut self.netlink, name, networks).await? else {
            return Ok(());
        };
        let Some(found) = self.wireguard()?.device(name)? else { return Ok(()) };
        let Some(first) = networks.first() else { return Ok(()) };
        let id = ObjectId { stage: Stage::Device, network: *first };
        let whole = WgDevice { device, public_key: found.public_key, port: found.port };
        objects.insert(id, AnyObject::new(whole));
        for network in networks {
            let family = Family::of_network(*network);
            let routes = self.netlink.main_routes(family, Some(index)).await?;
            if routes.iter().any(|route| route.destination == *network && route.gateway.is_none()) {
                let route = WgRoute { device: name.to_owned(), network: *network };
                let id = ObjectId { stage: Stage::Route, network: *network };
                objects.insert(id, AnyObject::new(route));
            }
        }
        for peer in found.peers {
            for subnet in peer
                .allowed
                .iter()
                .filter(|allowed| networks.iter().any(|network| overlap(*network, **allowed)))
            {
                let id = ObjectId { stage: Stage::Peer, network: *subnet };
                let seen = WgPeer {
                    device: name.to_owned(),
                    subnet: *subnet,
                    public_key: peer.public_key,
                    endpoint: peer.endpoint,
                    preshared_key: peer.preshared_key,
                    keepalive: peer.keepalive,
                };
                let as_put = self.put.get(&id).map(|put| WgPeer { endpoint: put.endpoint, ..seen.clone() });
                objects.insert(id, AnyObject::new(as_put.unwrap_or(seen)));
            }
        }
        Ok(())
    }

    async fn put_device(&mut self, wanted: &WgDevice) -> Result<(), BackendError> {
        let name = wanted.device.name.clone();
        let networks = self.devices.get(&name).cloned().unwrap_or_default();
        let made = wanted.device.put(&mut self.netlink, &networks).await;
        made.map_err(|error| taken(wanted.port, error))?;
        let private_key = self.private_key.bytes();
        let set = self.wireguard()?.set_device(&name, private_key, wanted.port);
        set.map_err(|error| taken(wanted.port, error.into()))
    }

    fn put_peer(&mut self, id: ObjectId, wanted: &WgPeer) -> Result<(), BackendError> {
        let state = wanted.state(vec![wanted.subnet]);
        let wireguard = self.wireguard()?;
        wireguard.change_peer(&wanted.device, &PeerChange::Put(&state))?;
        // Whoever had the subnet until now has nothing left that it is there for.
        let left = wireguard.device(&wanted.device)?.map(|device| device.peers).unwrap_or_default();
        for peer in left.iter().filter(|peer| peer.allowed.is_empty()) {
            wireguard.change_peer(&wanted.device, &PeerChange::Remove(&peer.public_key))?;
        }
        self.put.insert(id, wanted.clone());
        Ok(())
    }

    fn delete_peer(&mut self, id: ObjectId, observed: &WgPeer) -> Result<(), BackendError> {
        self.put.remove(&id);
        let wireguard = self.wireguard()?;
        let peers = wireguard.device(&observed.device)?.map(|device| device.peers).unwrap_or_default();
        let Some(peer) = peers.iter().find(|peer| peer.public_key == observed.public_key) else {
            return Ok(());
        };
        let rest: Vec<IpNetwork> =
            peer.allowed.iter().copied().filter(|allowed| *allowed != observed.subnet).collect();
        let change = WireguardPeerState { allowed: rest, ..peer.clone() };
        let change = match change.allowed.is_empty() {
            true => PeerChange::Remove(&peer.public_key),
            false => PeerChange::Replace(&change),
        };
        Ok(wireguard.change_peer(&observed.device, &change)?)
    }

    async fn index(&mut self, name: &str) -> Result<Option<u32>, NetlinkError> {
        Ok(self.netlink.link(name).await?.map(|link| link.index))
    }
}

/// Explains that a port is somebody else's.
fn taken(port: u16, error: BackendError) -> BackendError {
    match &error {
        BackendError::Netlink(refused) if refused.errno() == Some(Errno::EADDRINUSE) => {
            BackendError::Other(format!(
                "UDP port {port} is taken ({refused}): `ss -lunp sport = :{port}` and `wg show all listen-port` name who \
                 has it; stop that, or configure another Backend.ListenPort and ListenPortV6"
            ))
        }
        _ => error,
    }
}

impl ObjectDriver for Driver {
    fn observe(&mut self) -> BoxFuture<'_, Result<Objects, BackendError>> {
        Box::pin(self.look())
    }

    fn put<'a>(&'a mut self, id: ObjectId, object: &'a AnyObject) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            if let Some(device) = object.get::<WgDevice>() {
                return self.put_device(device).await;
            }
            if let Some(peer) = object.get::<WgPeer>() {
                return self.put_peer(id, peer);
            }
            if let Some(WgRoute { device, network }) = object.get::<WgRoute>() {
                let absent = || BackendError::Other(format!("{device} is not there yet"));
                let index = self.index(device).await?.ok_or_else(absent)?;
                self.netlink.change(route::put_link(index, *network)).await?;
            }
            Ok(())
        })
    }

    fn delete<'a>(
        &'a mut self,
        id: ObjectId,
        object: &'a AnyObject,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            if let Some(device) = object.get::<WgDevice>() {
                return device.device.delete(&mut self.netlink).await;
            }
            if let Some(peer) = object.get::<WgPeer>() {
                return self.delete_peer(id, peer);
            }
            if let Some(WgRoute { device, network }) = object.get::<WgRoute>()
                && let Some(index) = self.index(device).await?
            {
                self.netlink.delete_route(route::delete_link(index, *network)).await?;
            }
            Ok(())
        })
    }
}
