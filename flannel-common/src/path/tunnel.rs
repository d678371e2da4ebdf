//! The tunnel's gate: a program encapsulates and decapsulates in the kernel's place only while the kernel itself does
//! the same.
//!
//! What a program redirects to the external interface skips what the host does to the kernel's own outer packet: rules
//! in OUTPUT and POSTROUTING, IPsec, routing by port or mark, route exceptions with their path MTU. What a program
//! decapsulates skips the same on the way in. So a packet for each node takes the kernel path now and then, and is
//! looked at where that path ends: [`note_leaving`] at tc egress on the external interface, [`note_delivered`] at tc
//! ingress on the VXLAN device. Only a packet that got there, and that the programs would have made and sent just the
//! same, opens the gate for its node, for as long as acceptance holds at most:
//! [`Config::tcp_refresh`](crate::layout::Config::tcp_refresh).
//! [`note_error`] closes it at once.

use super::{
    Act, Carrier, Tables,
    acceptance::RENEW,
    carrier::is_udp,
    host_mark,
    tables::{Clock, longest_match},
};
use crate::{
    family::{Family, IpHeader as _},
    layout::{Config, FastPath, RouteKind, Tunnel},
    packet::{
        Packet,
        headers::{ETHERNET_LEN, Ethernet, TCP_TO_FLAGS, UDP_LEN, Udp, Vxlan},
    },
    reason::{Direction, Reason},
};

/// Bytes that [`note_leaving`] reads: up to the end of the inner IP header.
pub(super) const fn leaving_reads<F: Family>() -> usize {
    F::ENCAP_LEN + ETHERNET_LEN + F::IP_LEN
}

/// Bytes that are read of a packet in IP: up to the inner TCP flags.
pub(super) const fn leaving_in_ip_reads<F: Family>() -> usize {
    Carrier::Ipip.inner_ip::<F>() + F::IP_LEN + TCP_TO_FLAGS
}

const MILLISECOND: u64 = 1_000_000;
/// Length of an ICMP header up to the packet that an error is about, bytes (RFC 792, RFC 4443).
const ICMP_LEN: usize = 8;

/// What is assumed of a tunnel that nobody has looked at: the MTU is that of the peer's route alone, the TTL the default
/// of `net.ipv4.ip_default_ttl` and `net.ipv6.conf.*.hop_limit`.
const UNSEEN: Tunnel = Tunnel { egress: 0, ingress: 0, differs: 0, mtu: u32::MAX, ttl: 64 };

/// What to write down about the tunnel to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelNote<F: Family> {
    /// Public address of the node.
    pub vtep: F::Address,
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

/// What is known of a tunnel, if a packet that travels `way` at this time may be encapsulated or decapsulated in
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
    clock: Clock,
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
    if !clock.counts(stamp, refresh as u64 * MILLISECOND) {
        return Err(Reason::TunnelStale);
    }
    Ok(tunnel)
}

/// Whether a packet tells something new about a tunnel that was last looked at `stamp`: rarely enough to cost nothing.
#[inline(always)]
const fn is_news(stamp: u64, refresh: u32, clock: Clock) -> bool {
    let half = refresh as u64 * MILLISECOND / 2;
    !clock.counts(stamp, if half < RENEW { half } else { RENEW })
}

/// What to write down about `vtep`, of which `known` was known: a packet of the kernel's has left for it with `ttl`, and
/// `mtu` is that of the route if it is the one the programs would have sent.
#[inline(always)]
const fn left<F: Family>(
    vtep: F::Address,
    known: Tunnel,
    now: u64,
    ttl: u8,
    mtu: Option<u32>,
) -> TunnelNote<F> {
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

/// The IP header of a packet at tc egress on the external interface, and our settings, if [`note_leaving`] may have
/// something to say about it: one in `carrier`. Less is read for it.
#[inline(always)]
pub(super) fn outer<F: Family>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    carrier: Carrier,
) -> Option<(F::Header, Config<F>)> {
    if Ethernet::parse(packet.view(0)?).ethertype != F::ETHERTYPE {
        return None;
    }
    let ip = F::Header::read(packet, ETHERNET_LEN)?;
    if ip.protocol() != carrier.protocol() || ip.check().is_err() {
        return None;
    }
    let config = tables.config()?;
    if ip.source() != config.vtep {
        return None;
    }
    if carrier != Carrier::Ipip {
        let udp = Udp::parse(packet.view(ETHERNET_LEN + F::IP_LEN)?);
        if u32::from(udp.destination) != config.port {
            return None;
        }
    }
    Some((ip, config))
}

/// What there is to write down about a packet that [`outer`] has found, which no program has redirected.
#[inline(always)]
pub(super) fn note_leaving<F: Family>(
    packet: &impl Act<F>,
    tables: &impl Tables<F>,
    config: &Config<F>,
    outer_ip: &F::Header,
) -> Option<TunnelNote<F>> {
    let outer = Ethernet::parse(packet.view(0)?);
    if is_udp(tables) {
        return note_leaving_bare(packet, tables, Carrier::Udp, config, outer_ip);
    }
    let vxlan = Vxlan::parse(packet.view(ETHERNET_LEN + F::IP_LEN + UDP_LEN)?);
    if vxlan != Vxlan::of(config.vni) {
        return None;
    }
    let inner = Ethernet::parse(packet.view(F::ENCAP_LEN)?);
    if inner.ethertype != F::ETHERTYPE {
        return None;
    }
    let ip = F::Header::read(packet, F::ENCAP_LEN + ETHERNET_LEN)?;
    let route = longest_match(tables, config, ip.destination())?;
    if route.kind != RouteKind::Vxlan || route.vtep != outer_ip.destination() {
        return None;
    }
    let arrival = packet.arrival();
    if arrival.tc_index == host_mark::LEFT {
        return None;
    }
    let clock = Clock::of(tables);
    let known = tables.tunnel(route.vtep).unwrap_or_default();
    if !is_news(known.egress, config.tcp_refresh, clock) || !is_news(known.differs, config.tcp_refresh, clock)
    {
        return None;
    }
    // Field for field what encapsulation writes, and redirect_neigh after it. The TTL is taken over from here.
    let is_same = F::is_as_written(outer_ip, &ip)
        && arrival.ifindex == route.ifindex
        && !host_mark::is_heeded(&arrival, tables.marks(), config.heeded)
        && inner.same_stations(&Ethernet::new(route.vtep_mac, route.local_mac, F::ETHERTYPE));
    let taken = if is_same { packet.underlay_route(config.vtep, route.vtep) } else { None };
    let mtu = taken.filter(|taken| taken.stations.same_stations(&outer)).map(|taken| taken.mtu);
    Some(left(route.vtep, known, clock.now, outer_ip.hops(), mtu))
}

