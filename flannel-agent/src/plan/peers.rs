//! Which leases are followed, and which of several that exclude each other.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::SystemTime,
};

use ipnetwork::Ipv4Network;

use super::{Backend, Local, NextHops};
use crate::{
    gojson::shorten,
    lease::{Lease, LeaseSubnet, Leases},
    mac::Mac,
};

/// Another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address on the underlay.
    pub public_ip: Ipv4Addr,
    /// How packets get there.
    pub way: Way,
    /// MAC of its VXLAN device, if its lease names one, whichever way is taken: no two peers have the same.
    pub mac: Option<Mac>,
    /// Whether this is the lease its public address is known by, should it hold several.
    pub foremost: bool,
}

/// How packets reach a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through the tunnel, to the VXLAN device of this MAC.
    Vxlan(Mac),
    /// By a route to its address, which is on our link.
    Direct,
}

impl Way {
    /// MAC of the peer's VXLAN device, where one is used.
    pub fn vtep_mac(self) -> Option<Mac> {
        match self {
            Self::Vxlan(mac) => Some(mac),
            Self::Direct => None,
        }
    }
}

/// Why a lease is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// It says nothing about IPv4.
    #[error("it has no IPv4 subnet")]
    NoIpv4,
    /// Another kind of network.
    #[error("its backend is \"{}\", ours is \"{ours}\"", shorten(theirs, 40))]
    OtherBackend {
        /// `BackendType` of the lease.
        theirs: String,
        /// That of ours.
        ours: &'static str,
    },
    /// Its `BackendData` cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// Its `BackendData` names no MAC that one device could have.
    #[error("BackendData.VtepMAC: {} instead of the MAC of a device", .0.map_or("absent".to_owned(), |mac| mac.to_string()))]
    NoMac(Option<Mac>),
    /// Its `PublicIP` can be no node's.
    #[error("PublicIP: expected the address of a node, found {0}")]
    NoNode(Ipv4Addr),
    /// It publishes our address.
    #[error("its PublicIP {0} is our own")]
    OurAddress(Ipv4Addr),
    /// Its subnet takes in ours, part of it, or the addresses the tunnel itself needs.
    #[error("its subnet covers {0}, which is ours")]
    CoversUs(Ipv4Network),
    /// Its subnet begins where that of another does, which is the smaller one, or the same with another IPv6
    /// subnet: the tunnel has one neighbour of that address.
    #[error("its subnet begins with the same address as {0}, which is followed")]
    SameBase(Ipv4Network),
    /// Another node publishes the same MAC.
    #[error("its VtepMAC {mac} is also that of {other}, which is followed")]
    SameMac {
        /// The MAC.
        mac: Mac,
        /// The lease that is followed.
        other: Ipv4Network,
    },
}

impl Skip {
    /// Whether someone should look into it. Nodes of other kinds are nobody's fault.
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::NoIpv4 | Self::OtherBackend { .. })
    }
}

/// The public addresses of all peers that may be followed: what the underlay must reach.
pub fn public_addresses(local: &Local, leases: &Leases) -> BTreeSet<Ipv4Addr> {
    leases
        .values()
        .filter(|lease| lease.attrs.backend_type == local.backend.kind())
        .map(|lease| lease.attrs.public_ip)
        .collect()
}

