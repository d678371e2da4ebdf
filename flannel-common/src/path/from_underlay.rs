//! tc ingress on the external interface: what other nodes send.

use super::{
    Act, Carrier, Deliver, Rewrite, Tables, act,
    carrier::{is_udp, over_udp},
    direct, ecn,
    egress::segment_len,
    fields, flow, forwarding,
    gate::{self, Passage},
    tables::check_hold,
    tunnel,
};
use crate::{
    family::{Family, Forward as _, IpHeader as _, V4, V6},
    layout::{Config, FastPath},
    packet::{
        Arrival, Packet,
        headers::{
            ETHERNET_LEN, Ethernet, PROTOCOL_TCP, PROTOCOL_UDP, TCP_TO_FLAGS, UDP_CHECKSUM, UDP_LEN, Udp,
            Vxlan,
        },
    },
    reason::{Direction, Reason},
};

/// Bytes that are read here: the frame up to the inner TCP flags, where most are in front of them.
const fn reads<F: Family>() -> usize {
    Carrier::Vxlan.inner_ip::<F>() + F::IP_LEN + TCP_TO_FLAGS
}

/// All that happens to a packet at this hook.
#[inline(always)]
pub fn run<P: Act<V4> + Act<V6>>(packet: P, tables: &(impl Tables<V4> + Tables<V6>)) -> P::Answer {
    if packet.is_ipv6() {
        packet.make_readable(reads::<V6>());
        return of_family::<V6, _>(packet, tables, over_udp(tables));
    }
    packet.make_readable(reads::<V4>());
    // XDP decapsulates IPv4 only.
    if let Some(pod) = packet.decapsulated_for() {
        let size = packet.size();
        return packet.conclude(Direction::Ingress, size, packet.hand_on(&pod));
    }
    of_family::<V4, _>(packet, tables, tables.carrier())
}

#[inline(always)]
fn of_family<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>, carrier: Carrier) -> P::Answer {
    let size = packet.size();
    let mut outer = Outer::Left;
    let verdict = decide(
        &packet,
        (tables, carrier),
        &packet.arrival(),
        |to, rewrite, reason| packet.decapsulate(&to, rewrite.as_ref(), reason),
        |to, rewrite, reason| packet.deliver(&to, rewrite.as_ref(), reason),
        |of_refused| outer = of_refused,
    )
    .and_then(|done| done);
    if matches!(verdict, Err(Reason::NotVxlan)) {
        tunnel::note_error(&packet, tables, tables.carrier(), |note| {
            act::noted_tunnel(packet, Direction::Ingress, &note, size);
        });
    }
    flow::begin_trail::<F, P>(packet, tables, Direction::Ingress, &verdict, || {
        found_at(&packet, tables, tables.carrier())
    });
    let verdict = match (verdict, outer) {
        (Err(reason), Outer::Removed(device)) => {
            packet.unmark(tables.marks().flow);
            let verdict = packet.leave_decapsulated(device, reason);
            return packet.conclude(Direction::Ingress, size, verdict);
        }
        (Err(_), Outer::Checked) => Err(Reason::TunnelStale),
        (verdict, _) => verdict,
    };
    if let Err(reason) = verdict
        && is_checked(reason)
        && !is_udp(tables)
    {
        packet.mark(tables.marks().flow);
    }
    packet.conclude(Direction::Ingress, size, verdict)
}

/// Where the header stands of the packet for a pod that [`decide`] has found in a frame: behind the outer headers,
/// or without a tunnel at the frame's own place. `None` for frames it does not look into.
#[inline(always)]
fn found_at<F: Family>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    carrier: Carrier,
) -> Option<usize> {
    let ip = F::Header::read(packet, ETHERNET_LEN)?;
    let is_direct = tables.config()?.subnet.contains(ip.destination());
    if is_direct {
        return Some(ETHERNET_LEN);
    }
    // Nothing stays beside a packet that goes through the agent.
    if carrier == Carrier::Udp { None } else { Some(carrier.inner_ip::<F>()) }
}

/// Whether the gate of flows refuses a packet for `reason` that is one of TCP or UDP.
#[inline(always)]
const fn is_of_flow(reason: Reason) -> bool {
    gate::is_refusal(reason) && !matches!(reason, Reason::FlowProtocol)
}

