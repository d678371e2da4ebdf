//! The pools that pod subnets are cut from, and upstream's rules for them.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// Where IPv4 pod subnets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolV4 {
    /// `Network`: all pods, of all nodes.
    pub network: Ipv4Network,
    /// `SubnetLen`: prefix length of one node's subnet, 2 to 30.
    pub subnet_len: u8,
    /// `SubnetMin`: base of the first subnet, on a subnet boundary.
    pub subnet_min: Ipv4Addr,
    /// `SubnetMax`: base of the last subnet, on a subnet boundary.
    pub subnet_max: Ipv4Addr,
}

/// Where IPv6 pod subnets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolV6 {
    /// `IPv6Network`: all pods, of all nodes.
    pub network: Ipv6Network,
    /// `IPv6SubnetLen`: prefix length of one node's subnet, 2 to 126.
    pub subnet_len: u8,
    /// `IPv6SubnetMin`: base of the first subnet, on a subnet boundary.
    pub subnet_min: Ipv6Addr,
    /// `IPv6SubnetMax`: base of the last subnet, on a subnet boundary.
    pub subnet_max: Ipv6Addr,
}

/// A pool of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Of IPv4.
    V4(PoolV4),
    /// Of IPv6.
    V6(PoolV6),
}

impl Pool {
    /// `Network` or `IPv6Network`.
    pub fn network(&self) -> IpNetwork {
        match self {
            Self::V4(pool) => pool.network.into(),
            Self::V6(pool) => pool.network.into(),
        }
    }

    /// Whether a node may hold `subnet`: of this family, of the right length, and between the limits.
    pub fn allows(&self, subnet: IpNetwork) -> bool {
        match (self, subnet) {
            (Self::V4(pool), IpNetwork::V4(subnet)) => pool.allows(subnet),
            (Self::V6(pool), IpNetwork::V6(subnet)) => pool.allows(subnet),
            _ => false,
        }
    }
}

/// A network and its subnets that do not go together. The messages are upstream's, but for the last.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The network is absent.
    #[error("please define a correct {0} parameter in the flannel config")]
    NoNetwork(&'static str),
    /// No room for a tunnel and a bridge address.
    #[error("SubnetLen must be less than /{0}")]
    TooLong(u8),
    /// The first subnet is never used, so two or less leave nothing to share.
    #[error("network must be able to accommodate at least four subnets")]
    TooFewSubnets,
    /// The network cannot be cut in four with room for pods.
    #[error("{network} is too small. Minimum useful network prefix is /{limit}")]
    TooSmall {
        /// `network` or `IPv6Network`, as upstream writes them.
        network: &'static str,
        /// The longest useful prefix.
        limit: u8,
    },
    /// A limit lies outside the network.
    #[error("{limit} is not in the range of the {network}")]
    OutOfRange {
        /// Name of the limit.
        limit: &'static str,
        /// Name of the network.
        network: &'static str,
    },
    /// A limit is not the base of a subnet.
    #[error("{limit} is not on a SubnetLen boundary: {value}")]
    Unaligned {
        /// Name of the limit.
        limit: &'static str,
        /// Its value.
        value: String,
    },
    /// Nothing lies between the limits.
    #[error("{min} {from} is above {max} {to}: no subnet lies between them; swap them or drop one")]
    Reversed {
        /// Name of the lower limit.
        min: &'static str,
        /// Its value.
        from: String,
        /// Name of the upper limit.
        max: &'static str,
        /// Its value.
        to: String,
    },
}

/// What differs between the families in rules and messages.
struct Family {
    bits: u8,
    /// Length of a subnet where the network has room.
    usual: u8,
    network: &'static str,
    network_in_sentence: &'static str,
    min: &'static str,
    max: &'static str,
}

const V4: Family = Family {
    bits: 32,
    usual: 24,
    network: "Network",
    network_in_sentence: "network",
    min: "SubnetMin",
    max: "SubnetMax",
};
const V6: Family = Family {
    bits: 128,
    usual: 64,
    network: "IPv6Network",
    network_in_sentence: "IPv6Network",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
};

impl PoolV4 {
    /// Applies defaults and rules to the network and its `(SubnetLen, SubnetMin, SubnetMax)`.
    pub(super) fn new(
        network: Option<Ipv4Network>,
        (len, min, max): (Option<u64>, Option<Ipv4Addr>, Option<Ipv4Addr>),
    ) -> Result<Self, PoolError> {
        let number = |address: Ipv4Addr| u128::from(u32::from(address));
        // All numbers stem from 32 bit: what does not fit cannot occur.
        let address = |number: u128| Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX));
        let whole = network.filter(|n| n.prefix() != 0);
        let network = whole.ok_or(PoolError::NoNetwork(V4.network))?;
        let limits = (len, min.map(number), max.map(number));
        let (subnet_len, min, max) =
            cut(&V4, number(network.ip()), network.prefix(), limits, |n| Box::new(address(n)))?;
        Ok(Self { network, subnet_len, subnet_min: address(min), subnet_max: address(max) })
    }

    /// Whether a node may hold `subnet`: of the right length, and between the limits.
    pub fn allows(&self, subnet: Ipv4Network) -> bool {
        subnet.prefix() == self.subnet_len && (self.subnet_min..=self.subnet_max).contains(&subnet.ip())
    }
}

