//! The outer UDP source port: entropy of the inner flow, so that receivers and switches spread flows.

use super::{
    Packet,
    headers::{ETHERNET_LEN, IPV4_LEN, PROTOCOL_TCP, PROTOCOL_UDP},
    ipv6::IPV6_LEN,
};

/// Offsets in an IPv4 header of the protocol, and of the source address with the destination behind it.
const PROTOCOL: usize = 9;
const ADDRESSES: usize = 12;
/// As those, in an IPv6 header.
const NEXT_HEADER: usize = 6;
const ADDRESSES_V6: usize = 8;

/// The port the kernel's VXLAN device would use for a packet of this flow hash, host order
/// (`udp_flow_src_port`, include/net/udp.h). The end of the range is exclusive.
#[inline(always)]
pub const fn source_port(flow_hash: u32, min: u32, max: u32) -> u16 {
    let hash = flow_hash ^ (flow_hash << 16);
    let span = max.saturating_sub(min);
    (((hash as u64 * span as u64) >> 32) as u32 + min) as u16
}

/// A hash of the flow of `packet`, an IPv4 packet without options in an Ethernet frame: the same for each packet of the
/// flow, and never 0. `None` when the packet ends before its addresses and ports.
///
/// For packets whose socket has not hashed them. The kernel would take them apart once more for that
/// (net/core/flow_dissector.c), at a price of several lookups; what is wanted here is a spread, not a secret.
#[inline(always)]
pub fn of_flow(packet: &(impl Packet + ?Sized)) -> Option<u32> {
    let [protocol] = *packet.view(ETHERNET_LEN + PROTOCOL)?;
    let addresses: &[u8; 8] = packet.view(ETHERNET_LEN + ADDRESSES)?;
    let ports = ports(packet, ETHERNET_LEN + IPV4_LEN, protocol)?;
    Some(finish(stir(u64::from_ne_bytes(*addresses), u64::from(ports))))
}

/// As [`of_flow`], of an IPv6 packet without extension headers.
#[inline(always)]
pub fn of_flow_v6(packet: &(impl Packet + ?Sized)) -> Option<u32> {
    let [protocol] = *packet.view(ETHERNET_LEN + NEXT_HEADER)?;
    let mut state = u64::from(ports(packet, ETHERNET_LEN + IPV6_LEN, protocol)?);
    // Written out: a view of all 32 bytes would be copied to the stack for a loop.
    for at in [0, 8, 16, 24] {
        let half: &[u8; 8] = packet.view(ETHERNET_LEN + ADDRESSES_V6 + at)?;
        state = stir(u64::from_ne_bytes(*half), state);
    }
    Some(finish(state))
}

/// The ports in the header of `protocol` at `offset`, as they stand there; the protocol's number where there are none.
#[inline(always)]
fn ports(packet: &(impl Packet + ?Sized), offset: usize, protocol: u8) -> Option<u32> {
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        return Some(u32::from(protocol));
    }
    packet.view(offset).map(|ports: &[u8; 4]| u32::from_ne_bytes(*ports))
}

/// Odd, with its ones spread evenly: the golden ratio in 64 bits (Knuth, TAOCP 6.4).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// `word` stirred into `state`. A product's upper half depends on all bits below it.
#[inline(always)]
const fn stir(word: u64, state: u64) -> u64 {
    let mixed = (word ^ state.wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
    mixed ^ (mixed >> 32)
}

/// 32 bits of `state`, not all 0, which is the kernel's word for "not hashed".
#[inline(always)]
const fn finish(state: u64) -> u32 {
    let hash = (state.wrapping_mul(MULTIPLIER) >> 32) as u32;
    if hash == 0 { 1 } else { hash }
}
