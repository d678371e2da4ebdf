//! Routes to pods by which the kernel does more to a packet than choose where it goes next.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::RangeInclusive,
};

use ipnetwork::IpNetwork;
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteType},
};
use nix::errno::Errno;

use super::{Netlink, NetlinkError, address_family, forwarding};
use crate::values::Family;

/// What only the kernel does to the packets of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Special {
    /// It encapsulates them, or shows them to a program (`encap`).
    Encap,
    /// What this next hop object does, of which the route itself says nothing (`nexthop_compat_mode` is 0).
    Object(u32),
}

/// As what a route is "with".
impl fmt::Display for Special {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encap => f.write_str("encap"),
            Self::Object(id) => write!(f, "nexthop object {id}, of which the kernel tells no more"),
        }
    }
}

/// What is particular about the routes to some pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodRoute {
    /// Largest packet, bytes, where a route says so.
    pub mtu: Option<u32>,
    /// What only the kernel does, and the route that says so.
    pub special: Option<(IpNetwork, Special)>,
    /// A rule leads to it before the main table is looked at, where narrower routes are.
    pub by_rule: bool,
}

impl PodRoute {
    fn add(&mut self, other: &Self) {
        self.mtu = self.mtu.into_iter().chain(other.mtu).min();
        self.special = self.special.or(other.special);
        self.by_rule |= other.by_rule;
    }
}

/// The routes to pods that have something particular, by where they lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRoutes(BTreeMap<IpNetwork, PodRoute>);

impl PodRoutes {
    /// Also `route` to `destination`, whose host bits are zero.
    pub fn add(&mut self, destination: IpNetwork, route: &PodRoute) {
        self.0.entry(destination).or_default().add(route);
    }

    /// Also `others`.
    pub fn extend(&mut self, others: Self) {
        others.0.iter().for_each(|(destination, route)| self.add(*destination, route));
    }

    /// What may befall packets to addresses of `target`, which the kernel reaches by a route to `known` or by narrower
    /// ones: of any of its addresses, taken together.
    pub fn towards(&self, target: IpNetwork, known: IpNetwork) -> PodRoute {
        let mut found = PodRoute::default();
        if self.0.is_empty() {
            return found;
        }
        for prefix in 0..target.prefix() {
            let wider = IpNetwork::new(target.network(), prefix).map(|wider| canonical(&wider));
            let route = wider.ok().and_then(|wider| self.0.get(&wider));
            if let Some(route) = route.filter(|route| route.by_rule || prefix >= known.prefix()) {
                found.add(route);
            }
        }
        self.0.range(within(target)).for_each(|(_, route)| found.add(route));
        found
    }
}

fn canonical(network: &IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(*network)
}

/// `network` and those within it, as they are ordered.
fn within(network: IpNetwork) -> RangeInclusive<IpNetwork> {
    let last = IpNetwork::from(network.broadcast());
    canonical(&network)..=last
}

impl Netlink {
    /// The routes of one family to addresses of `networks` that have something particular, in any table that packets of
    /// pods may be led to.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub async fn pod_routes(
        &mut self,
        family: Family,
        networks: &[IpNetwork],
    ) -> Result<PodRoutes, NetlinkError> {
        let mut query = RouteMessage::default();
        query.header.address_family = address_family(family);
        let read = |object| match object {
            RouteNetlinkMessage::NewRoute(message) => particular(&message, networks),
            _ => None,
        };
        let found = match self.dump_as(RouteNetlinkMessage::GetRoute(query), read).await {
            // There is no table yet.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Vec::new(),
            found => found?,
        };
        let ruled = match found.iter().any(|(_, table, _)| !forwarding::is_usual(*table)) {
            true => self.tables_before_main(family, networks).await?,
            false => BTreeSet::new(),
        };
        let mut routes = PodRoutes::default();
        for (destination, table, mut route) in found {
            route.by_rule = ruled.contains(&table);
            if route.by_rule || forwarding::is_usual(table) {
                routes.add(destination, &route);
            }
        }
        Ok(routes)
    }
}