impl PoolV6 {
    /// Applies defaults and rules to the network and its `(IPv6SubnetLen, IPv6SubnetMin, IPv6SubnetMax)`.
    pub(super) fn new(
        network: Option<Ipv6Network>,
        (len, min, max): (Option<u64>, Option<Ipv6Addr>, Option<Ipv6Addr>),
    ) -> Result<Self, PoolError> {
        let whole = network.filter(|n| n.prefix() != 0);
        let network = whole.ok_or(PoolError::NoNetwork(V6.network))?;
        let limits = (len, min.map(u128::from), max.map(u128::from));
        let (subnet_len, min, max) =
            cut(&V6, network.ip().into(), network.prefix(), limits, |n| Box::new(Ipv6Addr::from(n)))?;
        Ok(Self { network, subnet_len, subnet_min: min.into(), subnet_max: max.into() })
    }

    /// Whether a node may hold `subnet`: of the right length, and between the limits.
    pub fn allows(&self, subnet: Ipv6Network) -> bool {
        subnet.prefix() == self.subnet_len && (self.subnet_min..=self.subnet_max).contains(&subnet.ip())
    }
}

/// The length, first and last subnet of a network; an address that is 0 counts as absent, as upstream has it.
fn cut(
    family: &Family,
    base: u128,
    prefix: u8,
    (len, min, max): (Option<u64>, Option<u128>, Option<u128>),
    show: impl Fn(u128) -> Box<dyn fmt::Display>,
) -> Result<(u8, u128, u128), PoolError> {
    let longest = family.bits - 2;
    let len = match len.unwrap_or(0) {
        0 if prefix > family.bits - 4 => {
            return Err(PoolError::TooSmall { network: family.network_in_sentence, limit: family.bits - 4 });
        }
        0 if prefix <= family.usual - 2 => family.usual,
        0 => prefix + 2,
        given => match u8::try_from(given) {
            Ok(given) if given > longest => return Err(PoolError::TooLong(longest + 1)),
            Ok(given) if given < prefix.saturating_add(2) => return Err(PoolError::TooFewSubnets),
            Ok(given) => given,
            Err(_) => return Err(PoolError::TooLong(longest + 1)),
        },
    };
    // prefix < len <= bits - 2, so neither shift reaches the width of the number.
    let size = 1u128 << (family.bits - len);
    let last = base | (u128::MAX >> (128 - (family.bits - prefix)));
    let inside = |limit: &'static str, value: Option<u128>, default: u128| match value {
        None | Some(0) => Ok(default),
        Some(value) if (base..=last).contains(&value) => Ok(value),
        Some(_) => Err(PoolError::OutOfRange { limit, network: family.network }),
    };
    let min = inside(family.min, min, base + size)?;
    let max = inside(family.max, max, last - (size - 1))?;
    for (limit, value) in [(family.min, min), (family.max, max)] {
        if value % size != 0 {
            return Err(PoolError::Unaligned { limit, value: show(value).to_string() });
        }
    }
    if min > max {
        let (from, to) = (show(min).to_string(), show(max).to_string());
        return Err(PoolError::Reversed { min: family.min, from, max: family.max, to });
    }
    Ok((len, min, max))
}

/// `a.b.c.d/len`, made the network it lies in. Unlike the parser of `ipnetwork`, neither a bare address
/// nor a netmask is a network.
pub(crate) fn cidr_v4(text: &str) -> Option<Ipv4Network> {
    let (address, len) = text.split_once('/')?;
    let network = Ipv4Network::new(address.parse().ok()?, prefix_len(len)?).ok()?;
    Ipv4Network::new(network.network(), network.prefix()).ok()
}

/// `x:y::z/len`, made the network it lies in.
pub(crate) fn cidr_v6(text: &str) -> Option<Ipv6Network> {
    let (address, len) = text.split_once('/')?;
    let network = Ipv6Network::new(address.parse().ok()?, prefix_len(len)?).ok()?;
    Ipv6Network::new(network.network(), network.prefix()).ok()
}

/// Digits only: `parse` alone would take a sign.
fn prefix_len(text: &str) -> Option<u8> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's TestIP4Net: what of it is ours; the rest is the `ipnetwork` crate's.
    #[test]
    fn ip4_net() {
        let net = |text| cidr_v4(text).unwrap();
        assert_eq!(net("1.2.3.0/24").to_string(), "1.2.3.0/24");
        assert_eq!(net("1.2.3.4/24"), net("1.2.3.0/24"), "masked");
        assert_eq!(net("0.0.0.0/0").prefix(), 0);
        assert!(
            net("1.2.0.0/16").overlaps(net("1.2.3.0/24")) && net("1.2.3.0/24").overlaps(net("1.2.0.0/16"))
        );
        assert!(!net("1.2.3.0/24").overlaps(net("1.2.4.0/24")));
        assert!(net("1.2.3.0/24").contains(Ipv4Addr::new(1, 2, 3, 4)));
        assert!(!net("1.2.3.0/24").contains(Ipv4Addr::new(1, 2, 4, 4)));
        for text in
            ["", "1.2.3.0", "1.2.3.0/33", "1.2.3/24", "1.2.3.256/24", "fd00::/64", "1.2.3.0/-1", "1.2.3.0/+8"]
        {
            assert_eq!(cidr_v4(text), None, "{text:?}");
        }
    }

    /// Upstream's TestIP6Net, likewise.
    #[test]
    fn ip6_net() {
        let net = |text| cidr_v6(text).unwrap();
        assert_eq!(net("FC00:0::1/64").to_string(), "fc00::/64", "masked, and in Go's form");
        assert!(net("fc00::/48").overlaps(net("fc00:0:0:1::/64")));
        assert!(!net("fc00::/64").overlaps(net("fc00:0:0:1::/64")));
        assert!(net("fc00::/64").contains("fc00::9".parse().unwrap()));
        for text in ["", "fc00::", "fc00::/129", "10.0.0.0/8", "fc00:::/64", "fc00::/+8"] {
            assert_eq!(cidr_v6(text), None, "{text:?}");
        }
    }
}
