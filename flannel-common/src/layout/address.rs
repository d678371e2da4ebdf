//! Addresses of IPv6.

use bytemuck::{Pod, Zeroable};

/// An IPv6 address as a key: of `pods_v6` and `vteps_v6`.
///
/// Aligned to eight bytes, as in every struct it stands in: on a program's stack LLVM moves it as two words, which the
/// verifier takes there only where they are aligned.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct AddressV6 {
    /// In network order.
    pub octets: [u8; 16],
}

impl AddressV6 {
    /// The address with these octets.
    pub const fn new(octets: [u8; 16]) -> Self {
        Self { octets }
    }

    /// The address of two words, the bytes of each in the order of memory.
    #[inline(always)]
    pub fn of_halves(halves: [u64; 2]) -> Self {
        Self { octets: bytemuck::cast(halves) }
    }

    /// As two words, the bytes of each in the order of memory.
    #[inline(always)]
    pub fn halves(self) -> [u64; 2] {
        bytemuck::cast(self)
    }
}

super::assert_layout!(AddressV6, 16, 8);
