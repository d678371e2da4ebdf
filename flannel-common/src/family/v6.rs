//! IPv6.

use super::{Address, Family, Sealed};
use crate::layout::AddressV6;

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum V6 {}

impl Sealed for V6 {}

impl Family for V6 {
    type Address = AddressV6;
    type PrefixLen = u64;
}

impl Address for AddressV6 {
    #[inline(always)]
    fn masked(self, prefix_len: u64) -> Self {
        let [high, low] = self.halves();
        let mask = mask(prefix_len);
        Self::of_halves([high & mask[0], low & mask[1]])
    }

    #[inline(always)]
    fn shares_prefix(self, other: Self, prefix_len: u64) -> bool {
        let ([high, low], [other_high, other_low]) = (self.halves(), other.halves());
        let mask = mask(prefix_len);
        ((high ^ other_high) & mask[0]) | ((low ^ other_low) & mask[1]) == 0
    }
}

/// The bits of a prefix, as [`AddressV6::halves`].
#[inline(always)]
const fn mask(prefix_len: u64) -> [u64; 2] {
    [half_mask(prefix_len).to_be(), half_mask(prefix_len.saturating_sub(64)).to_be()]
}

/// The upper `bits` of a word, all of them from 64 on.
#[inline(always)]
const fn half_mask(bits: u64) -> u64 {
    if bits == 0 { 0 } else { u64::MAX << (64 - if bits > 64 { 64 } else { bits }) }
}
