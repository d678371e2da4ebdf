//! The internet checksum (RFC 1071) of an IPv4 header, whole and by difference (RFC 1624).
//!
//! Sums run in one's-complement arithmetic: carries out of 16 bits are added back, and the checksum
//! is the complement of the sum. Numbers are those read big-endian.

use super::headers::Ipv4;

/// Adds the carries of a sum of 16-bit words back until none is left.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
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
