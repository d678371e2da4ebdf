//! Whether a packet is VXLAN for our device, judged by no more than the kernel's device asks for: it takes packets with
//! IP options, extension headers and in fragments, at any address of the node.
//!
//! What hides its UDP or VXLAN header is taken for one: a first fragment that ends before them, headers further in
//! than a program can look, more extension headers than anybody puts. The later fragments of a packet have no UDP
//! header to look at; without the first one they come to nothing.

use crate::packet::{
    Packet,
    headers::{
        ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_UDP, UDP_LEN, Udp, VXLAN_LEN, Vxlan,
    },
    ipv6::{ETHERTYPE_IPV6, IPV6_LEN, Ipv6, NEXT_HEADER_FRAGMENT},
};

/// Bytes of an IPv4 header with the most options there can be.
const LONGEST_IPV4: usize = 60;
/// Extension headers of IPv6 that are looked behind: the kernel takes any number, and no sender of VXLAN puts one.
const EXTENSIONS: usize = 6;
/// VLAN tags that are looked behind: a tag of VLAN 0 is none to the kernel.
const TAGS: usize = 2;
const TAG_LEN: usize = 4;
/// EtherTypes of VLAN tags (IEEE 802.1Q, 802.1ad).
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// Bytes that have to be readable for a judgement, as far as the packet has them; what hides its headers behind them is
/// taken for VXLAN.
pub const READS: usize = 256;

/// Which packets are for our device.
#[derive(Clone, Copy)]
pub(super) struct Device {
    /// UDP port, host order.
    pub(super) port: u32,
    /// VXLAN network identifier.
    pub(super) vni: u32,
}

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

impl Device {
    /// The IPv4 header at `at` of a packet for the device.
    #[inline(always)]
    pub(super) fn takes_v4(&self, packet: &(impl Packet + ?Sized), at: usize) -> Option<Ipv4> {
        let ip = Ipv4::parse(packet.view(at)?);
        if ip.protocol != PROTOCOL_UDP || ip.version_ihl >> 4 != 4 || !ip.is_beginning() {
            return None;
        }
        let header_len = usize::from(ip.version_ihl & 0xf) * 4;
        if !(IPV4_LEN..=LONGEST_IPV4).contains(&header_len) {
            return None;
        }
        // What stands behind the packet's own length, as in a short frame's padding, the kernel cuts off.
        let end = at + usize::from(ip.total_len);
        if self.takes(packet, at + header_len, end, !ip.is_fragment()) { Some(ip) } else { None }
    }

    /// The IPv6 header at `at` of a packet for the device.
    #[inline(always)]
    pub(super) fn takes_v6(&self, packet: &(impl Packet + ?Sized), at: usize) -> Option<Ipv6> {
        let ip = Ipv6::parse(packet.view(at)?);
        if !ip.is_version_6() {
            return None;
        }
        let end = match ip.payload_len {
            // A jumbogram says its length elsewhere.
            0 => packet.len() as usize,
            payload => at + IPV6_LEN + usize::from(payload),
        };
        let taken = match behind_extensions(packet, at + IPV6_LEN, end, ip.next_header) {
            Chain::Udp { at, whole } => self.takes(packet, at, end, whole),
            Chain::Hidden => true,
            Chain::Other => false,
        };
        if taken { Some(ip) } else { None }
    }

    /// Whether the UDP header at `udp`, of a packet that ends at `end` and may be the first fragment of a larger one,
    /// is of VXLAN for the device. Another network's packets may share the port.
    #[inline(always)]
    fn takes(&self, packet: &(impl Packet + ?Sized), udp: usize, end: usize, whole: bool) -> bool {
        let Some(header) = packet.view(udp) else { return is_hidden(packet, udp + UDP_LEN, end) };
        if u32::from(Udp::parse(header).destination) != self.port || udp + UDP_LEN > end {
            return false;
        }
        let vxlan = udp + UDP_LEN;
        if vxlan + VXLAN_LEN > end {
            return !whole;
        }
        let Some(header) = packet.view(vxlan) else { return is_hidden(packet, vxlan + VXLAN_LEN, end) };
        let vxlan = Vxlan::parse(header);
        vxlan.flags & Vxlan::of(0).flags != 0 && vxlan.vni >> 8 == self.vni
    }
}

/// Whether a packet that ends at `end` has its bytes up to `to`, though they cannot be read.
#[inline(always)]
fn is_hidden(packet: &(impl Packet + ?Sized), to: usize, end: usize) -> bool {
    to <= end && to <= packet.len() as usize
}

/// What follows an IPv6 header.
enum Chain {
    /// UDP, at this offset, of a whole packet or a first fragment.
    Udp { at: usize, whole: bool },
    /// Something else, or a later fragment.
    Other,
    /// It cannot be told.
    Hidden,
}

/// Looks behind the extension headers that the kernel takes without being told to (net/ipv6/exthdrs.c), the first of
/// which is `next` and stands at `at`, in a packet that ends at `end`.
#[inline(always)]
fn behind_extensions(packet: &(impl Packet + ?Sized), mut at: usize, end: usize, mut next: u8) -> Chain {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    let mut whole = true;
    for _ in 0..EXTENSIONS {
        if next == PROTOCOL_UDP {
            return Chain::Udp { at, whole };
        }
        if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION | NEXT_HEADER_FRAGMENT) {
            return Chain::Other;
        }
        let Some(&[following, len, offset, more]) = packet.view::<4>(at) else {
            return if is_hidden(packet, at + 4, end) { Chain::Hidden } else { Chain::Other };
        };
        at += if next == NEXT_HEADER_FRAGMENT {
            if u16::from_be_bytes([offset, more]) >> 3 != 0 {
                return Chain::Other;
            }
            whole = more & 1 == 0;
            8
        } else {
            // In words of eight bytes, without the first.
            8 + usize::from(len) * 8
        };
        next = following;
    }
    match next {
        PROTOCOL_UDP => Chain::Udp { at, whole },
        HOP_BY_HOP | ROUTING | DESTINATION | NEXT_HEADER_FRAGMENT => Chain::Hidden,
        _ => Chain::Other,
    }
}
