//! The tunnel's gate: a program encapsulates and decapsulates in the kernel's place only while the kernel itself does
//! the same.
//!
//! What a program redirects to the external interface skips what the host does to the kernel's own outer packet: rules
//! in OUTPUT and POSTROUTING, IPsec, routing by port or mark, route exceptions with their path MTU. What a program
//! decapsulates skips the same on the way in. So a packet of each peer takes the kernel's path now and then, and is
//! looked at where that path ends: [`note_leaving`] at tc egress on the external interface, [`note_delivered`] at tc
//! ingress on the VXLAN device. Only a packet that got there, and that the programs would have made and sent just the
//! same, opens the gate for its peer, for as long as acceptance holds at most:
//! [`Config::tcp_refresh`](crate::layout::Config::tcp_refresh).
//! [`note_error`] closes it at once.

use super::{Tables, ecn, flow::RENEW, flow::age, longest_match};
use crate::{
    layout::{FastPath, PeerKind, Tunnel},
    packet::{
        Arrival, Packet,
        headers::{
            ENCAP_LEN, ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_UDP, UDP_LEN, Udp,
            Vxlan,
        },
    },
    reason::{Direction, Reason},
};

/// Bytes that [`note_leaving`] reads: up to the end of the inner IPv4 header.
pub const LEAVING_READS: usize = INNER_IP + IPV4_LEN;
/// Bytes that [`note_error`] reads: up to the ports of the packet that an error is about.
pub const ERROR_READS: usize = ABOUT + IPV4_LEN + 4;

const MILLISECOND: u64 = 1_000_000;
const UDP: usize = ETHERNET_LEN + IPV4_LEN;
const INNER_IP: usize = ENCAP_LEN + ETHERNET_LEN;
const ICMP: usize = ETHERNET_LEN + IPV4_LEN;
/// The header of the packet that an ICMP error is about.
const ABOUT: usize = ICMP + 8;
/// Protocol number of ICMP (IANA).
const PROTOCOL_ICMP: u8 = 1;
/// ICMP type (RFC 792): the packet could not be delivered, "fragmentation needed" among the reasons.
const DESTINATION_UNREACHABLE: u8 = 3;

/// What is assumed of a tunnel that nobody has looked at: the MTU is that of the peer's route alone, the TTL the default
/// of `net.ipv4.ip_default_ttl` and `net.ipv6.conf.*.hop_limit`.
pub(super) const UNSEEN: Tunnel = Tunnel { egress: 0, ingress: 0, differs: 0, mtu: u32::MAX, ttl: 64 };

/// What to write down about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelNote<Address = [u8; 4]> {
    /// Public address of the peer.
    pub vtep: Address,
    /// What is known of it now.
    pub tunnel: Tunnel,
    /// What it is counted for.
    pub reason: Reason,
}

/// How the kernel's route, without rules for ports and marks, would send an outer packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderlayRoute {
    /// The MACs of the frame.
    pub stations: Ethernet,
    /// Largest IP packet the route carries, bytes, path MTU included.
    pub mtu: u32,
}

/// What is known of a tunnel, if a packet that travels `way` at the time `now` may be encapsulated or decapsulated in
/// the kernel's place.
///
/// # Errors
/// The kernel has not done so for as long as `refresh` says, ms.
///
/// With fast path `all` nothing else is asked than whether an error about the tunnel has come: there, connection tracking
/// has not seen the packets of a flow, and would take one on the kernel's path for none of any connection.
#[inline(always)]
pub(super) fn check(
    tunnel: Option<Tunnel>,
    way: Direction,
    fast_path: FastPath,
    refresh: u32,
    now: u64,
) -> Result<Tunnel, Reason> {
    if matches!(fast_path, FastPath::All) {
        return match tunnel {
            Some(tunnel) if tunnel.egress != 0 => Ok(tunnel),
            Some(tunnel) if matches!(way, Direction::Egress) && tunnel.differs != 0 => {
                Err(Reason::TunnelStale)
            }
            _ => Ok(UNSEEN),
        };
    }
    let tunnel = tunnel.ok_or(Reason::TunnelStale)?;
    let stamp = match way {
        Direction::Egress => tunnel.egress,
        Direction::Ingress => tunnel.ingress,
    };
    if age(now, stamp) >= refresh as u64 * MILLISECOND {
        return Err(Reason::TunnelStale);
    }
    Ok(tunnel)
}

/// Whether a packet tells something new about a tunnel that was last looked at `stamp`: rarely enough to cost nothing.
#[inline(always)]
pub(super) fn is_news(stamp: u64, refresh: u32, now: u64) -> bool {
    let half = refresh as u64 * MILLISECOND / 2;
    age(now, stamp) >= if half < RENEW { half } else { RENEW }
}

/// What to write down about `vtep`, of which `known` was known: a packet of the kernel's has left for it with `ttl`, and
/// `mtu` is that of the route if it is the one the programs would have sent.
#[inline(always)]
pub(super) const fn left<Address>(
    vtep: Address,
    known: Tunnel,
    now: u64,
    ttl: u8,
    mtu: Option<u32>,
) -> TunnelNote<Address> {
    match mtu {
        Some(mtu) => TunnelNote {
            vtep,
            tunnel: Tunnel { egress: now, mtu, ttl: ttl as u32, ..known },
            reason: Reason::TunnelSeen,
        },
        None => TunnelNote {
            vtep,
            tunnel: Tunnel { egress: 0, differs: now, ..known },
            reason: Reason::TunnelDiffers,
        },
    }
}

