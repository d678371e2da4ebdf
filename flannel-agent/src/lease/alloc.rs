//! Which subnet a node takes. Pure: the store is asked before, and written after.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use rand::{Rng, seq::IndexedRandom};

use super::LeaseSubnet;
use crate::config::PoolV4;

/// As many free subnets as one is picked from. Picking at random keeps nodes that start together
/// from all trying the same one.
const CANDIDATES: usize = 100;

/// A subnet that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What is taken.
    pub subnet: LeaseSubnet,
    /// `PublicIP` of the holder; `None` when its lease cannot be decoded.
    pub holder: Option<Ipv4Addr>,
}

/// What to do to get a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The subnet to take.
    pub take: Take,
    /// A lease in our own name that does not fit the configuration any more and has to go first.
    pub release: Option<LeaseSubnet>,
    /// Why the previous subnet is not taken, if there is one.
    pub previous_refused: Option<PreviousRefused>,
}

/// A subnet, and why this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// The store says we hold it.
    Own(Ipv4Network),
    /// We held it before, and nobody holds it now.
    Previous(Ipv4Network),
    /// It is free.
    Free(Ipv4Network),
}

impl Take {
    /// The subnet.
    pub fn subnet(self) -> Ipv4Network {
        match self {
            Self::Own(subnet) | Self::Previous(subnet) | Self::Free(subnet) => subnet,
        }
    }
}

/// Why a previous subnet is not taken again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreviousRefused {
    /// It has another length than `SubnetLen`, or lies outside `SubnetMin` to `SubnetMax`.
    #[error("it does not fit the network config")]
    Incompatible,
    /// It overlaps what another node holds.
    #[error("another node holds it")]
    Taken,
}

/// Every subnet of the pool is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of subnets: every /{len} from {min} to {max} is leased; widen Network, or raise SubnetLen")]
pub struct OutOfSubnets {
    /// `SubnetLen`.
    pub len: u8,
    /// `SubnetMin`.
    pub min: Ipv4Addr,
    /// `SubnetMax`.
    pub max: Ipv4Addr,
}

/// Chooses by upstream's rules: the first lease in the name of `public_ip` if it fits the pool, else
/// `previous` if it is free and fits, else one at random of the first 100 that are free. `held` is in the
/// order of the store's keys.
pub fn choose(
    pool: &PoolV4,
    public_ip: Ipv4Addr,
    previous: Option<Ipv4Network>,
    held: &[Held],
    rng: &mut impl Rng,
) -> Result<Choice, OutOfSubnets> {
    // IPv6-only nodes all publish 0.0.0.0, which therefore says nothing about whose a lease is.
    let ours = |held: &&Held| held.holder == Some(public_ip) && !public_ip.is_unspecified();
    let own = held.iter().find(ours).map(|held| held.subnet);
    if let Some(LeaseSubnet { v4: Some(v4), v6: None }) = own
        && pool.allows(v4)
    {
        return Ok(Choice { take: Take::Own(v4), release: None, previous_refused: None });
    }
    let taken = taken(held.iter().map(|held| held.subnet).filter(|subnet| Some(*subnet) != own));
    let previous_refused = match previous {
        None => None,
        Some(previous) if !pool.allows(previous) => Some(PreviousRefused::Incompatible),
        Some(previous) if overlaps(&taken, bounds(previous)) => Some(PreviousRefused::Taken),
        Some(previous) => {
            return Ok(Choice { take: Take::Previous(previous), release: own, previous_refused: None });
        }
    };
    let free = free(pool, &taken);
    let out = OutOfSubnets { len: pool.subnet_len, min: pool.subnet_min, max: pool.subnet_max };
    let subnet = free.choose(rng).ok_or(out)?;
    Ok(Choice { take: Take::Free(*subnet), release: own, previous_refused })
}

/// First and last address. 64 bit, so that the address after the last is a number too.
type Bounds = (u64, u64);

fn bounds(subnet: Ipv4Network) -> Bounds {
    (u32::from(subnet.network()).into(), u32::from(subnet.broadcast()).into())
}

/// What is taken, in order; a stretch that lies in one before it is left out, so that the ends ascend too.
fn taken(held: impl Iterator<Item = LeaseSubnet>) -> Vec<Bounds> {
    let mut all: Vec<Bounds> = held.filter_map(|subnet| subnet.v4).map(bounds).collect();
    all.sort_by_key(|&(first, last)| (first, std::cmp::Reverse(last)));
    let mut ascending: Vec<Bounds> = Vec::with_capacity(all.len());
    for stretch in all {
        if ascending.last().is_none_or(|&(_, last)| stretch.1 > last) {
            ascending.push(stretch);
        }
    }
    ascending
}

