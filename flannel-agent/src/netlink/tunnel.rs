//! Tunnels without Ethernet: devices that carry IP packets as they are.

use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoIpTunnel, InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};

use super::Request;

/// What a device does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// It puts them into IPv4 packets from `local`, to the gateway of their route.
    Ipip {
        /// Our address in the outer header.
        local: Ipv4Addr,
    },
    /// It encrypts them for the peer whose allowed addresses have their destination.
    Wireguard,
}

/// Creates a device, down, with the attributes that upstream gives it.
pub(crate) fn create(name: &str, tunnel: Tunnel) -> Request {
    let mut info = Vec::new();
    match tunnel {
        Tunnel::Ipip { local } => {
            info.push(LinkInfo::Kind(InfoKind::IpIp));
            let data = vec![InfoIpTunnel::Local(local.into()), InfoIpTunnel::PMtuDisc(true)];
            info.push(LinkInfo::Data(InfoData::IpTunnel(data)));
        }
        Tunnel::Wireguard => info.push(LinkInfo::Kind(InfoKind::Wireguard)),
    }
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
    Request { message: RouteNetlinkMessage::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// The tunnel that a device of IP in IP is, if it is one that flannel would make: to no one address.
pub(super) fn ipip(data: &[InfoIpTunnel]) -> Option<Tunnel> {
    let mut local = None;
    for item in data {
        match item {
            InfoIpTunnel::Local(std::net::IpAddr::V4(address)) => local = Some(*address),
            InfoIpTunnel::Remote(address) if !address.is_unspecified() => return None,
            InfoIpTunnel::CollectMetadata => return None,
            _ => {}
        }
    }
    Some(Tunnel::Ipip { local: local? })
}
