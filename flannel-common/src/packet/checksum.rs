//! The internet checksum (RFC 1071): of any bytes, of an IPv4 header, whole and by difference (RFC 1624), and of a UDP datagram
//! over IPv6 whose payload need not be read.
//!
//! Sums run in one's-complement arithmetic: carries out of 16 bits are added back, and the checksum
//! is the complement of the sum. Numbers are those read big-endian.

use super::{
    headers::{Ethernet, Ipv4, PROTOCOL_UDP, Udp, Vxlan},
    ipv6::Ipv6,
};

/// Adds the carries of a sum of 16-bit words back until none is left.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The sum of `bytes` as numbers of 16 bits, folded (RFC 1071). An odd last byte is the upper one of its number.
pub fn sum_of(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<4>();
    // In the order of memory: the sum of swapped numbers is the swapped sum. Compilers add many of these at once.
    let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_ne_bytes(last));
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    u32::from(u16::from_be(sum as u16))
}

/// The sum of a header's ten words, its checksum field included: `0xffff` for a correct header.
#[inline(always)]
pub const fn sum(ip: &Ipv4) -> u16 {
    fold(words(ip) + ip.checksum as u32)
}

/// The checksum a header needs, whatever its checksum field says now.
#[inline(always)]
pub const fn of(ip: &Ipv4) -> u16 {
    !fold(words(ip))
}

/// The sum of all words but the checksum; ten words of 16 bits cannot overflow 32.
#[inline(always)]
const fn words(ip: &Ipv4) -> u32 {
    let source = u32::from_be_bytes(ip.source);
    let destination = u32::from_be_bytes(ip.destination);
    (((ip.version_ihl as u32) << 8) | ip.tos as u32)
        + ip.total_len as u32
        + ip.id as u32
        + ip.fragment as u32
        + (((ip.ttl as u32) << 8) | ip.protocol as u32)
        + (source >> 16)
        + (source & 0xffff)
        + (destination >> 16)
        + (destination & 0xffff)
}

/// The checksum after one 16-bit word of the header changed from `old` to `new` (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold((!checksum) as u32 + (!old) as u32 + new as u32)
}

/// The checksum of the UDP datagram `udp` over `outer` that carries `vxlan`, `ethernet`, the header `inner` and a
/// segment of TCP, UDP or ICMPv6 which is right, or will be: a sender may have left its checksum to the NIC. What
/// checksum fields say now is not used.
///
/// The words of such a segment and of its pseudo header (RFC 8200, section 8.1) add up to nothing. So in the sum
/// over the datagram they stand for the negative of the pseudo header, whose addresses and length the inner IPv6
/// header adds again: of both together, two words and the next header are left. The kernel saves itself the payload
/// in a like way (Documentation/networking/checksum-offloads.rst, "LCO"), where it knows of the NIC's part.
#[inline(always)]
pub fn of_vxlan_over_ipv6(outer: &Ipv6, udp: &Udp, vxlan: &Vxlan, ethernet: &Ethernet, inner: &Ipv6) -> u16 {
    // In the order of memory, which a sum of 16-bit words does not depend on but for the order of its result's
    // bytes (RFC 1071, section 2 B).
    let wide = |word: u32| u64::from(word.to_be());
    let half = |word: u16| u64::from(word.to_be());
    let [a, b] = outer.source.halves();
    let [c, d] = outer.destination.halves();
    let addresses =
        [a, b, c, d].into_iter().fold(0u64, |sum, half| sum + (half >> 32) + (half & 0xffff_ffff));
    let macs = ethernet.words();
    let sum = addresses
        + half(udp.len) * 2
        + half(PROTOCOL_UDP.into())
        + half(udp.source)
        + half(udp.destination)
        + wide(vxlan.flags)
        + wide(vxlan.vni)
        + u64::from(macs[0])
        + u64::from(macs[1])
        + u64::from(macs[2])
        + half(ethernet.ethertype)
        + wide(inner.class)
        // The hop limit, and the next header in its two places: one to add, one to take away.
        + half(u16::from_be_bytes([inner.next_header, inner.hop_limit]))
        + half(!u16::from(inner.next_header));
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let checksum = !((sum >> 16) + (sum & 0xffff)) as u16;
    // 0 would say that there is none.
    u16::from_be(if checksum == 0 { 0xffff } else { checksum })
}