fn overlaps(taken: &[Bounds], (first, last): Bounds) -> bool {
    let next = taken.partition_point(|&(_, end)| end < first);
    taken.get(next).is_some_and(|&(start, _)| start <= last)
}

/// The first [`CANDIDATES`] free subnets from `SubnetMin` upward.
fn free(pool: &PoolV4, taken: &[Bounds]) -> Vec<Ipv4Network> {
    let size = 1u64 << (32 - pool.subnet_len.min(32));
    let max = u64::from(u32::from(pool.subnet_max));
    let mut free = Vec::new();
    let mut base = u64::from(u32::from(pool.subnet_min));
    let mut taken = taken.iter().copied().peekable();
    while base <= max && free.len() < CANDIDATES {
        match taken.peek() {
            Some(&(_, last)) if last < base => {
                taken.next();
            }
            // To the first base past what is taken: a large network held by one lease is one step.
            Some(&(first, last)) if first < base + size => base += (last - base) / size * size + size,
            _ => {
                let address = u32::try_from(base).ok().map(Ipv4Addr::from);
                free.extend(address.and_then(|a| Ipv4Network::new(a, pool.subnet_len).ok()));
                base += size;
            }
        }
    }
    free
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::config::NetworkConfig;

    const ME: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn pool(json: &str) -> PoolV4 {
        NetworkConfig::parse(json.as_bytes()).unwrap().ipv4.unwrap()
    }

    fn small() -> PoolV4 {
        pool(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0"}"#)
    }

    fn held(subnet: &str, holder: Ipv4Addr) -> Held {
        let subnet = LeaseSubnet { v4: Some(subnet.parse().unwrap()), v6: None };
        Held { subnet, holder: Some(holder) }
    }

    fn choose_with(pool: &PoolV4, previous: Option<&str>, held: &[Held]) -> Result<Choice, OutOfSubnets> {
        choose(pool, ME, previous.map(|p| p.parse().unwrap()), held, &mut SmallRng::seed_from_u64(7))
    }

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    #[test]
    fn own_lease_comes_first() {
        let leases = [held("10.3.5.0/24", PEER), held("10.3.6.0/24", ME), held("10.3.7.0/24", ME)];
        let choice = choose_with(&small(), Some("10.3.8.0/24"), &leases).unwrap();
        assert_eq!((choice.take, choice.release), (Take::Own(net("10.3.6.0/24")), None));
    }

    #[test]
    fn own_lease_that_does_not_fit_is_released() {
        for subnet in ["10.3.4.0/24", "10.3.9.0/24", "10.3.6.0/25", "10.4.6.0/24"] {
            let choice = choose_with(&small(), Some("10.3.8.0/24"), &[held(subnet, ME)]).unwrap();
            assert_eq!(choice.take, Take::Previous(net("10.3.8.0/24")));
            assert_eq!(choice.release, Some(held(subnet, ME).subnet));
        }
        let dual = LeaseSubnet { v4: Some(net("10.3.6.0/24")), v6: Some("fd00::/64".parse().unwrap()) };
        let choice = choose_with(&small(), Some("10.3.6.0/24"), &[Held { subnet: dual, holder: Some(ME) }]);
        assert_eq!(choice.unwrap().take, Take::Previous(net("10.3.6.0/24")));
    }

    #[test]
    fn previous_subnet_only_if_free_and_fitting() {
        let choice = choose_with(&small(), Some("10.4.0.0/24"), &[]).unwrap();
        assert_eq!(choice.previous_refused, Some(PreviousRefused::Incompatible));
        let choice = choose_with(&small(), Some("10.3.6.0/24"), &[held("10.3.6.128/25", PEER)]).unwrap();
        assert_eq!(choice.previous_refused, Some(PreviousRefused::Taken));
        assert!(matches!(choice.take, Take::Free(subnet) if subnet != net("10.3.6.0/24")));
    }

    #[test]
    fn a_lease_nobody_can_read_still_takes_its_subnet() {
        let taken = [Held { holder: None, ..held("10.3.5.0/24", PEER) }, held("10.3.6.0/23", PEER)];
        let choice = choose_with(&small(), Some("10.3.5.0/24"), &taken).unwrap();
        assert_eq!(choice.take, Take::Free(net("10.3.8.0/24")));
    }

    #[test]
    fn out_of_subnets() {
        let error = choose_with(&small(), None, &[held("10.3.0.0/17", PEER)]).unwrap_err().to_string();
        assert!(error.starts_with("out of subnets: every /24 from 10.3.5.0 to 10.3.8.0"), "{error}");
    }

    #[test]
    fn nobody_is_0_0_0_0() {
        let taken = [held("10.3.5.0/24", Ipv4Addr::UNSPECIFIED)];
        let mut rng = SmallRng::seed_from_u64(7);
        let choice = choose(&small(), Ipv4Addr::UNSPECIFIED, None, &taken, &mut rng).unwrap();
        assert!(matches!(choice.take, Take::Free(_)));
    }

    #[test]
    fn candidates_are_the_first_100() {
        let pool = pool(r#"{"Network":"10.0.0.0/8"}"#);
        let taken = taken([held("10.0.2.0/24", PEER).subnet].into_iter());
        let free = free(&pool, &taken);
        assert_eq!((free.len(), free[0], free[1]), (100, net("10.0.1.0/24"), net("10.0.3.0/24")));
        assert_eq!(free[99], net("10.0.101.0/24"));
    }

    #[test]
    fn large_and_full_pools_are_quick() {
        let pool = pool(r#"{"Network":"128.0.0.0/1","SubnetLen":30}"#);
        assert!(free(&pool, &[(0, u64::from(u32::MAX))]).is_empty());
        assert!(free(&pool, &[(1 << 31, u64::from(u32::MAX) - 4)]).len() == 1);
    }

    proptest! {
        #[test]
        fn never_overlaps_always_in_range_and_aligned(
            leases in proptest::collection::vec((any::<u16>(), 18u8..=30, any::<bool>()), 0..60),
            len in 18u8..=30, previous in proptest::option::of((any::<u16>(), 18u8..=30)), seed in any::<u64>(),
        ) {
            let within = |low: u16, len: u8| {
                let network = Ipv4Network::new((0x0a03_0000 | u32::from(low)).into(), len).unwrap();
                Ipv4Network::new(network.network(), len).unwrap()
            };
            let pool = pool(&format!(r#"{{"Network":"10.3.0.0/16","SubnetLen":{len}}}"#));
            let held: Vec<Held> = leases.iter().map(|&(low, len, mine)| Held {
                subnet: LeaseSubnet { v4: Some(within(low, len)), v6: None },
                holder: Some(if mine { ME } else { PEER }),
            }).collect();
            let previous = previous.map(|(low, len)| within(low, len));
            let Ok(choice) = choose(&pool, ME, previous, &held, &mut SmallRng::seed_from_u64(seed)) else {
                return Ok(());
            };
            let subnet = choice.take.subnet();
            prop_assert!(pool.allows(subnet));
            prop_assert_eq!(subnet.network(), subnet.ip());
            if !matches!(choice.take, Take::Own(_)) {
                for lease in held.iter().filter(|lease| Some(lease.subnet) != choice.release) {
                    prop_assert!(!lease.subnet.v4.unwrap().overlaps(subnet), "{:?} {}", lease, subnet);
                }
            }
        }

        #[test]
        fn nothing_free_is_missed(leases in proptest::collection::vec((any::<u8>(), 20u8..=28), 0..12)) {
            let pool = pool(r#"{"Network":"10.3.0.0/20","SubnetLen":24}"#);
            let subnets: Vec<Ipv4Network> = leases.iter().map(|&(low, len)| {
                let network = Ipv4Network::new((0x0a03_0000 | u32::from(low) << 4).into(), len).unwrap();
                Ipv4Network::new(network.network(), len).unwrap()
            }).collect();
            let held = subnets.iter().map(|v4| LeaseSubnet { v4: Some(*v4), v6: None });
            let expected: Vec<Ipv4Network> = (1..16u32)
                .map(|n| Ipv4Network::new((0x0a03_0000 + (n << 8)).into(), 24).unwrap())
                .filter(|subnet| !subnets.iter().any(|held| held.overlaps(*subnet)))
                .collect();
            prop_assert_eq!(free(&pool, &taken(held)), expected);
        }
    }
}
