//! What changes in the kernel, by kind and no finer: whoever hears of it reads again.

use std::{collections::BTreeSet, net::IpAddr, ops::BitOrAssign};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressScope,
    link::LinkFlags,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::errno::Errno;

use super::{
    NetlinkError, Notice,
    connection::{frames, open},
    error::errno,
    forwarding::{self, Other},
    tc,
};
use crate::values::Mac;

/// Receive buffer, bytes: room for the notices of some ten thousand objects that change at once.
const RECEIVE_BUFFER: usize = 16 << 20;
const DATAGRAM: usize = 64 << 10;
/// RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR.
const INTERFACES: u32 = 0x1 | 0x10 | 0x100;
/// RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE.
const ROUTES: u32 = 0x40 | 0x400;
/// RTMGRP_IPV4_RULE, and the bit of RTNLGRP_IPV6_RULE.
const RULES: u32 = 0x80 | 1 << 18;
/// RTMGRP_NEIGH.
const NEIGHBOURS: u32 = 0x4;
/// RTMGRP_TC.
const TRAFFIC_CONTROL: u32 = 0x8;

/// RTNLGRP_IPV4_NETCONF and RTNLGRP_IPV6_NETCONF, and RTNLGRP_NEXTHOP.
const FORWARDING: u32 = 1 << 23 | 1 << 24 | 1 << 31;

/// What changed since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// A VXLAN device of ours, or an address, neighbour, forwarding entry or route on one.
    pub overlay: bool,
    /// Another interface: created, deleted, set up or down, made a port, renamed.
    pub links: bool,
    /// An address of another interface.
    pub addresses: bool,
    /// A route over another interface.
    pub routes: bool,
    /// What others have set up: at an interface a queueing discipline, a filter, a chain of nftables; a rule of policy
    /// routing; a route to pods.
    pub hooks: bool,
    /// What the kernel forwards pods' packets by: a route to pods, a rule, a setting, the default of IPsec, a bridge's entry
    /// for a pod.
    pub forwarding: bool,
    /// The external interface was set up.
    pub external_up: bool,
    /// Notices were lost: anything may have changed.
    pub overrun: bool,
}

impl Changed {
    /// Anything may have changed.
    pub const EVERYTHING: Self = Self {
        overlay: true,
        links: true,
        addresses: true,
        routes: true,
        hooks: true,
        forwarding: true,
        external_up: true,
        overrun: true,
    };

    /// Whether anything did.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

impl BitOrAssign for Changed {
    fn bitor_assign(&mut self, other: Self) {
        self.overlay |= other.overlay;
        self.links |= other.links;
        self.addresses |= other.addresses;
        self.routes |= other.routes;
        self.hooks |= other.hooks;
        self.forwarding |= other.forwarding;
        self.external_up |= other.external_up;
        self.overrun |= other.overrun;
    }
}

/// What tells the notices that matter to us from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Indices of our VXLAN devices: neighbours matter only there.
    pub overlays: BTreeSet<u32>,
    /// Index of the external interface; 0 while it is not known.
    pub external: u32,
    /// The networks that pods are of; `None` while they are not known, when any route may lead to pods.
    pub networks: Option<Vec<IpNetwork>>,
    /// The MACs of pods.
    pub stations: BTreeSet<Mac>,
    /// Indices of the pods' veths to which their bridge sends nothing unless it has an entry for it.
    pub unflooded: BTreeSet<u32>,
}

/// Listens to the kernel's notices about links, addresses, neighbours, routes, rules, forwarding and traffic control.
pub struct Monitor {
    socket: Option<TokioSocket>,
    /// RTMGRP_* bits.
    groups: u32,
    datagram: Vec<u8>,
}

