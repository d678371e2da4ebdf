//! Neighbours (ARP, NDP) and forwarding entries (FDB): the kernel keeps both in tables of one kind of message.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use super::{Netlink, NetlinkError, Request, address_family};
use crate::values::{Family, Mac};

/// A permanent forwarding entry of a VXLAN device itself (`self permanent` in the words of `bridge fdb`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// Destination of inner frames.
    pub mac: Mac,
    /// Where they are sent to.
    pub public_ip: IpAddr,
}

impl Netlink {
    /// The permanent neighbours of one family on an interface.
    pub async fn permanent_neighbours(
        &mut self,
        family: Family,
        ifindex: u32,
    ) -> Result<BTreeMap<IpAddr, Mac>, NetlinkError> {
        let mut query = NeighbourMessage::default();
        query.header.family = address_family(family);
        query.attributes = vec![NeighbourAttribute::IfIndex(ifindex)];
        let table = self
            .dump_as(RouteNetlinkMessage::GetNeighbour(query), |object| permanent(object, ifindex))
            .await?;
        Ok(table
            .into_iter()
            .filter_map(|(destination, mac, _)| match destination? {
                NeighbourAddress::Inet(address) => Some((address.into(), mac)),
                NeighbourAddress::Inet6(address) => Some((address.into(), mac)),
                _ => None,
            })
            .filter(|(address, _)| Family::of(*address) == family)
            .collect())
    }

    /// Forgets the neighbours on an interface that have not answered yet, so that the next packet asks for them at once. How
    /// many there were.
    ///
    /// The kernel asks for a neighbour once a second. What was asked while the interface was down nobody has heard.
    pub(crate) async fn forget_unresolved(&mut self, ifindex: u32) -> Result<usize, NetlinkError> {
        let mut requests = Vec::new();
        for family in Family::BOTH {
            let mut query = NeighbourMessage::default();
            query.header.family = address_family(family);
            query.attributes = vec![NeighbourAttribute::IfIndex(ifindex)];
            let unresolved = |object| match object {
                RouteNetlinkMessage::NewNeighbour(message)
                    if message.header.ifindex == ifindex
                        && message.header.state == NeighbourState::Incomplete =>
                {
                    Some(message)
                }
                _ => None,
            };
            let found = self.dump_as(RouteNetlinkMessage::GetNeighbour(query), unresolved).await?;
            requests.extend(found.into_iter().map(|mut message| {
                message
                    .attributes
                    .retain(|attribute| matches!(attribute, NeighbourAttribute::Destination(_)));
                Request { message: RouteNetlinkMessage::DelNeighbour(message), flags: 0 }
            }));
        }
        // One that has answered meanwhile, or is gone, is forgotten for nothing.
        let results = self.transact(&requests).await;
        Ok(results.iter().filter(|result| result.is_ok()).count())
    }

    /// The permanent forwarding entries of a VXLAN device itself.
    pub async fn permanent_fdb(&mut self, ifindex: u32) -> Result<Vec<FdbEntry>, NetlinkError> {
        let mut query = NeighbourMessage::default();
        query.header.family = AddressFamily::Bridge;
        query.header.ifindex = ifindex;
        self.dump_as(RouteNetlinkMessage::GetNeighbour(query), |object| {
            let (destination, mac, flags) = permanent(object, ifindex)?;
            let ours = flags.contains(NeighbourFlags::Own) && mac != Mac([0; 6]);
            let public_ip = self::destination(&destination?)?;
            ours.then_some(FdbEntry { mac, public_ip })
        })
        .await
    }
}

/// The address that an entry is about, or leads to.
pub(super) fn destination(destination: &NeighbourAddress) -> Option<IpAddr> {
    match destination {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        // Outside the families of addresses the bytes come as they are.
        NeighbourAddress::Other(bytes) => {
            let v4 =
                || <[u8; 4]>::try_from(bytes.as_slice()).ok().map(|octets| Ipv4Addr::from(octets).into());
            let v6 =
                || <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|octets| Ipv6Addr::from(octets).into());
            v4().or_else(v6)
        }
        _ => None,
    }
}

/// Destination, MAC and flags of a permanent entry of an interface.
fn permanent(
    object: RouteNetlinkMessage,
    ifindex: u32,
) -> Option<(Option<NeighbourAddress>, Mac, NeighbourFlags)> {
    let RouteNetlinkMessage::NewNeighbour(message) = object else { return None };
    let header = &message.header;
    let permanent = u16::from(header.state) & u16::from(NeighbourState::Permanent) != 0;
    if header.ifindex != ifindex || !permanent {
        return None;
    }
    let flags = header.flags;
    let mut destination = None;
    let mut mac = None;
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => destination = Some(address),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some((destination, mac?, flags))
}

/// Puts a permanent neighbour in place of any there is.
pub(crate) fn put(ifindex: u32, address: IpAddr, mac: Mac) -> Request {
    let mut message = neighbour(ifindex, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Request { message: RouteNetlinkMessage::NewNeighbour(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
}

/// Deletes a neighbour.
pub(crate) fn delete(ifindex: u32, address: IpAddr) -> Request {
    Request { message: RouteNetlinkMessage::DelNeighbour(neighbour(ifindex, address)), flags: 0 }
}

/// Puts a forwarding entry of the VXLAN device itself in place of any there is for that MAC.
pub(crate) fn put_fdb(ifindex: u32, entry: FdbEntry) -> Request {
    Request {
        message: RouteNetlinkMessage::NewNeighbour(fdb(ifindex, entry)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// Deletes a forwarding entry.
pub(crate) fn delete_fdb(ifindex: u32, entry: FdbEntry) -> Request {
    Request { message: RouteNetlinkMessage::DelNeighbour(fdb(ifindex, entry)), flags: 0 }
}

fn neighbour(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = ifindex;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message
}

fn fdb(ifindex: u32, entry: FdbEntry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
        NeighbourAttribute::Destination(entry.public_ip.into()),
    ];
    message
}