/// Whether a packet at tc egress on the external interface is one that [`note_leaving`] may have something to say
/// about: an IPv4 UDP packet of our VXLAN device. Less is read for it.
#[inline(always)]
pub fn is_outer(packet: &(impl Packet + ?Sized), tables: &impl Tables) -> Option<bool> {
    if Ethernet::parse(packet.view(0)?).ethertype != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = Ipv4::parse(packet.view(ETHERNET_LEN)?);
    if ip.protocol != PROTOCOL_UDP || ip.version_ihl != 0x45 || ip.is_fragment() {
        return None;
    }
    let config = tables.config()?;
    let udp = Udp::parse(packet.view(UDP)?);
    Some(ip.source == config.vtep && u32::from(udp.destination) == config.port)
}

/// What to write down about a packet for which [`is_outer`] holds, which no program has redirected. `route` says how
/// the kernel sends what is for an address; `then` gets what there is.
#[inline(always)]
pub fn note_leaving<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    route: impl FnOnce([u8; 4]) -> Option<UnderlayRoute>,
    then: impl FnOnce(TunnelNote) -> R,
) -> Option<R> {
    let config = tables.config()?;
    let outer = Ethernet::parse(packet.view(0)?);
    let outer_ip = Ipv4::parse(packet.view(ETHERNET_LEN)?);
    let vxlan = Vxlan::parse(packet.view(UDP + UDP_LEN)?);
    if vxlan != Vxlan::of(config.vni) {
        return None;
    }
    let inner = Ethernet::parse(packet.view(ENCAP_LEN)?);
    if inner.ethertype != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = Ipv4::parse(packet.view(INNER_IP)?);
    let peer = longest_match(tables, &config, ip.destination)?;
    if peer.kind != PeerKind::Vxlan || peer.vtep != outer_ip.destination {
        return None;
    }
    let now = tables.now();
    let known = tables.tunnel_v4(peer.vtep).unwrap_or_default();
    if !is_news(known.egress, config.tcp_refresh, now) || !is_news(known.differs, config.tcp_refresh, now) {
        return None;
    }
    // Field for field what `Encap::headers` writes, and redirect_neigh after it. The TTL is taken over from here.
    let is_same = outer_ip.tos == ecn::encapsulate(ip.tos)
        && outer_ip.fragment == 0
        && arrival.ifindex == peer.ifindex
        && inner.same_stations(&Ethernet::new(peer.vtep_mac, peer.local_mac, ETHERTYPE_IPV4));
    let route = if is_same { route(peer.vtep) } else { None };
    let mtu = route.filter(|route| route.stations.same_stations(&outer)).map(|route| route.mtu);
    Some(then(left(peer.vtep, known, now, outer_ip.ttl, mtu)))
}

/// What to write down about a packet that the VXLAN device has decapsulated and [`super::ingress::from_underlay`] has
/// checked with its outer headers: its peer's packets are delivered. `then` gets what there is.
#[inline(always)]
pub fn note_delivered<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    then: impl FnOnce(TunnelNote) -> R,
) -> Option<R> {
    let config = tables.config()?;
    if Ethernet::parse(packet.view(0)?).ethertype != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = Ipv4::parse(packet.view(ETHERNET_LEN)?);
    // A node that speaks for itself does so by its public address.
    let vtep = longest_match(tables, &config, ip.source).map_or(ip.source, |peer| peer.vtep);
    tables.vtep(vtep)?;
    let now = tables.now();
    let known = tables.tunnel_v4(vtep).unwrap_or_default();
    if !is_news(known.ingress, config.tcp_refresh, now) {
        return None;
    }
    let tunnel = Tunnel { ingress: now, ..known };
    Some(then(TunnelNote { vtep, tunnel, reason: Reason::TunnelSeen }))
}

/// What to write down about a packet at tc ingress on the external interface that is not VXLAN: if it is an ICMP error
/// about our own, such as "fragmentation needed", what was known of the way to that peer is known no more. `then` gets
/// what there is.
///
/// Whoever can send such errors to this node can keep a peer's packets on the kernel's path, no more.
#[inline(always)]
pub fn note_error<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    then: impl FnOnce(TunnelNote) -> R,
) -> Option<R> {
    let config = tables.config()?;
    let ip = Ipv4::parse(packet.view(ETHERNET_LEN)?);
    if ip.protocol != PROTOCOL_ICMP || ip.version_ihl != 0x45 || ip.destination != config.vtep {
        return None;
    }
    let [kind] = *packet.view(ICMP)?;
    if kind != DESTINATION_UNREACHABLE {
        return None;
    }
    let about = Ipv4::parse(packet.view(ABOUT)?);
    if about.protocol != PROTOCOL_UDP || about.version_ihl != 0x45 || about.source != config.vtep {
        return None;
    }
    let [_, _, high, low] = *packet.view(ABOUT + IPV4_LEN)?;
    if u32::from(u16::from_be_bytes([high, low])) != config.port {
        return None;
    }
    closed(about.destination, tables.tunnel_v4(about.destination).unwrap_or(UNSEEN), tables.now()).map(then)
}

/// What to write down about `vtep`, of which `known` was known, when an error about it comes at the time `now`.
#[inline(always)]
pub(super) fn closed<Address>(vtep: Address, known: Tunnel, now: u64) -> Option<TunnelNote<Address>> {
    if known.egress == 0 && known.differs != 0 {
        return None;
    }
    let tunnel = Tunnel { egress: 0, differs: now, ..known };
    Some(TunnelNote { vtep, tunnel, reason: Reason::TunnelClosed })
}
