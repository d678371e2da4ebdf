//! View of an IPv6 header, by value. Numbers are in host order; addresses are kept as words.

use super::headers::{ETHERNET_LEN, UDP_LEN, VXLAN_LEN, put, take};
use crate::layout::AddressV6;

/// Length of an IPv6 header, bytes; extension headers follow it.
pub const IPV6_LEN: usize = 40;
/// What VXLAN over IPv6 adds to a frame, bytes: outer Ethernet, IPv6, UDP, VXLAN.
pub const ENCAP_LEN: usize = ETHERNET_LEN + IPV6_LEN + UDP_LEN + VXLAN_LEN;
/// EtherType of IPv6 (IEEE 802).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Protocol number of ICMPv6 (IANA).
pub const PROTOCOL_ICMPV6: u8 = 58;
/// Next header of a fragment (RFC 8200, section 4.5).
pub const NEXT_HEADER_FRAGMENT: u8 = 44;

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Version (upper four bits), traffic class (eight), flow label (twenty).
    pub class: u32,
    /// Length of what follows the header, bytes.
    pub payload_len: u16,
    /// What follows: a protocol, or an extension header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: AddressV6,
    /// Destination address.
    pub destination: AddressV6,
}

impl Ipv6 {
    /// Reads the header from its bytes.
    #[inline(always)]
    pub fn parse(bytes: &[u8; IPV6_LEN]) -> Self {
        let half = |at| u64::from_ne_bytes(take(bytes, at));
        Self {
            class: u32::from_be_bytes(take(bytes, 0)),
            payload_len: u16::from_be_bytes(take(bytes, 4)),
            next_header: bytes[6],
            hop_limit: bytes[7],
            source: AddressV6::of_halves([half(8), half(16)]),
            destination: AddressV6::of_halves([half(24), half(32)]),
        }
    }

    /// The header as it stands on the wire.
    #[inline(always)]
    pub fn bytes(&self) -> [u8; IPV6_LEN] {
        let mut bytes = [0; IPV6_LEN];
        put(&mut bytes, 0, self.class.to_be_bytes());
        put(&mut bytes, 4, self.payload_len.to_be_bytes());
        put(&mut bytes, 6, [self.next_header, self.hop_limit]);
        let [a, b] = self.source.halves();
        let [c, d] = self.destination.halves();
        put(&mut bytes, 8, a.to_ne_bytes());
        put(&mut bytes, 16, b.to_ne_bytes());
        put(&mut bytes, 24, c.to_ne_bytes());
        put(&mut bytes, 32, d.to_ne_bytes());
        bytes
    }

    /// Whether it says that it is of version 6.
    #[inline(always)]
    pub const fn is_version_6(&self) -> bool {
        self.class >> 28 == 6
    }

    /// Traffic class: DSCP (upper six bits) and ECN (lower two), as the TOS byte of IPv4.
    #[inline(always)]
    pub const fn traffic_class(&self) -> u8 {
        (self.class >> 20) as u8
    }

    /// Whether what follows is an extension header (RFC 8200, section 4; IANA's registry) other than a fragment's.
    #[inline(always)]
    pub const fn has_extension(&self) -> bool {
        // Hop-by-hop, routing, authentication, destination options, mobility, host identity, shim6.
        matches!(self.next_header, 0 | 43 | 51 | 60 | 135 | 139 | 140)
    }
}