/// What becomes of the outer headers of a packet that netfilter has to see.
#[derive(Clone, Copy)]
pub(super) enum Outer {
    /// The kernel looks at them, and removes them.
    Left,
    /// The same, and [`super::from_overlay`] looks whether it has.
    Checked,
    /// The program removes them, as the VXLAN device with this index would: the kernel was seen to let others pass.
    Removed(u32),
}

/// Whether a packet that is left to the kernel for `reason` is one that `from_overlay` goes on with, because nothing is
/// wrong with it but that a program cannot decapsulate it, or may not before the kernel has.
#[inline(always)]
pub(super) const fn is_checked(reason: Reason) -> bool {
    matches!(reason, Reason::UdpAggregate | Reason::PodForwards | Reason::TunnelStale)
}

/// `decapsulate` says what to do with a packet in `carrier` for a local pod, `deliver` with one without. Each gets how the
/// packet is to be translated, if it is. `refused` is told of the outer headers of one that the gate of flows refuses.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub(super) fn decide<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    (tables, carrier): (&impl Tables<F>, Carrier),
    arrival: &Arrival,
    decapsulate: impl FnOnce(Deliver<F>, Option<Rewrite<F>>, Reason) -> R,
    deliver: impl FnOnce(Deliver<F>, Option<Rewrite<F>>, Reason) -> R,
    refused: impl FnOnce(Outer),
) -> Result<R, Reason> {
    let udp_at = ETHERNET_LEN + F::IP_LEN;
    // Everything of the node that is not ours comes by here too: first what tells most of it apart.
    let outer = Ethernet::parse(packet.view(0).ok_or(Reason::Truncated)?);
    if arrival.vlan_tagged {
        return Err(Reason::Vlan);
    }
    if outer.ethertype != F::ETHERTYPE {
        return Err(Reason::NotIp);
    }
    let outer_ip = F::Header::read(packet, ETHERNET_LEN).ok_or(Reason::Truncated)?;
    let config = tables.config().ok_or(F::UNCONFIGURED)?;
    if config.subnet.contains(outer_ip.destination()) && config.fast_path.finds_pods() {
        return direct::from_underlay(packet, tables, arrival, &config, (&outer, &outer_ip), deliver);
    }
    if outer_ip.protocol() != carrier.protocol() || outer_ip.destination() != config.vtep {
        return Err(Reason::NotVxlan);
    }
    if !config.fast_path.finds_pods() {
        return Err(Reason::PodOnKernel);
    }
    if !outer.is_unicast() {
        return Err(Reason::NotUnicast);
    }
    // The kernel drops it in ip_rcv or ip6_rcv_core, which a packet that is delivered never meets.
    if arrival.for_other_station {
        return Err(Reason::NotVxlan);
    }
    outer_ip.check()?;
    // In IP there is none: these are the first bytes of the inner header.
    let udp = Udp::parse(packet.view(udp_at).ok_or(Reason::Truncated)?);
    let has_udp = carrier != Carrier::Ipip;
    if has_udp && u32::from(udp.destination) != config.port {
        return Err(Reason::NotVxlan);
    }
    F::check_outer(&outer_ip, &udp)?;
    if carrier == Carrier::Vxlan {
        check_frame(packet, &config, udp_at + UDP_LEN)?;
    }
    let at = carrier.inner_ip::<F>();
    let ip = F::Header::read(packet, at).ok_or(Reason::Truncated)?;
    ip.check()?;
    ip.check_sum()?;
    // Several datagrams in one packet, as the kernel merges them for a socket, are no packet of one length.
    let lengths = [ETHERNET_LEN as u32 + outer_ip.packet_len(), at as u32 + ip.packet_len()];
    let is_longer = has_udp && u32::from(udp.len) + (udp_at as u32) != packet.len();
    if lengths != [packet.len(); 2] || is_longer {
        return Err(Reason::Length);
    }
    if !config.subnet.contains(ip.destination()) {
        return Err(Reason::NotOurPod);
    }
    let clock = check_hold(tables)?;
    let vtep = tables.vtep(outer_ip.source()).ok_or(Reason::UnknownVtep)?;
    // Besides its pods, a node speaks for itself: its replies to our pods come through the tunnel too.
    if !vtep.subnet.contains(ip.source()) && ip.source() != outer_ip.source() {
        return Err(Reason::InnerSource);
    }
    if !carrier.has_hops::<F>(&ip) {
        return Err(Reason::Ttl);
    }
    let class = match carrier {
        Carrier::Vxlan | Carrier::Ipip => {
            ecn::decapsulate(outer_ip.class(), ip.class()).ok_or(Reason::Ecn)?
        }
        // What the outer header says of congestion is nobody's: stock flannel's tunnel does not look at it.
        Carrier::Udp => ip.class(),
    };
    let pod = tables.pod(ip.destination()).ok_or(Reason::UnknownPod)?;
    let known = tables.tunnel(outer_ip.source());
    let is_open =
        tunnel::check(known, Direction::Ingress, config.fast_path, config.tcp_refresh, clock).is_ok();
    // The outer checksum, which the kernel would look at, is then all that tells whether it was changed on the way.
    let is_bare = has_udp
        && udp.checksum != 0
        && ip.protocol() == PROTOCOL_UDP
        && packet.read(at + F::IP_LEN + UDP_CHECKSUM).is_none_or(|sum: [u8; 2]| sum == [0; 2]);
    let rewrite = if config.fast_path == FastPath::Flow {
        let fields = fields::of(class, carrier.past_end::<F>(ip).hops());
        let passage = Passage { way: Direction::Ingress, ifindex: pod.ifindex, gateway: None, fields, clock };
        match gate::admit_to_pod(&passage, packet, at, tables, &config, &ip) {
            Ok(rewrite) => rewrite,
            Err(refusal) => {
                // Only what has a checksum of its own.
                if carrier != Carrier::Udp && !is_bare && is_of_flow(refusal) {
                    let device = config.overlay_ifindex;
                    if !is_open {
                        refused(Outer::Checked);
                    } else if carrier == Carrier::Vxlan
                        && device != 0
                        && arrival.gso_size == 0
                        && class == ip.class()
                    {
                        refused(Outer::Removed(device));
                    }
                }
                return Err(refusal);
            }
        }
    } else {
        None
    };
    if !is_open {
        return Err(Reason::TunnelStale);
    }
    if is_bare {
        return Err(Reason::OuterChecksum);
    }
    // Last, so that all else has been looked at: see `is_checked`. A decapsulated aggregate keeps its tunnel's GSO type
    // (net/core/filter.c, bpf_skb_net_shrink). A socket takes TCP whole; what udp_rcv_segment would cut for one
    // without UDP_GRO, it drops.
    if arrival.gso_size != 0 {
        if ip.protocol() != PROTOCOL_TCP {
            return Err(Reason::UdpAggregate);
        }
        if forwarding::forwards(tables, pod.ifindex, clock.now) {
            return Err(Reason::PodForwards);
        }
    }
    let packet_len = segment_len::<F>(packet, at, arrival, &ip)?;
    if packet_len > pod.mtu {
        return Err(Reason::TooBig);
    }
    let hop = F::Forward::hop_with_class(&carrier.past_end::<F>(ip), class);
    let (forward, reason) = match &rewrite {
        None => (hop, Reason::DeliverPod),
        Some(rewrite) => (hop.translated(rewrite.addresses), Reason::Translated),
    };
    Ok(decapsulate(Deliver { pod, forward, packet_len }, rewrite, reason))
}

/// Checks the VXLAN header at `at`, and the inner Ethernet header behind it.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
fn check_frame<F: Family>(
    packet: &(impl Packet + ?Sized),
    config: &Config<F>,
    at: usize,
) -> Result<(), Reason> {
    let vxlan = Vxlan::parse(packet.view(at).ok_or(Reason::Truncated)?);
    if vxlan.flags != Vxlan::of(0).flags || vxlan.vni & 0xff != 0 {
        return Err(Reason::VxlanFlags);
    }
    if vxlan.vni >> 8 != config.vni {
        return Err(Reason::Vni);
    }
    let inner = Ethernet::parse(packet.view(F::ENCAP_LEN).ok_or(Reason::Truncated)?);
    if !inner.is_to(&config.local_mac) {
        return Err(Reason::InnerMac);
    }
    if inner.ethertype != F::ETHERTYPE {
        return Err(Reason::NotIp);
    }
    Ok(())
}
