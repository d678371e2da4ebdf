//! Addresses of interfaces.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
};

use super::{Netlink, NetlinkError, Request, address_family};
use crate::values::Family;

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub ifindex: u32,
    /// The address, host bits and all, and the length of its network.
    pub network: IpNetwork,
    /// No longer to be used for new connections.
    pub deprecated: bool,
    /// Set up by someone, and not by DHCP or the like for a while.
    pub permanent: bool,
    /// Valid beyond its link and this host.
    pub global: bool,
}

impl Netlink {
    /// The addresses of one family on one interface, or on all.
    pub async fn addresses(
        &mut self,
        family: Family,
        ifindex: Option<u32>,
    ) -> Result<Vec<Address>, NetlinkError> {
        let mut query = AddressMessage::default();
        query.header.family = address_family(family);
        query.header.index = ifindex.unwrap_or(0);
        let table = self.dump(RouteNetlinkMessage::GetAddress(query)).await?;
        Ok(table
            .into_iter()
            .filter_map(|object| match object {
                RouteNetlinkMessage::NewAddress(message) => read(&message),
                _ => None,
            })
            // A kernel without IPv6 answers with IPv4 once more.
            .filter(|address| Family::of_network(address.network) == family)
            .filter(|address| ifindex.is_none_or(|wanted| wanted == address.ifindex))
            .collect())
    }
}

/// Puts an address, or says again that it is there. Scope global, no broadcast; IPv6 is not asked whether another
/// node has it, which a lease says, so that it can be used at once.
pub(crate) fn put(ifindex: u32, address: IpNetwork) -> Request {
    Request {
        message: RouteNetlinkMessage::NewAddress(message(ifindex, address)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// Takes an address away.
pub(crate) fn delete(ifindex: u32, address: IpNetwork) -> Request {
    Request { message: RouteNetlinkMessage::DelAddress(message(ifindex, address)), flags: 0 }
}

fn message(ifindex: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    let family = Family::of_network(address);
    message.header.family = address_family(family);
    message.header.prefix_len = address.prefix();
    message.header.scope = AddressScope::Universe;
    message.header.index = ifindex;
    if family == Family::V6 {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(address.ip()), AddressAttribute::Address(address.ip())];
    message
}

/// The address that an interface holds, and all flags of it: the header has room for eight.
pub(super) fn held(message: &AddressMessage) -> Option<(IpAddr, AddressFlags)> {
    let mut local = None;
    let mut peer = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some((local.or(peer)?, flags))
}

pub(super) fn read(message: &AddressMessage) -> Option<Address> {
    let (address, flags) = held(message)?;
    Some(Address {
        ifindex: message.header.index,
        network: IpNetwork::new(address, message.header.prefix_len).ok()?,
        deprecated: flags.contains(AddressFlags::Deprecated),
        permanent: flags.contains(AddressFlags::Permanent),
        global: message.header.scope == AddressScope::Universe,
    })
}
