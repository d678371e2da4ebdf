//! Addresses of interfaces, and which of several is ours.

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
};

use crate::netlink::{Netlink, NetlinkError};

/// An address of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface.
    pub ifindex: u32,
    /// The address.
    pub ip: IpAddr,
    /// No longer to be used for new connections.
    pub deprecated: bool,
    /// Set up by someone, and not by DHCP or a router's advertisements for a while.
    pub permanent: bool,
    /// IPv6: made up for privacy, and replaced after a day (RFC 8981).
    pub temporary: bool,
}

impl InterfaceAddress {
    /// Whether other hosts can send to it: a global or link-local unicast address, not on its way out.
    pub(super) fn is_usable(&self) -> bool {
        let strange = self.ip.is_loopback() || self.ip.is_multicast() || self.ip.is_unspecified();
        let broadcast = matches!(self.ip, IpAddr::V4(v4) if v4.is_broadcast());
        !self.deprecated && !strange && !broadcast
    }

    /// Sorts the best address first: global before link-local, permanent before dynamic, others before
    /// temporary. The kernel's order decides the rest.
    pub(super) fn rank(&self) -> impl Ord + use<> {
        let link_local = match self.ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        (link_local, !self.permanent, self.temporary)
    }
}

impl Netlink {
    /// All addresses of both families.
    pub(super) async fn interface_addresses(&mut self) -> Result<Vec<InterfaceAddress>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = AddressMessage::default();
            query.header.family = family;
            let table = self.dump(RouteNetlinkMessage::GetAddress(query)).await?;
            found.extend(table.iter().filter_map(|object| match object {
                // A kernel without IPv6 answers with IPv4 once more.
                RouteNetlinkMessage::NewAddress(message) if message.header.family == family => read(message),
                _ => None,
            }));
        }
        Ok(found)
    }
}

fn read(message: &AddressMessage) -> Option<InterfaceAddress> {
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
    let ip = local.or(peer)?;
    Some(InterfaceAddress {
        ifindex: message.header.index,
        ip,
        deprecated: flags.contains(AddressFlags::Deprecated),
        permanent: flags.contains(AddressFlags::Permanent),
        // The kernel has one bit for IPv4's secondary and IPv6's temporary addresses.
        temporary: ip.is_ipv6() && flags.contains(AddressFlags::Secondary),
    })
}
