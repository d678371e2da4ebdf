//! What XDP decides, before or behind the making of packets: a filter for strangers, and an early pop.

use super::{Deliver, Tables, check_hold, ingress};
use crate::{
    layout::UnknownVtep,
    packet::{
        Arrival, Packet,
        headers::{
            ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_UDP, UDP_LEN, Udp, Vxlan,
        },
        ipv6::{ETHERTYPE_IPV6, IPV6_LEN, Ipv6, NEXT_HEADER_FRAGMENT},
    },
    reason::Reason,
};

/// Bytes of an IPv4 header with the most options there can be, and a UDP and a VXLAN header behind it.
const LONGEST_IPV4: usize = 60;

/// Extension headers of IPv6 that are looked behind: the kernel takes any number, and no sender of VXLAN puts one.
const EXTENSIONS: usize = 6;

/// Whether the packet is VXLAN for our device from an address that no lease names, and what it is then
/// counted for: [`Reason::VtepDropped`] if it is to be dropped.
///
/// This asks less than the fast path does, and no more than the kernel's device, which takes packets with IP
/// options, too: what is let pass here for its strangeness would reach the device. The later fragments of a packet have
/// no UDP header to look at; without the first one they come to nothing.
#[inline(always)]
pub fn stranger(packet: &(impl Packet + ?Sized), tables: &impl Tables) -> Option<Reason> {
    match Ethernet::parse(packet.view(0)?).ethertype {
        ETHERTYPE_IPV4 => over_ipv4(packet, tables),
        ETHERTYPE_IPV6 => over_ipv6(packet, tables),
        _ => None,
    }
}

#[inline(always)]
fn over_ipv4(packet: &(impl Packet + ?Sized), tables: &impl Tables) -> Option<Reason> {
    let ip = Ipv4::parse(packet.view(ETHERNET_LEN)?);
    if ip.protocol != PROTOCOL_UDP || ip.version_ihl >> 4 != 4 {
        return None;
    }
    let config = tables.config()?;
    let reason = counted_for(config.unknown_vtep)?;
    if ip.destination != config.vtep || !ip.is_beginning() {
        return None;
    }
    let header_len = usize::from(ip.version_ihl & 0xf) * 4;
    if !(IPV4_LEN..=LONGEST_IPV4).contains(&header_len) {
        return None;
    }
    check_vxlan(packet, ETHERNET_LEN + header_len, config.port, config.vni)?;
    check_hold(tables).ok()?;
    if tables.vtep(ip.source).is_none() { Some(reason) } else { None }
}

#[inline(always)]
fn over_ipv6(packet: &(impl Packet + ?Sized), tables: &impl Tables) -> Option<Reason> {
    let config = tables.config_v6()?;
    let reason = counted_for(config.unknown_vtep)?;
    let ip = Ipv6::parse(packet.view(ETHERNET_LEN)?);
    if !ip.is_version_6() || ip.destination != config.vtep {
        return None;
    }
    let udp = behind_extensions(packet, ip.next_header)?;
    check_vxlan(packet, udp, config.port, config.vni)?;
    check_hold(tables).ok()?;
    if tables.vtep_v6(ip.source).is_none() { Some(reason) } else { None }
}

/// Offset of the UDP header behind the extension headers that the kernel takes without being told to
/// (net/ipv6/exthdrs.c), the first of which is `next`.
#[inline(always)]
fn behind_extensions(packet: &(impl Packet + ?Sized), mut next: u8) -> Option<usize> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    let mut at = ETHERNET_LEN + IPV6_LEN;
    for _ in 0..EXTENSIONS {
        let &[following, len, offset, more] = match next {
            PROTOCOL_UDP => return Some(at),
            HOP_BY_HOP | ROUTING | DESTINATION | NEXT_HEADER_FRAGMENT => packet.view::<4>(at)?,
            _ => return None,
        };
        at += match next {
            NEXT_HEADER_FRAGMENT if u16::from_be_bytes([offset, more]) >> 3 != 0 => return None,
            NEXT_HEADER_FRAGMENT => 8,
            // In words of eight bytes, without the first.
            _ => 8 + usize::from(len) * 8,
        };
        next = following;
    }
    if next == PROTOCOL_UDP { Some(at) } else { None }
}

/// Whether the UDP header at `udp` is of VXLAN for our device. Another network's packets may share the port.
#[inline(always)]
fn check_vxlan(packet: &(impl Packet + ?Sized), udp: usize, port: u32, vni: u32) -> Option<()> {
    if u32::from(Udp::parse(packet.view(udp)?).destination) != port {
        return None;
    }
    let vxlan = Vxlan::parse(packet.view(udp + UDP_LEN)?);
    if vxlan.flags & Vxlan::of(0).flags == 0 || vxlan.vni >> 8 != vni { None } else { Some(()) }
}

/// What a stranger's packet is counted for; `None` where nobody asks.
#[inline(always)]
const fn counted_for(unknown_vtep: UnknownVtep) -> Option<Reason> {
    match unknown_vtep {
        UnknownVtep::Off => None,
        UnknownVtep::Count => Some(Reason::VtepSeen),
        UnknownVtep::Drop => Some(Reason::VtepDropped),
    }
}
/// XDP in the driver of the external interface: a packet that `from_underlay` would pop and hand to a pod can
/// be popped here, before the kernel merges packets. What follows, `then` says.
///
/// # Errors
/// Why it goes on as it is.
#[inline(always)]
pub fn pop<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Deliver, Reason) -> R,
) -> Result<R, Reason> {
    // What comes without a tunnel has nothing to be popped.
    let pop = |deliver, _| Some(then(deliver, Reason::PoppedEarly));
    ingress::from_underlay(packet, tables, arrival, pop, |_, _| None)?.ok_or(Reason::NotVxlan)
}
