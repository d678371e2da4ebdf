//! Leases that what an earlier daemon left in the kernel stands for.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Local, LocalStack, State};
use crate::{
    lease::{Lease, LeaseAttrs, LeaseSubnet, wire::NodeAddress},
    values::{Family, Mac, overlap},
};

/// The leases by which a daemon of flannel's programs what was `observed`: a peer behind the tunnel has a route, a
/// neighbour and a forwarding entry that fit together; one without has a route to its address, and no MAC that could be
/// known. Each family has leases of its own, as nothing in the kernel tells which belong to one node.
pub fn inherited(local: &Local, observed: &State) -> Vec<Lease> {
    let mut leases = Vec::new();
    for (family, stack) in &local.stacks {
        let of_family =
            |subnet: &IpNetwork| Family::of_network(*subnet) == *family && is_leasable(stack, *subnet);
        let mut add = |subnet: IpNetwork, public_ip: IpAddr, mac: Option<Mac>| {
            let address: NodeAddress = [public_ip].into_iter().collect();
            let mut attrs = LeaseAttrs::plain(address, local.backend.published());
            let data = local.backend.options().data_of(*family, mac);
            match family {
                Family::V4 => attrs.backend_data = data,
                Family::V6 => attrs.backend_v6_data = data,
            }
            leases.push(Lease { subnet: alone(subnet), attrs, expiration: None, made: None, node: None });
        };
        for (subnet, via) in observed.routes.iter().filter(|(subnet, _)| of_family(subnet)) {
            let mac = observed.neighbours.get(via).filter(|_| *via == subnet.network());
            let vtep = mac.and_then(|mac| Some((mac, observed.fdb.get(&(*family, *mac))?)));
            if let Some((mac, public_ip)) = vtep {
                add(*subnet, *public_ip, Some(*mac));
            }
        }
        for (subnet, route) in observed.direct_routes.iter().filter(|(subnet, _)| of_family(subnet)) {
            add(*subnet, route.via, None);
        }
    }
    leases
}

/// Whether another node may hold `subnet`.
fn is_leasable(stack: &LocalStack, subnet: IpNetwork) -> bool {
    let within = subnet.prefix() > stack.network.prefix() && overlap(stack.network, subnet.network().into());
    within && !overlap(subnet, stack.subnet)
}

fn alone(subnet: IpNetwork) -> LeaseSubnet {
    match subnet {
        IpNetwork::V4(v4) => LeaseSubnet { v4: Some(v4), v6: None },
        IpNetwork::V6(v6) => LeaseSubnet { v4: None, v6: Some(v6) },
    }
}
