//! The two families of IP, whose packets the same decisions are made about.
//!
//! What is the same for both is written once, over [`Family`]; what differs is in [`V4`] and [`V6`].

mod v4;
mod v6;

use core::{fmt::Debug, hash::Hash};

use bytemuck::Pod;

pub use v4::V4;
pub use v6::V6;

/// Families are these two: the layouts of maps are checked for both.
trait Sealed {}

/// A family of IP.
#[expect(private_bounds, reason = "no other crate adds a family")]
pub trait Family: Sealed + Copy + Debug + Eq + Ord + Hash + 'static {
    /// An address, as the maps have it.
    type Address: Address;
    /// Length of a prefix, bits: as wide as addresses are aligned, so that a prefix has no padding.
    type PrefixLen: Pod + Debug + Ord + Hash + From<u32> + Into<u64>;
}

/// An address of either family.
pub trait Address: Pod + Debug + Ord + Hash {
    /// With all bits zero but the first `prefix_len`. Lengths above the address' own count as that.
    fn masked(self, prefix_len: u64) -> Self;

    /// Whether the first `prefix_len` bits are those of `other`.
    fn shares_prefix(self, other: Self, prefix_len: u64) -> bool;
}
