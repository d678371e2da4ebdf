//! What the kernel would do with one packet: its route, and whose MAC it goes to.

use std::net::IpAddr;

use flannel_common::{
    family::{Family as _, V4, V6},
    packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP},
};
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteType},
};
use nix::errno::Errno;

use super::{KernelError, Netlink, NetlinkError, Request, address_family, neighbour::destination, route::ip};
use crate::{
    host::sysctl,
    values::{Family, Mac},
};

/// A packet to be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuery {
    /// Its source; none for one that this node makes and that has none yet.
    pub source: Option<IpAddr>,
    /// Its destination.
    pub destination: IpAddr,
    /// The interface it came by; none for one that this node makes.
    pub arrived_by: Option<u32>,
    /// Its mark.
    pub mark: u32,
    /// Its TOS byte or traffic class.
    pub tos: u8,
    /// Its protocol (IANA) and ports, by which rules may choose a table. The kernel takes TCP, UDP and ICMP here.
    pub protocol: u8,
    /// Source port of TCP and UDP, host order; none for one that is not known.
    pub source_port: Option<u16>,
    /// Destination port.
    pub destination_port: Option<u16>,
}

/// The route that a packet takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenRoute {
    /// What becomes of it: `unicast`, `local`, `blackhole` ...
    pub kind: RouteType,
    /// Interface it leaves by.
    pub ifindex: Option<u32>,
    /// Whose MAC it goes to, if not the destination's own.
    pub gateway: Option<IpAddr>,
    /// Largest IP packet by this route, bytes, where the route says so.
    pub mtu: Option<u32>,
    /// The routing table it was found in.
    pub table: u32,
}

/// What a refusal of a route means, as the kernel's own words do not say it; empty where they do.
pub fn refusal_means(refusal: &KernelError) -> &'static str {
    match refusal.errno {
        // Linux 6.13 and later say so of what EXDEV was for, too.
        Errno::EINVAL => {
            " (a rule or route that is a blackhole; the reverse path filter, rp_filter, where the way back leads elsewhere; or an \
             address that no packet may have there)"
        }
        Errno::EACCES => " (a rule or route that prohibits it)",
        Errno::EHOSTUNREACH => " (unreachable by a route, or forwarding is off where it comes in)",
        Errno::EXDEV => " (the reverse path filter: the way back leads elsewhere)",
        _ => "",
    }
}

/// Whether the kernel forwards IPv6 packets that come in by `interface` (net/ipv6/ip6_output.c, `ip6_forward`). It does where
/// the settings cannot be read.
pub fn forwards_ipv6(interface: &str) -> bool {
    let is = |name: &str, value: &str| sysctl::NET.read(name).is_ok_and(|text| text == value);
    let forced = format!("ipv6/conf/{interface}/force_forwarding");
    !is("ipv6/conf/all/forwarding", "0") || is(&forced, "1")
}

/// A neighbour, whatever is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC, if it has answered or was written by hand.
    pub mac: Option<Mac>,
    /// State in the words of `ip neighbour`.
    pub state: NeighbourState,
}

impl Netlink {
    /// The route that the kernel takes for a packet, as `ip route get` shows it; or its refusal, which is what it would
    /// do to the packet.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn taken_route(
        &mut self,
        query: &RouteQuery,
    ) -> Result<Result<TakenRoute, KernelError>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(Family::of(query.destination));
        message.header.destination_prefix_length = IpNetwork::from(query.destination).prefix();
        message.header.tos = query.tos;
        message.attributes = vec![RouteAttribute::Destination(query.destination.into())];
        if let Some(source) = query.source {
            message.header.source_prefix_length = IpNetwork::from(source).prefix();
            message.attributes.push(RouteAttribute::Source(source.into()));
        }
        message.attributes.extend(query.arrived_by.map(RouteAttribute::Iif));
        if query.mark != 0 {
            message.attributes.push(RouteAttribute::Mark(query.mark));
        }
        let icmp = if query.destination.is_ipv4() { V4::PROTOCOL_ICMP } else { V6::PROTOCOL_ICMP };
        if [PROTOCOL_TCP, PROTOCOL_UDP, icmp].contains(&query.protocol) {
            message.attributes.push(RouteAttribute::IpProto(query.protocol));
        }
        if [PROTOCOL_TCP, PROTOCOL_UDP].contains(&query.protocol) {
            message.attributes.extend(query.source_port.map(RouteAttribute::Sport));
            message.attributes.extend(query.destination_port.map(RouteAttribute::Dport));
        }
        let request = Request { message: RouteNetlinkMessage::GetRoute(message), flags: 0 };
        match self.exchange(&[request]).await?.pop() {
            Some(Ok(Some(RouteNetlinkMessage::NewRoute(route)))) => Ok(Ok(taken(&route))),
            Some(Err(refusal)) => Ok(Err(refusal)),
            _ => Err(NetlinkError::Unstable),
        }
    }

    /// What the kernel knows of `address` on the link of an interface.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn neighbour(
        &mut self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<Option<Neighbour>, NetlinkError> {
        let mut query = NeighbourMessage::default();
        query.header.family = address_family(Family::of(address));
        query.attributes = vec![NeighbourAttribute::IfIndex(ifindex)];
        let read = |object| {
            let RouteNetlinkMessage::NewNeighbour(message) = object else { return None };
            if message.header.ifindex != ifindex {
                return None;
            }
            let is_it = message.attributes.iter().any(|attribute| match attribute {
                NeighbourAttribute::Destination(found) => destination(found) == Some(address),
                _ => false,
            });
            let mac = message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
                _ => None,
            });
            is_it.then_some(Neighbour { mac, state: message.header.state })
        };
        Ok(self.dump_as(RouteNetlinkMessage::GetNeighbour(query), read).await?.pop())
    }
}

fn taken(route: &RouteMessage) -> TakenRoute {
    let mut taken = TakenRoute {
        kind: route.header.kind,
        ifindex: None,
        gateway: None,
        mtu: None,
        table: route.header.table.into(),
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => taken.ifindex = Some(*index),
            RouteAttribute::Gateway(address) => taken.gateway = ip(address),
            RouteAttribute::Table(table) => taken.table = *table,
            RouteAttribute::Metrics(metrics) => {
                taken.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    taken
}
