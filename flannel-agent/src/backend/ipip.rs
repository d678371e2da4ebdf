//! `ipip`: IP in IP, over one device; with `DirectRouting` without it to nodes on the same link.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use flannel_common::path::Carrier;
use futures::future::{BoxFuture, ready};
use ipnetwork::IpNetwork;

use super::{
    AnyBackend, AnyObject, Backend, BackendError, Candidate, CarryingDevice, ExternalInterface, FollowedPeer,
    LocalStack, ObjectDriver, ObjectId, Objects, OptionError, OptionValue, Options, PeerRoute, Registered,
    Skip, Stacks, Stage, Start, Unusable,
    device::Device,
    kind::{Kind, Support},
};
use crate::{
    netlink::{Netlink, NetlinkError, Tunnel, protocol::Numbering, route},
    values::{Family, gojson::Object},
};

/// Its line in the table.
pub(super) const KIND: Kind = Kind {
    name: "ipip",
    what: "IP in IP, and routes to nodes on the same link if `DirectRouting` says so; IPv4",
    support: Support::Built(|object| Ok(Arc::new(Ipip::parse(object)?))),
};

/// Upstream's name of the device.
const DEVICE: &str = "flannel.ipip";
/// The outer header, bytes.
const OVERHEAD: u32 = 20;

/// IP in IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipip {
    /// Peers on the same link are routed to without the tunnel.
    pub direct_routing: bool,
}

impl Ipip {
    fn parse(object: &Object<'_>) -> Result<Self, OptionError> {
        Ok(Self { direct_routing: object.get("DirectRouting", "true or false")?.unwrap_or(false) })
    }
}

impl Options for Ipip {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn values(&self) -> Vec<OptionValue> {
        vec![OptionValue::of("Backend.DirectRouting", self.direct_routing)]
    }

    fn check_over_ipv6(&self) -> Result<(), OptionError> {
        Err(OptionError::Value {
            field: "Backend.Type",
            value: "\"ipip\"".to_owned(),
            problem: "carries IPv4 only: set EnableIPv6 to false, or use the vxlan backend",
        })
    }

    fn adopt<'a>(&'a self, _: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>> {
        Box::pin(ready(Ok(AnyBackend::new(*self))))
    }
}

impl Backend for Ipip {
    fn options(&self) -> &dyn Options {
        self
    }

    fn judge(&self, candidate: &Candidate<'_>) -> Result<PeerRoute, Skip> {
        Ok(if candidate.on_link { PeerRoute::Direct } else { PeerRoute::Objects })
    }

    fn mtu(&self, _: Family, external: &ExternalInterface) -> u32 {
        external.mtu.saturating_sub(OVERHEAD)
    }

    fn check_interface(&self, external: &ExternalInterface) -> Result<(), Unusable> {
        match external.mtu > OVERHEAD {
            true => Ok(()),
            false => {
                Err(Unusable::NoRoom { interface: external.name.clone(), mtu: external.mtu, backend: "ipip" })
            }
        }
    }

    fn direct_routing(&self) -> bool {
        self.direct_routing
    }

    fn own_carrier(&self) -> Option<Carrier> {
        Some(Carrier::Ipip)
    }

    fn tunnel_device(&self) -> Option<String> {
        Some(DEVICE.to_owned())
    }

    fn carrying_devices(&self, external: &ExternalInterface, stacks: &Stacks) -> Vec<CarryingDevice> {
        let device = |stack: &LocalStack| CarryingDevice {
            name: DEVICE.to_owned(),
            port: None,
            mtu: self.mtu(Family::V4, external),
            networks: vec![stack.network],
        };
        stacks.get(&Family::V4).map(device).into_iter().collect()
    }

    fn has_objects(&self) -> bool {
        true
    }

