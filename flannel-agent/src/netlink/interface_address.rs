//! Addresses of interfaces, and which of several is ours.

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressFlags, AddressMessage},
};

use super::{Netlink, NetlinkError, address::held};

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
    /// IPv4: an earlier address of the same network is used in its place as a source (IFA_F_SECONDARY).
    pub secondary: bool,
    /// Its prefix is the whole address, as virtual ones are often added.
    pub alone: bool,
}

impl InterfaceAddress {
    /// Whether other hosts can send to it: a global or link-local unicast address, not on its way out.
    pub(crate) fn is_usable(&self) -> bool {
        let strange = self.ip.is_loopback() || self.ip.is_multicast() || self.ip.is_unspecified();
        let broadcast = matches!(self.ip, IpAddr::V4(v4) if v4.is_broadcast());
        !self.deprecated && !strange && !broadcast
    }

    /// Sorts the best address first, as upstream: global before link-local, permanent before dynamic, others before
    /// temporary. The kernel's order decides the rest.
    ///
    /// Of IPv4 addresses those come later, whatever else they are, that a node hardly has for its own: a single address
    /// beside one of a network, a secondary one, one that is the source of no route where another is. Of IPv6 a single
    /// address is what DHCPv6 gives, so that it only decides between equals.
    pub(crate) fn rank(&self, is_source: bool) -> impl Ord + use<> {
        let v4 = self.ip.is_ipv4();
        let odd = (v4 && self.alone, v4 && self.secondary, v4 && !is_source);
        (is_link_local(self.ip), odd, !self.permanent, self.temporary, self.alone)
    }

    /// Whether a node might have this for its own as well as `other`.
    pub(crate) fn rivals(&self, other: &Self) -> bool {
        let class = |held: &Self| (held.ip.is_ipv4(), is_link_local(held.ip), held.alone);
        let made_up = self.ip.is_ipv6() && !self.permanent;
        self.is_usable() && !made_up && class(self) == class(other)
    }
}

/// Whether an address is good on its own link alone (RFC 3927, RFC 4291).
pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

impl Netlink {
    /// All addresses of both families.
    pub(crate) async fn interface_addresses(&mut self) -> Result<Vec<InterfaceAddress>, NetlinkError> {
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
    let (ip, flags) = held(message)?;
    Some(InterfaceAddress {
        ifindex: message.header.index,
        ip,
        deprecated: flags.contains(AddressFlags::Deprecated),
        permanent: flags.contains(AddressFlags::Permanent),
        // The kernel has one bit for IPv4's secondary and IPv6's temporary addresses.
        temporary: ip.is_ipv6() && flags.contains(AddressFlags::Secondary),
        secondary: ip.is_ipv4() && flags.contains(AddressFlags::Secondary),
        alone: message.header.prefix_len == if ip.is_ipv4() { 32 } else { 128 },
    })
}
