//! What packets towards other nodes have in common, from a pod or by the kernel path.

use super::{Carrier, Encap, Tables, tables::Clock, tunnel};
use crate::{
    family::{Family, IpHeader as _},
    layout::{Config, Route, Tunnel},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, PROTOCOL_TCP, PROTOCOL_UDP, TCP_TO_FLAGS, UDP_LEN},
    },
    reason::{Direction, Reason},
};

/// Bytes that decisions about packets without outer headers read: the frame up to the TCP flags.
#[inline(always)]
pub(super) const fn reads<F: Family>() -> usize {
    ETHERNET_LEN + F::IP_LEN + TCP_TO_FLAGS
}

/// The Ethernet and IP headers of a packet simple enough for the fast path.
///
/// # Errors
/// Why it is not.
#[inline(always)]
pub(super) fn inner_headers<F: Family>(
    packet: &(impl Packet + ?Sized),
    arrival: &Arrival,
) -> Result<(Ethernet, F::Header), Reason> {
    let ethernet = Ethernet::parse(packet.view(0).ok_or(Reason::Truncated)?);
    if arrival.vlan_tagged {
        return Err(Reason::Vlan);
    }
    if ethernet.ethertype != F::ETHERTYPE {
        return Err(Reason::NotIp);
    }
    if !ethernet.is_unicast() {
        return Err(Reason::NotUnicast);
    }
    let ip = F::Header::read(packet, ETHERNET_LEN).ok_or(Reason::Truncated)?;
    ip.check()?;
    if packet.len() != ETHERNET_LEN as u32 + ip.packet_len() {
        return Err(Reason::Length);
    }
    Ok((ethernet, ip))
}

/// The kernel's own path to the node of `route` at this time, if the packet fits it.
///
/// # Errors
/// It does not, or that path is not through the tunnel, or has not been seen lately.
#[inline(always)]
pub(super) fn tunnel_to<F: Family>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    config: &Config<F>,
    ip: &F::Header,
    route: &Route<F>,
    clock: Clock,
) -> Result<Tunnel, Reason> {
    if route.kind != tables.carrier().route_kind() {
        return Err(Reason::PeerOnKernel);
    }
    let known = tables.tunnel(route.vtep);
    let tunnel = tunnel::check(known, Direction::Egress, config.fast_path, config.tcp_refresh, clock)?;
    let mtu = if tunnel.mtu < route.mtu { tunnel.mtu } else { route.mtu };
    let len = u64::from(segment_len::<F>(packet, ETHERNET_LEN, arrival, ip)?)
        + tables.carrier().overhead::<F>() as u64;
    if len > u64::from(mtu) {
        return Err(Reason::TooBig);
    }
    Ok(tunnel)
}

/// The encapsulation by `carrier` of a packet that fits its tunnel.
///
/// # Errors
/// The kernel has to make it.
#[inline(always)]
pub(super) fn encap<F: Family>(
    packet: &(impl Packet + ?Sized),
    carrier: Carrier,
    config: &Config<F>,
    ip: &F::Header,
    (route, tunnel): (Route<F>, Tunnel),
    forward: Option<F::Forward>,
) -> Result<Encap<F>, Reason> {
    F::check_inner(packet, ip)?;
    // A packet whose outer length overflows 16 bits is the kernel's to cut.
    let frame_len = packet.len();
    if frame_len + (F::ENCAP_LEN - ETHERNET_LEN - F::UNCOUNTED) as u32 > u32::from(u16::MAX) {
        return Err(Reason::TooBig);
    }
    Ok(Encap {
        route,
        source: config.vtep,
        port: config.port as u16,
        source_ports: (config.source_port_min, config.source_port_max),
        hops: match carrier {
            Carrier::Vxlan | Carrier::Udp => tunnel.ttl as u8,
            Carrier::Ipip => ip.hops().wrapping_sub(forward.is_some() as u8),
        },
        inner: *ip,
        frame_len: frame_len as u16,
        forward,
    })
}

/// Length of one segment as an IP packet, bytes. The header `ip` stands at `offset`.
///
/// # Errors
/// The packet ends before that can be told, or is an aggregate of a kind we do not know.
#[inline(always)]
pub(super) fn segment_len<F: Family>(
    packet: &(impl Packet + ?Sized),
    offset: usize,
    arrival: &Arrival,
    ip: &F::Header,
) -> Result<u32, Reason> {
    if arrival.gso_size == 0 {
        return Ok(ip.packet_len());
    }
    let transport_len = match ip.protocol() {
        PROTOCOL_UDP => UDP_LEN as u32,
        PROTOCOL_TCP => {
            let [words] = *packet.view(offset + F::IP_LEN + 12).ok_or(Reason::Truncated)?;
            u32::from(words >> 4) * 4
        }
        _ => return Err(Reason::TooBig),
    };
    // Any segment size that an arrival may name.
    Ok((F::IP_LEN as u32 + transport_len).saturating_add(arrival.gso_size))
}
