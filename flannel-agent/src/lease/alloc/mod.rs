//! Which subnet a node takes. Pure: the store is asked before, and written after.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rand::{Rng, seq::IndexedRandom};

use self::free::{Range, Stretches};
use super::{LeaseAttrs, LeaseSubnet};
use crate::{
    config::NetworkConfig,
    values::{Family, Mac},
};

mod free;

/// As many free subnets as one is picked from. Picking at random keeps nodes that start together
/// from all trying the same one.
const CANDIDATES: usize = 100;

/// A subnet that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What is taken.
    pub subnet: LeaseSubnet,
    /// Who has it; `None` when its lease cannot be decoded.
    pub holder: Option<Holder>,
}

/// What tells one node from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its address on the underlay; `None` for a lease that names none.
    pub address: Option<IpAddr>,
    /// MAC of its VXLAN device, with that backend: the one for IPv4, if it has that.
    pub vtep_mac: Option<Mac>,
}

impl Holder {
    /// Who publishes these attributes.
    pub fn of(attrs: &LeaseAttrs) -> Self {
        let mac = |family| attrs.vxlan(family).ok().and_then(|data| data.vtep_mac);
        Self { address: attrs.node_address(), vtep_mac: mac(Family::V4).or_else(|| mac(Family::V6)) }
    }
}

/// What a node knows of itself besides what it publishes. An address can move to another node, and then the lease
/// that names it is still the first one's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The subnet that its subnet file names.
    pub previous: Option<LeaseSubnet>,
    /// Further addresses of its external interface that it might publish as well as the one it does.
    pub addresses: Vec<IpAddr>,
}

impl From<Option<LeaseSubnet>> for Identity {
    fn from(previous: Option<LeaseSubnet>) -> Self {
        Self { previous, addresses: Vec::new() }
    }
}

impl Identity {
    /// Whether the lease `held`, which names the address of `node`, is that node's own.
    ///
    /// A node that has nothing left but one address, as after a reboot with `/run` empty and the device gone, goes by
    /// that, as upstream's. One that has more to go by does not take over what its VXLAN device never had.
    fn owns(&self, node: Holder, held: &Held) -> bool {
        if self.was_ours(held.subnet) {
            return true;
        }
        match (node.vtep_mac, held.holder.and_then(|holder| holder.vtep_mac)) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                self.previous.is_none() && self.addresses.is_empty()
            }
            (Some(_), Some(_)) => true,
            _ => self.addresses.is_empty(),
        }
    }

    /// Whether `subnet` is the previous one, in some family.
    fn was_ours(&self, subnet: LeaseSubnet) -> bool {
        let same = |family| self.previous.and_then(|previous| previous.of(family)) == subnet.of(family);
        Family::BOTH.into_iter().any(|family| subnet.of(family).is_some() && same(family))
    }
}

/// What to do to get a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The subnet to take.
    pub subnet: LeaseSubnet,
    /// Why this one.
    pub why: Why,
    /// A lease in our own name that does not fit the configuration any more and has to go first.
    pub release: Option<LeaseSubnet>,
    /// What of the previous subnet is not taken, and why.
    pub refused: Vec<(IpNetwork, PreviousRefused)>,
    /// The lease of another node that names our address, if there is one.
    pub misnamed: Option<LeaseSubnet>,
}

/// Why a subnet is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The store says we hold it.
    Own,
    /// It was ours before, and the store says that our VXLAN device holds it at the address this node had then, or
    /// that another of our addresses does.
    Moved {
        /// That address.
        from: IpAddr,
    },
    /// We held it before, and nobody holds it now.
    Previous,
    /// It is free.
    Free,
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
#[error("out of subnets: every /{len} from {min} to {max} is leased; widen {network}, or raise {subnet_len}")]
pub struct OutOfSubnets {
    /// `SubnetLen`.
    pub len: u8,
    /// `SubnetMin`.
    pub min: IpAddr,
    /// `SubnetMax`.
    pub max: IpAddr,
    network: &'static str,
    subnet_len: &'static str,
}

