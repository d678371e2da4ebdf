//! Which interfaces lead to pods of ours: found by what they are, never by name.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

use super::{Link, LinkKind, Netlink, NetlinkError};
use crate::family::Family;

impl Netlink {
    /// The host sides of the veths of pods in `subnets`, up or not. A pod's veth has its other end in
    /// another namespace, and is either a port of the bridge that holds an address of one, or the
    /// interface of a host route (/32 or /128) into one.
    ///
    /// `links` is what [`Netlink::links`] returned.
    pub async fn pod_links(
        &mut self,
        subnets: &[IpNetwork],
        links: &[Link],
    ) -> Result<BTreeSet<u32>, NetlinkError> {
        let veths = || links.iter().filter(|link| link.kind == LinkKind::Veth && link.peer.is_some());
        if veths().next().is_none() {
            return Ok(BTreeSet::new());
        }
        let is_ours = |address: IpAddr| subnets.iter().any(|subnet| subnet.contains(address));
        let families: BTreeSet<Family> = subnets.iter().copied().map(Family::of_network).collect();
        let mut holders = BTreeSet::new();
        for family in &families {
            let addresses = self.addresses(*family, None).await?.into_iter();
            let ours = addresses.filter(|address| is_ours(address.network.ip()));
            holders.extend(ours.map(|address| address.ifindex));
        }
        let bridges: BTreeSet<u32> = links
            .iter()
            .filter(|link| link.kind == LinkKind::Bridge && holders.contains(&link.index))
            .map(|link| link.index)
            .collect();
        let mut found = BTreeSet::new();
        let mut unexplained = BTreeSet::new();
        for veth in veths() {
            let port = veth.master.is_some_and(|master| bridges.contains(&master));
            if port { &mut found } else { &mut unexplained }.insert(veth.index);
        }
        for family in families.iter().filter(|_| !unexplained.is_empty()) {
            let routes = self.main_routes(*family, None).await?.into_iter();
            let to_hosts =
                routes.filter(|route| route.destination == IpNetwork::from(route.destination.ip()));
            let to_pods = to_hosts.filter(|route| is_ours(route.destination.ip()));
            found.extend(to_pods.map(|route| route.ifindex).filter(|index| unexplained.contains(index)));
        }
        Ok(found)
    }
}
