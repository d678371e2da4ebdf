//! What carries packets between nodes.

use super::tables::NodeTables;
use crate::{
    family::{Family, IpHeader as _},
    layout::RouteKind,
    packet::headers::{ETHERNET_LEN, PROTOCOL_IPIP, PROTOCOL_UDP, UDP_LEN},
};

/// What a packet is put into on its way to another node. It is a constant of the loaded programs: the verifier walks the
/// code of one of them only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// A frame, in VXLAN.
    #[default]
    Vxlan,
    /// The packet as it is, in UDP, as the udp backend has it. IPv4 only. Its device is one of IP, without Ethernet.
    Udp,
    /// The packet as it is, behind another IPv4 header (RFC 2003), as the ipip backend has it. IPv4 only. Its device is one
    /// of IP, too.
    Ipip,
}

impl Carrier {
    /// As the programs' constant has it.
    pub const fn number(self) -> u32 {
        match self {
            Self::Vxlan => 0,
            Self::Udp => 1,
            Self::Ipip => 2,
        }
    }

    /// What the programs' constant says.
    #[inline(always)]
    pub const fn of_number(number: u32) -> Self {
        if number == Self::Udp.number() {
            Self::Udp
        } else if number == Self::Ipip.number() {
            Self::Ipip
        } else {
            Self::Vxlan
        }
    }

    /// What the outer IP header says that it carries.
    #[inline(always)]
    pub(super) const fn protocol(self) -> u8 {
        match self {
            Self::Vxlan | Self::Udp => PROTOCOL_UDP,
            Self::Ipip => PROTOCOL_IPIP,
        }
    }

    /// Bytes between the outer MACs and the inner IP header, which is also how much longer an outer packet is than the inner
    /// one.
    #[inline(always)]
    pub const fn overhead<F: Family>(self) -> usize {
        match self {
            Self::Vxlan => F::ENCAP_LEN,
            Self::Udp => F::IP_LEN + UDP_LEN,
            Self::Ipip => F::IP_LEN,
        }
    }

    /// Where the inner IP header stands in an outer frame.
    #[inline(always)]
    pub(super) const fn inner_ip<F: Family>(self) -> usize {
        ETHERNET_LEN + self.overhead::<F>()
    }

    /// Where the IP header stands in what goes through the tunnel's device.
    #[inline(always)]
    pub(super) const fn on_device(self) -> usize {
        match self {
            Self::Vxlan => ETHERNET_LEN,
            Self::Udp | Self::Ipip => 0,
        }
    }

    /// The kind of routes by it.
    #[inline(always)]
    pub const fn route_kind(self) -> RouteKind {
        match self {
            Self::Vxlan => RouteKind::Vxlan,
            Self::Udp => RouteKind::Udp,
            Self::Ipip => RouteKind::Ipip,
        }
    }

    /// Whether a packet with the header `ip` gets through an end of the tunnel and a node's routing.
    #[inline(always)]
    pub(super) fn has_hops<F: Family>(self, ip: &F::Header) -> bool {
        match self {
            Self::Vxlan | Self::Ipip => ip.hops() > 1,
            Self::Udp => ip.hops() > 2,
        }
    }

    /// The header `ip` as the end of the tunnel leaves it: that of UDP counts the hops down.
    #[inline(always)]
    pub(super) fn past_end<F: Family>(self, ip: F::Header) -> F::Header {
        match self {
            Self::Vxlan | Self::Ipip => ip,
            Self::Udp => ip.one_hop_less(),
        }
    }
}

/// Whether it is UDP, for those who want no more.
#[inline(always)]
pub(super) fn is_udp(tables: &impl NodeTables) -> bool {
    matches!(tables.carrier(), Carrier::Udp)
}

/// The same of IP in IP.
#[inline(always)]
pub(super) fn is_ipip(tables: &impl NodeTables) -> bool {
    matches!(tables.carrier(), Carrier::Ipip)
}

/// The same of VXLAN.
#[inline(always)]
pub(super) fn is_vxlan(tables: &impl NodeTables) -> bool {
    matches!(tables.carrier(), Carrier::Vxlan)
}

/// What carries packets where that is over UDP: all but IP in IP.
#[inline(always)]
pub(super) fn over_udp(tables: &impl NodeTables) -> Carrier {
    if is_udp(tables) { Carrier::Udp } else { Carrier::Vxlan }
}
