//! Where our pods' addresses are, asked of the kernel.
//!
//! The kernel answers for another namespace by its number in ours, so nothing has to enter a pod. That is
//! the one sure source: a bridge forgets a station whose frames overtake it and then floods, and what a
//! pod claims by sending proves nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_common::layout::PodV4;
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
};

use super::{Link, Netlink, NetlinkError, PeerEnd, Request, address, address_family, link};
use crate::{family::Family, mac::Mac, plan::Pods};

impl Netlink {
    /// The pods of `subnets`: the host sides of their veths, and where their addresses within those
    /// are. Where the kernel would not send them straight to the pod there is no place: a veth or bridge that is down, a
    /// port that is blocked, a route through another pod. A pod whose namespace goes away meanwhile is left out.
    ///
    /// `links` is what [`Netlink::links`] returned.
    ///
    /// # Errors
    /// When the kernel's own tables cannot be read.
    pub async fn pods(&mut self, subnets: &[IpNetwork], links: &[Link]) -> Result<Pods, NetlinkError> {
        let pod_links = self.pod_links(subnets, links).await?;
        let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let detours = self.detours(subnets, links).await?;
        let mut places = BTreeMap::new();
        let mut contested = BTreeSet::new();
        for veth in links.iter().filter(|link| pod_links.contains(&link.index)) {
            let Some(peer) = veth.peer else { continue };
            // A pod's gateway is the bridge its veth is a port of, else the veth itself.
            let Some(gateway) = by_index.get(&veth.master.unwrap_or(veth.index)) else { continue };
            let Some(gateway_mac) = gateway.mac else { continue };
            // Past bridge and routing a packet would get through where the kernel lets none.
            if !veth.carrier || veth.blocked || !gateway.up {
                continue;
            }
            let Some(mac) = self.peer_mac(peer).await? else { continue };
            let place = PodV4 { ifindex: veth.index, mac: mac.0, gateway_mac: gateway_mac.0 };
            for subnet in subnets {
                let addresses = self.peer_addresses(peer, Family::of_network(*subnet)).await?;
                for address in addresses.into_iter().filter(|address| subnet.contains(*address)) {
                    if places.insert(address, place).is_some() {
                        contested.insert(address);
                    }
                }
            }
        }
        places.retain(|address, _| {
            !contested.contains(address) && !detours.iter().any(|detour| detour.contains(*address))
        });
        Ok(Pods { links: pod_links, places })
    }

    /// The MAC of an interface that is up in another namespace.
    async fn peer_mac(&mut self, peer: PeerEnd) -> Result<Option<Mac>, NetlinkError> {
        let mut query = LinkMessage::default();
        query.header.index = peer.index;
        query.attributes = vec![
            LinkAttribute::IfNetnsId(peer.namespace),
            LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
        ];
        let request = Request { message: RouteNetlinkMessage::GetLink(query), flags: 0 };
        Ok(match self.exchange(&[request]).await?.pop() {
            Some(Ok(Some(RouteNetlinkMessage::NewLink(message)))) => {
                link::read(message).filter(|link| link.up).and_then(|link| link.mac)
            }
            _ => None,
        })
    }

    /// The addresses of one family of an interface in another namespace; none when the namespace is gone.
    async fn peer_addresses(&mut self, peer: PeerEnd, family: Family) -> Result<Vec<IpAddr>, NetlinkError> {
        let mut query = AddressMessage::default();
        query.header.family = address_family(family);
        query.header.index = peer.index;
        query.attributes = vec![AddressAttribute::TargetNetNsId(peer.namespace)];
        let table = match self.dump(RouteNetlinkMessage::GetAddress(query)).await {
            Ok(table) => table,
            Err(error) if error.errno().is_some() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(table
            .into_iter()
            .filter_map(|object| match object {
                RouteNetlinkMessage::NewAddress(message) => address::read(&message),
                _ => None,
            })
            .filter(|address| address.ifindex == peer.index)
            .map(|address| address.network.ip())
            .collect())
    }
}
