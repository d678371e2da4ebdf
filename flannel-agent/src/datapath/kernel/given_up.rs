//! Routes over a tunnel that is not ours any more: that of another backend, or of another VNI.
//!
//! Stock flannel leaves them, and so the packets for a peer that the new backend does not reach vanish in the old
//! tunnel.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::{
    netlink::{Netlink, NetlinkError, Request, route},
    plan::{Change, DirectRoute, State},
    values::Family,
};

/// The device of the ipip backend, whose routes are via the peers' nodes.
const IPIP_DEVICE: &str = "flannel.ipip";

/// What is left of an earlier configuration. It is looked for until nothing is found, as nobody makes any more.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    /// Only routes to subnets of these are ours.
    networks: Vec<IpNetwork>,
    /// The routes: the index of the device of each, its gateway, and whether it is shown among those past our device.
    found: BTreeMap<IpNetwork, (u32, IpAddr, bool)>,
    /// Our backend uses the device of ipip.
    keeps_ipip: bool,
    done: bool,
}

impl GivenUp {
    /// Also in `network`.
    pub(super) fn within(&mut self, network: IpNetwork) {
        self.networks.push(network);
    }

    /// The device of ipip is our backend's own.
    pub(super) fn keep_ipip(&mut self) {
        self.keeps_ipip = true;
    }

    /// Whether there may be any.
    pub(super) fn is_looked_for(&self) -> bool {
        !self.done
    }

    /// Adds what is over other devices than the one of ours, whose indices are in `devices`.
    ///
    /// A route to a subnet is to go when its new one is in place, which takes its place if it can be made. So it is
    /// shown among the routes that this backend does not make to the same subnet: where there is a device among those
    /// past it, else among those over it.
    pub(super) async fn observe(
        &mut self,
        netlink: &mut Netlink,
        devices: &BTreeMap<Family, u32>,
        state: &mut State,
    ) -> Result<(), NetlinkError> {
        self.found.clear();
        let ipip = match self.keeps_ipip {
            true => None,
            false => netlink.link(IPIP_DEVICE).await?.map(|link| link.index),
        };
        for family in Family::BOTH {
            if !self.networks.iter().any(|network| Family::of_network(*network) == family) {
                continue;
            }
            let own = devices.get(&family).copied();
            for (subnet, ifindex, via) in netlink.tunnel_routes(family, &self.networks, ipip).await? {
                if own == Some(ifindex) {
                    continue;
                }
                let shown = match own {
                    Some(_) => state.direct_routes.insert(subnet, DirectRoute { ifindex, via }).is_none(),
                    None => state.routes.insert(subnet, via).is_none(),
                };
                if shown {
                    self.found.insert(subnet, (ifindex, via, own.is_some()));
                }
            }
        }
        self.done = self.found.is_empty();
        Ok(())
    }

    /// The request that makes `change`, if it is about one of them.
    pub(super) fn request(&self, change: &Change) -> Option<Request> {
        let (subnet, past) = match change {
            Change::DeleteRoute { subnet, .. } => (subnet, false),
            Change::DeleteDirectRoute { subnet, .. } => (subnet, true),
            _ => return None,
        };
        let (ifindex, via, shown_past) = *self.found.get(subnet)?;
        (past == shown_past).then(|| route::delete_tunnel_route(ifindex, *subnet, via))
    }
}
