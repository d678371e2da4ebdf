//! Bridges and their ports, as the CNI plugin makes them.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
};

use super::Request;

/// What a port of a bridge is to be like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortOptions {
    /// Frames may leave by the port that they have come in by.
    pub(crate) hairpin: bool,
    /// It exchanges no frames with other such ports.
    pub(crate) isolated: bool,
}

/// Creates a bridge, up, that sends packets of `mtu` bytes.
pub(crate) fn create(name: &str, mtu: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    Request { message: RouteNetlinkMessage::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// Makes an interface a port of a bridge, and sets it up.
pub(crate) fn add_port(index: u32, bridge: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![LinkAttribute::Controller(bridge)];
    Request { message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}

/// Makes a port like `options`.
pub(crate) fn set_port(index: u32, options: PortOptions) -> Request {
    let port = vec![InfoBridgePort::HairpinMode(options.hairpin), InfoBridgePort::Isolated(options.isolated)];
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(port)),
    ])];
    // RTM_SETLINK would ignore what is particular to the kind.
    Request { message: RouteNetlinkMessage::NewLink(message), flags: 0 }
}
