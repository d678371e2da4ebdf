//! Addresses of interfaces.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
};

use super::{Netlink, NetlinkError, Request};

/// An IPv4 address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub ifindex: u32,
    /// The address, host bits and all, and the length of its network.
    pub network: Ipv4Network,
    /// No longer to be used for new connections.
    pub deprecated: bool,
    /// Set up by someone, and not by DHCP or the like for a while.
    pub permanent: bool,
    /// Valid beyond its link and this host.
    pub global: bool,
}

impl Netlink {
    /// The IPv4 addresses of one interface, or of all.
    pub async fn addresses(&mut self, ifindex: Option<u32>) -> Result<Vec<Address>, NetlinkError> {
        let mut query = AddressMessage::default();
        query.header.family = AddressFamily::Inet;
        query.header.index = ifindex.unwrap_or(0);
        let table = self.dump(RouteNetlinkMessage::GetAddress(query)).await?;
        Ok(table
            .into_iter()
            .filter_map(|object| match object {
                RouteNetlinkMessage::NewAddress(message) => read(&message),
                _ => None,
            })
            .filter(|address| ifindex.is_none_or(|wanted| wanted == address.ifindex))
            .collect())
    }
}

/// Puts an address, or says again that it is there. Scope global, no broadcast.
pub(crate) fn put(ifindex: u32, address: Ipv4Network) -> Request {
    Request {
        message: RouteNetlinkMessage::NewAddress(message(ifindex, address)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// Takes an address away.
pub(crate) fn delete(ifindex: u32, address: Ipv4Network) -> Request {
    Request { message: RouteNetlinkMessage::DelAddress(message(ifindex, address)), flags: 0 }
}

fn message(ifindex: u32, address: Ipv4Network) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = address.prefix();
    message.header.scope = AddressScope::Universe;
    message.header.index = ifindex;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address.ip())),
        AddressAttribute::Address(IpAddr::V4(address.ip())),
    ];
    message
}

fn read(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut peer = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => local = Some(*address),
            AddressAttribute::Address(IpAddr::V4(address)) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let address: Ipv4Addr = local.or(peer)?;
    Some(Address {
        ifindex: message.header.index,
        network: Ipv4Network::new(address, message.header.prefix_len).ok()?,
        deprecated: flags.contains(AddressFlags::Deprecated),
        permanent: flags.contains(AddressFlags::Permanent),
        global: message.header.scope == AddressScope::Universe,
    })
}
