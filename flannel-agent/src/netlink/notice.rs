//! What the kernel tells of routes and neighbours as flannel makes them.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::RouteMessage,
};

use super::{DirectRoute, neighbour, route};
use crate::values::Mac;

/// An object like those that flannel makes, that has come or gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A route over a VXLAN device.
    Route {
        /// Where to.
        subnet: IpNetwork,
        /// Its gateway.
        via: IpAddr,
        /// It has come, or was replaced.
        new: bool,
    },
    /// A route past the devices.
    DirectRoute {
        /// Where to.
        subnet: IpNetwork,
        /// By which interface and gateway.
        route: DirectRoute,
        /// It has come, or was replaced.
        new: bool,
    },
    /// A permanent neighbour on a VXLAN device that has come.
    Neighbour {
        /// Its address.
        address: IpAddr,
        /// Its MAC.
        mac: Mac,
    },
    /// A neighbour on a VXLAN device that has gone.
    NoNeighbour(IpAddr),
    /// A forwarding entry of a VXLAN device itself.
    Fdb {
        /// Its MAC.
        mac: Mac,
        /// Where packets to that are sent.
        public_ip: IpAddr,
        /// It has come, or was replaced.
        new: bool,
    },
}

impl Notice {
    /// What `message` says, if it is about such an object; `overlays` are the indices of the VXLAN devices.
    pub(super) fn read(message: &RouteNetlinkMessage, overlays: &BTreeSet<u32>) -> Option<Self> {
        match message {
            RouteNetlinkMessage::NewRoute(message) => of_route(message, overlays, true),
            RouteNetlinkMessage::DelRoute(message) => of_route(message, overlays, false),
            RouteNetlinkMessage::NewNeighbour(message) => of_neighbour(message, overlays, true),
            RouteNetlinkMessage::DelNeighbour(message) => of_neighbour(message, overlays, false),
            _ => None,
        }
    }
}

fn of_route(message: &RouteMessage, overlays: &BTreeSet<u32>, new: bool) -> Option<Notice> {
    let found = route::read(message)?;
    let (subnet, via) = (found.destination, found.gateway?);
    let over_device = overlays.contains(&found.ifindex);
    if !found.is_as_ours(over_device) {
        return None;
    }
    Some(match over_device {
        true => Notice::Route { subnet, via, new },
        false => Notice::DirectRoute { subnet, route: DirectRoute { ifindex: found.ifindex, via }, new },
    })
}

fn of_neighbour(message: &NeighbourMessage, overlays: &BTreeSet<u32>, new: bool) -> Option<Notice> {
    let header = &message.header;
    if !overlays.contains(&header.ifindex) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(found) => address = neighbour::destination(found),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac)
            }
            _ => {}
        }
    }
    let is = |state: NeighbourState| u16::from(header.state) & u16::from(state) != 0;
    let permanent = is(NeighbourState::Permanent);
    let own = header.flags.contains(NeighbourFlags::Own);
    match (header.family, new) {
        (AddressFamily::Inet | AddressFamily::Inet6, true) if permanent => {
            Some(Notice::Neighbour { address: address?, mac: mac? })
        }
        // One that is deleted fails first (net/core/neighbour.c, `neigh_delete`).
        (AddressFamily::Inet | AddressFamily::Inet6, true) if is(NeighbourState::Failed) => {
            Some(Notice::NoNeighbour(address?))
        }
        (AddressFamily::Inet | AddressFamily::Inet6, false) => Some(Notice::NoNeighbour(address?)),
        (AddressFamily::Bridge, true) if permanent && own => {
            Some(Notice::Fdb { mac: mac?, public_ip: address?, new })
        }
        (AddressFamily::Bridge, false) if own => Some(Notice::Fdb { mac: mac?, public_ip: address?, new }),
        _ => None,
    }
}
