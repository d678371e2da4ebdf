//! Routes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
        RouteScope, RouteType,
    },
};
use nix::errno::Errno;

use super::{
    Netlink, NetlinkError, Request, address_family,
    protocol::{self, Numbering},
};
use crate::values::{Family, overlap};

/// The metric of an IPv6 route that is given none (include/uapi/linux/ipv6_route.h, `IP6_RT_PRIO_USER`).
const IPV6_METRIC: u32 = 1024;

/// A unicast route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: IpNetwork,
    pub(crate) ifindex: u32,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) metric: u32,
    /// The source that packets get which have none.
    pub(crate) source: Option<IpAddr>,
    onlink: bool,
    protocol: RouteProtocol,
}

impl Route {
    /// Whether it has what all routes of flannel have: protocol boot, or over a VXLAN device one that stands for it
    /// among many, no metric given, and `onlink` over a VXLAN device only.
    pub(crate) fn is_as_ours(&self, over_device: bool) -> bool {
        let unasked = match Family::of_network(self.destination) {
            Family::V4 => 0,
            Family::V6 => IPV6_METRIC,
        };
        let made_by_us = match over_device {
            true => protocol::is_ours(self.destination, self.protocol),
            false => self.protocol == RouteProtocol::Boot,
        };
        made_by_us && self.metric == unasked && self.onlink == over_device
    }
}

impl Netlink {
    /// The routes of one family over a VXLAN device that are as flannel makes them: `via GATEWAY onlink`, protocol
    /// boot or one of ours, no metric. Others are nobody's business.
    pub async fn onlink_routes(
        &mut self,
        family: Family,
        ifindex: u32,
    ) -> Result<BTreeMap<IpNetwork, IpAddr>, NetlinkError> {
        let routes = self.main_routes(family, Some(ifindex)).await?;
        Ok(routes
            .into_iter()
            .filter(|route| route.is_as_ours(true))
            .filter_map(|route| Some((route.destination, route.gateway?)))
            .collect())
    }

    /// The routes of one family that flannel has made over tunnels, to subnets of `networks`, with the index of each one's
    /// device and its gateway: as [`Self::onlink_routes`], and via the first address of their subnet, which nobody else
    /// does, or over the device that `ipip` is the index of.
    pub(crate) async fn tunnel_routes(
        &mut self,
        family: Family,
        networks: &[IpNetwork],
        ipip: Option<u32>,
    ) -> Result<Vec<(IpNetwork, u32, IpAddr)>, NetlinkError> {
        let routes = self.main_routes(family, None).await?;
        let ours = routes.into_iter().filter(|route| {
            route.is_as_ours(true)
                && (route.gateway == Some(route.destination.network()) || ipip == Some(route.ifindex))
                && networks.iter().any(|network| overlap(*network, route.destination))
        });
        Ok(ours.filter_map(|route| Some((route.destination, route.ifindex, route.gateway?))).collect())
    }

    /// The unicast routes of one family in the main table, of one interface or of all.
    pub(crate) async fn main_routes(
        &mut self,
        family: Family,
        ifindex: Option<u32>,
    ) -> Result<Vec<Route>, NetlinkError> {
        let mut query = RouteMessage::default();
        query.header.address_family = address_family(family);
        query.header.table = RouteHeader::RT_TABLE_MAIN;
        query.header.kind = RouteType::Unicast;
        query.attributes = ifindex.map(RouteAttribute::Oif).into_iter().collect();
        let read = |object| match object {
            RouteNetlinkMessage::NewRoute(message) => read(&message),
            _ => None,
        };
        let mut routes = match self.dump_as(RouteNetlinkMessage::GetRoute(query), read).await {
            // A namespace has no such table until its first route.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Vec::new(),
            routes => routes?,
        };
        // A kernel without IPv6 may answer with IPv4.
        routes.retain(|route| {
            Family::of_network(route.destination) == family
                && ifindex.is_none_or(|wanted| wanted == route.ifindex)
        });
        Ok(routes)
    }