/// The peers to reach, by pod subnet, and the leases that are not followed.
///
/// Subnets may lie within others, as after a change of `SubnetLen`: each address belongs to the longest prefix,
/// in the kernel as in the programs, so that a stray wide lease takes nothing from anybody.
///
/// Of leases that exclude each other (one MAC at two addresses; one first address) the one that ends last is
/// followed, because a node that moved leaves a lease behind that is no longer renewed; then the smaller subnet,
/// then the lower.
///
/// Where both ways are in use, a peer that the kernel's one route reaches without a gateway is reached without the
/// tunnel, as upstream decides. Which leases are followed does not depend on that.
pub fn peers(
    local: &Local,
    leases: &Leases,
    next_hops: &NextHops,
) -> (BTreeMap<Ipv4Network, Peer>, BTreeMap<LeaseSubnet, Skip>) {
    if local.backend == Backend::Alloc {
        return (BTreeMap::new(), BTreeMap::new());
    }
    let mut skipped = BTreeMap::new();
    let mut candidates = Vec::new();
    for (key, lease) in leases {
        match candidate(local, lease) {
            Ok((subnet, way)) => candidates.push((Reverse(end(lease)), subnet, way, *key, lease)),
            Err(skip) => {
                skipped.insert(*key, skip);
            }
        }
    }
    candidates.sort_by_key(|(end, subnet, ..)| (*end, Reverse(subnet.prefix()), *subnet));

    let mut peers = BTreeMap::<Ipv4Network, Peer>::new();
    let mut macs = BTreeMap::<Mac, (Ipv4Addr, Ipv4Network)>::new();
    let mut bases = BTreeMap::<Ipv4Addr, (Ipv4Addr, Mac, Ipv4Network)>::new();
    let mut addresses = BTreeSet::new();
    for (_, subnet, way, key, lease) in candidates {
        let public_ip = lease.attrs.public_ip;
        if peers.contains_key(&subnet) {
            skipped.insert(key, Skip::SameBase(subnet));
            continue;
        }
        if let Some(mac) = way.vtep_mac() {
            if let Some((owner, to, other)) = bases.get(&subnet.network())
                && (*owner, *to) != (public_ip, mac)
            {
                skipped.insert(key, Skip::SameBase(*other));
                continue;
            }
            let (owner, other) = *macs.entry(mac).or_insert((public_ip, subnet));
            if owner != public_ip {
                skipped.insert(key, Skip::SameMac { mac, other });
                continue;
            }
            bases.insert(subnet.network(), (public_ip, mac, subnet));
        }
        let on_link = matches!(next_hops.get(&public_ip), Some(Ok(hop)) if hop.is_on_link(public_ip));
        let mac = way.vtep_mac();
        let way = if local.direct_routing && on_link { Way::Direct } else { way };
        peers.insert(subnet, Peer { public_ip, way, mac, foremost: addresses.insert(public_ip) });
    }
    (peers, skipped)
}

/// The end of a lease, for comparison: a reservation outlasts all.
fn end(lease: &Lease) -> (bool, Option<SystemTime>) {
    (lease.expiration.is_none(), lease.expiration)
}

fn candidate(local: &Local, lease: &Lease) -> Result<(Ipv4Network, Way), Skip> {
    let subnet = lease.subnet.v4.ok_or(Skip::NoIpv4)?;
    let attrs = &lease.attrs;
    let ours = local.backend.kind();
    if attrs.backend_type != ours {
        return Err(Skip::OtherBackend { theirs: attrs.backend_type.clone(), ours });
    }
    if !may_be_a_node(attrs.public_ip) {
        return Err(Skip::NoNode(attrs.public_ip));
    }
    let address = local.underlay.address;
    if attrs.public_ip == local.public_ip || attrs.public_ip == address {
        return Err(Skip::OurAddress(attrs.public_ip));
    }
    let ours = [local.subnet, local.public_ip.into(), address.into()];
    if let Some(covered) = ours.into_iter().find(|own| own.overlaps(subnet)) {
        return Err(Skip::CoversUs(covered));
    }
    if local.backend == Backend::HostGw {
        return Ok((subnet, Way::Direct));
    }
    let data = attrs.vxlan().map_err(|error| Skip::Unreadable(error.to_string()))?;
    let mac = data.vtep_mac.filter(|mac| mac.0 != [0; 6] && mac.0[0] & 1 == 0);
    Ok((subnet, Way::Vxlan(mac.ok_or(Skip::NoMac(data.vtep_mac))?)))
}

/// Whether packets can be sent to one node at `address`.
fn may_be_a_node(address: Ipv4Addr) -> bool {
    // 0.0.0.0/8 is this host's, 240.0.0.0/4 nobody's (RFC 6890).
    !(address.is_loopback() || address.is_multicast() || matches!(address.octets()[0], 0 | 240..))
}
