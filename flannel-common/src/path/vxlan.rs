//! Whether a packet is VXLAN for our device, judged by no more than the kernel's device asks for: it takes packets with
//! IP options, extension headers and in fragments, at any address of the node.
//!
//! What hides its UDP or VXLAN header is taken for one: a first fragment that ends before them, headers further in
//! than a program can look, more extension headers than anybody puts. The later fragments of a packet have no UDP
//! header to look at; without the first one they come to nothing.

use crate::{
    family::{Family, IpHeader as _, Payload},
    layout::Config,
    packet::{
        Packet,
        headers::{ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, UDP_LEN, Udp, VXLAN_LEN, Vxlan},
        ipv6::ETHERTYPE_IPV6,
    },
};

/// VLAN tags that are looked behind: a tag of VLAN 0 is none to the kernel.
const TAGS: usize = 2;
const TAG_LEN: usize = 4;
/// EtherTypes of VLAN tags (IEEE 802.1Q, 802.1ad).
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// Bytes that have to be readable for a judgement, as far as the packet has them; what hides its headers behind them is
/// taken for VXLAN.
pub(super) const READS: usize = 256;

/// The IP header in a frame.
pub(super) enum At {
    /// IPv4, at this offset.
    V4(usize),
    /// IPv6.
    V6(usize),
}

/// Where the IP header stands, behind VLAN tags if there are some.
#[inline(always)]
pub(super) fn ip_header(packet: &(impl Packet + ?Sized)) -> Option<At> {
    let mut ethertype = Ethernet::parse(packet.view(0)?).ethertype;
    let mut at = ETHERNET_LEN;
    for _ in 0..TAGS {
        if !matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) {
            break;
        }
        let &[_, _, high, low] = packet.view(at)?;
        ethertype = u16::from_be_bytes([high, low]);
        at += TAG_LEN;
    }
    match ethertype {
        ETHERTYPE_IPV4 => Some(At::V4(at)),
        ETHERTYPE_IPV6 => Some(At::V6(at)),
        _ => None,
    }
}

/// The IP header at `at` of a packet for the device of `config`, and of no other on the same port.
#[inline(always)]
pub(super) fn takes<F: Family>(
    packet: &(impl Packet + ?Sized),
    config: &Config<F>,
    at: usize,
) -> Option<F::Header> {
    let ip = F::Header::read(packet, at)?;
    let end = F::end(packet, at, &ip);
    let taken = match F::payload(packet, at, end, &ip) {
        Payload::Udp { at, whole } => takes_udp(packet, config, at, end, whole),
        Payload::Hidden => true,
        Payload::Other => false,
    };
    if taken { Some(ip) } else { None }
}

/// Whether the UDP header at `udp`, of a packet that ends at `end` and may be the first fragment of a larger one,
/// is of VXLAN for the device. Another network's packets may share the port.
#[inline(always)]
fn takes_udp<F: Family>(
    packet: &(impl Packet + ?Sized),
    config: &Config<F>,
    udp: usize,
    end: usize,
    whole: bool,
) -> bool {
    let Some(header) = packet.view(udp) else { return is_hidden(packet, udp + UDP_LEN, end) };
    if u32::from(Udp::parse(header).destination) != config.port || udp + UDP_LEN > end {
        return false;
    }
    let vxlan = udp + UDP_LEN;
    if vxlan + VXLAN_LEN > end {
        return !whole;
    }
    let Some(header) = packet.view(vxlan) else { return is_hidden(packet, vxlan + VXLAN_LEN, end) };
    let vxlan = Vxlan::parse(header);
    vxlan.flags & Vxlan::of(0).flags != 0 && vxlan.vni >> 8 == config.vni
}

/// Whether a packet that ends at `end` has its bytes up to `to`, though they cannot be read.
#[inline(always)]
pub(crate) fn is_hidden(packet: &(impl Packet + ?Sized), to: usize, end: usize) -> bool {
    to <= end && to <= packet.len() as usize
}