impl Monitor {
    /// Starts to listen to all that [`Changed`] tells apart. Needs a Tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::of(INTERFACES | ROUTES | RULES | FORWARDING | NEIGHBOURS | TRAFFIC_CONTROL)
    }

    /// Starts to listen to interfaces and their addresses alone. Every listener costs whoever changes a table of ten
    /// thousand entries one more copy of each.
    pub fn of_interfaces() -> Result<Self, NetlinkError> {
        Self::of(INTERFACES)
    }

    fn of(groups: u32) -> Result<Self, NetlinkError> {
        Ok(Self { socket: Some(open(RECEIVE_BUFFER, groups)?), groups, datagram: Vec::new() })
    }

    /// From now on also listens to routes, or no longer does. Where that is news, the next [`Monitor::changed`]
    /// reports an overrun.
    pub fn hear_routes(&mut self, wanted: bool) {
        let groups = if wanted { self.groups | ROUTES } else { self.groups & !ROUTES };
        if groups != self.groups {
            self.groups = groups;
            self.pause();
        }
    }

    /// Listens to nothing until it is asked again, which will be told that notices were missed.
    pub fn pause(&mut self) {
        self.socket = None;
    }

    /// Listens again after a pause; whether there was one.
    ///
    /// # Errors
    /// There is no socket to be had. The next call of [`Monitor::changed`] tries again.
    pub fn resume(&mut self) -> Result<bool, NetlinkError> {
        let paused = self.socket.is_none();
        if paused {
            self.socket = Some(open(RECEIVE_BUFFER, self.groups)?);
        }
        Ok(paused)
    }

    /// Waits until something changed that can matter to us, and tells all that has been noticed by then. Cancel safe.
    ///
    /// # Errors
    /// The socket failed. The next call opens another and reports an overrun, since notices were missed.
    pub async fn changed(&mut self, watched: &Watched) -> Result<Changed, NetlinkError> {
        let mut changed = Changed { overrun: self.resume()?, ..Changed::default() };
        let Some(socket) = &mut self.socket else { return Ok(changed) };
        // The first wait is for whatever comes; what else has come by then is taken along without waiting.
        while !changed.any() {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            if let Err(error) = socket.recv(&mut self.datagram).await {
                changed |= lost(&mut self.socket, errno(&error))?;
                return Ok(changed);
            }
            changed |= classify(&self.datagram, watched, |_| false);
        }
        loop {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            match socket.socket_ref().recv(&mut self.datagram, 0) {
                Ok(_) => changed |= classify(&self.datagram, watched, |_| false),
                Err(error) if errno(&error) == Errno::EAGAIN => return Ok(changed),
                Err(error) => {
                    changed |= lost(&mut self.socket, errno(&error))?;
                    return Ok(changed);
                }
            }
        }
    }
}

impl Monitor {
    /// All that has been noticed by now but what `is_echo` of what we have done, without waiting.
    pub fn heard_but(&mut self, watched: &Watched, is_echo: impl Fn(&Notice) -> bool) -> Changed {
        let mut changed = Changed::default();
        while let Some(socket) = &self.socket {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            match socket.socket_ref().recv(&mut self.datagram, 0) {
                Ok(_) => changed |= classify(&self.datagram, watched, &is_echo),
                Err(error) if errno(&error) == Errno::EAGAIN => break,
                // A socket that is lost is opened anew by whoever waits next, and reports that notices were missed.
                Err(error) => changed |= lost(&mut self.socket, errno(&error)).unwrap_or_default(),
            }
        }
        changed
    }
}

/// What a failed read means: lost notices, or a lost socket.
fn lost(socket: &mut Option<TokioSocket>, errno: Errno) -> Result<Changed, NetlinkError> {
    if errno == Errno::ENOBUFS {
        return Ok(Changed::EVERYTHING);
    }
    *socket = None;
    Err(NetlinkError::Socket(errno))
}

fn classify(datagram: &[u8], watched: &Watched, is_echo: impl Fn(&Notice) -> bool) -> Changed {
    let mut changed = Changed::default();
    for frame in frames(datagram) {
        // Of every kind of discipline and filter, whether this crate can read it or not.
        if let Some(hooks) = tc::notice(&datagram[frame.clone()]) {
            changed.hooks |= hooks;
            continue;
        }
        match forwarding::notice(&datagram[frame.clone()]) {
            Some(Other::Setting { decisive }) => {
                changed.forwarding |= decisive;
                continue;
            }
            Some(Other::NextHop) => {
                (changed.routes, changed.forwarding) = (true, true);
                continue;
            }
            None => {}
        }
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram[frame]) else {
            // Something changed, in words we do not know.
            return Changed::EVERYTHING;
        };
        if let NetlinkPayload::InnerMessage(notice) = message.payload
            && !Notice::read(&notice, &watched.overlays).is_some_and(|notice| is_echo(&notice))
        {
            changed |= kind(&notice, watched);
        }
    }
    changed
}

