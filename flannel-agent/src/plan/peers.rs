//! Which leases are followed, and which of several that exclude each other.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::SystemTime,
};

use ipnetwork::IpNetwork;

use super::{Local, LocalStack, NextHops};
use crate::{
    backend::{self, Backend, PeerRoute, Skip},
    lease::{Lease, LeaseSubnet, Leases},
    values::{Family, Mac, overlap},
};

/// Another node, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its lease, which may be that of a peer in the other family, too.
    pub lease: LeaseSubnet,
    /// Its address on the underlay.
    pub public_ip: IpAddr,
    /// How packets get there.
    pub route: PeerRoute,
    /// MAC of its VXLAN device, if its lease names one, whichever route is used: no two peers have the same.
    pub mac: Option<Mac>,
    /// Whether this is the lease its public address is known by, should it hold several.
    pub foremost: bool,
}

/// The public addresses of all peers that may be followed: what the underlay must reach.
pub fn public_addresses(local: &Local, leases: &Leases) -> BTreeSet<IpAddr> {
    let leases = || leases.values().filter(|lease| local.backend.follows(&lease.attrs.backend_type));
    let mut addresses = BTreeSet::new();
    if local.stack(Family::V4).is_some() {
        let with_v4 = leases().filter(|lease| lease.subnet.v4.is_some());
        addresses.extend(with_v4.map(|lease| IpAddr::V4(lease.attrs.public_ip)));
    }
    if local.stack(Family::V6).is_some() {
        let with_v6 = leases().filter(|lease| lease.subnet.v6.is_some());
        addresses.extend(with_v6.filter_map(|lease| lease.attrs.public_ipv6).map(IpAddr::V6));
    }
    addresses
}

/// What [`peers`] concludes.
type Peers = (BTreeMap<IpNetwork, Peer>, BTreeMap<(LeaseSubnet, Family), Skip>);

/// The peers to reach, by pod subnet, and the leases that are not followed.
///
/// Subnets may lie within others, as after a change of `SubnetLen`: each address belongs to the longest prefix,
/// in the kernel as in the programs, so that a stray wide lease takes nothing from anybody.
///
/// Of leases that exclude each other (one MAC at two addresses; one first address) the one that ends last is
/// followed, because a node that moved leaves a lease behind that is no longer renewed; where their ends are the same or
/// not told, the older one, which a clone of its node is not to take the packets from; then the one of the smaller subnet,
/// then the lower. Each family is judged for itself.
///
/// Leases of one address do not exclude each other: that is one node, which is known by the one that ends last, or is the
/// newest.
///
/// With direct routing, a peer that the kernel's one route reaches without a gateway is reached without the
/// tunnel, as upstream decides. Which leases are followed does not depend on that, but for one that names no MAC: without
/// the tunnel none is needed.
pub fn peers(local: &Local, leases: &Leases, next_hops: &NextHops) -> Peers {
    let (mut peers, mut skipped) = Peers::default();
    let on_link = |public_ip: IpAddr| {
        local.direct_routing
            && matches!(next_hops.get(&public_ip), Some(Ok(hop)) if hop.is_on_link(public_ip))
    };
    if local.backend.follows_peers() {
        for (family, stack) in &local.stacks {
            let judge = |lease: &Lease| candidate(*family, stack, &*local.backend, lease, on_link);
            follow(*family, leases, judge, &mut peers, &mut skipped);
        }
        for peer in peers.values_mut() {
            peer.route = if on_link(peer.public_ip) { PeerRoute::Direct } else { peer.route };
        }
    }
    // Anew and in order: of a map that has grown in order, half of each node is empty.
    (peers.into_iter().collect(), skipped)
}

