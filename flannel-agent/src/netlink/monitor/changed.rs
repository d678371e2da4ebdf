//! Which of the kernel's notices matter to us, and what they say has changed.

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

use crate::{
    netlink::{
        Notice,
        connection::frames,
        forwarding::{self, Other},
        tc,
    },
    values::Mac,
};

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

/// What the notices of a datagram say has changed, but for those that are echoes of our own doing.
pub(super) fn classify(datagram: &[u8], watched: &Watched, is_echo: impl Fn(&Notice) -> bool) -> Changed {
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
