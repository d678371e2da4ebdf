//! Our own changes, as the kernel tells of them.

use std::{collections::BTreeMap, net::Ipv4Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::RouteMessage,
};

use super::route;
use crate::{
    mac::Mac,
    plan::{Change, DirectRoute, Slot},
};

/// Changes whose notices are no news. The kernel gives them before it answers the request, so that they are there to be
/// read when the change has been made. A notice that differs in anything the plan holds is somebody else's.
#[derive(Debug)]
pub struct Echoes<'a>(BTreeMap<Slot, &'a Change>);

impl<'a> Echoes<'a> {
    /// Those of `changes`.
    pub fn of(changes: &'a [Change]) -> Self {
        Self(changes.iter().map(|change| (change.slot(), change)).collect())
    }

    /// Whether `notice` tells of one of them; `overlay` is the index of the VXLAN device.
    pub(super) fn hold(&self, notice: &RouteNetlinkMessage, overlay: Option<u32>) -> bool {
        told(notice, overlay).is_some_and(|change| self.0.get(&change.slot()) == Some(&&change))
    }
}

/// The change that `notice` would be the echo of.
fn told(notice: &RouteNetlinkMessage, overlay: Option<u32>) -> Option<Change> {
    use RouteNetlinkMessage as Notice;
    match notice {
        Notice::NewRoute(route) => told_route(route, overlay, true),
        Notice::DelRoute(route) => told_route(route, overlay, false),
        Notice::NewNeighbour(neighbour) => told_neighbour(neighbour, overlay, true),
        Notice::DelNeighbour(neighbour) => told_neighbour(neighbour, overlay, false),
        _ => None,
    }
}

fn told_route(message: &RouteMessage, overlay: Option<u32>, new: bool) -> Option<Change> {
    let route = route::read(message)?;
    let (subnet, via) = (route.destination, route.gateway?);
    let over_device = overlay == Some(route.ifindex);
    if !route.is_as_ours(over_device) {
        return None;
    }
    let direct = DirectRoute { ifindex: route.ifindex, via };
    match (over_device, new) {
        (true, true) => Some(Change::PutRoute { subnet, via }),
        (true, false) => Some(Change::DeleteRoute { subnet, via }),
        (false, true) => Some(Change::PutDirectRoute { subnet, route: direct }),
        (false, false) => Some(Change::DeleteDirectRoute { subnet, route: direct }),
    }
}

fn told_neighbour(message: &NeighbourMessage, overlay: Option<u32>, new: bool) -> Option<Change> {
    let header = &message.header;
    if Some(header.ifindex) != overlay {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(*found),
            // Outside the families of addresses the bytes come as they are.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac)
            }
            _ => {}
        }
    }
    let permanent = u16::from(header.state) & u16::from(NeighbourState::Permanent) != 0;
    let own = header.flags.contains(NeighbourFlags::Own);
    match (header.family, new) {
        (AddressFamily::Inet, true) if permanent => {
            Some(Change::PutNeighbour { address: address?, mac: mac? })
        }
        (AddressFamily::Inet, false) => Some(Change::DeleteNeighbour(address?)),
        (AddressFamily::Bridge, true) if permanent && own => {
            Some(Change::PutFdb { mac: mac?, public_ip: address? })
        }
        (AddressFamily::Bridge, false) if own => Some(Change::DeleteFdb { mac: mac?, public_ip: address? }),
        _ => None,
    }
}
