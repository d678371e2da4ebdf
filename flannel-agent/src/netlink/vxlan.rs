//! VXLAN devices.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
};

use super::Request;
use crate::values::{Family, Mac};

/// A VXLAN device, `flannel.<vni>` or `flannel-v6.<vni>`, with the attributes that upstream compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanDevice {
    /// `flannel.<vni>`, for IPv6 `flannel-v6.<vni>`.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, host order.
    pub port: u16,
    /// Index of the external interface it is bound to.
    pub underlay_ifindex: u32,
    /// Local address of the outer header, whose family is also that of the packets it carries.
    pub local: IpAddr,
    /// Its MAC, as our lease publishes it.
    pub mac: Mac,
    /// Its MTU: that of the underlay less the outer headers.
    pub mtu: u32,
    /// It learns from packets which MAC is behind which address.
    pub learning: bool,
    /// It carries the mark of packets in the header: the group based policy extension.
    pub gbp: bool,
}

impl VxlanDevice {
    /// The family it carries, and is carried by.
    pub fn family(&self) -> Family {
        Family::of(self.local)
    }

    /// Whether a device like `other` can be made into this one without deleting it.
    pub fn is_compatible(&self, other: &Self) -> bool {
        let fixed =
            |device: &Self| (device.vni, device.port, device.underlay_ifindex, device.local, device.gbp);
        self.name == other.name && fixed(self) == fixed(other)
    }
}

/// The attributes of a VXLAN device that upstream compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, host order.
    pub port: u16,
    /// Interface it is bound to.
    pub underlay_ifindex: Option<u32>,
    /// Local address of the outer header.
    pub local: Option<IpAddr>,
    /// It learns from packets which MAC is behind which address.
    pub learning: bool,
    /// It has the group based policy extension.
    pub gbp: bool,
    /// It has what flannel's has not: a group, a remote, miss notifications or metadata extensions.
    pub foreign: bool,
    /// TOS byte of the outer header: 0, what it is set to, or 1 for that of the inner one.
    pub tos: u8,
    /// The outer TTL is that of the inner header.
    pub ttl_inherit: bool,
    /// How it takes packets in.
    pub reception: Reception,
}

/// How a VXLAN device takes packets in, besides [`Vxlan::gbp`]. Devices on one UDP port share its socket, of each family
/// one, and only if they are alike in this (drivers/net/vxlan, `VXLAN_F_RCV_FLAGS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reception {
    /// `external`: of any VNI, which packets carry along for programs and routes.
    pub external: bool,
    /// `gpe`, `vnifilter`.
    pub extended: [bool; 2],
    /// `udp6zerocsumrx`, `remcsumrx`, `noremcsumpartial`.
    pub checksums: [bool; 3],
}

/// Creates the device down, with just the attributes upstream gives it: all others are the kernel's
/// defaults, which keeps the two interchangeable.
pub(crate) fn create(device: &VxlanDevice) -> Request {
    let mut data = vec![
        InfoVxlan::Id(device.vni),
        InfoVxlan::Link(device.underlay_ifindex),
        match device.local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        },
        InfoVxlan::Learning(device.learning),
        InfoVxlan::Port(device.port),
    ];
    if device.gbp {
        data.push(InfoVxlan::Gbp);
    }
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(device.name.clone()),
        LinkAttribute::Mtu(device.mtu),
        LinkAttribute::Address(device.mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ];
    Request { message: RouteNetlinkMessage::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// Switches learning of a VXLAN device on or off.
pub(crate) fn set_learning(index: u32, learning: bool) -> Request {
    let data = InfoData::Vxlan(vec![InfoVxlan::Learning(learning)]);
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes =
        vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(data)])];
    // RTM_SETLINK would ignore what is particular to the kind.
    Request { message: RouteNetlinkMessage::NewLink(message), flags: 0 }
}

/// The attributes of a device.
pub(super) fn read(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for item in data {
        match item {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Link(index) => vxlan.underlay_ifindex = Some(*index),
            InfoVxlan::Local(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Local6(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Group(address) => vxlan.foreign |= !address.is_unspecified(),
            InfoVxlan::Group6(address) => vxlan.foreign |= !address.is_unspecified(),
            InfoVxlan::L2Miss(true) => vxlan.foreign = true,
            InfoVxlan::CollectMetadata(true) => {
                vxlan.foreign = true;
                vxlan.reception.external = true;
            }
            InfoVxlan::Vnifilter(true) => vxlan.reception.extended[1] = true,
            InfoVxlan::UDPZeroCsumRX(true) => vxlan.reception.checksums[0] = true,
            InfoVxlan::RemCsumRX(true) => vxlan.reception.checksums[1] = true,
            InfoVxlan::RemCsumNoPartial => vxlan.reception.checksums[2] = true,
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::Gbp => vxlan.gbp = true,
            InfoVxlan::Tos(tos) => vxlan.tos = *tos,
            InfoVxlan::TtlInherit(inherit) => vxlan.ttl_inherit = *inherit != 0,
            InfoVxlan::Gpe => {
                vxlan.foreign = true;
                vxlan.reception.extended[0] = true;
            }
            _ => {}
        }
    }
    vxlan
}
