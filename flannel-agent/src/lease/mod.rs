//! Leases: which node holds which pod subnet.

use std::{collections::BTreeMap, fmt, future::Future, sync::Arc, time::SystemTime};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::values::{Family, overlap};
pub use config_report::BadConfig;
pub use mending::Mended;
pub use store::{Heard, KeptLease, LeaseEnd, LeaseStore, Notice, OwnedLease, ThisNode, Unkept, Unusable};
pub use wire::LeaseAttrs;

pub mod alloc;
mod backoff;
mod config_report;
pub mod etcd;
pub mod file;
pub mod kubernetes;
mod mending;
mod store;
pub mod wire;

/// The subnets one lease covers; at least one family is present. Ordered as keys in etcd are: by IPv4, then IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseSubnet {
    /// Pod subnet, host bits zero. Absent in an IPv6-only lease.
    pub v4: Option<Ipv4Network>,
    /// IPv6 pod subnet, host bits zero.
    pub v6: Option<Ipv6Network>,
}

impl LeaseSubnet {
    /// The subnet of one family.
    pub fn of(&self, family: Family) -> Option<IpNetwork> {
        match family {
            Family::V4 => self.v4.map(IpNetwork::V4),
            Family::V6 => self.v6.map(IpNetwork::V6),
        }
    }

    /// Whether an address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        Family::BOTH.iter().any(|family| match (self.of(*family), other.of(*family)) {
            (Some(a), Some(b)) => overlap(a, b),
            _ => false,
        })
    }
}

impl fmt::Display for LeaseSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4}&{v6}"),
            (Some(v4), None) => v4.fmt(f),
            (None, Some(v6)) => v6.fmt(f),
            (None, None) => f.write_str("none"),
        }
    }
}

/// A subnet and the node that holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// What is leased.
    pub subnet: LeaseSubnet,
    /// Who holds it, and how packets reach it.
    pub attrs: LeaseAttrs,
    /// When it ends unless renewed; `None` for a reservation, which has no end, and where the store is not
    /// asked: in etcd it would cost a request per peer, and nothing depends on it.
    pub expiration: Option<SystemTime>,
    /// When it was made, as the store counts: of two leases the one with the smaller number is older. `None` where that is
    /// not told.
    pub made: Option<u64>,
    /// The name of the node, where the store has one.
    pub node: Option<Arc<str>>,
}

/// What a [`LeaseSource`] reports. Never contains our own lease.
#[derive(Clone, Debug, PartialEq)]
pub enum LeaseEvent {
    /// All leases there are: whatever is absent is gone.
    Snapshot(Vec<Lease>),
    /// A lease that is new, renewed or changed.
    Upsert(Lease),
    /// A lease that ended.
    Remove(LeaseSubnet),
}

impl LeaseEvent {
    /// The one lease this is about, if it is about one.
    pub fn subnet(&self) -> Option<LeaseSubnet> {
        match self {
            Self::Snapshot(_) => None,
            Self::Upsert(lease) => Some(lease.subnet),
            Self::Remove(subnet) => Some(*subnet),
        }
    }
}

/// The leases of all peers, by subnet.
pub type Leases = BTreeMap<LeaseSubnet, Lease>;

/// Brings `leases` up to date with `event`; says whether anything but an expiration changed.
pub fn apply(leases: &mut Leases, event: LeaseEvent) -> bool {
    match event {
        LeaseEvent::Snapshot(all) => {
            let new: Leases = all.into_iter().map(|lease| (lease.subnet, lease)).collect();
            let same = leases.len() == new.len()
                && leases.iter().zip(&new).all(|((a, x), (b, y))| a == b && says_the_same(x, y));
            *leases = new;
            !same
        }
        LeaseEvent::Upsert(lease) => {
            let same = leases.get(&lease.subnet).is_some_and(|old| says_the_same(old, &lease));
            leases.insert(lease.subnet, lease);
            !same
        }
        LeaseEvent::Remove(subnet) => leases.remove(&subnet).is_some(),
    }
}

/// Whether both differ in nothing that is acted on.
fn says_the_same(a: &Lease, b: &Lease) -> bool {
    (&a.attrs, a.made) == (&b.attrs, b.made)
}

/// A store of leases, watched. It survives its server: it resumes where it was, and after a gap it
/// cannot resume over (etcd compaction) it sends a [`LeaseEvent::Snapshot`].
pub trait LeaseSource: Send {
    /// Waits for the next event. The first is always a `Snapshot`. Never fails: errors are logged and
    /// retried with backoff inside. Cancel safe.
    fn next(&mut self) -> impl Future<Output = LeaseEvent> + Send;
}

/// The leases of the peers, unless they are nothing to us.
#[derive(Debug)]
pub enum Peers<S> {
    /// As the store tells them.
    Watched(S),
    /// There are none to know of: of a backend that does nothing about them.
    Unwatched(Unwatched),
}

/// An empty source.
#[derive(Debug, Default)]
pub struct Unwatched {
    told: bool,
}

impl<S: LeaseSource> LeaseSource for Peers<S> {
    async fn next(&mut self) -> LeaseEvent {
        match self {
            Self::Watched(source) => source.next().await,
            Self::Unwatched(Unwatched { told: false }) => {
                *self = Self::Unwatched(Unwatched { told: true });
                LeaseEvent::Snapshot(Vec::new())
            }
            Self::Unwatched(Unwatched { told: true }) => std::future::pending().await,
        }
    }
}
