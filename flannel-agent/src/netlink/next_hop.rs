//! How the underlay reaches other nodes: which way the kernel would send a packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType},
    rule::RuleAttribute,
};

use super::{Netlink, NetlinkError, Request, address_family, route::ip};
use crate::values::Family;

/// Up to so many addresses, the kernel is asked about each, and for the route behind its next hop.
const FEW: usize = 64;

/// How the underlay reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Interface packets leave by.
    pub ifindex: u32,
    /// Whose MAC the frame goes to: a gateway, or the address itself when it is on the link.
    pub address: IpAddr,
    /// Largest IP packet the route carries, bytes.
    pub mtu: u32,
}

impl NextHop {
    /// Whether `destination`, which this leads to, is on the link itself.
    pub(crate) fn is_on_link(&self, destination: IpAddr) -> bool {
        destination == self.address
    }
}

/// Why there is no one next hop towards an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoNextHop {
    /// The kernel knows no route, or not from our address.
    NoRoute,
    /// The kernel chooses one of several for each flow.
    Multipath,
    /// Not a plain one over Ethernet: it encapsulates, drops, or has a gateway of another family.
    Special,
}

impl Netlink {
    /// How packets from `source` reach each of `destinations`, all of its family and unicast, or why there is no one
    /// next hop on an Ethernet link.
    ///
    /// The kernel is asked twice: its answer to which way a packet takes has the path MTU it has learned, but of several
    /// next hops only the one it would choose now. About many destinations it is asked once for all that nothing in its
    /// tables tells apart.
    pub async fn next_hops(
        &mut self,
        source: IpAddr,
        destinations: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Result<NextHop, NoNextHop>>, NetlinkError> {
        if destinations.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mtus: BTreeMap<u32, u32> =
            self.links().await?.into_iter().map(|link| (link.index, link.mtu)).collect();
        let (groups, multipath) = if destinations.len() <= FEW {
            (destinations.iter().map(|destination| vec![*destination]).collect(), true)
        } else {
            let tables = self.distinctions(Family::of(source)).await?;
            (tables.groups(destinations), tables.multipath)
        };
        let first = || groups.iter().filter_map(|group| group.first());
        let ask = |flags| first().map(move |destination| get(source, *destination, flags));
        let mut requests: Vec<_> = ask(RouteFlags::empty()).collect();
        if multipath {
            requests.extend(ask(RouteFlags::FibMatch));
        }
        let answers = self.exchange(&requests).await?;
        let (ways, entries) = answers.split_at(groups.len());
        let mut hops = BTreeMap::new();
        for (n, (group, way)) in groups.iter().zip(ways).enumerate() {
            hops.extend(group.iter().map(|destination| {
                let hop = match (way, entries.get(n)) {
                    (Ok(Some(_)), Some(Ok(Some(RouteNetlinkMessage::NewRoute(entry)))))
                        if is_multipath(entry) =>
                    {
                        Err(NoNextHop::Multipath)
                    }
                    (Ok(Some(RouteNetlinkMessage::NewRoute(way))), _) => next_hop(*destination, way, &mtus),
                    _ => Err(NoNextHop::NoRoute),
                };
                (*destination, hop)
            }));
        }
        Ok(hops)
    }

    /// All by which the kernel's choice of a way depends on the destination.
    async fn distinctions(&mut self, family: Family) -> Result<Distinctions, NetlinkError> {
        let mut found = Distinctions::default();
        // What it has learned of single destinations, as their path MTU, is told instead of routes with that flag.
        for flags in [RouteFlags::empty(), RouteFlags::Cloned] {
            let mut query = RouteMessage::default();
            query.header.address_family = address_family(family);
            query.header.flags = flags;
            let read = |object| {
                let RouteNetlinkMessage::NewRoute(route) = object else { return None };
                let destination = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Destination(address) => ip(address),
                    _ => None,
                });
                Some((destination, route.header.destination_prefix_length, is_multipath(&route)))
            };
            let routes = self.dump_as(RouteNetlinkMessage::GetRoute(query), read).await?;
            for (destination, length, multipath) in routes {
                found.multipath |= multipath;
                found.add(destination, length);
            }
        }
        for rule in self.rules(family).await? {
            let destination = rule.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Destination(address) => Some(*address),
                _ => None,
            });
            found.add(destination, rule.header.dst_len);
        }
        Ok(found)
    }
}

