//! VXLAN of our own network that a pod makes.
//!
//! Masqueraded it carries its node's address, and the other node would take it for the tunnel's: a pod could send as any
//! other pod, past every network policy. Nothing but a node has a use for it, so it ends here, be it for another node, for
//! one of this node's own addresses, or, out of the tunnel, for one that only this node knows. VXLAN of other networks,
//! on other ports, or between pods goes its way.

use super::{
    Tables, TcPacket,
    tables::check_hold,
    vxlan::{self, At, ip_header, takes},
};
use crate::{
    family::{Family, IpHeader as _, V4, V6},
    packet::{
        Arrival, Fib, Packet,
        headers::{ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP, Udp},
        ipv6::{ETHERTYPE_IPV6, IPV6_LEN, Ipv6, PROTOCOL_ICMPV6},
    },
};

/// Whether a packet of a pod is VXLAN that no pod may send.
#[inline(always)]
pub(super) fn is_forged(packet: impl TcPacket, tables: &(impl Tables<V4> + Tables<V6>)) -> bool {
    if is_out_of_question(&packet, tables) {
        return false;
    }
    packet.make_readable(vxlan::READS);
    is_for_a_node(&packet, tables, &packet.arrival())
}

/// Whether the packet cannot be VXLAN of our port, by as much of it as every decision reads: most are told apart here.
#[inline(always)]
fn is_out_of_question(packet: &(impl Packet + ?Sized), tables: &(impl Tables<V4> + Tables<V6>)) -> bool {
    let Some(ethernet) = packet.view(0).map(Ethernet::parse) else { return false };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => {
            let Some(ip) = packet.view(ETHERNET_LEN).map(Ipv4::parse) else { return false };
            let is_ours = || {
                ip.version_ihl != 0x45
                    || Tables::<V4>::config(tables).is_some_and(|config| is_to(packet, IPV4_LEN, config.port))
            };
            ip.protocol != PROTOCOL_UDP || !is_ours()
        }
        ETHERTYPE_IPV6 => {
            let Some(ip) = packet.view(ETHERNET_LEN).map(Ipv6::parse) else { return false };
            match ip.next_header {
                PROTOCOL_TCP | PROTOCOL_ICMPV6 => true,
                PROTOCOL_UDP => {
                    !Tables::<V6>::config(tables).is_some_and(|config| is_to(packet, IPV6_LEN, config.port))
                }
                _ => false,
            }
        }
        _ => false,
    }
}

/// Whether the UDP header behind an IP header of `ip_len` bytes is, or may be, to `port`.
#[inline(always)]
fn is_to(packet: &(impl Packet + ?Sized), ip_len: usize, port: u32) -> bool {
    match packet.view(ETHERNET_LEN + ip_len).map(Udp::parse) {
        Some(udp) => u32::from(udp.destination) == port,
        None => true,
    }
}

/// Whether a packet from a pod, of this node or of another, is VXLAN of our network for a node.
#[inline(always)]
fn is_for_a_node(
    packet: &(impl Packet + ?Sized),
    tables: &(impl Tables<V4> + Tables<V6>),
    arrival: &Arrival,
) -> bool {
    let found = match ip_header(packet) {
        Some(At::V4(at)) => over::<V4>(packet, at, tables, arrival),
        Some(At::V6(at)) => over::<V6>(packet, at, tables, arrival),
        None => None,
    };
    found.is_some()
}

#[inline(always)]
fn over<F: Family>(
    packet: &(impl Packet + ?Sized),
    at: usize,
    tables: &impl Tables<F>,
    arrival: &Arrival,
) -> Option<()> {
    let config = tables.config().filter(|config| config.port != 0)?;
    let ip = takes(packet, &config, at)?;
    check_hold(tables).ok()?;
    let is_node = ip.destination() == config.vtep
        || tables.vtep(ip.destination()).is_some()
        || F::fib(packet, arrival.ifindex, ip.source(), ip.destination()) == Fib::Local;
    if is_node { Some(()) } else { None }
}
