//! The two families as types, for what is written once for both.

use std::net::IpAddr;

use flannel_common::{
    family,
    layout::{AddressV6, Subnet},
};
use ipnetwork::IpNetwork;

use super::Family;

/// A family of IP as the maps have it, with its addresses as the rest of the agent has them.
pub trait IpFamily: family::Family {
    /// Which it is.
    const FAMILY: Family;

    /// An address as key; `None` if it is of the other family.
    fn address_key(address: IpAddr) -> Option<Self::Address>;

    /// The address that a key stands for.
    fn address(key: Self::Address) -> IpAddr;

    /// A network as key; `None` if it is of the other family.
    fn subnet_key(network: IpNetwork) -> Option<Subnet<Self>> {
        Some(Subnet::of(Self::address_key(network.network())?, network.prefix().into()))
    }
}

impl IpFamily for family::V4 {
    const FAMILY: Family = Family::V4;

    fn address_key(address: IpAddr) -> Option<Self::Address> {
        match address {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn address(key: Self::Address) -> IpAddr {
        key.into()
    }
}

impl IpFamily for family::V6 {
    const FAMILY: Family = Family::V6;

    fn address_key(address: IpAddr) -> Option<Self::Address> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(AddressV6::new(address.octets())),
        }
    }

    fn address(key: Self::Address) -> IpAddr {
        key.octets.into()
    }
}