    fn objects(&self, external: &ExternalInterface, stacks: &Stacks) -> Objects {
        let stack = stacks.get(&Family::V4).and_then(|stack| match stack.address {
            IpAddr::V4(local) => Some((stack, local)),
            IpAddr::V6(_) => None,
        });
        let device = stack.map(|(stack, local)| {
            let device = Device {
                name: DEVICE.to_owned(),
                tunnel: Tunnel::Ipip { local },
                mtu: self.mtu(Family::V4, external),
                addresses: BTreeSet::from([stack.subnet.network().into()]),
            };
            (ObjectId { stage: Stage::Device, network: stack.network }, AnyObject::new(device))
        });
        device.into_iter().collect()
    }

    fn peer_objects(&self, _: &Stacks, peer: &FollowedPeer<'_>) -> Objects {
        let route = |subnet: &IpNetwork| {
            let via = peer.attrs.address(Family::of_network(*subnet))?;
            let route = TunnelRoute { subnet: *subnet, via };
            Some((ObjectId { stage: Stage::Route, network: *subnet }, AnyObject::new(route)))
        };
        peer.subnets.iter().filter_map(route).collect()
    }

    fn driver(&self, node: &Registered) -> Result<Option<Box<dyn ObjectDriver>>, BackendError> {
        let networks = node.subnets.iter().map(|(network, _)| *network).collect();
        Ok(Some(Box::new(Driver { netlink: Netlink::open()?, networks })))
    }
}

/// A route over the device, `onlink`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TunnelRoute {
    subnet: IpNetwork,
    /// The peer's address on the underlay: that of the outer header.
    via: IpAddr,
}

impl fmt::Display for TunnelRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the route to {} via {} on {DEVICE}", self.subnet, self.via)
    }
}

/// The device, and the routes over it to subnets of the cluster's networks.
struct Driver {
    netlink: Netlink,
    networks: Vec<IpNetwork>,
}

impl Driver {
    async fn look(&mut self) -> Result<Objects, BackendError> {
        let mut objects = Objects::new();
        let Some((index, device)) = Device::find(&mut self.netlink, DEVICE, &self.networks).await? else {
            return Ok(objects);
        };
        let Some(network) = self.networks.iter().copied().find(IpNetwork::is_ipv4) else {
            return Ok(objects);
        };
        objects.insert(ObjectId { stage: Stage::Device, network }, AnyObject::new(device));
        let routes = self.netlink.onlink_routes(Family::V4, index).await?;
        let ours = routes.into_iter().filter(|(subnet, _)| network.contains(subnet.network()));
        objects.extend(ours.map(|(subnet, via)| {
            let route = TunnelRoute { subnet, via };
            (ObjectId { stage: Stage::Route, network: subnet }, AnyObject::new(route))
        }));
        Ok(objects)
    }

    async fn index(&mut self) -> Result<Option<u32>, NetlinkError> {
        Ok(self.netlink.link(DEVICE).await?.map(|link| link.index))
    }
}

impl ObjectDriver for Driver {
    fn observe(&mut self) -> BoxFuture<'_, Result<Objects, BackendError>> {
        Box::pin(self.look())
    }

    fn put<'a>(&'a mut self, _: ObjectId, object: &'a AnyObject) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            if let Some(device) = object.get::<Device>() {
                device.put(&mut self.netlink, &self.networks).await?;
            }
            if let Some(TunnelRoute { subnet, via }) = object.get::<TunnelRoute>() {
                let absent = || BackendError::Other(format!("{DEVICE} is not there yet"));
                let index = self.index().await?.ok_or_else(absent)?;
                self.netlink.change(route::put_onlink(index, *subnet, *via, Numbering::Boot)).await?;
            }
            Ok(())
        })
    }

    fn delete<'a>(
        &'a mut self,
        _: ObjectId,
        object: &'a AnyObject,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            if let Some(device) = object.get::<Device>() {
                device.delete(&mut self.netlink).await?;
            }
            if let Some(TunnelRoute { subnet, via }) = object.get::<TunnelRoute>()
                && let Some(index) = self.index().await?
            {
                let request = route::delete_onlink(index, *subnet, *via, Numbering::Boot);
                self.netlink.delete_route(request).await?;
            }
            Ok(())
        })
    }
}