/// Where a route leads, its table, and what is particular about it; `None` of one that is like flannel's own, or leads to
/// none of `networks`.
fn particular(message: &RouteMessage, networks: &[IpNetwork]) -> Option<(IpNetwork, u32, PodRoute)> {
    if message.header.kind != RouteType::Unicast || !forwarding::decides(message, Some(networks)) {
        return None;
    }
    let destination = canonical(&forwarding::destination(message)?);
    let mut mtu = None;
    let mut special = None;
    let (mut object, mut has_way) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => special = Some(Special::Encap),
            RouteAttribute::MultiPath(hops) => {
                has_way = true;
                let encap = |attribute: &RouteAttribute| {
                    matches!(attribute, RouteAttribute::Encap(_) | RouteAttribute::EncapType(_))
                };
                if hops.iter().any(|hop| hop.attributes.iter().any(encap)) {
                    special = Some(Special::Encap);
                }
            }
            RouteAttribute::Oif(_) => has_way = true,
            RouteAttribute::NhId(id) => object = Some(*id),
            _ => {}
        }
    }
    if !has_way {
        special = special.or(object.map(Special::Object));
    }
    let special = special.map(|special| (destination, special));
    (mtu.is_some() || special.is_some()).then_some((
        destination,
        forwarding::table(message),
        PodRoute { mtu, special, by_rule: false },
    ))
}

/// Whether one of `networks` has to do with the prefix that begins with `address`, where that is given.
pub(super) fn names_any(networks: &[IpNetwork], address: Option<IpAddr>, length: u8) -> bool {
    let Some(prefix) = address.and_then(|address| IpNetwork::new(address, length).ok()) else { return true };
    networks.iter().any(|network| crate::values::overlap(*network, prefix))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{AddressFamily, route::RouteNextHop};

    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn route(to: &str, table: u32, attributes: &[RouteAttribute]) -> RouteMessage {
        let to = net(to);
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = to.prefix();
        message.attributes = vec![RouteAttribute::Destination(to.ip().into()), RouteAttribute::Table(table)];
        message.attributes.extend_from_slice(attributes);
        message
    }

    #[test]
    fn what_is_like_flannels_own_routes_is_nothing_particular() {
        let networks = [net("10.244.0.0/16")];
        let read = |to: &str, attributes: &[RouteAttribute]| {
            particular(&route(to, 254, attributes), &networks).map(|(_, _, route)| route)
        };
        let over = RouteAttribute::Oif(3);
        let mtu = |mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]);
        let special = |special| Some((net("10.244.2.0/24"), special));
        assert_eq!(read("10.244.2.0/24", std::slice::from_ref(&over)), None);
        assert_eq!(read("10.99.2.0/24", &[over.clone(), mtu(1300)]), None, "to nobody's pods");
        let found = read("10.244.2.0/24", &[over.clone(), mtu(1300)]);
        assert_eq!(found, Some(PodRoute { mtu: Some(1300), ..PodRoute::default() }));
        let found = read("10.244.2.0/24", &[over.clone(), RouteAttribute::Encap(Vec::new())]);
        assert_eq!(found.unwrap().special, special(Special::Encap));
        let mut hop = RouteNextHop::default();
        hop.attributes.push(RouteAttribute::Encap(Vec::new()));
        let found = read("10.244.2.0/24", &[RouteAttribute::MultiPath(vec![hop])]);
        assert_eq!(found.unwrap().special, special(Special::Encap));
        assert_eq!(
            read("10.244.2.0/24", &[over, RouteAttribute::NhId(7)]),
            None,
            "the kernel tells all of it"
        );
        let found = read("10.244.2.0/24", &[RouteAttribute::NhId(7)]);
        assert_eq!(found.unwrap().special, special(Special::Object(7)));
    }

    #[test]
    fn narrower_routes_decide_and_wider_ones_only_where_a_rule_leads_to_them() {
        let mtu = |mtu| PodRoute { mtu: Some(mtu), ..PodRoute::default() };
        let mut routes = PodRoutes::default();
        routes.add(net("10.244.0.0/16"), &mtu(1000));
        routes.add(net("10.244.2.0/24"), &mtu(1400));
        routes.add(net("10.244.2.7/32"), &mtu(1300));
        routes.add(net("10.244.3.128/25"), &mtu(1200));
        let towards = |target: &str, known: &str| routes.towards(net(target), net(known)).mtu;
        assert_eq!(towards("10.244.2.0/24", "10.244.2.0/24"), Some(1300));
        assert_eq!(towards("10.244.2.8/32", "10.244.2.0/24"), Some(1400));
        assert_eq!(towards("10.244.2.7/32", "10.244.2.0/24"), Some(1300));
        assert_eq!(towards("10.244.3.0/24", "10.244.3.0/24"), Some(1200));
        assert_eq!(towards("10.244.3.7/32", "10.244.3.0/24"), None);
        assert_eq!(towards("10.244.4.0/24", "10.244.4.0/24"), None, "its own route is narrower");
        routes.add(net("0.0.0.0/0"), &PodRoute { by_rule: true, ..mtu(900) });
        assert_eq!(routes.towards(net("10.244.4.0/24"), net("10.244.4.0/24")).mtu, Some(900));
    }
}
