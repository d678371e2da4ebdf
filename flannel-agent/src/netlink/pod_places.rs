//! Where our pods' addresses are, asked of the kernel.
//!
//! The kernel answers for another namespace by its number in ours, so nothing has to enter a pod. That is
//! the one sure source: a bridge forgets a station whose frames overtake it and then floods, and what a
//! pod claims by sending proves nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_common::layout::PodPlace;
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
};

use super::{Link, Netlink, NetlinkError, PeerEnd, Request, address, address_family, link};
use crate::{
    host::sysctl,
    values::{Family, Mac},
};

/// So many addresses of one family are followed behind one veth. What a pod makes up beyond that costs no time and takes no
/// other pod's room in the maps: its packets are the kernel's.
const MOST_ADDRESSES: usize = 128;

/// The pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Host sides of their veths.
    pub links: BTreeSet<u32>,
    /// Where each address is. An address that two pods claim is absent: the kernel decides.
    pub places: BTreeMap<IpAddr, PodPlace>,
    /// The veths behind which there are more addresses than are followed, and their names.
    pub crowded: BTreeMap<u32, String>,
}

/// A pod whose address is not reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// The host side of its veth.
    pub interface: String,
    /// Why, and what to do.
    pub why: String,
    /// Something is down or closed; else the kernel has no straight way to it, and perhaps another.
    pub is_shut: bool,
}

/// What is down or closed between the host and the pod behind `veth`, a port of `bridge`.
pub fn obstacle(veth: &Link, bridge: Option<&Link>) -> Option<String> {
    match bridge {
        Some(bridge) if !bridge.up => Some(format!("bridge {0} is down: ip link set {0} up", bridge.name)),
        _ if !veth.up => Some(format!("{0} is down: ip link set {0} up", veth.name)),
        _ if !veth.carrier => Some("the pod's own interface is down".to_owned()),
        _ if veth.closed_port => Some(format!(
            "it is a closed port of its bridge, blocked or locked: bridge -d link show dev {}",
            veth.name
        )),
        _ if veth.netkit().is_some_and(|netkit| netkit.drops) => Some(format!(
            "its netkit drops what is sent to the pod (policy blackhole): ip link set {} type netkit forward",
            veth.name
        )),
        _ => None,
    }
}

/// The MAC of a pod whose interface has `mac`, behind `link`.
///
/// Where there are none, the pod and its gateway both have zero. Then a frame for the gateway, which is the host's to
/// route, must not look like one for the pod: that has one that nobody sends to.
fn station_behind(link: &Link, mac: Mac) -> Mac {
    const NOBODY: Mac = Mac([2, 0, 0, 0, 0, 0]);
    if link.has_no_stations() { NOBODY } else { mac }
}

/// The MTU that IPv6 has of its own at an interface, bytes; as large as there is where it has none.
fn ipv6_mtu(interface: &str) -> u32 {
    let setting = format!("ipv6/conf/{interface}/mtu");
    sysctl::NET.read(&setting).ok().and_then(|text| text.parse().ok()).unwrap_or(u32::MAX)
}

impl Netlink {
    /// The pods of `subnets`: the host sides of their veths, and where their addresses within those
    /// are. Where the kernel would not send them straight to the pod there is no place: a veth or bridge that is down, a
    /// port that is closed, a route through another pod. A pod whose namespace goes away meanwhile is left out.
    ///
    /// `links` is what [`Netlink::links`] returned.
    ///
    /// # Errors
    /// When the kernel's own tables cannot be read.
    pub async fn pods(&mut self, subnets: &[IpNetwork], links: &[Link]) -> Result<Pods, NetlinkError> {
        let pod_links = self.pod_links(subnets, links).await?;
        let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let detours = self.detours(subnets, links).await?;
        let (mut places, mut v6_mtus) = (BTreeMap::new(), BTreeMap::new());
        let (mut contested, mut crowded) = (BTreeSet::new(), BTreeMap::new());
        for veth in links.iter().filter(|link| pod_links.contains(&link.index)) {
            let Some(peer) = veth.peer else { continue };
            // A pod's gateway is the bridge its veth is a port of, else the veth itself.
            let Some(gateway) = by_index.get(&veth.master.unwrap_or(veth.index)) else { continue };
            let Some(gateway_mac) = gateway.mac else { continue };
            // Past bridge and routing a packet would get through where the kernel lets none.
            if obstacle(veth, Some(gateway)).is_some() {
                continue;
            }
            let Some((mac, peer_mtu)) = self.peer_end(peer).await? else { continue };
            // What is too large for any of them the kernel drops there.
            let mtu = gateway.mtu.min(veth.mtu).min(peer_mtu);
            let mac = station_behind(veth, mac);
            let place = PodPlace { ifindex: veth.index, mtu, mac: mac.0, gateway_mac: gateway_mac.0 };
            let v6_mtu = *v6_mtus.entry(gateway.index).or_insert_with(|| ipv6_mtu(&gateway.name));
            for subnet in subnets {
                let place = match subnet {
                    IpNetwork::V4(_) => place,
                    IpNetwork::V6(_) => PodPlace { mtu: place.mtu.min(v6_mtu), ..place },
                };
                let mut addresses = self.peer_addresses(peer, *subnet).await?;
                if addresses.len() > MOST_ADDRESSES {
                    // In the kernel's order: what the pod was given comes before what it has added.
                    addresses.truncate(MOST_ADDRESSES);
                    crowded.insert(veth.index, veth.name.clone());
                }
                for address in addresses {
                    if places.insert(address, place).is_some() {
                        contested.insert(address);
                    }
                }
            }
        }
        places.retain(|address, _| {
            !contested.contains(address) && !detours.iter().any(|detour| detour.contains(*address))
        });
        Ok(Pods { links: pod_links, places, crowded })
    }

