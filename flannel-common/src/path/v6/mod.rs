//! The same decisions about IPv6, alone or in VXLAN over IPv6, over the maps with `_v6` in their names.
//!
//! What differs from IPv4: there is no header checksum; fragments and options are extension headers; and the outer
//! UDP checksum, which over IPv6 is not optional. That of a single packet is made from the inner one
//! ([`checksum::of_vxlan_over_ipv6`](crate::packet::checksum::of_vxlan_over_ipv6)). Those of an aggregate's segments
//! only the VXLAN device can ask for, so a pod's aggregates are handed to it: past bridge, routing and netfilter all
//! the same.

mod direct;
pub mod egress;
mod encap;
pub mod flow;
pub mod forwarding;
pub mod gate;
pub mod ingress;
pub mod moved;
mod overlay;

pub use encap::{Encap, Forward, HEADERS_AT, HEADERS_LEN, HandOver};
pub use overlay::from_overlay;

use super::{Tables, flow::Passage};
use crate::{
    layout::{AddressV6, ConfigV6, FastPath, PeerV6, SubnetV6},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet},
        ipv6::{ETHERTYPE_IPV6, Ipv6, NEXT_HEADER_FRAGMENT},
    },
    reason::{Direction, Reason},
};

/// Whether `packet` is one for these decisions.
#[inline(always)]
pub fn is_ipv6(packet: &(impl Packet + ?Sized)) -> bool {
    packet.view(0).is_some_and(|bytes| Ethernet::parse(bytes).ethertype == ETHERTYPE_IPV6)
}

/// How to hand a packet to a pod after its outer headers are popped.
pub type Deliver = super::Deliver<Forward>;

/// How to send a packet to a peer as it is.
pub type Direct = super::Direct<AddressV6, Forward>;

/// How to hand a packet to a pod that has no outer headers, or none any more, at the time `now`. Its IPv6 header `ip`
/// is one for an address in our pod subnet, without extension headers.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
fn hand(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    config: &ConfigV6,
    ip: &Ipv6,
    now: u64,
) -> Result<Deliver, Reason> {
    if ip.hop_limit <= 1 {
        return Err(Reason::Ttl);
    }
    let pod = tables.pod_v6(ip.destination).ok_or(Reason::UnknownPod)?;
    if config.fast_path == FastPath::Flow {
        let passage = Passage { way: Direction::Ingress, ifindex: pod.ifindex, gateway: 0, now };
        flow::admit(&passage, packet, ETHERNET_LEN, tables, config, ip)?;
    }
    let packet_len = egress::segment_len(packet, ETHERNET_LEN, arrival, ip)?;
    Ok(Deliver { pod, forward: Forward::hop(ip), packet_len })
}

/// Refuses headers that need the kernel's care.
#[inline(always)]
const fn check_ipv6(ip: &Ipv6) -> Result<(), Reason> {
    if !ip.is_version_6() {
        return Err(Reason::NotIpv4);
    }
    if ip.next_header == NEXT_HEADER_FRAGMENT {
        return Err(Reason::Fragment);
    }
    if ip.has_extension() {
        return Err(Reason::IpOptions);
    }
    Ok(())
}

/// Length of a frame whose header `ip` stands at `offset`, by what that says.
#[inline(always)]
const fn frame_len(offset: usize, ip: &Ipv6) -> u32 {
    (offset + crate::packet::ipv6::IPV6_LEN) as u32 + ip.payload_len as u32
}

/// The header at [`ETHERNET_LEN`].
#[inline(always)]
fn first_ip(packet: &(impl Packet + ?Sized)) -> Result<Ipv6, Reason> {
    packet.view(ETHERNET_LEN).map(Ipv6::parse).ok_or(Reason::Truncated)
}

/// The peer of the longest leased prefix that holds `address`.
#[inline(always)]
fn longest_match(tables: &impl Tables, config: &ConfigV6, address: AddressV6) -> Option<PeerV6> {
    let [a, b, c, d] = config.prefix_lengths;
    let at = |length: u8| match length {
        0 => None,
        length => tables.route_v6(SubnetV6::of(address, u32::from(length))),
    };
    at(a).or_else(|| at(b)).or_else(|| at(c)).or_else(|| at(d))
}
