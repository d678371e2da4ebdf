//! The interface that carries packets between nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::values::Family;

/// The interface that carries packets between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Largest packet, bytes; never 0.
    pub mtu: u32,
    /// Our address on it: local address of outer headers. 0.0.0.0 in an IPv6-only cluster.
    pub address: Ipv4Addr,
    /// Our IPv6 address on it, in a cluster that has IPv6.
    pub address_v6: Option<Ipv6Addr>,
}

impl ExternalInterface {
    /// Our address of one family, in a cluster that has it.
    pub fn address_of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => (!self.address.is_unspecified()).then_some(self.address.into()),
            Family::V6 => self.address_v6.map(IpAddr::V6),
        }
    }

    /// Our address of each family that the cluster has.
    pub fn addresses(&self) -> impl Iterator<Item = (Family, IpAddr)> {
        Family::BOTH.into_iter().filter_map(|family| Some((family, self.address_of(family)?)))
    }
}

#[cfg(test)]
impl ExternalInterface {
    /// `eth0` with 192.0.2.`host`.
    pub(crate) fn eth0(index: u32, mtu: u32, host: u8) -> Self {
        Self { name: "eth0".into(), index, mtu, address: Ipv4Addr::new(192, 0, 2, host), address_v6: None }
    }
}