/// Adds the peers of one family.
fn follow(
    family: Family,
    leases: &Leases,
    judge: impl Fn(&Lease) -> Result<(IpNetwork, Candidate), Skip>,
    peers: &mut BTreeMap<IpNetwork, Peer>,
    skipped: &mut BTreeMap<(LeaseSubnet, Family), Skip>,
) {
    let mut candidates = Vec::new();
    for (key, lease) in leases {
        match judge(lease) {
            Ok((subnet, peer)) => candidates.push((Rank::of(lease, subnet), subnet, peer, (*key, family))),
            Err(skip) => {
                skipped.insert((*key, family), skip);
            }
        }
    }
    candidates.sort_by_key(|(rank, ..)| *rank);

    let mut macs = BTreeMap::<Mac, (IpAddr, IpNetwork)>::new();
    let mut bases = BTreeMap::<IpAddr, (IpAddr, Mac, IpNetwork)>::new();
    let mut foremost = BTreeMap::<IpAddr, (Rank, IpNetwork)>::new();
    for (rank, subnet, Candidate { public_ip, route }, key) in candidates {
        if peers.contains_key(&subnet) {
            skipped.insert(key, Skip::SameBase(subnet));
            continue;
        }
        if let Some(mac) = route.vtep_mac() {
            if let Some((owner, to, other)) = bases.get(&subnet.network())
                && (*owner, *to) != (public_ip, mac)
            {
                skipped.insert(key, Skip::SameBase(*other));
                continue;
            }
            let (owner, other) = *macs.entry(mac).or_insert((public_ip, subnet));
            if owner != public_ip {
                skipped.insert(key, Skip::SameMac { mac, other, owner });
                continue;
            }
            bases.insert(subnet.network(), (public_ip, mac, subnet));
        }
        let known_by = foremost.entry(public_ip).or_insert((rank, subnet));
        if rank.replaces(known_by.0) {
            if let Some(before) = peers.get_mut(&known_by.1) {
                before.foremost = false;
            }
            *known_by = (rank, subnet);
        }
        let foremost = known_by.1 == subnet;
        peers.insert(subnet, Peer { lease: key.0, public_ip, route, mac: route.vtep_mac(), foremost });
    }
}

/// How a lease compares with those that exclude it: the least is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// A reservation outlasts all.
    end: Reverse<(bool, Option<SystemTime>)>,
    /// One that the store does not date comes last.
    made: (bool, Option<u64>),
    length: Reverse<u8>,
    subnet: IpNetwork,
}

impl Rank {
    fn of(lease: &Lease, subnet: IpNetwork) -> Self {
        Self {
            end: Reverse((lease.expiration.is_none(), lease.expiration)),
            made: (lease.made.is_none(), lease.made),
            length: Reverse(subnet.prefix()),
            subnet,
        }
    }

    /// Whether a node that holds both is known by this lease, and not by the one of `other`, which comes before it.
    fn replaces(self, other: Self) -> bool {
        let ([(false, ours), (false, theirs)], true) = ([self.made, other.made], self.end == other.end)
        else {
            return false;
        };
        ours > theirs
    }
}

/// A peer that can be reached, unless another excludes it.
struct Candidate {
    public_ip: IpAddr,
    route: PeerRoute,
}

fn candidate(
    family: Family,
    stack: &LocalStack,
    backend: &dyn Backend,
    lease: &Lease,
    on_link: impl Fn(IpAddr) -> bool,
) -> Result<(IpNetwork, Candidate), Skip> {
    let subnet = lease.subnet.of(family).ok_or(Skip::NoSubnet(family))?;
    let attrs = &lease.attrs;
    let ours = backend.published();
    if !backend.follows(&attrs.backend_type) {
        return Err(Skip::OtherBackend { theirs: attrs.backend_type.clone(), ours });
    }
    let public_ip = attrs.address(family).ok_or(Skip::NoAddress(family))?;
    if !may_be_a_node(public_ip) {
        return Err(Skip::NoNode(public_ip));
    }
    if public_ip == stack.public_ip || public_ip == stack.address {
        return Err(Skip::OurAddress { public_ip, ours: stack.subnet });
    }
    let ours = [stack.subnet, stack.public_ip.into(), stack.address.into()];
    if let Some(covered) = ours.into_iter().find(|own| overlap(*own, subnet)) {
        return Err(Skip::CoversUs(covered));
    }
    let on_link = on_link(public_ip);
    let route = backend.judge(&backend::Candidate { family, attrs, public_ip, on_link })?;
    Ok((subnet, Candidate { public_ip, route }))
}

/// Whether packets can be sent to one node at `address`.
fn may_be_a_node(address: IpAddr) -> bool {
    match address {
        // 0.0.0.0/8 is this host's, 240.0.0.0/4 nobody's (RFC 6890).
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_multicast() || matches!(v4.octets()[0], 0 | 240..)),
        // An IPv4 address in IPv6 text is on no wire (RFC 4291, 2.5.5.2).
        IpAddr::V6(v6) => {
            let strange = v6.is_loopback() || v6.is_multicast() || v6.is_unspecified();
            !strange && v6.to_ipv4_mapped().is_none()
        }
    }
}