/// The same of a packet that is carried without an Ethernet header: by the agent, whose socket marks nothing, so that what is
/// marked was marked on the way out, or by the device of IP in IP.
#[inline(always)]
pub(super) fn note_leaving_bare<F: Family>(
    packet: &impl Act<F>,
    tables: &impl Tables<F>,
    carrier: Carrier,
    config: &Config<F>,
    outer_ip: &F::Header,
) -> Option<TunnelNote<F>> {
    let outer = Ethernet::parse(packet.view(0)?);
    let ip = F::Header::read(packet, carrier.inner_ip::<F>())?;
    let route = longest_match(tables, config, ip.destination())?;
    if route.kind != carrier.route_kind() || route.vtep != outer_ip.destination() {
        return None;
    }
    let arrival = packet.arrival();
    if carrier == Carrier::Ipip && arrival.tc_index == host_mark::LEFT {
        return None;
    }
    let clock = Clock::of(tables);
    let known = tables.tunnel(route.vtep).unwrap_or_default();
    if !is_news(known.egress, config.tcp_refresh, clock) || !is_news(known.differs, config.tcp_refresh, clock)
    {
        return None;
    }
    let is_as_written = match carrier {
        Carrier::Ipip => F::is_as_written_ipip(outer_ip, &ip),
        Carrier::Vxlan | Carrier::Udp => F::is_as_written_udp(outer_ip),
    };
    let is_same = is_as_written
        && arrival.ifindex == route.ifindex
        && !host_mark::is_heeded(&arrival, tables.marks(), config.heeded);
    let taken = if is_same { packet.underlay_route(config.vtep, route.vtep) } else { None };
    let mtu = taken.filter(|taken| taken.stations.same_stations(&outer)).map(|taken| taken.mtu);
    Some(left(route.vtep, known, clock.now, outer_ip.hops(), mtu))
}

/// What to write down about a packet that the VXLAN device has decapsulated and [`super::from_underlay`] has
/// checked with its outer headers: packets of its node are delivered. `then` gets what there is.
#[inline(always)]
pub(super) fn note_delivered<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    then: impl FnOnce(TunnelNote<F>) -> R,
) -> Option<R> {
    let config = tables.config()?;
    let at = tables.carrier().on_device();
    if at == ETHERNET_LEN && Ethernet::parse(packet.view(0)?).ethertype != F::ETHERTYPE {
        return None;
    }
    let ip = F::Header::read(packet, at)?;
    // A node that speaks for itself does so by its public address.
    let vtep = longest_match(tables, &config, ip.source()).map_or(ip.source(), |route| route.vtep);
    tables.vtep(vtep)?;
    let clock = Clock::of(tables);
    let known = tables.tunnel(vtep).unwrap_or_default();
    if !is_news(known.ingress, config.tcp_refresh, clock) {
        return None;
    }
    let tunnel = Tunnel { ingress: clock.now, ..known };
    Some(then(TunnelNote { vtep, tunnel, reason: Reason::TunnelSeen }))
}

/// What to write down about a packet at tc ingress on the external interface that is not VXLAN: if it is an ICMP error
/// about our own, such as "fragmentation needed", what was known of the way to that node is known no more. `then` gets
/// what there is.
///
/// Whoever can send such errors to this node can keep a node's packets on the kernel path, no more.
#[inline(always)]
pub(super) fn note_error<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    carrier: Carrier,
    then: impl FnOnce(TunnelNote<F>) -> R,
) -> Option<R> {
    let icmp = ETHERNET_LEN + F::IP_LEN;
    let config = tables.config()?;
    let ip = F::Header::read(packet, ETHERNET_LEN)?;
    if ip.protocol() != F::PROTOCOL_ICMP || !ip.is_plain() || ip.destination() != config.vtep {
        return None;
    }
    let [kind] = *packet.view(icmp)?;
    if !F::is_undelivered(kind) {
        return None;
    }
    let about = F::Header::read(packet, icmp + ICMP_LEN)?;
    if about.protocol() != carrier.protocol() || !about.is_plain() || about.source() != config.vtep {
        return None;
    }
    if carrier != Carrier::Ipip {
        let [_, _, high, low] = *packet.view(icmp + ICMP_LEN + F::IP_LEN)?;
        if u32::from(u16::from_be_bytes([high, low])) != config.port {
            return None;
        }
    }
    let vtep = about.destination();
    let known = tables.tunnel(vtep).unwrap_or(UNSEEN);
    if known.egress == 0 && known.differs != 0 {
        return None;
    }
    let tunnel = Tunnel { egress: 0, differs: tables.now(), ..known };
    Some(then(TunnelNote { vtep, tunnel, reason: Reason::TunnelClosed }))
}
