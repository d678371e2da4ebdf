//! What XDP decides, before or behind the making of packets: a filter for strangers, and an early pop.

use super::{Deliver, Tables, check_hold, ingress};
use crate::{
    layout::UnknownVtep,
    packet::{
        Arrival, Packet,
        headers::{
            ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_UDP, UDP_LEN, Udp, Vxlan,
        },
    },
    reason::Reason,
};

/// Bytes of an IPv4 header with the most options there can be, and a UDP and a VXLAN header behind it.
const LONGEST_IPV4: usize = 60;

/// Whether the packet is VXLAN for our device from an address that no lease names, and what it is then
/// counted for: [`Reason::VtepDropped`] if it is to be dropped.
///
/// This asks less than the fast path does, and no more than the kernel's device, which takes packets with IP
/// options, too: what is let pass here for its strangeness would reach the device. The later fragments of a packet have
/// no UDP header to look at; without the first one they come to nothing.
#[inline(always)]
pub fn stranger(packet: &(impl Packet + ?Sized), tables: &impl Tables) -> Option<Reason> {
    let ethernet = Ethernet::parse(packet.view(0)?);
    if ethernet.ethertype != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = Ipv4::parse(packet.view(ETHERNET_LEN)?);
    if ip.protocol != PROTOCOL_UDP || ip.version_ihl >> 4 != 4 {
        return None;
    }
    let config = tables.config()?;
    if config.unknown_vtep == UnknownVtep::Off || ip.destination != config.vtep || !ip.is_beginning() {
        return None;
    }
    let header_len = usize::from(ip.version_ihl & 0xf) * 4;
    if !(IPV4_LEN..=LONGEST_IPV4).contains(&header_len) {
        return None;
    }
    let at = ETHERNET_LEN + header_len;
    if u32::from(Udp::parse(packet.view(at)?).destination) != config.port {
        return None;
    }
    let vxlan = Vxlan::parse(packet.view(at + UDP_LEN)?);
    // Another network's packets may share the port.
    if vxlan.flags & Vxlan::of(0).flags == 0 || vxlan.vni >> 8 != config.vni {
        return None;
    }
    check_hold(tables).ok()?;
    if tables.vtep(ip.source).is_some() {
        return None;
    }
    Some(match config.unknown_vtep {
        UnknownVtep::Drop => Reason::VtepDropped,
        UnknownVtep::Off | UnknownVtep::Count => Reason::VtepSeen,
    })
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
