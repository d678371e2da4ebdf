//! Which interfaces lead to pods of ours: found by what they are, never by name.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::Ipv4Network;

use super::{Link, LinkKind, Netlink, NetlinkError};
use crate::family::Family;

impl Netlink {
    /// The host sides of the veths of pods in `subnet`, up or not. A pod's veth has its other end in
    /// another namespace, and is either a port of the bridge that holds an address of the subnet, or the
    /// interface of a host route (/32) into the subnet.
    ///
    /// `links` is what [`Netlink::links`] returned.
    pub async fn pod_links(
        &mut self,
        subnet: Ipv4Network,
        links: &[Link],
    ) -> Result<BTreeSet<u32>, NetlinkError> {
        let veths = || links.iter().filter(|link| link.kind == LinkKind::Veth && link.peer.is_some());
        if veths().next().is_none() {
            return Ok(BTreeSet::new());
        }
        let holders: BTreeSet<u32> = self
            .addresses(Family::V4, None)
            .await?
            .into_iter()
            .filter(|address| matches!(address.network.ip(), IpAddr::V4(held) if subnet.contains(held)))
            .map(|address| address.ifindex)
            .collect();
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
        if !unexplained.is_empty() {
            found.extend(
                self.main_routes(Family::V4, None)
                    .await?
                    .into_iter()
                    .filter(|route| route.destination.prefix() == 32)
                    .filter(|route| matches!(route.destination.ip(), IpAddr::V4(pod) if subnet.contains(pod)))
                    .map(|route| route.ifindex)
                    .filter(|index| unexplained.contains(index)),
            );
        }
        Ok(found)
    }
}
