//! Our own changes, as the kernel tells of them.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::RouteMessage,
};

use super::{neighbour, route};
use crate::{
    plan::{Change, DirectRoute, Slot},
    values::Mac,
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

    /// Whether `notice` tells of one of them; `overlays` are the indices of the VXLAN devices.
    pub(super) fn hold(&self, notice: &RouteNetlinkMessage, overlays: &BTreeSet<u32>) -> bool {
        told(notice, overlays).is_some_and(|change| self.0.get(&change.slot()) == Some(&&change))
    }
}

/// The change that `notice` would be the echo of.
fn told(notice: &RouteNetlinkMessage, overlays: &BTreeSet<u32>) -> Option<Change> {
    use RouteNetlinkMessage as Notice;
    match notice {
        Notice::NewRoute(route) => told_route(route, overlays, true),
        Notice::DelRoute(route) => told_route(route, overlays, false),
        Notice::NewNeighbour(neighbour) => told_neighbour(neighbour, overlays, true),
        Notice::DelNeighbour(neighbour) => told_neighbour(neighbour, overlays, false),
        _ => None,
    }
}

fn told_route(message: &RouteMessage, overlays: &BTreeSet<u32>, new: bool) -> Option<Change> {
    let route = route::read(message)?;
    let (subnet, via) = (route.destination, route.gateway?);
    let over_device = overlays.contains(&route.ifindex);
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

fn told_neighbour(message: &NeighbourMessage, overlays: &BTreeSet<u32>, new: bool) -> Option<Change> {
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
            Some(Change::PutNeighbour { address: address?, mac: mac? })
        }
        // One that is deleted fails first (net/core/neighbour.c, `neigh_delete`).
        (AddressFamily::Inet | AddressFamily::Inet6, true) if is(NeighbourState::Failed) => {
            Some(Change::DeleteNeighbour(address?))
        }
        (AddressFamily::Inet | AddressFamily::Inet6, false) => Some(Change::DeleteNeighbour(address?)),
        (AddressFamily::Bridge, true) if permanent && own => {
            Some(Change::PutFdb { mac: mac?, public_ip: address? })
        }
        (AddressFamily::Bridge, false) if own => Some(Change::DeleteFdb { mac: mac?, public_ip: address? }),
        _ => None,
    }
}