fn kind(notice: &RouteNetlinkMessage, watched: &Watched) -> Changed {
    use RouteNetlinkMessage as Message;
    let on_overlay = |index: u32| watched.overlays.contains(&index);
    let none = Changed::default();
    match notice {
        Message::NewLink(link) | Message::DelLink(link) if on_overlay(link.header.index) => {
            // A new index after a deletion shows in the links.
            Changed { overlay: true, links: true, ..none }
        }
        Message::NewLink(link) if link.header.index == watched.external => {
            // The flags that have changed come beside those there are.
            let is_set = |flags: LinkFlags| flags.contains(LinkFlags::Up);
            let external_up = is_set(link.header.flags) && is_set(link.header.change_mask);
            Changed { links: true, external_up, ..none }
        }
        Message::NewLink(_) | Message::DelLink(_) => Changed { links: true, ..none },
        Message::NewAddress(address) | Message::DelAddress(address) => {
            if address.header.family == AddressFamily::Inet6 && address.header.scope == AddressScope::Link {
                // Every interface has one, a pod's that comes or goes as well.
                return none;
            }
            let overlay = on_overlay(address.header.index);
            Changed { overlay, addresses: !overlay, ..none }
        }
        Message::NewNeighbour(entry) | Message::DelNeighbour(entry) => {
            let gone = matches!(notice, Message::DelNeighbour(_));
            let overlay = on_overlay(entry.header.ifindex);
            let forwarding = leads_to_pod(entry, gone, watched) || !overlay && names_pod(entry, watched);
            Changed { overlay, forwarding, ..none }
        }
        Message::NewRoute(route) | Message::DelRoute(route) => {
            let oif = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            let overlay = oif.is_some_and(on_overlay);
            let forwarding = forwarding::decides(route, watched.networks.as_deref());
            if is_automatic(route) {
                let forwarding = forwarding && !overlay && watched.networks.is_some();
                return Changed { forwarding, ..none };
            }
            // That to the address of a VXLAN device, which no pod has, comes with this.
            let forwarding = forwarding && !(overlay && route.header.kind == RouteType::Local);
            // One to pods may do more than lead there.
            Changed { overlay, routes: !overlay, forwarding, hooks: forwarding, ..none }
        }
        // Whichever way packets take is looked at again, and which marks decide about it.
        Message::NewRule(_) | Message::DelRule(_) => {
            Changed { routes: true, hooks: true, forwarding: true, ..none }
        }
        _ => none,
    }
}

/// Whether a bridge sends frames for a pod another way, or nowhere, since a forwarding entry has come or gone: one that
/// somebody has set, or the only way to a port. What a bridge learns by itself leads where the pod is.
fn leads_to_pod(entry: &NeighbourMessage, gone: bool, watched: &Watched) -> bool {
    let header = &entry.header;
    let is = |state: NeighbourState| u16::from(header.state) & u16::from(state) != 0;
    let is_set = is(NeighbourState::Noarp)
        || is(NeighbourState::Permanent)
        || header.flags.intersects(NeighbourFlags::Sticky | NeighbourFlags::ExtLearned);
    let of_pod = || {
        entry.attributes.iter().any(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                bytes.as_slice().try_into().is_ok_and(|mac| watched.stations.contains(&Mac(mac)))
            }
            _ => false,
        })
    };
    header.family == AddressFamily::Bridge
        && (is_set || gone && watched.unflooded.contains(&header.ifindex))
        && of_pod()
}

/// Whether somebody has set the MAC of a pod, which may be another's.
fn names_pod(entry: &NeighbourMessage, watched: &Watched) -> bool {
    let is_in = |address: IpAddr| {
        watched
            .networks
            .as_ref()
            .is_some_and(|networks| networks.iter().any(|network| network.contains(address)))
    };
    let is_set = u16::from(entry.header.state) & u16::from(NeighbourState::Permanent) != 0;
    is_set
        && entry.attributes.iter().any(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => is_in((*address).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => is_in((*address).into()),
            _ => false,
        })
}

