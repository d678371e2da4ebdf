//! IPv4.

use super::{Address, Family, Sealed};

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum V4 {}

impl Sealed for V4 {}

impl Family for V4 {
    type Address = [u8; 4];
    type PrefixLen = u32;
}

/// In network order.
impl Address for [u8; 4] {
    #[inline(always)]
    fn masked(self, prefix_len: u64) -> Self {
        (u32::from_be_bytes(self) & mask(prefix_len)).to_be_bytes()
    }

    #[inline(always)]
    fn shares_prefix(self, other: Self, prefix_len: u64) -> bool {
        (u32::from_be_bytes(self) ^ u32::from_be_bytes(other)) & mask(prefix_len) == 0
    }
}

/// The bits of a prefix.
#[inline(always)]
const fn mask(prefix_len: u64) -> u32 {
    if prefix_len == 0 { 0 } else { u32::MAX << (32 - if prefix_len > 32 { 32 } else { prefix_len }) }
}
