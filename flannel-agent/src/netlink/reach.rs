//! What the routing tables say of interfaces.

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};

use super::{Netlink, Request};

/// The way packets of this node take to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The interface they leave by.
    pub ifindex: u32,
    /// The source address they have.
    pub source: Option<IpAddr>,
}

impl Netlink {
    /// The route to `target`, as `ip route get` shows it, or why it is of no use.
    pub(crate) async fn reach(&mut self, target: IpAddr) -> Result<Reach, String> {
        let mut query = RouteMessage::default();
        let (family, length) = match target {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        query.header.address_family = family;
        query.header.destination_prefix_length = length;
        query.attributes = vec![RouteAttribute::Destination(RouteAddress::from(target))];
        let request = Request { message: RouteNetlinkMessage::GetRoute(query), flags: 0 };
        let answer = self.exchange(&[request]).await.map_err(|error| error.to_string())?.pop();
        match answer {
            Some(Ok(Some(RouteNetlinkMessage::NewRoute(route)))) => read_reach(&route),
            Some(Err(refused)) => Err(format!("there is no route to it: {refused}")),
            _ => Err("the kernel does not say how it is reached".to_owned()),
        }
    }
}

fn read_reach(route: &RouteMessage) -> Result<Reach, String> {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => {
            return Err("it is an address of this node: give one of another node or of the router".to_owned());
        }
        kind => return Err(format!("the route to it is {kind:?}, and leads nowhere")),
    }
    let source = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    let ifindex = interface(route).ok_or_else(|| "the route to it has no interface".to_owned())?;
    Ok(Reach { ifindex, source })
}

fn interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}