/// Whether a route comes with an interface and leads no packet to another node: those to IPv6 multicast and
/// link-local addresses (RFC 4291), and to an address of this node.
fn is_automatic(route: &RouteMessage) -> bool {
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(destination)) => Some(destination),
        _ => None,
    });
    destination.is_some_and(|destination| {
        destination.is_multicast()
            || destination.is_unicast_link_local()
            || matches!(route.header.kind, RouteType::Local | RouteType::Anycast)
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::{RouteScope, RouteType};

    use super::*;

    const OVERLAY: u32 = 7;
    const BRIDGE: u32 = 8;

    fn of_route(device: u32, kind: RouteType, to: &str) -> Changed {
        let to: IpNetwork = to.parse().unwrap();
        let mut route = RouteMessage::default();
        route.header.kind = kind;
        route.header.scope = RouteScope::Host;
        route.header.address_family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        route.header.destination_prefix_length = to.prefix();
        route.attributes =
            vec![RouteAttribute::Destination(to.network().into()), RouteAttribute::Oif(device)];
        let networks = Some(vec!["10.244.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()]);
        let watched = Watched { overlays: [OVERLAY].into(), external: 2, networks, ..Watched::default() };
        super::kind(&RouteNetlinkMessage::NewRoute(route), &watched)
    }

    #[test]
    fn the_route_to_the_address_of_a_vxlan_device_decides_about_no_packet_of_a_pod() {
        for to in ["10.244.1.0/32", "fd00:1:0:1::/128"] {
            assert!(!of_route(OVERLAY, RouteType::Local, to).forwarding, "{to}");
            assert!(of_route(BRIDGE, RouteType::Local, to).forwarding, "{to} on another device");
        }
        for to in ["10.244.2.0/24", "fd00:1:0:2::/64"] {
            assert!(of_route(OVERLAY, RouteType::Unicast, to).forwarding, "{to}, to other pods");
        }
    }

    #[test]
    fn a_bridges_entry_decides_if_somebody_has_set_it_or_nothing_else_leads_to_the_pod() {
        const POD: [u8; 6] = [2, 0, 0, 0, 0, 7];
        const FLOODED: u32 = 11;
        const UNFLOODED: u32 = 12;
        let watched =
            Watched { stations: [Mac(POD)].into(), unflooded: [UNFLOODED].into(), ..Watched::default() };
        let learned = (NeighbourState::Reachable, NeighbourFlags::empty());
        let fixed = (NeighbourState::Noarp, NeighbourFlags::empty());
        for (ifindex, mac, (state, flags), gone, decides) in [
            (FLOODED, POD, fixed, false, true),
            (FLOODED, POD, fixed, true, true),
            (FLOODED, POD, (NeighbourState::Permanent, NeighbourFlags::empty()), false, true),
            (FLOODED, POD, (NeighbourState::Reachable, NeighbourFlags::Sticky), false, true),
            (FLOODED, [2, 0, 0, 0, 0, 8], fixed, false, false),
            (FLOODED, POD, learned, false, false),
            (FLOODED, POD, learned, true, false),
            (UNFLOODED, POD, learned, false, false),
            (UNFLOODED, POD, learned, true, true),
        ] {
            let mut entry = NeighbourMessage::default();
            entry.header.family = AddressFamily::Bridge;
            (entry.header.ifindex, entry.header.state, entry.header.flags) = (ifindex, state, flags);
            entry.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
            let notice = match gone {
                true => RouteNetlinkMessage::DelNeighbour(entry),
                false => RouteNetlinkMessage::NewNeighbour(entry),
            };
            assert_eq!(kind(&notice, &watched).forwarding, decides, "{notice:?}");
        }
    }

    #[test]
    fn a_pods_mac_that_somebody_has_set_decides() {
        const OVERLAY: u32 = 5;
        let networks = Some(vec!["10.244.0.0/16".parse().unwrap()]);
        let watched = Watched { overlays: [OVERLAY].into(), networks, ..Watched::default() };
        for (ifindex, address, state, decides) in [
            (9, [10, 244, 1, 2], NeighbourState::Permanent, true),
            (9, [10, 244, 1, 2], NeighbourState::Reachable, false),
            (9, [10, 9, 1, 2], NeighbourState::Permanent, false),
            // Flannel's own.
            (OVERLAY, [10, 244, 2, 0], NeighbourState::Permanent, false),
        ] {
            let mut entry = NeighbourMessage::default();
            entry.header.family = AddressFamily::Inet;
            (entry.header.ifindex, entry.header.state) = (ifindex, state);
            entry.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(address.into()))];
            let notice = RouteNetlinkMessage::NewNeighbour(entry);
            assert_eq!(kind(&notice, &watched).forwarding, decides, "{notice:?}");
        }
    }
}
