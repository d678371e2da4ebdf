//! Which interfaces lead to pods of ours: found by what they are, never by name.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

use super::{Link, LinkKind, NetkitMode, Netlink, NetlinkError};
use crate::values::Family;

impl Link {
    /// Whether it is one end of a pair whose other end is in another network namespace, a pod's perhaps.
    pub fn leads_elsewhere(&self) -> bool {
        self.kind.is_pair() && self.peer.is_some()
    }

    /// Whether there are no stations on its link: it is a netkit in L3 mode, and the kernel asks for nobody's MAC.
    pub fn has_no_stations(&self) -> bool {
        self.netkit().is_some_and(|netkit| netkit.mode == NetkitMode::L3)
    }
}

impl Netlink {
    /// The host sides of the veths of pods in `subnets`, up or not, and of the netkits that some have. Such has its other
    /// end in another namespace, and is either a port of the bridge that holds an address of one, or the
    /// interface of a host route (/32 or /128) into one.
    ///
    /// `links` is what [`Netlink::links`] returned.
    pub async fn pod_links(
        &mut self,
        subnets: &[IpNetwork],
        links: &[Link],
    ) -> Result<BTreeSet<u32>, NetlinkError> {
        let veths = || links.iter().filter(|link| link.leads_elsewhere());
        if veths().next().is_none() {
            return Ok(BTreeSet::new());
        }
        let is_ours = |address: IpAddr| subnets.iter().any(|subnet| subnet.contains(address));
        let families: BTreeSet<Family> = subnets.iter().copied().map(Family::of_network).collect();
        let bridges = self.pod_bridges(subnets, links).await?;
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

    /// The bridges that hold an address of one of `subnets`, up or not.
    ///
    /// # Errors
    /// When the kernel's own tables cannot be read.
    pub async fn pod_bridges(
        &mut self,
        subnets: &[IpNetwork],
        links: &[Link],
    ) -> Result<BTreeSet<u32>, NetlinkError> {
        let mut holders = BTreeSet::new();
        for family in subnets.iter().copied().map(Family::of_network).collect::<BTreeSet<_>>() {
            let addresses = self.addresses(family, None).await?.into_iter();
            let ours =
                addresses.filter(|held| subnets.iter().any(|subnet| subnet.contains(held.network.ip())));
            holders.extend(ours.map(|address| address.ifindex));
        }
        let is_bridge = |link: &&Link| link.kind == LinkKind::Bridge && holders.contains(&link.index);
        Ok(links.iter().filter(is_bridge).map(|link| link.index).collect())
    }

    /// Networks of pods to which the host has routes through another pod, over the bridge both are on: a firewall or a
    /// router among the pods. What is sent to their addresses is not for their own veths.
    pub(super) async fn detours(
        &mut self,
        subnets: &[IpNetwork],
        links: &[Link],
    ) -> Result<Vec<IpNetwork>, NetlinkError> {
        let mut found = Vec::new();
        for bridge in self.pod_bridges(subnets, links).await? {
            for family in subnets.iter().copied().map(Family::of_network).collect::<BTreeSet<_>>() {
                let routes = self.main_routes(family, Some(bridge)).await?.into_iter();
                let through = routes.filter(|route| route.gateway.is_some()).map(|route| route.destination);
                // What is as wide as the bridge's own route, or wider, leads no pod's packets.
                let narrower = |to: &IpNetwork| {
                    subnets.iter().any(|subnet| subnet.contains(to.ip()) && to.prefix() > subnet.prefix())
                };
                found.extend(through.filter(narrower));
            }
        }
        Ok(found)
    }
}