/// The prefixes of all routes and rules, in whichever table.
///
/// Of two addresses with the same longest prefix all other prefixes that hold one hold the other, too: no rule and no
/// table chooses differently for them.
#[derive(Debug, Default)]
struct Distinctions {
    /// By length: the bits of each, without what follows them.
    prefixes: BTreeMap<u8, BTreeSet<u128>>,
    /// Some route has several next hops, of which the kernel chooses by more than the destination.
    multipath: bool,
}

impl Distinctions {
    /// Adds a prefix of `length` bits; one of none tells nothing apart.
    fn add(&mut self, address: Option<IpAddr>, length: u8) {
        if let Some(address) = address.filter(|_| length > 0) {
            self.prefixes.entry(length).or_default().insert(bits(address, length));
        }
    }

    /// The longest prefix that holds `address`: its length and bits.
    fn longest(&self, address: IpAddr) -> Option<(u8, u128)> {
        let held = |(length, known): (&u8, &BTreeSet<u128>)| {
            let bits = bits(address, *length);
            known.contains(&bits).then_some((*length, bits))
        };
        self.prefixes.iter().rev().find_map(held)
    }

    /// `addresses`, those together that take the same way.
    fn groups(&self, addresses: &BTreeSet<IpAddr>) -> Vec<Vec<IpAddr>> {
        let mut groups = BTreeMap::<_, Vec<IpAddr>>::new();
        for address in addresses {
            groups.entry(self.longest(*address)).or_default().push(*address);
        }
        groups.into_values().collect()
    }
}

/// The first `length` bits of `address`.
fn bits(address: IpAddr, length: u8) -> u128 {
    let (all, width) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    all.unbounded_shr(u32::saturating_sub(width, length.into()))
}

fn get(source: IpAddr, destination: IpAddr, flags: RouteFlags) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(destination));
    message.header.destination_prefix_length = IpNetwork::from(destination).prefix();
    message.header.source_prefix_length = IpNetwork::from(source).prefix();
    message.header.flags = flags;
    message.attributes =
        vec![RouteAttribute::Destination(destination.into()), RouteAttribute::Source(source.into())];
    Request { message: RouteNetlinkMessage::GetRoute(message), flags: 0 }
}

fn is_multipath(entry: &RouteMessage) -> bool {
    entry
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, RouteAttribute::MultiPath(hops) if hops.len() > 1))
}

fn next_hop(
    destination: IpAddr,
    route: &RouteMessage,
    mtus: &BTreeMap<u32, u32>,
) -> Result<NextHop, NoNextHop> {
    if route.header.kind != RouteType::Unicast {
        return Err(NoNextHop::Special);
    }
    let mut ifindex = None;
    let mut gateway = None;
    let mut limit = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(_) | RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => {
                return Err(NoNextHop::Special);
            }
            RouteAttribute::Metrics(metrics) => {
                limit = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let ifindex = ifindex.ok_or(NoNextHop::Special)?;
    let link = *mtus.get(&ifindex).ok_or(NoNextHop::NoRoute)?;
    Ok(NextHop {
        ifindex,
        address: gateway.unwrap_or(destination),
        mtu: limit.map_or(link, |limit| limit.min(link)),
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    /// Few enough that many meet.
    fn address() -> impl Strategy<Value = IpAddr> {
        (0u32..256, 0u32..4).prop_map(|(low, high)| Ipv4Addr::from((high << 30) | low).into())
    }

    fn prefix() -> impl Strategy<Value = IpNetwork> {
        let length = prop_oneof![Just(0), Just(1), Just(2), 20..=32u8];
        (address(), length).prop_map(|(address, length)| IpNetwork::new(address, length).unwrap())
    }

    proptest! {
        #[test]
        fn together_are_those_that_every_prefix_holds_or_none(
            prefixes in prop::collection::vec(prefix(), 0..20),
            addresses in prop::collection::btree_set(address(), 1..40),
        ) {
            let mut known = Distinctions::default();
            for prefix in &prefixes {
                known.add(Some(prefix.ip()), prefix.prefix());
            }
            let held = |address: IpAddr| prefixes.iter().map(move |prefix| prefix.contains(address)).collect::<Vec<_>>();
            let groups = known.groups(&addresses);
            prop_assert_eq!(groups.iter().flatten().copied().collect::<BTreeSet<_>>(), addresses);
            for group in &groups {
                prop_assert!(group.iter().all(|address| held(*address) == held(group[0])));
            }
            let told_apart: BTreeSet<_> = groups.iter().map(|group| held(group[0])).collect();
            prop_assert_eq!(told_apart.len(), groups.len());
        }
    }
}
