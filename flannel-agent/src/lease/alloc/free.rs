//! Addresses that are taken, and the subnets that lie free between them.

use std::{
    cmp::Reverse,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

use crate::config::{PoolV4, PoolV6};

/// Where subnets come from, of either family.
#[derive(Clone, Copy, Debug)]
pub(super) enum Range {
    V4 { min: Ipv4Addr, max: Ipv4Addr, len: u8 },
    V6 { min: Ipv6Addr, max: Ipv6Addr, len: u8 },
}

impl Range {
    pub(super) fn v4(pool: &PoolV4) -> Self {
        Self::V4 { min: pool.subnet_min, max: pool.subnet_max, len: pool.subnet_len }
    }

    pub(super) fn v6(pool: &PoolV6) -> Self {
        Self::V6 { min: pool.subnet_min, max: pool.subnet_max, len: pool.subnet_len }
    }

    /// Length of a subnet's prefix.
    pub(super) fn len(self) -> u8 {
        match self {
            Self::V4 { len, .. } | Self::V6 { len, .. } => len,
        }
    }

    /// The bases of the first subnet and of the last.
    pub(super) fn limits(self) -> (IpAddr, IpAddr) {
        match self {
            Self::V4 { min, max, .. } => (min.into(), max.into()),
            Self::V6 { min, max, .. } => (min.into(), max.into()),
        }
    }

    /// At most the first `limit` free subnets, from the lowest upward.
    pub(super) fn free(self, taken: &Stretches, limit: usize) -> Vec<IpNetwork> {
        let (min, max) = self.limits();
        let bits = if min.is_ipv4() { 32 } else { 128 };
        // A pool has at least four subnets, so the shift is below the width of the number.
        let size = 1u128 << (bits - self.len()).min(126);
        let max = number(max);
        let mut free = Vec::new();
        let mut next = Some(number(min));
        let mut taken = taken.0.iter().copied().peekable();
        while let Some(base) = next.filter(|base| *base <= max && free.len() < limit) {
            match taken.peek() {
                Some(&(_, last)) if last < base => {
                    taken.next();
                }
                // To the first base past what is taken: a large network held by one lease is one step.
                Some(&(first, last)) if first <= base + (size - 1) => {
                    next = ((last - base) / size).checked_add(1).and_then(|steps| {
                        steps.checked_mul(size).and_then(|skipped| base.checked_add(skipped))
                    });
                }
                _ => {
                    free.extend(self.subnet(base));
                    next = base.checked_add(size);
                }
            }
        }
        free
    }

    fn subnet(self, base: u128) -> Option<IpNetwork> {
        let address = match self {
            Self::V4 { .. } => IpAddr::V4(u32::try_from(base).ok()?.into()),
            Self::V6 { .. } => IpAddr::V6(base.into()),
        };
        IpNetwork::new(address, self.len()).ok()
    }
}

/// What is taken of one family: first and last address of each stretch, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Stretches(Vec<(u128, u128)>);

impl Stretches {
    /// A stretch that lies in one before it is left out, so that the ends ascend too.
    pub(super) fn new(networks: impl Iterator<Item = IpNetwork>) -> Self {
        let mut all: Vec<_> = networks.map(bounds).collect();
        all.sort_by_key(|&(first, last)| (first, Reverse(last)));
        let mut ascending: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for stretch in all {
            if ascending.last().is_none_or(|&(_, last)| stretch.1 > last) {
                ascending.push(stretch);
            }
        }
        Self(ascending)
    }

    pub(super) fn overlap(&self, network: IpNetwork) -> bool {
        let (first, last) = bounds(network);
        let next = self.0.partition_point(|&(_, end)| end < first);
        self.0.get(next).is_some_and(|&(start, _)| start <= last)
    }
}

fn bounds(network: IpNetwork) -> (u128, u128) {
    (number(network.network()), number(network.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use ipnetwork::Ipv4Network;
    use proptest::prelude::*;

    use super::*;
    use crate::config::NetworkConfig;

    fn range(json: &str) -> Range {
        let config = NetworkConfig::parse(json.as_bytes()).unwrap();
        config.ipv4.as_ref().map(Range::v4).or(config.ipv6.as_ref().map(Range::v6)).unwrap()
    }

    fn taken(networks: &[&str]) -> Stretches {
        Stretches::new(networks.iter().map(|text| text.parse().unwrap()))
    }

    fn texts(free: &[IpNetwork]) -> Vec<String> {
        free.iter().map(IpNetwork::to_string).collect()
    }

    #[test]
    fn the_first_of_many_are_found() {
        let free = range(r#"{"Network":"10.0.0.0/8"}"#).free(&taken(&["10.0.2.0/24"]), 100);
        assert_eq!(free.len(), 100);
        assert_eq!(texts(&free[..2]), ["10.0.1.0/24", "10.0.3.0/24"]);
        assert_eq!(texts(&free[99..]), ["10.0.101.0/24"]);
    }

    #[test]
    fn large_and_full_pools_are_quick() {
        let pool = range(r#"{"Network":"128.0.0.0/1","SubnetLen":30}"#);
        assert!(pool.free(&taken(&["0.0.0.0/0"]), 100).is_empty());
        let last = Stretches(vec![(1 << 31, u128::from(u32::MAX) - 4)]);
        assert_eq!(texts(&pool.free(&last, 100)), ["255.255.255.252/30"]);
    }

    #[test]
    fn ipv6_up_to_the_last_address_there_is() {
        let six = |network: &str, len| {
            range(&format!(
                r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{network}","IPv6SubnetLen":{len}}}"#
            ))
        };
        let pool = six("fd00::/48", 64);
        let free = pool.free(&taken(&["fd00::/63", "fd00:0:0:2::/64"]), 2);
        assert_eq!(texts(&free), ["fd00:0:0:3::/64", "fd00:0:0:4::/64"]);
        let end = six("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124", 126);
        let base = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff";
        assert_eq!(
            texts(&end.free(&taken(&[]), 100)),
            ["4", "8", "c"].map(|digit| format!("{base}{digit}/126"))
        );
        assert!(end.free(&taken(&["ffff::/16"]), 100).is_empty());
        assert!(six("8000::/1", 126).free(&taken(&["::/0"]), 100).is_empty());
    }

    proptest! {
        #[test]
        fn nothing_free_is_missed(leases in proptest::collection::vec((any::<u8>(), 20u8..=28), 0..12)) {
            let pool = range(r#"{"Network":"10.3.0.0/20","SubnetLen":24}"#);
            let subnets: Vec<Ipv4Network> = leases.iter().map(|&(low, len)| {
                let network = Ipv4Network::new((0x0a03_0000 | u32::from(low) << 4).into(), len).unwrap();
                Ipv4Network::new(network.network(), len).unwrap()
            }).collect();
            let expected: Vec<IpNetwork> = (1..16u32)
                .map(|n| Ipv4Network::new((0x0a03_0000 + (n << 8)).into(), 24).unwrap())
                .filter(|subnet| !subnets.iter().any(|held| held.overlaps(*subnet)))
                .map(IpNetwork::from)
                .collect();
            let taken = Stretches::new(subnets.into_iter().map(IpNetwork::from));
            prop_assert_eq!(pool.free(&taken, 100), expected);
        }
    }
}
