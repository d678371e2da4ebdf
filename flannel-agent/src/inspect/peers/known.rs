//! Whom the kernel and the maps know, where no agent says who the peers are.

use std::collections::BTreeMap;

use flannel_common::layout::RouteKind;
use ipnetwork::IpNetwork;

use super::Wanted;
use crate::{
    inspect::{Kernel, MapRoute, Maps},
    values::{Family, Mac},
};

/// The peers that the kernel or the maps know of.
pub(super) fn wanted_without_agent(kernel: &Kernel, maps: Option<&Maps>) -> Vec<Wanted> {
    let mut wanted = BTreeMap::<IpNetwork, Wanted>::new();
    for (family, tunnel) in &kernel.tunnels {
        let of_family = kernel.routes.iter().filter(|(subnet, _)| Family::of_network(**subnet) == *family);
        for (subnet, routes) in of_family {
            if routes.contains(&(subnet.network(), tunnel.index)) {
                let mac = tunnel.neighbours.get(&subnet.network()).copied();
                let public_ip = mac.and_then(|mac| tunnel.fdb.get(&mac).copied());
                let way = "vxlan".to_owned();
                wanted.insert(*subnet, Wanted { subnet: *subnet, public_ip, way, mac, device: None });
            }
        }
    }
    for (subnet, ways) in &kernel.routes {
        if let Some((via, index)) = ways.iter().find(|(_, index)| kernel.ipip.contains(index)) {
            let device = Some(kernel.name(*index));
            let way = "ipip".to_owned();
            wanted.insert(*subnet, Wanted { subnet: *subnet, public_ip: Some(*via), way, mac: None, device });
        }
    }
    for (subnet, peer) in &kernel.wireguard {
        let (public_ip, device) = (peer.endpoint, Some(peer.device.clone()));
        let way = "wireguard".to_owned();
        wanted.insert(*subnet, Wanted { subnet: *subnet, public_ip, way, mac: None, device });
    }
    // The maps name a node whole, so that they decide where they name one.
    for (subnet, route) in maps.iter().flat_map(|maps| &maps.routes) {
        let is_vxlan = |route: &MapRoute| match route.kind {
            RouteKind::Vxlan => true,
            RouteKind::Direct | RouteKind::Udp | RouteKind::Ipip => false,
            RouteKind::Kernel => route.mac != Mac([0; 6]),
        };
        let vxlan = is_vxlan(route);
        let way = match route.kind {
            _ if vxlan => "vxlan",
            RouteKind::Udp => "udp",
            RouteKind::Ipip => "ipip",
            _ => "direct",
        };
        let device =
            wanted.remove(subnet).filter(|before| before.way == way).and_then(|before| before.device);
        wanted.insert(
            *subnet,
            Wanted {
                subnet: *subnet,
                public_ip: Some(route.public_ip),
                way: way.to_owned(),
                mac: Some(route.mac).filter(|_| vxlan),
                device,
            },
        );
    }
    wanted.into_values().collect()
}