    /// Why the pod with this address is not reached, wherever its veth is; `None` where no pod here has it.
    ///
    /// `links` is what [`Netlink::links`] returned.
    ///
    /// # Errors
    /// When the kernel's own tables cannot be read.
    pub async fn cut_off(&mut self, address: IpAddr, links: &[Link]) -> Result<Option<CutOff>, NetlinkError> {
        for veth in links.iter().filter(|link| link.kind.is_pair()) {
            let Some(peer) = veth.peer else { continue };
            if !self.peer_addresses(peer, IpNetwork::from(address)).await?.is_empty() {
                let bridge = links.iter().find(|link| Some(link.index) == veth.master);
                let obstacle = obstacle(veth, bridge);
                let is_shut = obstacle.is_some();
                let why = obstacle.unwrap_or_else(|| match bridge {
                    Some(bridge) => format!(
                        "bridge {} has no address of the pod's subnet, or the way to it leads past it",
                        bridge.name
                    ),
                    None => "no route leads to it there".to_owned(),
                });
                return Ok(Some(CutOff { interface: veth.name.clone(), why, is_shut }));
            }
        }
        Ok(None)
    }

    /// The MAC of an interface that is up in another namespace, and its MTU, bytes.
    async fn peer_end(&mut self, peer: PeerEnd) -> Result<Option<(Mac, u32)>, NetlinkError> {
        let mut query = LinkMessage::default();
        query.header.index = peer.index;
        query.attributes = vec![
            LinkAttribute::IfNetnsId(peer.namespace),
            LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
        ];
        let request = Request { message: RouteNetlinkMessage::GetLink(query), flags: 0 };
        Ok(match self.exchange(&[request]).await?.pop() {
            Some(Ok(Some(RouteNetlinkMessage::NewLink(message)))) => {
                link::read(message).filter(|link| link.up).and_then(|link| Some((link.mac?, link.mtu)))
            }
            _ => None,
        })
    }

    /// The addresses within `subnet` of an interface in another namespace; none when the namespace is gone.
    async fn peer_addresses(
        &mut self,
        peer: PeerEnd,
        subnet: IpNetwork,
    ) -> Result<Vec<IpAddr>, NetlinkError> {
        let mut query = AddressMessage::default();
        query.header.family = address_family(Family::of_network(subnet));
        query.header.index = peer.index;
        query.attributes = vec![AddressAttribute::TargetNetNsId(peer.namespace)];
        let within = |object| match object {
            RouteNetlinkMessage::NewAddress(message) => address::read(&message)
                .filter(|address| address.ifindex == peer.index)
                .map(|address| address.network.ip())
                .filter(|address| subnet.contains(*address)),
            _ => None,
        };
        match self.dump_as(RouteNetlinkMessage::GetAddress(query), within).await {
            Err(error) if error.errno().is_some() => Ok(Vec::new()),
            // A pod that never keeps still holds nobody up but itself.
            Err(NetlinkError::Unstable) => Ok(Vec::new()),
            addresses => addresses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{LinkKind, Netkit, NetkitMode};

    #[test]
    fn what_is_in_the_way_to_a_pod_is_named_from_the_bridge_on() {
        type Change = fn(&mut Link, &mut Link);
        const DROPPING: Netkit =
            Netkit { mode: NetkitMode::L2, primary: true, drops: true, keeps_marks: false };
        let changes: [(Change, &str); 6] = [
            (|_, bridge| bridge.up = false, "bridge cni0 is down: ip link set cni0 up"),
            (|veth, _| (veth.up, veth.carrier) = (false, false), "veth1 is down: ip link set veth1 up"),
            (|veth, _| veth.carrier = false, "the pod's own interface is down"),
            (|veth, _| veth.closed_port = true, "it is a closed port"),
            (|veth, _| veth.kind = LinkKind::Netkit(DROPPING), "its netkit drops what is sent to the pod"),
            (|_, _| {}, ""),
        ];
        for (change, why) in changes {
            let mut veth = Link::plain(5, "veth1", LinkKind::Veth, 1450);
            let mut bridge = Link::plain(4, "cni0", LinkKind::Bridge, 1450);
            change(&mut veth, &mut bridge);
            let found = obstacle(&veth, Some(&bridge));
            assert_eq!(found.is_none(), why.is_empty(), "{found:?}");
            assert!(found.unwrap_or_default().starts_with(why), "something else than {why}");
        }
    }

    #[test]
    fn a_pod_without_macs_is_no_station_that_anybody_sends_to() {
        let mut link = Link::plain(5, "nk1", LinkKind::Veth, 1450);
        let mac = Mac([2, 1, 1, 1, 1, 1]);
        assert_eq!(station_behind(&link, mac), mac);
        let netkit = Netkit { mode: NetkitMode::L2, primary: true, drops: false, keeps_marks: false };
        link.kind = LinkKind::Netkit(netkit);
        assert_eq!(station_behind(&link, mac), mac);
        link.kind = LinkKind::Netkit(Netkit { mode: NetkitMode::L3, ..netkit });
        assert_ne!(station_behind(&link, Mac([0; 6])), Mac([0; 6]));
    }
}