/// Chooses by upstream's rules: the first lease in the name of `node` if it fits the configuration, else the
/// previous subnet if it is free and fits, else one at random of the first 100 that are free, each family for
/// itself. `held` is in the order of the store's keys.
///
/// Before all of these comes a previous subnet that the store holds for our own VXLAN device, or at another of our
/// addresses: a node whose address changed is still that node, and its pods keep their addresses. A lease that names
/// our address and is another node's ([`Identity`]) stays as it is.
pub fn choose(
    config: &NetworkConfig,
    node: Holder,
    identity: &Identity,
    held: &[Held],
    rng: &mut impl Rng,
) -> Result<Choice, OutOfSubnets> {
    let previous = identity.previous;
    let at_ours =
        |held: &&Held| node.address.is_some() && held.holder.and_then(|h| h.address) == node.address;
    let misnamed =
        held.iter().filter(at_ours).find(|held| !identity.owns(node, held)).map(|held| held.subnet);
    let settled = |subnet, why| Choice { subnet, why, release: None, refused: Vec::new(), misnamed };
    let before = held.iter().find(|held| Some(held.subnet) == previous && fits(config, held.subnet));
    if let Some(Held { subnet, holder: Some(before) }) = before
        && before.address != node.address
        && let Some(from) = before.address
        && ((node.vtep_mac.is_some() && before.vtep_mac == node.vtep_mac)
            || identity.addresses.contains(&from))
    {
        return Ok(settled(*subnet, Why::Moved { from }));
    }
    let ours = |held: &&Held| at_ours(held) && identity.owns(node, held);
    let ours_before = |held: &&Held| ours(held) && Some(held.subnet) == previous;
    let own = held.iter().find(ours_before).or_else(|| held.iter().find(ours)).map(|held| held.subnet);
    if let Some(own) = own
        && fits(config, own)
    {
        return Ok(settled(own, Why::Own));
    }
    let others = || held.iter().map(|held| held.subnet).filter(|subnet| Some(*subnet) != own);
    let mut choice = Choice {
        subnet: LeaseSubnet { v4: None, v6: None },
        why: Why::Previous,
        release: own,
        refused: Vec::new(),
        misnamed,
    };
    if let Some(pool) = &config.ipv4 {
        let taken = Stretches::new(others().filter_map(|subnet| subnet.v4).map(IpNetwork::from));
        let names = ("Network", "SubnetLen");
        let previous = previous.and_then(|previous| previous.v4).map(IpNetwork::from);
        let allowed = |net: IpNetwork| matches!(net, IpNetwork::V4(net) if pool.allows(net));
        let one = one(Range::v4(pool), names, previous, allowed, &taken, &mut choice, rng)?;
        choice.subnet.v4 = if let IpNetwork::V4(one) = one { Some(one) } else { None };
    }
    if let Some(pool) = &config.ipv6 {
        let taken = Stretches::new(others().filter_map(|subnet| subnet.v6).map(IpNetwork::from));
        let names = ("IPv6Network", "IPv6SubnetLen");
        let previous = previous.and_then(|previous| previous.v6).map(IpNetwork::from);
        let allowed = |net: IpNetwork| matches!(net, IpNetwork::V6(net) if pool.allows(net));
        let one = one(Range::v6(pool), names, previous, allowed, &taken, &mut choice, rng)?;
        choice.subnet.v6 = if let IpNetwork::V6(one) = one { Some(one) } else { None };
    }
    Ok(choice)
}

/// The subnet of one family: the previous one, or else one that is free.
fn one(
    range: Range,
    (network, subnet_len): (&'static str, &'static str),
    previous: Option<IpNetwork>,
    allowed: impl Fn(IpNetwork) -> bool,
    taken: &Stretches,
    choice: &mut Choice,
    rng: &mut impl Rng,
) -> Result<IpNetwork, OutOfSubnets> {
    match previous {
        None => {}
        Some(previous) if !allowed(previous) => {
            choice.refused.push((previous, PreviousRefused::Incompatible));
        }
        Some(previous) if taken.overlap(previous) => {
            choice.refused.push((previous, PreviousRefused::Taken));
        }
        Some(previous) => return Ok(previous),
    }
    choice.why = Why::Free;
    let (min, max) = range.limits();
    let out = OutOfSubnets { len: range.len(), min, max, network, subnet_len };
    range.free(taken, CANDIDATES).choose(rng).copied().ok_or(out)
}

/// Whether a node may hold `subnet`: the families of the configuration, each within its limits.
fn fits(config: &NetworkConfig, subnet: LeaseSubnet) -> bool {
    let v4 = match (&config.ipv4, subnet.v4) {
        (Some(pool), Some(v4)) => pool.allows(v4),
        (pool, v4) => pool.is_none() && v4.is_none(),
    };
    let v6 = match (&config.ipv6, subnet.v6) {
        (Some(pool), Some(v6)) => pool.allows(v6),
        (pool, v6) => pool.is_none() && v6.is_none(),
    };
    v4 && v6
}

#[cfg(test)]
mod tests;
