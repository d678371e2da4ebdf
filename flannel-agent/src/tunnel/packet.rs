//! The parts of an inner packet that the tunnel looks at, and the sums over it.

use flannel_common::packet::{
    checksum,
    headers::{IPV4_LEN, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP, TCP_CHECKSUM, UDP_CHECKSUM},
};
use flannel_common::reason::Reason;

/// Offset of TTL and header checksum.
const TTL: usize = 8;
const CHECKSUM: usize = 10;

/// The IPv4 header in front of `packet`, options not included.
///
/// # Errors
/// Why it is none: shorter than a header, not IPv4, or shorter than the header says.
pub(super) fn header(packet: &[u8]) -> Result<Ipv4, Reason> {
    let bytes = packet.first_chunk::<IPV4_LEN>().ok_or(Reason::Truncated)?;
    let ip = Ipv4::parse(bytes);
    if ip.version_ihl >> 4 != 4 {
        return Err(Reason::NotIp);
    }
    let (header, total) = (header_len(&ip), usize::from(ip.total_len));
    if header < IPV4_LEN || total < header || total > packet.len() {
        return Err(Reason::Truncated);
    }
    Ok(ip)
}

/// Length of the header with its options, bytes.
pub(super) fn header_len(ip: &Ipv4) -> usize {
    usize::from(ip.version_ihl & 0xf) * 4
}

/// Counts the TTL of `packet`, whose header is `ip`, down by one, as stock flannel's tunnel does at each end.
///
/// # Errors
/// It ends here.
pub(super) fn count_down(packet: &mut [u8], ip: &mut Ipv4) -> Result<(), Reason> {
    if ip.ttl <= 1 {
        return Err(Reason::Ttl);
    }
    let word = |ttl: u8| u16::from_be_bytes([ttl, ip.protocol]);
    ip.checksum = checksum::update(ip.checksum, word(ip.ttl), word(ip.ttl - 1));
    ip.ttl -= 1;
    if let Some(place) = packet.get_mut(TTL) {
        *place = ip.ttl;
    }
    write(packet, CHECKSUM, ip.checksum);
    Ok(())
}

/// Puts a number where it is to stand, if the bytes reach there.
pub(super) fn write(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// The number that stands at `at`.
pub(super) fn read(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The sum of the pseudo header of a transport segment of `len` bytes.
pub(super) fn pseudo_header(ip: &Ipv4, len: usize) -> u32 {
    let addresses = [ip.source, ip.destination];
    let words = addresses.iter().map(|address| {
        let address = u32::from_be_bytes(*address);
        (address >> 16) + (address & 0xffff)
    });
    // Shorter than an IPv4 packet.
    words.sum::<u32>() + u32::from(ip.protocol) + len as u32
}

/// Whether the transport checksum of `segment`, all behind the IP header, is right.
pub(super) fn is_right(ip: &Ipv4, segment: &[u8]) -> bool {
    checksum::fold(pseudo_header(ip, segment.len()) + checksum::sum_of(segment)) == 0xffff
}

/// Where the checksum stands in the transport header of a protocol.
pub(super) fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        PROTOCOL_TCP => Some(TCP_CHECKSUM),
        PROTOCOL_UDP => Some(UDP_CHECKSUM),
        _ => None,
    }
}

/// The checksum that a sum over pseudo header, header and payload makes. With UDP, 0 would say that there is none.
pub(super) fn finished(protocol: u8, sum: u32) -> u16 {
    match !checksum::fold(sum) {
        0 if protocol == PROTOCOL_UDP => 0xffff,
        checksum => checksum,
    }
}
