//! The device, its route, and where its packets are sent.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{Arc, PoisonError},
};

use futures::future::BoxFuture;
use ipnetwork::{IpNetwork, Ipv4Network};
use nix::errno::Errno;
use tracing::{info, warn};

use super::{Destination, DeviceName, NetworkRoute, TunDevice};
use crate::{
    backend::{AnyObject, BackendError, ObjectDriver, ObjectId, Objects, Stage},
    netlink::{Link, Netlink, NetlinkError, address, link, route},
    tunnel::{self, Device, Peers, Tunnel},
    values::Family,
};

/// Packets that may wait for the agent.
const QUEUE: u32 = 4096;

/// What makes and sees them. The device goes with it.
pub(super) struct Driver {
    netlink: Netlink,
    name: DeviceName,
    served: Option<Served>,
}

/// The device while it is there.
struct Served {
    tunnel: Tunnel,
    id: ObjectId,
    /// What it was made as.
    device: TunDevice,
}

impl Driver {
    /// Without a device, in the network namespace of this thread.
    pub(super) fn open(name: DeviceName) -> Result<Self, BackendError> {
        Ok(Self { netlink: Netlink::open()?, name, served: None })
    }

    /// Tells the backend how the device is called.
    fn tell(&self) {
        let name = self.served.as_ref().map(|served| served.tunnel.device().name().to_owned());
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    /// The device and its interface, if both are there.
    async fn served(&mut self) -> Result<Option<(&mut Served, Link)>, NetlinkError> {
        let Some(served) = self.served.as_mut().filter(|served| served.tunnel.is_served()) else {
            return Ok(None);
        };
        let link = self.netlink.link(served.tunnel.device().name()).await?;
        Ok(link.map(|link| (served, link)))
    }

    async fn look(&mut self) -> Result<Objects, BackendError> {
        let mut objects = Objects::new();
        let Some((served, link)) = self.served().await? else { return Ok(objects) };
        let (id, device) = (served.id, served.device);
        for (subnet, node) in served.tunnel.peers().iter() {
            let id = ObjectId { stage: Stage::Peer, network: subnet.into() };
            objects.insert(id, AnyObject::new(Destination { subnet, node }));
        }
        let addresses = self.netlink.addresses(Family::V4, Some(link.index)).await?;
        let routes = self.netlink.main_routes(Family::V4, Some(link.index)).await?;
        for route in routes.iter().filter(|route| route.gateway.is_none() && route.is_as_ours(false)) {
            let id = ObjectId { stage: Stage::Route, network: route.destination };
            objects.insert(id, AnyObject::new(NetworkRoute(route.destination)));
        }
        // What is not as it was made is seen as made otherwise, so that it is put right.
        let address = match addresses.as_slice() {
            [one] => v4(one.network),
            _ => None,
        };
        let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let mtu = if link.up { link.mtu } else { 0 };
        objects.insert(id, AnyObject::new(TunDevice { address, mtu, ..device }));
        Ok(objects)
    }

    async fn put_device(&mut self, id: ObjectId, wanted: TunDevice) -> Result<(), BackendError> {
        let (name, index) = match self.served().await? {
            Some((served, link)) => {
                if (served.device.local, served.device.port) != (wanted.local, wanted.port) {
                    served.tunnel.restart(listen(&wanted)?).map_err(other)?;
                    served.tunnel.peers().set_port(wanted.port);
                }
                served.tunnel.set_address(wanted.address.ip());
                (served.id, served.device) = (id, wanted);
                (link.name, link.index)
            }
            None => {
                // Its threads hold the socket, whose address the next one needs.
                self.served = None;
                let socket = listen(&wanted)?;
                let device = Device::create().map_err(other)?;
                let name = device.name().to_owned();
                let (tcp, udp) = (device.has_tcp_aggregates(), device.has_udp_aggregates());
                info!(
                    device = name,
                    tcp, udp, "serving a TUN device; whether it takes aggregates of TCP and UDP"
                );
                let tunnel = Tunnel::start(device, socket, wanted.address.ip(), Peers::new(wanted.port))
                    .map_err(other)?;
                self.served = Some(Served { tunnel, id, device: wanted });
                self.tell();
                let link = self.netlink.link(&name).await?;
                let gone =
                    || BackendError::Other(format!("the TUN device {name} went away as soon as it was made"));
                let index = link.ok_or_else(gone)?.index;
                (name, index)
            }
        };
        self.bring_into_line(&name, index, &wanted).await
    }

    async fn bring_into_line(
        &mut self,
        name: &str,
        index: u32,
        wanted: &TunDevice,
    ) -> Result<(), BackendError> {
        if let Err(error) = link::refuse_router_advertisements(name) {
            warn!(device = name, %error, "cannot set accept_ra=0");
        }
        self.netlink.change(link::set_mtu(index, wanted.mtu)).await?;
        self.netlink.change(link::set_queue(index, QUEUE)).await?;
        let address = IpNetwork::V4(wanted.address);
        self.netlink.change(address::put(index, address)).await?;
        for found in self.netlink.addresses(Family::V4, Some(index)).await? {
            if found.network != address {
                self.netlink.change(address::delete(index, found.network)).await?;
            }
        }
        self.netlink.change(link::set_up(index)).await?;
        Ok(())
    }

    async fn index(&mut self) -> Result<u32, BackendError> {
        let missing = || BackendError::Other("the TUN device is not there yet".to_owned());
        self.served().await?.map(|(_, link)| link.index).ok_or_else(missing)
    }

    async fn put_any(&mut self, id: ObjectId, object: &AnyObject) -> Result<(), BackendError> {
        if let Some(device) = object.get::<TunDevice>() {
            return self.put_device(id, *device).await;
        }
        if let Some(NetworkRoute(network)) = object.get::<NetworkRoute>() {
            let index = self.index().await?;
            return Ok(self.netlink.change(route::put_over(index, *network)).await?);
        }
        if let Some(Destination { subnet, node }) = object.get::<Destination>() {
            let missing = || BackendError::Other("the TUN device is not there yet".to_owned());
            let served = self.served.as_ref().ok_or_else(missing)?;
            served.tunnel.peers().insert(*subnet, *node);
        }
        Ok(())
    }

    async fn delete_any(&mut self, object: &AnyObject) -> Result<(), BackendError> {
        if object.get::<TunDevice>().is_some() {
            self.served = None;
            self.tell();
        } else if let Some(NetworkRoute(network)) = object.get::<NetworkRoute>() {
            if let Some((_, link)) = self.served().await? {
                self.netlink.delete_route(route::delete_over(link.index, *network)).await?;
            }
        } else if let Some((Destination { subnet, .. }, served)) = object.get().zip(self.served.as_ref()) {
            served.tunnel.peers().remove(*subnet);
        }
        Ok(())
    }
}

impl ObjectDriver for Driver {
    fn observe(&mut self) -> BoxFuture<'_, Result<Objects, BackendError>> {
        Box::pin(self.look())
    }

    fn put<'a>(&'a mut self, id: ObjectId, object: &'a AnyObject) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(self.put_any(id, object))
    }

    fn delete<'a>(
        &'a mut self,
        _: ObjectId,
        object: &'a AnyObject,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(self.delete_any(object))
    }
}

/// The socket beneath the device.
fn listen(device: &TunDevice) -> Result<Arc<UdpSocket>, BackendError> {
    let TunDevice { local, port, .. } = device;
    let explain = |error: std::io::Error| {
        let advice = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRINUSE) => {
                "; another process listens there: stop it, or set Backend.Port, the same on all nodes"
            }
            _ => "",
        };
        BackendError::Other(format!(
            "cannot receive the udp backend's packets at {local}:{port}: {error}{advice}"
        ))
    };
    tunnel::bind(*local, *port).map(Arc::new).map_err(explain)
}

fn other(error: impl std::fmt::Display) -> BackendError {
    BackendError::Other(error.to_string())
}

fn v4(network: IpNetwork) -> Option<Ipv4Network> {
    match network {
        IpNetwork::V4(v4) => Some(v4),
        IpNetwork::V6(_) => None,
    }
}