    /// Adds `blackhole SUBNET` to the main table, protocol boot. Whether it was added: a route to `subnet`,
    /// of whatever kind, that is there already stays.
    pub async fn add_blackhole(&mut self, subnet: IpNetwork) -> Result<bool, NetlinkError> {
        let message = RouteNetlinkMessage::NewRoute(blackhole(subnet));
        let request = Request { message, flags: NLM_F_CREATE | NLM_F_EXCL };
        match self.transact(&[request]).await.pop() {
            Some(Err(error)) if error.errno() == Some(Errno::EEXIST) => Ok(false),
            Some(Err(error)) => Err(error),
            Some(Ok(())) | None => Ok(true),
        }
    }
}

/// Where a route leads that uses no tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectRoute {
    /// Interface packets leave by.
    pub ifindex: u32,
    /// The gateway: the public address of the node that holds the subnet.
    pub via: IpAddr,
}

/// Puts `subnet via gateway dev IFINDEX` (main table, protocol boot, scope global) in place of any route to
/// `subnet` that has no metric either.
pub(crate) fn put_direct(subnet: IpNetwork, route: DirectRoute) -> Request {
    Request {
        message: RouteNetlinkMessage::NewRoute(via(subnet, route.ifindex, route.via, RouteFlags::empty())),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// Deletes that route, and no other.
pub(crate) fn delete_direct(subnet: IpNetwork, route: DirectRoute) -> Request {
    let message = via(subnet, route.ifindex, route.via, RouteFlags::empty());
    Request { message: RouteNetlinkMessage::DelRoute(message), flags: 0 }
}

/// A route with what the CNI specification lets a pod's have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteInPod {
    /// Where it leads.
    pub(crate) destination: IpNetwork,
    /// Interface packets leave by.
    pub(crate) ifindex: u32,
    /// The gateway; none for what is on the link.
    pub(crate) gateway: Option<IpAddr>,
    /// Largest packet, bytes.
    pub(crate) mtu: Option<u32>,
    /// Largest segment of TCP that is asked for, bytes.
    pub(crate) advmss: Option<u32>,
    /// Its metric.
    pub(crate) priority: Option<u32>,
    /// Number of its table; the main one otherwise.
    pub(crate) table: Option<u32>,
    /// Its scope; global otherwise.
    pub(crate) scope: Option<u8>,
}

/// Adds `wanted`, behind any other to the same place.
pub(crate) fn append(wanted: &RouteInPod) -> Request {
    let mut message = route(wanted.destination, RouteType::Unicast);
    message.header.scope = wanted.scope.map_or(RouteScope::Universe, RouteScope::from);
    message.attributes.extend(wanted.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.push(RouteAttribute::Oif(wanted.ifindex));
    message.attributes.extend(wanted.priority.map(RouteAttribute::Priority));
    message.attributes.extend(wanted.table.map(RouteAttribute::Table));
    let metrics = [wanted.mtu.map(RouteMetric::Mtu), wanted.advmss.map(RouteMetric::Advmss)];
    let metrics: Vec<RouteMetric> = metrics.into_iter().flatten().collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    Request { message: RouteNetlinkMessage::NewRoute(message), flags: NLM_F_CREATE | NLM_F_APPEND }
}

/// Puts `network dev IFINDEX` (main table, protocol boot, scope global) in place of any route to `network` that has no
/// metric either.
pub(crate) fn put_over(ifindex: u32, network: IpNetwork) -> Request {
    let message = RouteNetlinkMessage::NewRoute(over(ifindex, network));
    Request { message, flags: NLM_F_CREATE | NLM_F_REPLACE }
}

/// Deletes that route, and no other.
pub(crate) fn delete_over(ifindex: u32, network: IpNetwork) -> Request {
    Request { message: RouteNetlinkMessage::DelRoute(over(ifindex, network)), flags: 0 }
}

fn over(ifindex: u32, network: IpNetwork) -> RouteMessage {
    let mut message = route(network, RouteType::Unicast);
    message.attributes.push(RouteAttribute::Oif(ifindex));
    message
}

/// Puts `subnet via gateway dev IFINDEX onlink` (main table, protocol as `numbering` says, scope global) in place of
/// any route to `subnet` that has no metric either.
pub(crate) fn put_onlink(ifindex: u32, subnet: IpNetwork, gateway: IpAddr, numbering: Numbering) -> Request {
    Request {
        message: RouteNetlinkMessage::NewRoute(onlink(ifindex, subnet, gateway, numbering)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// Deletes that route, and no other.
pub(crate) fn delete_onlink(
    ifindex: u32,
    subnet: IpNetwork,
    gateway: IpAddr,
    numbering: Numbering,
) -> Request {
    Request { message: RouteNetlinkMessage::DelRoute(onlink(ifindex, subnet, gateway, numbering)), flags: 0 }
}

/// Puts `network dev IFINDEX scope link` (main table, protocol boot) in place of any route to `network` that has no
/// metric either.
pub(crate) fn put_link(ifindex: u32, network: IpNetwork) -> Request {
    Request {
        message: RouteNetlinkMessage::NewRoute(link(ifindex, network)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// Deletes that route, and no other.
pub(crate) fn delete_link(ifindex: u32, network: IpNetwork) -> Request {
    Request { message: RouteNetlinkMessage::DelRoute(link(ifindex, network)), flags: 0 }
}

/// Deletes that route, whatever its protocol.
pub(crate) fn delete_tunnel_route(ifindex: u32, subnet: IpNetwork, gateway: IpAddr) -> Request {
    let mut message = via(subnet, ifindex, gateway, RouteFlags::Onlink);
    message.header.protocol = RouteProtocol::Unspec;
    Request { message: RouteNetlinkMessage::DelRoute(message), flags: 0 }
}

fn blackhole(subnet: IpNetwork) -> RouteMessage {
    route(subnet, RouteType::BlackHole)
}

fn onlink(ifindex: u32, subnet: IpNetwork, gateway: IpAddr, numbering: Numbering) -> RouteMessage {
    let mut message = via(subnet, ifindex, gateway, RouteFlags::Onlink);
    message.header.protocol = numbering.protocol(subnet);
    message
}

fn link(ifindex: u32, network: IpNetwork) -> RouteMessage {
    let mut message = route(network, RouteType::Unicast);
    // To IPv6 all scopes are the same.
    message.header.scope = RouteScope::Link;
    message.attributes.push(RouteAttribute::Oif(ifindex));
    message
}

fn via(subnet: IpNetwork, ifindex: u32, gateway: IpAddr, flags: RouteFlags) -> RouteMessage {
    let mut message = route(subnet, RouteType::Unicast);
    message.header.flags = flags;
    let way = [RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(ifindex)];
    message.attributes.extend(way);
    message
}

/// A route to `subnet` as flannel makes its routes: main table, protocol boot, scope global.
fn route(subnet: IpNetwork, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of_network(subnet));
    message.header.destination_prefix_length = subnet.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = kind;
    message.attributes = vec![RouteAttribute::Destination(subnet.network().into())];
    message
}

pub(super) fn read(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut destination = None;
    let mut ifindex = None;
    let mut gateway = None;
    let mut metric = 0;
    let mut source = None;
    let mut table = u32::from(header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            // Several next hops: what asks for the interface of such a route wants one of them.
            RouteAttribute::MultiPath(hops) => ifindex = hops.first().map(|hop| hop.interface_index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    if header.kind != RouteType::Unicast || table != u32::from(RouteHeader::RT_TABLE_MAIN) || header.tos != 0
    {
        return None;
    }
    // That of a default route is left out.
    let destination = destination.or_else(|| anywhere(header.address_family))?;
    Some(Route {
        destination: IpNetwork::new(destination, header.destination_prefix_length).ok()?,
        ifindex: ifindex?,
        gateway,
        metric,
        source,
        onlink: header.flags.contains(RouteFlags::Onlink),
        protocol: header.protocol,
    })
}

/// Where a default route of `family` leads; `None` for one that is not of IP.
pub(super) fn anywhere(family: AddressFamily) -> Option<IpAddr> {
    match family {
        AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
