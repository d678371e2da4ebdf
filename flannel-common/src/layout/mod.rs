//! Keys and values of the BPF maps.
//!
//! Addresses, MACs and prefixes are byte arrays in network order, as they stand in a packet; counts,
//! indexes and lengths are native integers. Every type is `repr(C)` without padding, so that the two
//! sides hash and compare the same bytes and no program has to zero anything; `bpftool map dump`
//! prints the field names and the enum variants.

mod address;
mod bits;
mod config;
mod counter;
mod decapsulated_for;
mod exempt;
mod flow;
mod forwarder;
mod hold;
mod pod;
mod route;
pub mod trace;
mod translation;
mod tunnel;

pub use address::AddressV6;
pub use config::{Config, ConfigBits, FastPath, Heeded, PREFIX_LENGTHS, UnknownVtep};
pub use counter::Counter;
pub use decapsulated_for::{DECAPSULATED_FOR_LEN, DecapsulatedFor};
pub use exempt::Exempt;
pub use flow::{Flow, FlowBits, FlowProtocol, Permit};
pub use forwarder::Forwarder;
pub use hold::Hold;
pub use pod::PodPlace;
pub use route::{Route, RouteBits, RouteKind, Subnet, SubnetBits, SubnetV4, SubnetV6, Vtep, VtepBits};
pub use translation::{Translation, TranslationBits};
pub use tunnel::Tunnel;

use bits::per_family;

/// Refuses, at compile time, a layout whose size or alignment is not the one written here.
macro_rules! assert_layout {
    ($type:ty, $size:literal, $align:literal) => {
        const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() == $align);
    };
}
pub(crate) use assert_layout;
