//! What of the kernel's notices is about how it forwards pods' packets: whatever skips its stack was accepted before, and
//! has to be seen by it anew.

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};

use super::{
    raw::{HEADER, attributes, number},
    route,
};
use crate::values::overlap;

/// RTM_NEWNETCONF, of settings of an interface or of all (include/uapi/linux/netconf.h).
const NEW_SETTINGS: u16 = 80;
/// RTM_DELNETCONF.
const DELETED_SETTINGS: u16 = 81;
/// RTM_NEWNEXTHOP and RTM_DELNEXTHOP, of objects that routes may lead by.
const NEXT_HOPS: [u16; 2] = [104, 105];
/// RT_TABLE_DEFAULT, RT_TABLE_MAIN and RT_TABLE_LOCAL (include/uapi/linux/rtnetlink.h).
const USUAL_TABLES: [u32; 3] = [253, 254, 255];
/// Size of `struct netconfmsg`, up to the attributes.
const SETTINGS: usize = 4;
/// NETCONFA_IFINDEX.
const OF_INTERFACE: u16 = 1;
/// NETCONFA_FORWARDING, NETCONFA_RP_FILTER and NETCONFA_IGNORE_ROUTES_WITH_LINKDOWN.
const DECISIVE: [u16; 3] = [2, 3, 6];

/// What a notice is about that is not of links, addresses, neighbours, routes or rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Other {
    /// A setting of forwarding that was changed, or of another kind.
    Setting { decisive: bool },
    /// An object that routes may lead by.
    NextHop,
}

/// What `message` is about; `None` of one of another kind.
pub(super) fn notice(message: &[u8]) -> Option<Other> {
    match number(message)? {
        NEW_SETTINGS => {
            let body = message.get(HEADER + SETTINGS..).unwrap_or_default();
            let mut settings = attributes(body).map(|(kind, _)| kind).filter(|kind| *kind != OF_INTERFACE);
            // An interface that is new has all of them.
            let decisive =
                settings.next().is_some_and(|kind| DECISIVE.contains(&kind)) && settings.next().is_none();
            Some(Other::Setting { decisive })
        }
        DELETED_SETTINGS => Some(Other::Setting { decisive: false }),
        kind if NEXT_HOPS.contains(&kind) => Some(Other::NextHop),
        _ => None,
    }
}

/// Whether a route, which has come or gone, decides about packets to or from `networks`; where those are not known, each
/// may. In the tables that are looked at first or last, those of flannel's own routes, only what is within a network
/// does: a wider route is overruled there.
pub(super) fn decides(route: &RouteMessage, networks: Option<&[IpNetwork]>) -> bool {
    let Some(networks) = networks else { return true };
    let Some(destination) = destination(route) else { return true };
    let is_usual = is_usual(table(route));
    networks.iter().any(|network| {
        overlap(*network, destination) && (!is_usual || destination.prefix() >= network.prefix())
    })
}

/// The table a route is in.
pub(super) fn table(route: &RouteMessage) -> u32 {
    let number = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(number) => Some(*number),
        _ => None,
    });
    number.unwrap_or_else(|| route.header.table.into())
}

/// Whether it is one of the tables that need no rule of somebody's.
pub(super) fn is_usual(table: u32) -> bool {
    USUAL_TABLES.contains(&table)
}

/// Where a route leads.
pub(super) fn destination(route: &RouteMessage) -> Option<IpNetwork> {
    let found = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => route::ip(address),
        _ => None,
    });
    // That of a default route is left out.
    let address = found.or_else(|| route::anywhere(route.header.address_family))?;
    IpNetwork::new(address, route.header.destination_prefix_length).ok()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{AddressFamily, route::RouteType};

    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn only_routes_within_the_pods_networks_decide_but_in_tables_of_others() {
        let networks = [net("10.244.0.0/16"), net("fd00:1::/48")];
        let decides_in = |table: u32, to: &str| {
            let to = net(to);
            let mut message = RouteMessage::default();
            message.header.kind = RouteType::BlackHole;
            message.header.destination_prefix_length = to.prefix();
            message.header.address_family =
                if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            message.attributes.push(RouteAttribute::Table(table));
            if to.prefix() != 0 {
                message.attributes.push(RouteAttribute::Destination(to.network().into()));
            }
            assert!(decides(&message, None), "nothing is known of pods");
            decides(&message, Some(&networks))
        };
        for (to, main, own_table) in [
            ("10.244.2.7/32", true, true),
            ("10.244.2.0/24", true, true),
            ("10.244.0.0/16", true, true),
            ("10.0.0.0/8", false, true),
            ("0.0.0.0/0", false, true),
            ("::/0", false, true),
            ("fd00:1:0:2::7/128", true, true),
            ("10.245.0.0/24", false, false),
            ("fe80::/64", false, false),
        ] {
            assert_eq!(decides_in(254, to), main, "{to}");
            assert_eq!(decides_in(255, to), main, "{to}, local");
            assert_eq!(decides_in(1000, to), own_table, "{to}, a table of somebody's");
        }
    }

    #[test]
    fn one_setting_that_was_changed_is_told_from_all_of_a_new_interface() {
        let of = |kind: u16, settings: &[u16]| {
            let mut message = vec![0; HEADER + SETTINGS];
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            for setting in settings {
                message.extend(8u16.to_ne_bytes());
                message.extend(setting.to_ne_bytes());
                message.extend([1, 0, 0, 0]);
            }
            notice(&message)
        };
        assert_eq!(of(80, &[1, 2]), Some(Other::Setting { decisive: true }), "forwarding");
        assert_eq!(of(80, &[1, 3]), Some(Other::Setting { decisive: true }), "reverse path filter");
        assert_eq!(of(80, &[1, 5]), Some(Other::Setting { decisive: false }), "proxy ARP");
        assert_eq!(of(80, &[1, 2, 3, 4, 5, 6]), Some(Other::Setting { decisive: false }), "a new interface");
        assert_eq!(of(81, &[1]), Some(Other::Setting { decisive: false }));
        assert_eq!(of(104, &[]), Some(Other::NextHop));
        assert_eq!(of(24, &[]), None);
        assert_eq!(notice(&[0; 7]), None);
    }
}
