//! Routes past the devices that an earlier process has left.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use crate::{
    config::Pool,
    netlink::{Netlink, NetlinkError, route::Route},
    plan::DirectRoute,
    values::{Family, overlap},
};

/// Which routes without a mark of their own an earlier host-gw flannel has left.
///
/// An administrator's route looks the same, so all of this must hold: it is over the external interface; it
/// leads to exactly one subnet that nodes can lease, and not to any of ours; and its gateway is a node, not a
/// router: no route to anywhere else uses it. What is spared by mistake is replaced when its subnet is leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Index of the external interface at the start.
    pub ifindex: u32,
    /// The subnets that can be leased.
    pub pool: Pool,
    /// Our own.
    pub own: IpNetwork,
}

impl Stray {
    /// The routes `via GATEWAY`, of protocol boot and without metric, that lead to `recognised` subnets, and
    /// of those over the external interface the ones that are flannel's.
    pub(super) async fn direct_routes(
        &self,
        netlink: &mut Netlink,
        recognised: &BTreeSet<IpNetwork>,
    ) -> Result<BTreeMap<IpNetwork, DirectRoute>, NetlinkError> {
        let routes = netlink.main_routes(Family::of_network(self.own), None).await?;
        let routers: BTreeSet<IpAddr> = routes
            .iter()
            .filter(|route| !self.pool.allows(route.destination))
            .filter_map(|route| route.gateway)
            .collect();
        let is_ours = |route: &Route, via: &IpAddr| {
            recognised.contains(&route.destination) || self.is_flannels(route, via, &routers)
        };
        Ok(routes
            .iter()
            .filter(|route| route.is_as_ours(false))
            .filter_map(|route| Some((route, route.gateway?)))
            .filter(|(route, via)| is_ours(route, via))
            .map(|(route, via)| (route.destination, DirectRoute { ifindex: route.ifindex, via }))
            .collect())
    }

    fn is_flannels(&self, route: &Route, via: &IpAddr, routers: &BTreeSet<IpAddr>) -> bool {
        route.ifindex == self.ifindex
            && self.pool.allows(route.destination)
            && !overlap(route.destination, self.own)
            && !routers.contains(via)
    }
}
